// The CUDA kernels for rows of float64 parameters.

#define PROXADAM_PARAM_T double
#include "row_instances.h"
