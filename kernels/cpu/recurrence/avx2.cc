#include "kernels/cpu/simd/avx2.h"
// The vectors come first.
#include "kernels/cpu/recurrence/generic.h"
