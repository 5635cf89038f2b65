// look_at_scores, zero_below and row_squares of the module _cpu.

#pragma once

#include <pybind11/pybind11.h>

#include "capability.h"  // for Capability
#include "step.h"        // for ParallelFor

namespace proxadam {

// `parallel_for` says which threads a call has.
void define_scores(pybind11::module_& module, const Capability& capability,
                   ParallelFor (*parallel_for)());

}  // namespace proxadam
