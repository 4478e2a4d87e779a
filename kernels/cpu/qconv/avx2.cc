#include "kernels/cpu/qconv/quads_avx2.h"
// The vectors come first.
#include "kernels/cpu/qconv/generic.h"
