// The CPU loop over a range of one tensor.
//
// Included once by each instruction set's unit, which names its namespace first. No standard C++
// header is included here or below: an inline function compiled for AVX-512 must not reach the
// linker.

#include "../prox_adam.h"
#include "../scalar_types.h"
#include "codec.h"
#include "range.h"
#include "update_by_chance.h"
#include "update_elements.h"
#include "update_halves.h"

namespace proxadam {
namespace PROXADAM_CPU_CAPABILITY {
namespace {

template <typename opmath_t, Update update>
auto with_flags(bool amsgrad, bool unscale) {
  if (amsgrad) {
    return unscale ? update_elements<opmath_t, update, true, true>
                   : update_elements<opmath_t, update, true, false>;
  }
  return unscale ? update_elements<opmath_t, update, false, true>
                 : update_elements<opmath_t, update, false, false>;
}

template <typename opmath_t>
auto loop_for(Update update, bool amsgrad, bool unscale) {
  switch (update) {
#define PROXADAM_CASE(name, prox) \
  case Update::k##name:           \
    return with_flags<opmath_t, Update::k##name>(amsgrad, unscale);
    PROXADAM_UPDATES(PROXADAM_CASE)
#undef PROXADAM_CASE
  }
  return decltype(with_flags<opmath_t, Update::kAdam>(false, false)){};
}

template <typename opmath_t>
void update_in(const Range& range) {
  const StepConstants<opmath_t>& c = *range.constants;
  const Buffers& buffers = range.buffers;
  const auto loop = loop_for<opmath_t>(range.update, buffers.max_exp_avg_sq, range.unscale);
  Tile<opmath_t> params(buffers.param, range.types.param);
  Tile<opmath_t> grads(buffers.grad, range.types.grad);
  Tile<opmath_t> exp_avgs(buffers.exp_avg, range.types.state, range.exponents.exp_avg);
  Tile<opmath_t> exp_avg_sqs(buffers.exp_avg_sq, range.types.state, range.exponents.exp_avg_sq,
                             Moment::kSecond);
  Tile<opmath_t> max_exp_avg_sqs(buffers.max_exp_avg_sq, range.types.state);
  const bool rounds_state = range.stochastic.state && state_draws(range.types);
  const bool rounds_param = range.stochastic.param && param_draws(range.types);
  const bool by_chance = rounds_state || rounds_param;
  const bool converts = params.converts() || grads.converts() || exp_avgs.converts();
  const int64_t tile = converts ? kTile : kFew;
  alignas(64) uint32_t of_state[kTile], of_param[kTile];
  int64_t numel;
  for (int64_t begin = range.begin; begin < range.end; begin += numel) {
    numel = range.end - begin < tile ? range.end - begin : tile;
    Rounding state = kNearest;
    Rounding param{has_prox(range.update), nullptr, 0};
    if (by_chance) {
      const int64_t index = range.stochastic.offset + begin;
      const int64_t left = (int64_t(1) << 32) - (index & 0xffffffff);  // of these one key
      numel = left < numel ? left : numel;
      const uint32_t key = stretch_key(range.stochastic.step_key, index);
      const uint32_t first = uint32_t(index);
      if (rounds_state) state.draws = fill_draws(key, first, numel, of_state);
      if (rounds_param) param.draws = fill_draws(key + kParamDraws, first, numel, of_param);
    }
    loop(c, {}, params.load(begin, numel), grads.load(begin, numel), exp_avgs.load(begin, numel),
         exp_avg_sqs.load(begin, numel), max_exp_avg_sqs.load(begin, numel), numel);
    if (range.update != Update::kFrozen) {
      params.store(begin, numel, param);
    }
    if (range.unscale) grads.store(begin, numel);
    exp_avgs.store(begin, numel, state);
    state.shift = shift_of(Moment::kSecond);
    exp_avg_sqs.store(begin, numel, state);
    max_exp_avg_sqs.store(begin, numel);  // it never falls: to the nearest nothing is lost
  }
}

}  // namespace

void update_range(const Range& range) {
  if (range.types.param == ScalarType::kFloat64) return update_in<double>(range);
  Range rest = range;
  rest.begin = update_halves(rest);
  if (rest.begin == rest.end) return;
  rest.begin = update_by_chance(rest, loop_for<float>(range.update, false, false));
  if (rest.begin < rest.end) update_in<float>(rest);
}

}  // namespace PROXADAM_CPU_CAPABILITY
}  // namespace proxadam
