// The CUDA kernels for float64 parameters.

#define PROXADAM_PARAM_T double
#include "kernel_instances.h"
