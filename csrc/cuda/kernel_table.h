// The kernels as their launcher sees them: one for each dtype of parameters and of their moments,
// with and without amsgrad, and for each kind of table. Those for rows are told of amsgrad at run
// time.

#pragma once

#include "../rounding.h"      // for param_draws, state_draws
#include "../scalar_types.h"  // for TensorTypes
#include "launch_table.h"     // for the tables

namespace proxadam {

template <typename Table>
using Kernel = void (*)(Table);

// The kernel for legal types whose parameters are of param_t, and null where there is none; it is
// told the gradients' type at run time. Compiled in one unit for each param_t and kind of table.
template <typename param_t, typename Table>
Kernel<Table> kernel_for(const TensorTypes& types, bool amsgrad);

// What takes a ChanceTable: codes, and what something of may be rounded by chance.
PROXADAM_INLINE constexpr bool may_take_chance(const TensorTypes& types) {
  return state_draws(types) || param_draws(types);
}
// What takes another one. bfloat16 moments beside other parameters are rounded by chance alone.
PROXADAM_INLINE constexpr bool may_take_none(const TensorTypes& types) {
  return !state_draws(types) || types.state == types.param;
}

}  // namespace proxadam
