#include "kernels/cpu/qgemm/dot_avx512vnni.h"
// The vectors come first.
#include "kernels/cpu/qattention/generic.h"
