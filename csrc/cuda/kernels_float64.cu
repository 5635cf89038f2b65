#define PROXADAM_PARAM_T double
#include "kernel_instances.h"
