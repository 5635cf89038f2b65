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

// Looks for what two threads must not step in one region, nor the kernel before torch ops do:
// those take such parameters one after the other.
class SharedMemory {
 public:
  using Owners = std::vector<std::pair<std::size_t, std::size_t>>;  // group, param; may repeat

  // A look begins: its tensors are noted, and then asked about. If it ends otherwise, this is of no
  // more use.
  void start();

  void note(const DLTensor& t, std::size_t group, std::size_t param, bool written);

  // The owners of memory that two tensors have, of one parameter or of two, and one of them writes.
  Owners find();

 private:
  // Most often each step has the same memory as the last, and nothing is sorted again.
  struct Extents {
    std::vector<Extent> given;
    std::vector<Extent> in_order;
    std::size_t count = 0;
    bool same = true;  // as those of the last step, so far

    void note(const Extent& extent);
    bool all_same() const { return same && count == given.size(); }
    void sort();
  };

  Extents written_;
  Extents read_;
  bool apart_ = false;  // the last step had nothing that is shared
};

}  // namespace proxadam
