// The instances of the kernel for rows, for one type of parameter. Included by that type's unit
// alone.

#include "kernel_table.h"
#include "row_kernel.h"

namespace proxadam {

template <typename param_t, typename Table>
Kernel<Table> kernel_for(const TensorTypes& types, bool) {
  return with_types(types, [&](auto scalars) -> Kernel<Table> {
    using Types = decltype(scalars);
    if constexpr (kScalarType<typename Types::param_t> == kScalarType<param_t>) {
      return prox_adam_rows_kernel<param_t, typename Types::state_t>;
    }
    return nullptr;
  });
}

using Rows = RowTable<OpMath<PROXADAM_PARAM_T>::type>;
template Kernel<Rows> kernel_for<PROXADAM_PARAM_T, Rows>(const TensorTypes&, bool);

}  // namespace proxadam
