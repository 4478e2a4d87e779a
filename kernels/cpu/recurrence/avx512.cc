#include "kernels/cpu/simd/avx512.h"
// The vectors come first.
#include "kernels/cpu/recurrence/generic.h"
