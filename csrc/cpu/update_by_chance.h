// The CPU loop over tensors whose moments or parameters are rounded by chance, with the conversions
// inside.

#pragma once

#include "../codes.h"
#include "../prox_adam.h"
#include "../rounding.h"
#include "../scalar_types.h"
#include "codec.h"
#include "range.h"
#include "update_elements.h"

namespace proxadam {
namespace PROXADAM_CPU_CAPABILITY {
namespace {

using Loop = decltype(&update_elements<float, Update::kAdam, false, false>);

#if defined(PROXADAM_VECTORS)

// As many elements in float32: where they are, or a copy of them.
template <int numel, typename scalar_t>
PROXADAM_INLINE float* load_few(scalar_t* from, [[maybe_unused]] float* copy) {
  if constexpr (kScalarType<scalar_t> == ScalarType::kFloat32) {
    return from;
  } else {
    for (int i = 0; i < numel; i += kFloats) widen_vector(from + i, copy + i);
    return copy;
  }
}

// Float32 has been worked on where it is.
template <int numel, typename scalar_t>
PROXADAM_INLINE void store_few([[maybe_unused]] const float* from, [[maybe_unused]] scalar_t* to,
                               [[maybe_unused]] Rounding how) {
  if constexpr (kScalarType<scalar_t> != ScalarType::kFloat32) {
    for (int i = 0; i < numel; i += kHalves) narrow_vectors(from + i, to + i, how, i);
  }
}

// The moments of a parameter, so many at a time.
template <typename state_t>
struct Moments {
  static constexpr int kNumel = kFew;

  state_t* exp_avgs;
  state_t* exp_avg_sqs;
  alignas(64) float copies[2][kNumel];

  explicit Moments(const Range& range)
      : exp_avgs(static_cast<state_t*>(range.buffers.exp_avg)),
        exp_avg_sqs(static_cast<state_t*>(range.buffers.exp_avg_sq)) {}

  void load(int64_t begin, float* (&moments)[2]) {
    moments[0] = load_few<kNumel>(exp_avgs + begin, copies[0]);
    moments[1] = load_few<kNumel>(exp_avg_sqs + begin, copies[1]);
  }
  void store(int64_t begin, const uint32_t* draws) {
    store_few<kNumel>(copies[0], exp_avgs + begin, {false, draws, shift_of(Moment::kFirst)});
    store_few<kNumel>(copies[1], exp_avg_sqs + begin, {false, draws, shift_of(Moment::kSecond)});
  }
};

template <>
struct Moments<code8> {
  static constexpr int kNumel = kBlock;

  uint8_t* exp_avgs;
  uint8_t* exp_avg_sqs;
  Exponents exponents;
  alignas(64) float copies[2][kNumel];

  explicit Moments(const Range& range)
      : exp_avgs(static_cast<uint8_t*>(range.buffers.exp_avg)),
        exp_avg_sqs(static_cast<uint8_t*>(range.buffers.exp_avg_sq)),
        exponents(range.exponents) {}

  void load(int64_t begin, float* (&moments)[2]) {
    const int64_t i = begin / kBlock;
    load_block<Moment::kFirst>(exp_avgs + begin, kBlock, exponents.exp_avg[i], copies[0]);
    load_block<Moment::kSecond>(exp_avg_sqs + begin, kBlock, exponents.exp_avg_sq[i], copies[1]);
    moments[0] = copies[0];
    moments[1] = copies[1];
  }
  void store(int64_t begin, const uint32_t* draws) {
    const int64_t i = begin / kBlock;
    exponents.exp_avg[i] = store_block<Moment::kFirst>(copies[0], kBlock, draws, exp_avgs + begin);
    exponents.exp_avg_sq[i] =
        store_block<Moment::kSecond>(copies[1], kBlock, draws, exp_avg_sqs + begin);
  }
};

// Returns the first element that is left.
template <typename param_t, typename state_t>
int64_t chance_loop(const Range& range, Loop loop) {
  constexpr int kNumel = Moments<state_t>::kNumel;
  const StepConstants<float>& c = *range.constants;
  param_t* const params = static_cast<param_t*>(range.buffers.param);
  param_t* const grads = static_cast<param_t*>(range.buffers.grad);
  Moments<state_t> kept(range);
  const Rounding drops_signs{has_prox(range.update), nullptr, 0};
  alignas(64) float param_copy[kNumel], grad_copy[kNumel];
  alignas(64) uint32_t draws[kNumel];
  int64_t begin = range.begin;
  for (; begin + kNumel <= range.end; begin += kNumel) {
    const int64_t index = range.stochastic.offset + begin;
    const uint32_t first = uint32_t(index);
    if (first > uint32_t(-kNumel)) break;  // its elements may have two keys
    const uint32_t key = stretch_key(range.stochastic.step_key, index);
    float* const param = load_few<kNumel>(params + begin, param_copy);
    float* const grad = load_few<kNumel>(grads + begin, grad_copy);
    float* moments[2];
    kept.load(begin, moments);
    for (int i = 0; i < kNumel; i += kFew) {
      loop(c, {}, param + i, grad + i, moments[0] + i, moments[1] + i, nullptr, kFew);
    }
    if constexpr (kScalarType<state_t> != ScalarType::kFloat32) {
      kept.store(begin, fill_draws(key, first, kNumel, draws));
    }
    if constexpr (kScalarType<param_t> != ScalarType::kFloat32) {
      if (range.update == Update::kFrozen) continue;
      Rounding how = drops_signs;
      how.draws = fill_draws(key + kParamDraws, first, kNumel, draws);
      store_few<kNumel>(param, params + begin, how);
    }
  }
  return begin;
}

template <typename param_t>
int64_t chance_loop_for(const Range& range, Loop loop) {
  switch (range.types.state) {
    case ScalarType::kBFloat16:
      return chance_loop<param_t, bfloat16>(range, loop);
    case ScalarType::kCode8:
      return chance_loop<param_t, code8>(range, loop);
    default:
      return chance_loop<param_t, float>(range, loop);
  }
}

#endif

// Updates what it can of a range, and returns the first element that is left: nothing is done
// unless all that is not float32 is rounded by chance and none of it is float16, the gradient is
// stored as the parameter, and neither amsgrad nor AMP is at work.
PROXADAM_INLINE int64_t update_by_chance(const Range& range, [[maybe_unused]] Loop loop) {
#if defined(PROXADAM_VECTORS)
  const TensorTypes& types = range.types;
  const bool of_state = types.state == ScalarType::kFloat32 ||
                        (types.state != ScalarType::kFloat16 && range.stochastic.state);
  const bool chosen =
      of_state && types.grad == types.param && !range.buffers.max_exp_avg_sq && !range.unscale;
  if (chosen && types.param == ScalarType::kFloat32 && types.state != ScalarType::kFloat32) {
    return chance_loop_for<float>(range, loop);
  }
  if (chosen && types.param == ScalarType::kBFloat16 && range.stochastic.param) {
    return chance_loop_for<bfloat16>(range, loop);
  }
#endif
  return range.begin;
}

}  // namespace
}  // namespace PROXADAM_CPU_CAPABILITY
}  // namespace proxadam
