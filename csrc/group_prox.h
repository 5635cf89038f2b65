// The prox of l21 · √n · ‖w‖₂ for a row of n elements in Adam's metric, behind that of L1 and L2.
//
//   argmin_w  Σ d_i (w_i − z_i)² / (2 lr) + l1 Σ |w_i| + l2 Σ w_i² / 2 + l21 √n ‖w‖₂
//
// For any diagonal metric the elementwise prox comes first: with c its result, and with the pull
// b_i = lr l21 √n / (d_i + lr l2), the row is 0 where ‖c / b‖ ≤ 1, and else it has
// w_i = c_i θ / (θ + b_i), where θ = ‖w‖. So what is looked for is the root of
// ψ(θ) = 1 / √Σ (c_i / (θ + b_i))² − 1. It is concave and rises, hence Newton's iterates rise to
// the root from any point below it, and the error behind an iterate is at most 1.5 times the square
// of the last relative rise.
//
// Sums are in one order for every processor: of 1024 elements each lane of 32 has every 32nd, lanes
// are folded in halves, and such segments are added up one after the other, in double.

#pragma once

#include "prox_adam.h"

namespace proxadam {

constexpr int kLanes = 32;
constexpr int kSegment = 1024;

// lr · l21 · √n; the pull where the metric is 1.
PROXADAM_INLINE double row_pull(const Options& o, int64_t n) {
  return o.lr.value * o.l21.value * sqrt(double(n));
}

// ---- elements ---------------------------------------------------------------------------------

// What an element brings to the prox of its row: Adam's result z, the elementwise prox c, and b.
template <typename opmath_t>
struct RowTerms {
  opmath_t z;
  opmath_t shrunk;
  opmath_t pull;
};

PROXADAM_INLINE constexpr bool has_l2(Update update) {
  return has_prox(update) && update != Update::kAdaptiveL1;
}

// The elastic net of update_param(), with one division for c and b. A weight that stays zero takes
// no part.
template <Update update, typename Math, typename opmath_t>
PROXADAM_INLINE RowTerms<opmath_t> row_terms(Math& math, const StepConstants<opmath_t>& c,
                                             opmath_t row_pull, opmath_t exp_avg, opmath_t denom,
                                             opmath_t param) {
  const bool stays = param == c.kept;
  param = c.decay_factor * param;
  const opmath_t inv_denom = reciprocal(math, denom);
  const opmath_t z = param - c.step_size * exp_avg * inv_denom;
  opmath_t step_size = c.euclidean ? opmath_t(1) : inv_denom;
  opmath_t threshold = c.lr_l1 * step_size;
  if (update == Update::kLog) threshold = threshold * log_slope(math, c, param);
  opmath_t shrunk = soft_threshold(math, z, threshold);
  if (has_l2(update)) {
    const opmath_t shrink = reciprocal(math, 1 + c.lr_l2 * step_size);
    shrunk = shrunk * shrink;
    step_size = step_size * shrink;
  }
  const opmath_t pull = row_pull * step_size;
  const opmath_t least = smallest_normal(pull);
  return {stays ? opmath_t(0) : z, stays ? opmath_t(0) : shrunk, pull < least ? least : pull};
}

// An element's new value, of which l21 leaves so much.
template <typename Math, typename opmath_t>
PROXADAM_INLINE opmath_t element_of_row(Math& math, const StepConstants<opmath_t>& c,
                                        opmath_t shrunk, opmath_t z, opmath_t left) {
  return bounded(math, c, shrunk * left, z);
}

// ---- sums over elements -----------------------------------------------------------------------

// Of x² and of x² · weight, over a row or a lane of it.
template <typename sum_t>
struct Sums {
  sum_t squares;
  sum_t weighted;
};

// c and b: where the tangent of ψ at infinity meets zero.
template <typename opmath_t>
struct AtInfinity {
  using sum_t = opmath_t;
};

template <typename Math, typename opmath_t>
PROXADAM_INLINE Sums<opmath_t> sums_of(Math&, AtInfinity<opmath_t>, opmath_t shrunk, opmath_t pull,
                                       opmath_t&) {
  return {shrunk * shrunk, shrunk * shrunk * pull};
}

// c / b and 1 / b: whether the row is 0, and a step of Newton's from θ = 0. In double, for these
// may be of any size.
template <typename opmath_t>
struct AtZero {
  using sum_t = double;
};

template <typename Math, typename opmath_t>
PROXADAM_INLINE Sums<double> sums_of(Math&, AtZero<opmath_t>, opmath_t shrunk, opmath_t pull,
                                     opmath_t&) {
  const double weight = 1 / double(pull);
  const double x = shrunk * weight;
  return {x * x, x * x * weight};
}

// w(θ) / θ and θ / (θ + b): a step of Newton's from θ. The latter is kept.
template <typename opmath_t>
struct AtNorm {
  using sum_t = opmath_t;
  opmath_t norm;
  opmath_t inv_norm;
};

template <typename Math, typename opmath_t>
PROXADAM_INLINE Sums<opmath_t> sums_of(Math& math, AtNorm<opmath_t> at, opmath_t shrunk,
                                       opmath_t pull, opmath_t& left) {
  left = quotient(math, at.norm, at.norm + pull);
  const opmath_t x = shrunk * left * at.inv_norm;
  return {x * x, x * x * left};
}

// ---- the root ---------------------------------------------------------------------------------

// A relative step behind which the next would be less than a rounding.
PROXADAM_INLINE constexpr double least_step(float) { return 0x1p-13; }
PROXADAM_INLINE constexpr double least_step(double) { return 0x1p-27; }

// One or two in training; rows whose pulls differ by 10^8 take nine.
constexpr int kNewtonSteps = 10;

// What becomes of a row.
template <typename opmath_t>
struct Root {
  bool is_zero;
  opmath_t rise;  // of the norm, in relation to that which elements were left at
};

// A Row adds up sums_of() over its elements, and keeps what is left of them; a NaN among them
// comes out again. `far`: its sums at infinity.
template <typename opmath_t, typename Row>
PROXADAM_INLINE Root<opmath_t> root_of(const Row& row, const Sums<double>& far) {
  const double of_shrunk = sqrt(far.squares);
  double norm = of_shrunk - far.weighted / far.squares;
  if (!(norm > of_shrunk * 0x1p-10 && norm < HUGE_VAL)) {  // too near to 0 to be believed
    const Sums<double> near = row.add_up(AtZero<opmath_t>{});
    if (near.squares <= 1) return {true, 0};
    norm = (sqrt(near.squares) - 1) * (near.squares / near.weighted);
  }
  double rise = 0;
  for (int i = 0; i < kNewtonSteps; ++i) {
    norm += norm * rise;
    const opmath_t narrow = opmath_t(norm);
    const Sums<double> here = row.add_up(AtNorm<opmath_t>{narrow, 1 / narrow});
    rise = 0;
    if (!(here.weighted > 0)) break;  // NaN, or all below the smallest number
    rise = (sqrt(here.squares) - 1) * (here.squares / here.weighted);
    if (fabs(rise) <= least_step(opmath_t(0))) break;
  }
  return {false, opmath_t(rise)};
}

// What is left of an element at the root, to first order in the last rise.
template <typename opmath_t>
PROXADAM_INLINE opmath_t left_at(const Root<opmath_t>& root, opmath_t left) {
  return left + left * (1 - left) * root.rise;
}

}  // namespace proxadam
