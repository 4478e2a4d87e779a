#include "kernels/cpu/qgemm/dot_portable.h"
// The vectors come first.
#include "kernels/cpu/qgemm/generic.h"
