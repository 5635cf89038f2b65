#define PROXADAM_PARAM_T float16
#include "kernel_instances.h"
