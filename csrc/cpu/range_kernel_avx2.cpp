#define PROXADAM_CPU_CAPABILITY avx2
#include "range_kernel.h"
