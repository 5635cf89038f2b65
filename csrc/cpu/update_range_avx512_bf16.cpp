// The CPU loop for processors with AVX512-BF16, which rounds to bfloat16: CMakeLists.txt has the
// compiler's flags.

#define PROXADAM_CPU_CAPABILITY avx512_bf16
#include "count_scores.h"
#include "update_range.h"
