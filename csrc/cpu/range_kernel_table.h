// The CPU loop as its callers see it: a function for each dtype and option, in each instruction
// set that was compiled in.

#pragma once

#include <stdint.h>  // for int64_t

#include "../prox_adam.h"     // for Update, StepConstants
#include "../scalar_types.h"  // for TensorTypes

namespace proxadam {

// Elements [begin, end) of a dense tensor and of its gradient and state.
struct RangeArguments {
  void* param;
  void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  void* max_exp_avg_sq;
  const StepConstants<double>* constants;
  int64_t begin;
  int64_t end;
};
using RangeKernel = void (*)(const RangeArguments&);

struct RangeKernelKey {
  TensorTypes types;
  Update update;
  bool amsgrad;
  bool unscale;  // divide the gradients by grad_scale, and write them back
};

namespace baseline {
RangeKernel range_kernel(const RangeKernelKey& key);
}
namespace avx2 {
RangeKernel range_kernel(const RangeKernelKey& key);
}
namespace avx512 {
RangeKernel range_kernel(const RangeKernelKey& key);
}

}  // namespace proxadam
