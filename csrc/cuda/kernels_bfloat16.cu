// The CUDA kernels for bfloat16 parameters.

#define PROXADAM_PARAM_T bfloat16
#include "kernel_instances.h"
