// The CUDA kernels for rows of float16 parameters.

#define PROXADAM_PARAM_T float16
#include "row_instances.h"
