// The instances of the kernel that know of no chance, for one type of parameter. Included by that
// type's unit alone.

#include "kernel.h"
#include "kernel_table.h"

namespace proxadam {

template <typename param_t, typename Table>
Kernel<Table> kernel_for(const TensorTypes& types, bool amsgrad) {
  return with_types(types, [&](auto scalars) -> Kernel<Table> {
    using Types = decltype(scalars);
    using state_t = typename Types::state_t;
    if constexpr (kScalarType<typename Types::param_t> == kScalarType<param_t> &&
                  may_take_none(Types::kTypes)) {
      return amsgrad ? prox_adam_kernel<param_t, state_t, true, Table>
                     : prox_adam_kernel<param_t, state_t, false, Table>;
    }
    return nullptr;
  });
}

using SmallTable = LaunchTable<OpMath<PROXADAM_PARAM_T>::type, kSmallTable>;
template Kernel<SmallTable> kernel_for<PROXADAM_PARAM_T, SmallTable>(const TensorTypes&, bool);
#if CUDART_VERSION >= 12010
using LargeTable = LaunchTable<OpMath<PROXADAM_PARAM_T>::type, kLargeTable>;
template Kernel<LargeTable> kernel_for<PROXADAM_PARAM_T, LargeTable>(const TensorTypes&, bool);
#endif

}  // namespace proxadam
