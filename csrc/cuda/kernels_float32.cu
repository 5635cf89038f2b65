#define PROXADAM_PARAM_T float
#include "kernel_instances.h"
