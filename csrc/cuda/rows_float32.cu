// The CUDA kernels for rows of float32 parameters.

#define PROXADAM_PARAM_T float
#include "row_instances.h"
