// The CUDA kernels for float32 parameters that round by chance, and for codes beside them.

#define PROXADAM_PARAM_T float
#include "chance_instances.h"
