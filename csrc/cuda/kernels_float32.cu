// The CUDA kernels for float32 parameters.

#define PROXADAM_PARAM_T float
#include "kernel_instances.h"
