// The tensors of a range by tiles in the type of computation, and what is drawn to round them.

#pragma once

#include "../prox_adam.h"
#include "../rounding.h"
#include "../scalar_types.h"
#include "codec.h"
#include "range.h"

namespace proxadam {
namespace PROXADAM_CPU_CAPABILITY {
namespace {

template <typename opmath_t>
struct Tiles {
  Tile<opmath_t> params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs;
  bool unscale;
  int64_t most;  // elements of a tile

  explicit Tiles(const Range& range)
      : params(range.buffers.param, range.types.param),
        grads(range.buffers.grad, range.types.grad),
        exp_avgs(range.buffers.exp_avg, range.types.state, range.exponents.exp_avg),
        exp_avg_sqs(range.buffers.exp_avg_sq, range.types.state, range.exponents.exp_avg_sq,
                    Moment::kSecond),
        max_exp_avg_sqs(range.buffers.max_exp_avg_sq, range.types.state),
        unscale(range.unscale),
        most(params.converts() || grads.converts() || exp_avgs.converts() ? kTile : kFew) {}

  int64_t numel(int64_t begin, int64_t end) const {
    return end - begin < most ? end - begin : most;
  }

  __attribute__((always_inline)) void prefetch(int64_t begin, int64_t numel) const {
    params.prefetch(begin, numel);
    grads.prefetch(begin, numel);
    exp_avgs.prefetch(begin, numel);
    exp_avg_sqs.prefetch(begin, numel);
  }

  // All but the parameters.
  void store_rest(int64_t begin, int64_t numel, Rounding state) {
    if (unscale) grads.store(begin, numel);
    exp_avgs.store(begin, numel, state);
    state.shift = shift_of(Moment::kSecond);
    exp_avg_sqs.store(begin, numel, state);
    max_exp_avg_sqs.store(begin, numel);  // it never falls: to the nearest nothing is lost
  }
};

// How a tile is rounded.
struct Draws {
  Rounding state = kNearest;
  Rounding param;

  explicit Draws(const Range& range)
      : param{has_prox(range.update) || range.rows.numel, nullptr, 0},
        stochastic_(range.stochastic),
        rounds_state_(range.stochastic.state && state_draws(range.types)),
        rounds_param_(range.stochastic.param && param_draws(range.types)) {}

  // So many elements, or those of them that have one key.
  int64_t numel(int64_t begin, int64_t most) const {
    if (!rounds_state_ && !rounds_param_) return most;
    const int64_t left = (int64_t(1) << 32) - (index(begin) & 0xffffffff);
    return left < most ? left : most;
  }

  void fill_state(int64_t begin, int64_t numel) {
    if (rounds_state_) state.draws = fill(0, begin, numel, of_state_);
  }
  void fill_param(int64_t begin, int64_t numel) {
    if (rounds_param_) param.draws = fill(kParamDraws, begin, numel, of_param_);
  }

 private:
  int64_t index(int64_t begin) const { return stochastic_.offset + begin; }

  const uint32_t* fill(uint32_t stream, int64_t begin, int64_t numel, uint32_t* draws) const {
    const uint32_t key = stretch_key(stochastic_.step_key, index(begin)) + stream;
    return fill_draws(key, uint32_t(index(begin)), numel, draws);
  }

  Stochastic stochastic_;
  bool rounds_state_, rounds_param_;
  alignas(64) uint32_t of_state_[kTile], of_param_[kTile];
};

}  // namespace
}  // namespace PROXADAM_CPU_CAPABILITY
}  // namespace proxadam
