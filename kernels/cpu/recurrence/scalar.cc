#include "kernels/cpu/simd/portable.h"
// The vectors come first.
#include "kernels/cpu/recurrence/generic.h"
