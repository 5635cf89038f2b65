// The CPU loop for every processor: its flags are those of the module.

#define PROXADAM_CPU_CAPABILITY baseline
#include "count_scores.h"
#include "update_range.h"
