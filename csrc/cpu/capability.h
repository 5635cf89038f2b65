// Which instruction set the CPU loop runs with.

#pragma once

#include <string>  // for string
#include <vector>  // for vector

#include "range_kernel_table.h"  // for RangeKernel, RangeKernelKey

namespace proxadam {

struct Capability {
  const char* name;
  RangeKernel (*range_kernel)(const RangeKernelKey&);
};

// Those that were compiled in and that this processor has, the widest last.
std::vector<Capability> capabilities();

// The widest one, or the one that `name` asks for if it is not empty.
// Throws std::invalid_argument where this processor or this build does not have it.
Capability choose_capability(const std::string& name);

}  // namespace proxadam
