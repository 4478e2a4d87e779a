#include "kernels/cpu/qconv/quads_portable.h"
// The vectors come first.
#include "kernels/cpu/qconv/generic.h"
