// The CUDA kernels for float16 parameters.

#define PROXADAM_PARAM_T float16
#include "kernel_instances.h"
