// The CUDA kernels for float16 parameters that round by chance, and for codes beside them.

#define PROXADAM_PARAM_T float16
#include "chance_instances.h"
