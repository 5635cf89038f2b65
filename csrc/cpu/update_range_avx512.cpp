// The CPU loop for processors with AVX-512: CMakeLists.txt has the compiler's flags.

#define PROXADAM_CPU_CAPABILITY avx512
#include "count_scores.h"
#include "update_range.h"
