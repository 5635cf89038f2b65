// The CPU loop over a range of one tensor, and the table of its instances.
//
// Included once by each instruction set's unit, which names its namespace first. No standard C++
// header is included here: an inline function compiled for AVX-512 must not reach the linker.

#include "../prox_adam.h"
#include "../scalar_types.h"
#include "range_kernel_table.h"

#ifndef PROXADAM_CPU_CAPABILITY
#error "name the instruction set's namespace in PROXADAM_CPU_CAPABILITY"
#endif

namespace proxadam {
namespace PROXADAM_CPU_CAPABILITY {
namespace {

template <typename param_t, typename grad_t, typename state_t, Update update,
          bool amsgrad, bool unscale>
void update_range(const RangeArguments& range) {
  using opmath_t = typename OpMath<param_t>::type;
  const auto c = StepConstants<opmath_t>::from(*range.constants);
  auto* __restrict params = static_cast<param_t*>(range.param) + range.begin;
  auto* __restrict grads = static_cast<grad_t*>(range.grad) + range.begin;
  auto* __restrict exp_avgs = static_cast<state_t*>(range.exp_avg) + range.begin;
  auto* __restrict exp_avg_sqs = static_cast<state_t*>(range.exp_avg_sq) + range.begin;
  auto* __restrict max_exp_avg_sqs =
      amsgrad ? static_cast<state_t*>(range.max_exp_avg_sq) + range.begin : nullptr;
  const int64_t numel = range.end - range.begin;

  for (int64_t i = 0; i < numel; ++i) {
    opmath_t grad = widen(grads[i]);
    if (unscale) {
      grad = grad / c.grad_scale;
      narrow(grad, grads[i]);
    }
    opmath_t param = widen(params[i]);
    opmath_t exp_avg = widen(exp_avgs[i]);
    opmath_t exp_avg_sq = widen(exp_avg_sqs[i]);
    opmath_t max_exp_avg_sq = amsgrad ? widen(max_exp_avg_sqs[i]) : opmath_t(0);
    prox_adam_update<update, amsgrad>(c, grad, param, exp_avg, exp_avg_sq, max_exp_avg_sq);
    if (update != Update::kFrozen) {
      param_t rounded;
      narrow(param, rounded);
      if (update != Update::kAdam) drop_zero_sign(rounded);
      params[i] = rounded;
    }
    narrow(exp_avg, exp_avgs[i]);
    narrow(exp_avg_sq, exp_avg_sqs[i]);
    if (amsgrad) narrow(max_exp_avg_sq, max_exp_avg_sqs[i]);
  }
}

template <typename scalar_t, Update update, bool amsgrad>
RangeKernel with_unscale(const RangeKernelKey& key) {
  return key.unscale ? update_range<scalar_t, scalar_t, scalar_t, update, amsgrad, true>
                     : update_range<scalar_t, scalar_t, scalar_t, update, amsgrad, false>;
}

template <typename scalar_t, Update update>
RangeKernel with_amsgrad(const RangeKernelKey& key) {
  return key.amsgrad ? with_unscale<scalar_t, update, true>(key)
                     : with_unscale<scalar_t, update, false>(key);
}

template <typename scalar_t>
RangeKernel with_update(const RangeKernelKey& key) {
  switch (key.update) {
    case Update::kFrozen:
      return with_amsgrad<scalar_t, Update::kFrozen>(key);
    case Update::kAdam:
      return with_amsgrad<scalar_t, Update::kAdam>(key);
    case Update::kAdaptive:
      return with_amsgrad<scalar_t, Update::kAdaptive>(key);
    case Update::kEuclidean:
      return with_amsgrad<scalar_t, Update::kEuclidean>(key);
  }
  return nullptr;
}

}  // namespace

RangeKernel range_kernel(const RangeKernelKey& key) {
  switch (key.dtype) {
    case ScalarType::kFloat32:
      return with_update<float>(key);
    case ScalarType::kFloat64:
      return with_update<double>(key);
    case ScalarType::kBFloat16:
      return with_update<bfloat16>(key);
    case ScalarType::kFloat16:
      return with_update<float16>(key);
  }
  return nullptr;
}

}  // namespace PROXADAM_CPU_CAPABILITY
}  // namespace proxadam
