// Which of the parameters of a step share memory.

#pragma once

#include <cstddef>  // for size_t
#include <utility>  // for pair
#include <vector>   // for vector

#include "dlpack_exchange.h"  // for DLTensor

namespace proxadam {

// Memory that the step writes, and the parameter on whose behalf.
struct Extent {
  const char* begin;
  const char* end;
  std::size_t group;
  std::size_t param;  // its index there
};

Extent extent_of(const DLTensor& t, std::size_t group, std::size_t param);

// (group, param) of what shares memory with something else. Two threads must not write it in
// one region, nor the kernel before torch ops do: those take them one after the other.
std::vector<std::pair<std::size_t, std::size_t>> overlapping(std::vector<Extent> extents);

}  // namespace proxadam
