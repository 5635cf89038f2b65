// The CPU loop for every processor that the module runs on: CMakeLists.txt gives the compiler's
// flags.

#define PROXADAM_CPU_CAPABILITY baseline
#include "update_range.h"
