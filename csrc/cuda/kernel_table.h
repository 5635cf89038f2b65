// The kernels as their launcher sees them: one for each dtype of parameters and of their moments,
// with and without amsgrad.

#pragma once

#include "../scalar_types.h"  // for OpMath, TensorTypes
#include "launch_table.h"     // for LaunchTable

namespace proxadam {

template <typename opmath_t, int bytes>
using Kernel = void (*)(LaunchTable<opmath_t, bytes>);

// The kernel for legal types whose parameters are of param_t; it is told the gradients' at run
// time. Compiled in one unit for each param_t.
template <typename param_t, int bytes>
Kernel<typename OpMath<param_t>::type, bytes> kernel_for(const TensorTypes& types, bool amsgrad);

}  // namespace proxadam
