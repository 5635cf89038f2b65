// The kernels as their launcher sees them: one for each set of dtypes, with and without amsgrad.

#pragma once

#include "../scalar_types.h"  // for OpMath, ScalarType
#include "launch_table.h"     // for LaunchTable

namespace proxadam {

template <typename opmath_t, int bytes>
using Kernel = void (*)(LaunchTable<opmath_t, bytes>);

// The kernel for parameters of param_t with these gradients and moments, each either param_t or,
// for 16-bit parameters, float32. Compiled in one unit for each param_t.
template <typename param_t, int bytes>
Kernel<typename OpMath<param_t>::type, bytes> kernel_for(ScalarType grad, ScalarType state,
                                                         bool amsgrad);

}  // namespace proxadam
