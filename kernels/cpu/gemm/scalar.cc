#include "kernels/cpu/gemm/integers_portable.h"
// The vectors come first.
#include "kernels/cpu/gemm/generic.h"
