// The instances of the kernels that round by chance, and of those for codes, for one type of
// parameter. Included by that type's unit alone.

#include "coded_kernel.h"
#include "kernel.h"
#include "kernel_table.h"

namespace proxadam {

template <typename param_t, typename Table>
Kernel<Table> kernel_for(const TensorTypes& types, bool amsgrad) {
  return with_types(types, [&](auto scalars) -> Kernel<Table> {
    using Types = decltype(scalars);
    using state_t = typename Types::state_t;
    constexpr bool kIsOurs = kScalarType<typename Types::param_t> == kScalarType<param_t>;
    if constexpr (kIsOurs && Types::kTypes.state == ScalarType::kCode8) {
      return amsgrad ? nullptr : prox_adam_codes_kernel<param_t>;
    } else if constexpr (kIsOurs && may_take_chance(Types::kTypes)) {
      return amsgrad ? prox_adam_kernel<param_t, state_t, true, Table>
                     : prox_adam_kernel<param_t, state_t, false, Table>;
    }
    return nullptr;
  });
}

template Kernel<ChanceTable> kernel_for<PROXADAM_PARAM_T, ChanceTable>(const TensorTypes&, bool);

}  // namespace proxadam
