// The CUDA kernels for rows of bfloat16 parameters.

#define PROXADAM_PARAM_T bfloat16
#include "row_instances.h"
