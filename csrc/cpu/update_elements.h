// The CPU loop over elements in the type of computation.

#pragma once

#include "../prox_adam.h"
#include "codec.h"
#include "ladder.h"

namespace proxadam {
namespace PROXADAM_CPU_CAPABILITY {
namespace {

// Exact, with the bound of 1 / d out of the compiler's sight: with a literal GCC compares and
// blends where a minimum would do.
template <typename opmath_t>
struct Bounded : Exact {
  opmath_t largest_inverse = 1 / smallest_normal(opmath_t(0));
};
template <typename opmath_t>
PROXADAM_INLINE opmath_t reciprocal(Bounded<opmath_t>& math, opmath_t d) {
  const opmath_t inverse = 1 / d;
  return inverse > math.largest_inverse ? math.largest_inverse : inverse;
}

// Updates moments and writes denominators, at most kTile.
template <typename opmath_t, bool amsgrad, bool unscale>
PROXADAM_INLINE void update_denoms(const StepConstants<opmath_t>& c, Bounded<opmath_t> math,
                                   const opmath_t* __restrict params, opmath_t* __restrict grads,
                                   opmath_t* __restrict exp_avgs, opmath_t* __restrict exp_avg_sqs,
                                   opmath_t* __restrict max_exp_avg_sqs,
                                   opmath_t* __restrict denoms, int64_t numel) {
  for (int64_t i = 0; i < numel; ++i) {
    if (unscale) grads[i] = grads[i] / c.grad_scale;
    opmath_t max_exp_avg_sq = amsgrad ? max_exp_avg_sqs[i] : opmath_t(0);
    denoms[i] = update_moments<amsgrad>(math, c, grads[i], params[i], exp_avgs[i], exp_avg_sqs[i],
                                        max_exp_avg_sq);
    if (amsgrad) max_exp_avg_sqs[i] = max_exp_avg_sq;
  }
}

// The loop that everything else is there for, over at most kTile elements. It knows one type:
// codecs do the rest. It runs twice, over denominators and over what they divide: by the second
// time these are known, where one loop would fill the processor's queues with what waits for a
// root.
template <typename opmath_t, Update update, bool amsgrad, bool unscale>
PROXADAM_INLINE void update_elements(const StepConstants<opmath_t>& c, Bounded<opmath_t> math,
                                     opmath_t* __restrict params, opmath_t* __restrict grads,
                                     opmath_t* __restrict exp_avgs,
                                     opmath_t* __restrict exp_avg_sqs,
                                     opmath_t* __restrict max_exp_avg_sqs, int64_t numel) {
  alignas(64) opmath_t denoms[kTile];
  update_denoms<opmath_t, amsgrad, unscale>(c, math, params, grads, exp_avgs, exp_avg_sqs,
                                            max_exp_avg_sqs, denoms, numel);
  for (int64_t i = 0; i < numel; ++i) {
    update_param<update>(math, c, exp_avgs[i], denoms[i], params[i]);
  }
}

template <typename opmath_t>
auto loop_for(Update update, bool amsgrad, bool unscale) {
  return with_update(update, [&](auto taken) {
    return with_flags(amsgrad, unscale, [](auto with_amsgrad, auto with_unscale) {
      return &update_elements<opmath_t, decltype(taken)::value, decltype(with_amsgrad)::value,
                              decltype(with_unscale)::value>;
    });
  });
}

}  // namespace
}  // namespace PROXADAM_CPU_CAPABILITY
}  // namespace proxadam
