#include "kernels/cpu/gemm/integers_avx2.h"
// The vectors come first.
#include "kernels/cpu/gemm/generic.h"
