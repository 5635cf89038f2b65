#define PROXADAM_CPU_CAPABILITY avx512
#include "range_kernel.h"
