// Which of the parameters of a step share memory that the step writes.

#pragma once

#include <cstddef>  // for size_t
#include <cstdint>  // for uint32_t
#include <utility>  // for pair
#include <vector>   // for vector

#include "dlpack_exchange.h"  // for DLTensor

namespace proxadam {

// Memory of a step's tensor, and the parameter on whose behalf it is read or written.
struct Extent {
  const char* begin;
  const char* end;
  std::uint32_t group;
  std::uint32_t param;  // its index there
};

Extent extent_of(const DLTensor& t, std::size_t group, std::size_t param);

// Looks for what two threads must not step in one region, nor the kernel before torch ops do:
// those take such parameters one after the other.
class SharedMemory {
 public:
  using Owners = std::vector<std::pair<std::size_t, std::size_t>>;  // group, param; may repeat

  // The owners of memory that two tensors have, of one parameter or of two, and one of them writes.
  Owners find(std::vector<Extent> written, std::vector<Extent> read);

 private:
  // Of the last step: most often the next one has the same memory, and it need not be sorted again.
  std::vector<Extent> written_;
  std::vector<Extent> written_in_order_;
  std::vector<Extent> read_;
  bool apart_ = false;
};

}  // namespace proxadam
