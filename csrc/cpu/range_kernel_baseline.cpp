#define PROXADAM_CPU_CAPABILITY baseline
#include "range_kernel.h"
