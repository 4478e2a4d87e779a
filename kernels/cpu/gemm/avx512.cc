#include "kernels/cpu/gemm/integers_avx512.h"
// The vectors come first.
#include "kernels/cpu/gemm/generic.h"
