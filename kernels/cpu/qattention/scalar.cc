#include "kernels/cpu/qgemm/dot_portable.h"
// The vectors come first.
#include "kernels/cpu/qattention/generic.h"
