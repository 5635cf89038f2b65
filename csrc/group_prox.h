// The prox of l21 · √n · ‖w‖₂ for a row of n elements in Adam's metric, behind that of L1 and L2.
//
//   argmin_w  Σ d_i (w_i − z_i)² / (2 lr) + l1 Σ |w_i| + l2 Σ w_i² / 2 + l21 √n ‖w‖₂
//
// For any diagonal metric the elementwise prox comes first: with c its result, and with the pull
// b_i = lr l21 √n / (d_i + lr l2), the row is 0 where ‖c / b‖ ≤ 1, and else w_i = c_i θ / (θ + b_i),
// where θ = ‖w‖. So what is looked for is the root of ψ(θ) = 1 / √Σ (c_i / (θ + b_i))² − 1. It is
// concave and rises, hence Newton's iterates rise to the root from any point below it, and
// the error behind an iterate is at most 1.5 times the square of the last relative rise.
//
// Sums are those of doubles, in one order for every processor: of 1024 elements each lane of 32 has
// every 32nd, lanes are folded in halves, and such segments are added up one after the other.

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
  return update != Update::kAdam && update != Update::kAdaptiveL1;
}

// As update_param() begins; a weight that stays zero takes no part.
template <Update update, typename Math, typename opmath_t>
PROXADAM_INLINE RowTerms<opmath_t> row_terms(Math& math, const StepConstants<opmath_t>& c,
                                             opmath_t row_pull, opmath_t exp_avg, opmath_t denom,
                                             opmath_t param) {
  const bool stays = param == c.kept;
  const Proximal<opmath_t> found =
      proximal<update>(math, c, exp_avg, denom, c.decay_factor * param);
  const opmath_t inv_metric = c.euclidean ? opmath_t(1) : found.inv_denom;
  opmath_t pull = row_pull * inv_metric;
  if (has_l2(update)) pull = quotient(math, pull, 1 + c.lr_l2 * inv_metric);
  const opmath_t least = smallest_normal(pull);
  return {stays ? opmath_t(0) : found.z, stays ? opmath_t(0) : found.shrunk,
          pull < least ? least : pull};
}

// θ / (θ + b): what is left of an element. `norm` is not negative.
template <typename Math, typename opmath_t>
PROXADAM_INLINE opmath_t left_of(Math& math, opmath_t norm, opmath_t pull) {
  return quotient(math, norm, norm + pull);
}

// An element's new value.
template <typename Math, typename opmath_t>
PROXADAM_INLINE opmath_t element_of_row(Math& math, const StepConstants<opmath_t>& c,
                                        const RowTerms<opmath_t>& terms, opmath_t norm) {
  return bounded(math, c, terms.shrunk * left_of(math, norm, terms.pull), terms.z);
}

// ---- sums over elements -----------------------------------------------------------------------

// What is added up over a row: x² and x² · weight, where x and the weight are
enum class Term {
  kAtInfinity,  // c and b: where the tangent of ψ at infinity meets zero
  kAtZero,      // c / b and 1 / b: whether the row is 0, and a step of Newton's from θ = 0
  kAtNorm       // w(θ) and θ / (θ + b): a step of Newton's from θ
};

struct Sums {
  double squares;
  double weighted;
};

template <Term term, typename Math, typename opmath_t>
PROXADAM_INLINE Sums sums_of(Math& math, opmath_t norm, opmath_t shrunk, opmath_t pull) {
  double x = shrunk;
  double weight = pull;
  if (term == Term::kAtZero) {
    weight = 1 / double(pull);
    x = double(shrunk) * weight;
  }
  if (term == Term::kAtNorm) {
    const opmath_t left = left_of(math, norm, pull);
    x = shrunk * left;
    weight = left;
  }
  return {x * x, x * x * weight};
}

// ---- the root ---------------------------------------------------------------------------------

// A relative rise behind which the next would be less than a rounding.
PROXADAM_INLINE constexpr double least_rise(float) { return 0x1p-13; }
PROXADAM_INLINE constexpr double least_rise(double) { return 0x1p-27; }

// Two or three in training; rows whose pulls differ by 10^8 take as many as this.
constexpr int kNewtonSteps = 10;

// ‖w‖ of the solution, 0 where the row is. A Row adds up a term over its elements; a NaN among
// them comes out again.
template <typename opmath_t, typename Row>
PROXADAM_INLINE opmath_t row_norm(const Row& row) {
  const Sums far = row.template sum<Term::kAtInfinity>(opmath_t(0));
  if (far.squares == 0) return 0;
  double norm = sqrt(far.squares) - far.weighted / far.squares;
  if (!(norm > 0)) {
    const Sums near = row.template sum<Term::kAtZero>(opmath_t(0));
    if (near.squares <= 1) return 0;
    norm = (sqrt(near.squares) - 1) * (near.squares / near.weighted);
  }
  for (int i = 0; i < kNewtonSteps; ++i) {
    const Sums here = row.template sum<Term::kAtNorm>(opmath_t(norm));
    if (!(here.weighted > 0)) break;  // NaN, or all below the smallest number
    const double rise = (sqrt(here.squares) - norm) * (here.squares / here.weighted);
    if (!(rise > 0)) break;
    norm += rise;
    if (rise <= norm * least_rise(opmath_t(0))) break;
  }
  return opmath_t(norm);
}

}  // namespace proxadam
