// The CPU loop for processors with AVX-512 that round to bfloat16 in one instruction: CMakeLists.txt
// has the compiler's flags.

#define PROXADAM_CPU_CAPABILITY avx512_bf16
#include "update_range.h"
