// The proximal Adam step for one element: the maths of the native code, and all of it.
//
// Host and device compile this same header, so that a kernel is a loop around it. It knows neither
// tensors nor threads, and includes C's headers of numbers alone. Everything has internal linkage:
// the CPU loop is compiled once for each instruction set, and the linker must not merge the copies.
//
// No multiply is fused with an add (the build says -ffp-contract=off): a result then depends on no
// instruction set, no vector width and no position in a tensor.
//
// Roots and divisions are asked of a `Math`, which is Exact unless a kernel brings another: one
// that is as exact where it can be, and tells where it was not.

#pragma once

#include <float.h>  // for FLT_MIN, DBL_MIN
#include <math.h>   // for sqrt, sqrtf, pow

#include "options.h"  // for Options, PROXADAM_INLINE

namespace proxadam {

// What becomes of the parameter, X(name, prox): nothing where lr = 0, Adam's result, or a prox of
// it. A prox is a line here, a function below, and a place in update_of().
#define PROXADAM_UPDATES(X)              \
  X(Frozen, no_prox)                     \
  X(Adam, no_prox)                       \
  X(AdaptiveL1, adaptive_soft_threshold) \
  X(Adaptive, adaptive_elastic_net)      \
  X(Log, log_elastic_net)                \
  X(Euclidean, euclidean_elastic_net)

#define PROXADAM_ENUMERATOR(name, prox) k##name,
enum class Update { PROXADAM_UPDATES(PROXADAM_ENUMERATOR) };
#undef PROXADAM_ENUMERATOR

PROXADAM_INLINE Update update_of(const Options& o) {
  if (o.lr.value == 0) return Update::kFrozen;
  if (o.l1.value == 0 && o.l2.value == 0) return Update::kAdam;
  if (o.l1.value != 0 && o.l1_knee.value < HUGE_VAL) return Update::kLog;
  if (o.euclidean) return Update::kEuclidean;
  return o.l2.value == 0 ? Update::kAdaptiveL1 : Update::kAdaptive;
}

// ---- constants --------------------------------------------------------------------------------

// What a step multiplies with.
template <typename opmath_t>
struct StepConstants {
  opmath_t grad_sign;      // −1 to maximize
  opmath_t grad_scale;     // gradients are divided by it; 1 without AMP
  opmath_t coupled_decay;  // Adam: grad += coupled_decay · param
  opmath_t decay_factor;   // AdamW: param *= decay_factor
  opmath_t lerp_weight;    // 1 − beta1
  opmath_t beta2;
  opmath_t one_minus_beta2;
  opmath_t inv_bias_correction2_sqrt;
  opmath_t eps;
  opmath_t step_size;  // lr / bias_correction1
  opmath_t lr_l1;      // the threshold carries plain lr, never step_size
  opmath_t lr_l2;
  opmath_t inv_knee;  // 1 / (l1_knee · |decay_factor|), for the decayed weight
  opmath_t max_pull;  // max_shrink · lr
  bool euclidean;
  opmath_t kept;  // a weight equal to it becomes 0: 0 with keep_zeros, else NaN
};

PROXADAM_INLINE constexpr float smallest_normal(float) { return FLT_MIN; }
PROXADAM_INLINE constexpr double smallest_normal(double) { return DBL_MIN; }

// Whether a step can be taken: with betas of 1 and more, which cyclic schedules pass through, there
// is not always a bias correction to divide by. `step` counts from 1.
PROXADAM_INLINE bool has_bias_corrections(const Options& o, double step) {
  const double bias_correction1 = 1 - pow(o.beta1.value, step);
  const double bias_correction2 = 1 - pow(o.beta2.value, step);
  const bool finite = bias_correction1 - bias_correction1 == 0 && bias_correction2 < HUGE_VAL;
  return finite && bias_correction1 != 0 && bias_correction2 > 0;
}

// Each is computed in double and narrowed once, where it is set, from the betas to the power of the
// step's number.
template <typename opmath_t>
PROXADAM_INLINE StepConstants<opmath_t> step_constants(const Options& o, double beta1_power,
                                                       double beta2_power, double grad_scale) {
  const double lr = o.lr.value;
  StepConstants<opmath_t> c;
  c.grad_sign = o.maximize ? -1 : 1;
  c.grad_scale = grad_scale;
  c.coupled_decay = o.decoupled_weight_decay ? 0 : o.weight_decay.value;
  c.decay_factor = o.decoupled_weight_decay ? 1 - lr * o.weight_decay.value : 1;
  c.lerp_weight = 1 - o.beta1.value;
  c.beta2 = o.beta2.value;
  c.one_minus_beta2 = 1 - o.beta2.value;
  c.inv_bias_correction2_sqrt = 1 / sqrt(1 - beta2_power);
  c.eps = o.eps.value;
  c.step_size = lr / (1 - beta1_power);
  c.lr_l1 = lr * o.l1.value;
  c.lr_l2 = lr * o.l2.value;
  // finite, that 0 times it is 0
  const double knee = o.l1_knee.value * fabs(double(c.decay_factor));
  const double smallest = smallest_normal(opmath_t(0));
  c.inv_knee = 1 / (knee < smallest ? smallest : knee);
  c.max_pull = o.max_shrink.value * lr;
  c.euclidean = o.euclidean;
  c.kept = o.keep_zeros ? 0 : NAN;
  return c;
}

// `step` counts from 1.
template <typename opmath_t>
PROXADAM_INLINE StepConstants<opmath_t> step_constants(const Options& o, double step,
                                                       double grad_scale) {
  return step_constants<opmath_t>(o, pow(o.beta1.value, step), pow(o.beta2.value, step),
                                  grad_scale);
}

// ---- roots, divisions and comparisons ---------------------------------------------------------

// IEEE's, to the last bit, for every number.
struct Exact {};

PROXADAM_INLINE float square_root(Exact&, float x) { return sqrtf(x); }
PROXADAM_INLINE double square_root(Exact&, double x) { return sqrt(x); }

PROXADAM_INLINE float magnitude(float x) { return fabsf(x); }
PROXADAM_INLINE double magnitude(double x) { return fabs(x); }

template <typename opmath_t>
PROXADAM_INLINE opmath_t quotient(Exact&, opmath_t a, opmath_t b) {
  return a / b;
}

// 1 / d overflows for the smallest d; it is taken as no greater than that of the smallest normal
// number, that 0 times it is 0.
template <typename opmath_t>
PROXADAM_INLINE opmath_t reciprocal(Exact&, opmath_t d) {
  const opmath_t inverse = 1 / d;
  const opmath_t largest = 1 / smallest_normal(d);
  return inverse > largest ? largest : inverse;
}

// A NaN in the first argument comes out again.
template <typename opmath_t>
PROXADAM_INLINE opmath_t clamp(Exact&, opmath_t x, opmath_t low, opmath_t high) {
  const opmath_t above = x < low ? low : x;
  return above > high ? high : above;
}

// A last look at what became of a parameter.
template <typename opmath_t>
PROXADAM_INLINE void inspect(Exact&, opmath_t) {}

// ---- Adam -------------------------------------------------------------------------------------

// Replaces the moments by their new values, and returns d, the denominator of Adam's step and its
// metric. `grad` is already divided by the gradient scale.
template <bool amsgrad, typename Math, typename opmath_t>
PROXADAM_INLINE opmath_t update_moments(Math& math, const StepConstants<opmath_t>& c, opmath_t grad,
                                        opmath_t param, opmath_t& exp_avg, opmath_t& exp_avg_sq,
                                        opmath_t& max_exp_avg_sq) {
  // coupled decay; AdamW's is the parameter's own
  grad = c.grad_sign * grad;
  grad = c.coupled_decay != 0 ? grad + c.coupled_decay * param : grad;

  // the lerp as ATen has it, exact at both of its ends: from the nearer one
  const bool near = c.lerp_weight < opmath_t(0.5);
  const opmath_t weight = near ? c.lerp_weight : c.lerp_weight - 1;
  const opmath_t diff = grad - exp_avg;
  exp_avg = (near ? exp_avg : grad) + weight * diff;
  exp_avg_sq = c.beta2 * exp_avg_sq + c.one_minus_beta2 * grad * grad;
  opmath_t second_moment = exp_avg_sq;
  if (amsgrad) {
    // NaN in either one is kept, as torch.maximum keeps it.
    max_exp_avg_sq = (max_exp_avg_sq > exp_avg_sq) | (max_exp_avg_sq != max_exp_avg_sq)
                         ? max_exp_avg_sq
                         : exp_avg_sq;
    second_moment = max_exp_avg_sq;
  }
  return square_root(math, second_moment) * c.inv_bias_correction2_sqrt + c.eps;
}

// ---- proxes -----------------------------------------------------------------------------------
//
// Each takes Adam's result z, 1 / d, and the slope of the penalty at the weight before the step.

// argmin_y ½ (y − x)² + threshold · |y|. Zeros made here are +0.0.
template <typename Math, typename opmath_t>
PROXADAM_INLINE opmath_t soft_threshold(Math& math, opmath_t x, opmath_t threshold) {
  return x - clamp(math, x, -threshold, threshold);
}

// The slope of knee · log(1 + |weight| / knee), which halves where |weight| is the knee. It takes
// the decayed weight, for the one before would cost a register.
template <typename Math, typename opmath_t>
PROXADAM_INLINE opmath_t log_slope(Math& math, const StepConstants<opmath_t>& c, opmath_t weight) {
  return reciprocal(math, 1 + magnitude(weight) * c.inv_knee);
}

template <typename Math, typename opmath_t>
PROXADAM_INLINE opmath_t no_prox(Math&, const StepConstants<opmath_t>&, opmath_t z, opmath_t,
                                 opmath_t) {
  return z;
}

// argmin_y d (y − z)² / (2 lr) + l1 |y|
template <typename Math, typename opmath_t>
PROXADAM_INLINE opmath_t adaptive_soft_threshold(Math& math, const StepConstants<opmath_t>& c,
                                                 opmath_t z, opmath_t inv_denom, opmath_t) {
  return soft_threshold(math, z, c.lr_l1 * inv_denom);
}

// argmin_y d (y − z)² / (2 lr) + l1 |y| + l2 y² / 2
template <typename Math, typename opmath_t>
PROXADAM_INLINE opmath_t adaptive_elastic_net(Math& math, const StepConstants<opmath_t>& c,
                                              opmath_t z, opmath_t inv_denom, opmath_t) {
  return quotient(math, soft_threshold(math, z, c.lr_l1 * inv_denom), 1 + c.lr_l2 * inv_denom);
}

// The same with d = 1.
template <typename Math, typename opmath_t>
PROXADAM_INLINE opmath_t euclidean_elastic_net(Math& math, const StepConstants<opmath_t>& c,
                                               opmath_t z, opmath_t, opmath_t) {
  return quotient(math, soft_threshold(math, z, c.lr_l1), 1 + c.lr_l2);
}

// argmin_y d (y − z)² / (2 lr) + l1 slope |y| + l2 y² / 2, in either metric: two of these would
// cost a GPU registers that it does not have.
template <typename Math, typename opmath_t>
PROXADAM_INLINE opmath_t log_elastic_net(Math& math, const StepConstants<opmath_t>& c, opmath_t z,
                                         opmath_t inv_denom, opmath_t slope) {
  const opmath_t inv_metric = c.euclidean ? opmath_t(1) : inv_denom;
  const opmath_t threshold = c.lr_l1 * inv_metric * slope;
  return quotient(math, soft_threshold(math, z, threshold), 1 + c.lr_l2 * inv_metric);
}

template <Update update, typename Math, typename opmath_t>
PROXADAM_INLINE opmath_t prox(Math& math, const StepConstants<opmath_t>& c, opmath_t z,
                              opmath_t inv_denom, opmath_t slope) {
  switch (update) {
#define PROXADAM_PROX(name, function) \
  case Update::k##name:               \
    return function(math, c, z, inv_denom, slope);
    PROXADAM_UPDATES(PROXADAM_PROX)
#undef PROXADAM_PROX
  }
  return z;
}

// ---- the step ---------------------------------------------------------------------------------

// Whether the parameter comes out of a prox: no zero of it has a sign then.
PROXADAM_INLINE constexpr bool has_prox(Update update) {
  return update != Update::kFrozen && update != Update::kAdam;
}

// What a prox pulled no farther from z than max_shrink allows; −0.0 + 0.0 = +0.0.
template <typename Math, typename opmath_t>
PROXADAM_INLINE opmath_t bounded(Math& math, const StepConstants<opmath_t>& c, opmath_t shrunk,
                                 opmath_t z) {
  return clamp(math, shrunk, z - c.max_pull, z + c.max_pull) + opmath_t(0);
}

// Replaces the parameter by its new value, from the new first moment and the denominator.
template <Update update, typename Math, typename opmath_t>
PROXADAM_INLINE void update_param(Math& math, const StepConstants<opmath_t>& c, opmath_t exp_avg,
                                  opmath_t denom, opmath_t& param) {
  if (update == Update::kFrozen) return;
  const bool stays = param == c.kept;
  param = c.decay_factor * param;
  if (has_prox(update)) {
    // A multiplication each, where Adam alone divides.
    const opmath_t inv_denom = reciprocal(math, denom);
    const opmath_t z = param - c.step_size * exp_avg * inv_denom;
    const opmath_t slope = update == Update::kLog ? log_slope(math, c, param) : opmath_t(1);
    param = bounded(math, c, prox<update>(math, c, z, inv_denom, slope), z);
  } else {
    param = param - quotient(math, c.step_size * exp_avg, denom);
  }
  param = stays ? opmath_t(0) : param;
  inspect(math, param);
}

// One element's step, in opmath precision: param, exp_avg, exp_avg_sq (and max_exp_avg_sq with
// amsgrad) are replaced by their new values.
template <Update update, bool amsgrad, typename Math, typename opmath_t>
PROXADAM_INLINE void prox_adam_update(Math& math, const StepConstants<opmath_t>& c, opmath_t grad,
                                      opmath_t& param, opmath_t& exp_avg, opmath_t& exp_avg_sq,
                                      opmath_t& max_exp_avg_sq) {
  const opmath_t denom =
      update_moments<amsgrad>(math, c, grad, param, exp_avg, exp_avg_sq, max_exp_avg_sq);
  update_param<update>(math, c, exp_avg, denom, param);
}

}  // namespace proxadam
