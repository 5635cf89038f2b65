// The CPU loop over a range of one tensor, and the table of its instances.
//
// Included once by each instruction set's unit, which names its namespace first. No standard C++
// header is included here: an inline function compiled for AVX-512 must not reach the linker.

#include "../prox_adam.h"
#include "../scalar_types.h"
#include "range_kernel_table.h"
#include "working_tile.h"

#if defined(_MSC_VER)
#define PROXADAM_NOINLINE __declspec(noinline)
#else
#define PROXADAM_NOINLINE __attribute__((noinline))
#endif

namespace proxadam {
namespace PROXADAM_CPU_CAPABILITY {
namespace {

// The loop that everything else is there for. Not inlined: one copy serves every storage type.
template <Update update, bool amsgrad, bool unscale, typename opmath_t>
PROXADAM_NOINLINE void update_elements(const StepConstants<opmath_t>& c,
                                       opmath_t* __restrict params, opmath_t* __restrict grads,
                                       opmath_t* __restrict exp_avgs,
                                       opmath_t* __restrict exp_avg_sqs,
                                       opmath_t* __restrict max_exp_avg_sqs, int64_t numel) {
  for (int64_t i = 0; i < numel; ++i) {
    if (unscale) grads[i] = grads[i] / c.grad_scale;
    opmath_t max_exp_avg_sq = amsgrad ? max_exp_avg_sqs[i] : opmath_t(0);
    prox_adam_update<update, amsgrad>(c, grads[i], params[i], exp_avgs[i], exp_avg_sqs[i],
                                      max_exp_avg_sq);
    if (amsgrad) max_exp_avg_sqs[i] = max_exp_avg_sq;
  }
}

template <typename param_t, typename grad_t, typename state_t, Update update, bool amsgrad,
          bool unscale>
void update_range(const RangeArguments& range) {
  using opmath_t = typename OpMath<param_t>::type;
  const auto c = StepConstants<opmath_t>::from(*range.constants);
  WorkingTile<param_t, opmath_t> params(range.param);
  WorkingTile<grad_t, opmath_t> grads(range.grad);
  WorkingTile<state_t, opmath_t> exp_avgs(range.exp_avg);
  WorkingTile<state_t, opmath_t> exp_avg_sqs(range.exp_avg_sq);
  WorkingTile<state_t, opmath_t> max_exp_avg_sqs(range.max_exp_avg_sq);
  for (int64_t begin = range.begin; begin < range.end; begin += kTile) {
    const int64_t numel = range.end - begin < kTile ? range.end - begin : kTile;
    update_elements<update, amsgrad, unscale>(
        c, params.load(begin, numel), grads.load(begin, numel), exp_avgs.load(begin, numel),
        exp_avg_sqs.load(begin, numel), amsgrad ? max_exp_avg_sqs.load(begin, numel) : nullptr,
        numel);
    if (update != Update::kFrozen) {
      params.store(begin, numel, update != Update::kAdam);  // under the prox no zero has a sign
    }
    if (unscale) grads.store(begin, numel);
    exp_avgs.store(begin, numel);
    exp_avg_sqs.store(begin, numel);
    if (amsgrad) max_exp_avg_sqs.store(begin, numel);
  }
}

template <typename param_t, typename grad_t, typename state_t, Update update, bool amsgrad>
RangeKernel with_unscale(const RangeKernelKey& key) {
  return key.unscale ? update_range<param_t, grad_t, state_t, update, amsgrad, true>
                     : update_range<param_t, grad_t, state_t, update, amsgrad, false>;
}

template <typename param_t, typename grad_t, typename state_t, Update update>
RangeKernel with_amsgrad(const RangeKernelKey& key) {
  return key.amsgrad ? with_unscale<param_t, grad_t, state_t, update, true>(key)
                     : with_unscale<param_t, grad_t, state_t, update, false>(key);
}

template <typename param_t, typename grad_t, typename state_t>
RangeKernel with_update(const RangeKernelKey& key) {
  switch (key.update) {
    case Update::kFrozen:
      return with_amsgrad<param_t, grad_t, state_t, Update::kFrozen>(key);
    case Update::kAdam:
      return with_amsgrad<param_t, grad_t, state_t, Update::kAdam>(key);
    case Update::kAdaptive:
      return with_amsgrad<param_t, grad_t, state_t, Update::kAdaptive>(key);
    case Update::kEuclidean:
      return with_amsgrad<param_t, grad_t, state_t, Update::kEuclidean>(key);
  }
  return nullptr;
}

template <typename param_t>
RangeKernel with_16_bits(const RangeKernelKey& key) {
  const bool wide_grad = key.types.grad == ScalarType::kFloat32;
  const bool wide_state = key.types.state == ScalarType::kFloat32;
  if (wide_grad && wide_state) return with_update<param_t, float, float>(key);
  if (wide_grad) return with_update<param_t, float, param_t>(key);
  if (wide_state) return with_update<param_t, param_t, float>(key);
  return with_update<param_t, param_t, param_t>(key);
}

}  // namespace

RangeKernel range_kernel(const RangeKernelKey& key) {
  switch (key.types.param) {
    case ScalarType::kFloat32:
      return with_update<float, float, float>(key);
    case ScalarType::kFloat64:
      return with_update<double, double, double>(key);
    case ScalarType::kBFloat16:
      return with_16_bits<bfloat16>(key);
    case ScalarType::kFloat16:
      return with_16_bits<float16>(key);
  }
  return nullptr;
}

}  // namespace PROXADAM_CPU_CAPABILITY
}  // namespace proxadam
