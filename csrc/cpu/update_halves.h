// The CPU loop over tensors of one 16-bit format, with the conversions inside.

#pragma once

#include "../prox_adam.h"
#include "../scalar_types.h"
#include "codec.h"
#include "ladder.h"
#include "range.h"
#include "update_elements.h"

namespace proxadam {
namespace PROXADAM_CPU_CAPABILITY {
namespace {

#if defined(PROXADAM_VECTORS)

// Returns the first element that is left.
template <typename scalar_t, Update update>
int64_t halves_loop(const Range& range, Bounded<float> math) {
  const StepConstants<float> c = *range.constants;  // a copy, which no store can change
  scalar_t* const params = static_cast<scalar_t*>(range.buffers.param);
  const scalar_t* const grads = static_cast<const scalar_t*>(range.buffers.grad);
  scalar_t* const exp_avgs = static_cast<scalar_t*>(range.buffers.exp_avg);
  scalar_t* const exp_avg_sqs = static_cast<scalar_t*>(range.buffers.exp_avg_sq);
  int64_t begin = range.begin;
  for (; begin + kFew <= range.end; begin += kFew) {
    alignas(64) float param[kFew], grad[kFew], exp_avg[kFew], exp_avg_sq[kFew];
    for (int64_t i = 0; i < kFew; i += kFloats) {
      widen_vector(params + begin + i, param + i);
      widen_vector(grads + begin + i, grad + i);
      widen_vector(exp_avgs + begin + i, exp_avg + i);
      widen_vector(exp_avg_sqs + begin + i, exp_avg_sq + i);
    }
    update_elements<float, update, false, false>(c, math, param, grad, exp_avg, exp_avg_sq, nullptr,
                                                 kFew);
    for (int64_t i = 0; i < kFew; i += kHalves) {
      if (update != Update::kFrozen) {
        narrow_vectors(param + i, params + begin + i, has_prox(update));
      }
      narrow_vectors(exp_avg + i, exp_avgs + begin + i, false);
      narrow_vectors(exp_avg_sq + i, exp_avg_sqs + begin + i, false);
    }
  }
  return begin;
}

template <typename scalar_t>
auto halves_loop_for(Update update) {
  return with_update(update,
                     [](auto taken) { return &halves_loop<scalar_t, decltype(taken)::value>; });
}

#endif

// Updates what it can of a range, and returns the first element that is left: nothing is done
// unless parameter, gradient and moments are stored alike, and neither amsgrad, AMP nor chance is
// at work.
PROXADAM_INLINE int64_t update_halves(const Range& range) {
#if defined(PROXADAM_VECTORS)
  const TensorTypes& types = range.types;
  const bool alike = types.param == types.grad && types.param == types.state;
  const bool by_chance = range.stochastic.state || range.stochastic.param;
  if (alike && !range.buffers.max_exp_avg_sq && !range.unscale && !by_chance) {
    if (types.param == ScalarType::kBFloat16) {
      return halves_loop_for<bfloat16>(range.update)(range, {});
    }
    if (types.param == ScalarType::kFloat16) {
      return halves_loop_for<float16>(range.update)(range, {});
    }
  }
#endif
  return range.begin;
}

}  // namespace
}  // namespace PROXADAM_CPU_CAPABILITY
}  // namespace proxadam
