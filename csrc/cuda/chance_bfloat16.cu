// The CUDA kernels for bfloat16 parameters that round by chance, and for codes beside them.

#define PROXADAM_PARAM_T bfloat16
#include "chance_instances.h"
