// The CPU loop for processors with AVX2 and F16C: CMakeLists.txt has the compiler's flags.

#define PROXADAM_CPU_CAPABILITY avx2
#include "count_scores.h"
#include "update_range.h"
