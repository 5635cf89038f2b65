// The instances of the kernel for one type of parameter. Included by that type's unit alone.

#include "kernel.h"
#include "kernel_table.h"

namespace proxadam {

template <typename param_t, int bytes>
Kernel<typename OpMath<param_t>::type, bytes> kernel_for(const TensorTypes& types, bool amsgrad) {
  using opmath_t = typename OpMath<param_t>::type;
  return with_types(types, [&](auto scalars) -> Kernel<opmath_t, bytes> {
    using state_t = typename decltype(scalars)::state_t;
    if constexpr (kScalarType<typename decltype(scalars)::param_t> == kScalarType<param_t>) {
      return amsgrad ? prox_adam_kernel<param_t, state_t, true, opmath_t, bytes>
                     : prox_adam_kernel<param_t, state_t, false, opmath_t, bytes>;
    }
    return nullptr;
  });
}

template Kernel<OpMath<PROXADAM_PARAM_T>::type, kSmallTable>
kernel_for<PROXADAM_PARAM_T, kSmallTable>(const TensorTypes& types, bool amsgrad);
#if CUDART_VERSION >= 12010
template Kernel<OpMath<PROXADAM_PARAM_T>::type, kLargeTable>
kernel_for<PROXADAM_PARAM_T, kLargeTable>(const TensorTypes& types, bool amsgrad);
#endif

}  // namespace proxadam
