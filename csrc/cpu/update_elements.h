// The CPU loop over elements in the type of computation.

#pragma once

#include "../prox_adam.h"

namespace proxadam {
namespace PROXADAM_CPU_CAPABILITY {
namespace {

// Exact, with the bound of 1 / d out of the compiler's sight: with a literal GCC compares and blends
// where a minimum would do.
template <typename opmath_t>
struct Bounded : Exact {
  opmath_t largest_inverse = 1 / smallest_normal(opmath_t(0));
};
template <typename opmath_t>
PROXADAM_INLINE opmath_t reciprocal(Bounded<opmath_t>& math, opmath_t d) {
  const opmath_t inverse = 1 / d;
  return inverse > math.largest_inverse ? math.largest_inverse : inverse;
}

// The loop that everything else is there for. It knows one type: codecs do the rest.
template <typename opmath_t, Update update, bool amsgrad, bool unscale>
PROXADAM_INLINE void update_elements(const StepConstants<opmath_t>& c, Bounded<opmath_t> math,
                                     opmath_t* __restrict params, opmath_t* __restrict grads,
                                     opmath_t* __restrict exp_avgs,
                                     opmath_t* __restrict exp_avg_sqs,
                                     opmath_t* __restrict max_exp_avg_sqs, int64_t numel) {
  for (int64_t i = 0; i < numel; ++i) {
    if (unscale) grads[i] = grads[i] / c.grad_scale;
    opmath_t max_exp_avg_sq = amsgrad ? max_exp_avg_sqs[i] : opmath_t(0);
    prox_adam_update<update, amsgrad>(math, c, grads[i], params[i], exp_avgs[i], exp_avg_sqs[i],
                                      max_exp_avg_sq);
    if (amsgrad) max_exp_avg_sqs[i] = max_exp_avg_sq;
  }
}

}  // namespace
}  // namespace PROXADAM_CPU_CAPABILITY
}  // namespace proxadam
