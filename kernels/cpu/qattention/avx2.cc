#include "kernels/cpu/qgemm/dot_avx2.h"
// The vectors come first.
#include "kernels/cpu/qattention/generic.h"
