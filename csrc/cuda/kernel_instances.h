// The instances of the kernel for one type of parameter. Included by that type's unit alone.

#include "kernel.h"
#include "kernel_table.h"

namespace proxadam {

template <typename param_t, typename grad_t, typename state_t, int bytes>
Kernel<typename OpMath<param_t>::type, bytes> with_amsgrad(bool amsgrad) {
  using opmath_t = typename OpMath<param_t>::type;
  return amsgrad ? prox_adam_kernel<param_t, grad_t, state_t, true, opmath_t, bytes>
                 : prox_adam_kernel<param_t, grad_t, state_t, false, opmath_t, bytes>;
}

template <typename param_t, int bytes>
Kernel<typename OpMath<param_t>::type, bytes> kernel_for(ScalarType grad, ScalarType state,
                                                         bool amsgrad) {
  if constexpr (sizeof(param_t) == 2) {
    const bool wide_grad = grad == ScalarType::kFloat32;
    const bool wide_state = state == ScalarType::kFloat32;
    if (wide_grad && wide_state) return with_amsgrad<param_t, float, float, bytes>(amsgrad);
    if (wide_grad) return with_amsgrad<param_t, float, param_t, bytes>(amsgrad);
    if (wide_state) return with_amsgrad<param_t, param_t, float, bytes>(amsgrad);
  }
  return with_amsgrad<param_t, param_t, param_t, bytes>(amsgrad);
}

#define PROXADAM_KERNELS(param_t, bytes)                                    \
  template Kernel<OpMath<param_t>::type, bytes> kernel_for<param_t, bytes>( \
      ScalarType grad, ScalarType state, bool amsgrad)

PROXADAM_KERNELS(PROXADAM_PARAM_T, kSmallTable);
#if CUDART_VERSION >= 12010
PROXADAM_KERNELS(PROXADAM_PARAM_T, kLargeTable);
#endif

}  // namespace proxadam
