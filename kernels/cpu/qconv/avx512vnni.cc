#include "kernels/cpu/qconv/quads_avx512vnni.h"
// The vectors come first.
#include "kernels/cpu/qconv/generic.h"
