// Which of the parameters of a step share memory that the step writes.

#pragma once

#include <cstddef>  // for size_t
#include <vector>   // for vector

namespace proxadam {

// Memory of a step's tensor, and the parameter on whose behalf it is read or written.
struct Extent {
  const char* begin;
  const char* end;
  std::size_t owner;  // its place among all parameters of the step
};
inline bool operator==(const Extent& a, const Extent& b) {
  return a.begin == b.begin && a.end == b.end && a.owner == b.owner;
}

// Looks for what two threads must not step in one region, nor the kernel before torch ops do:
// those take such parameters one after the other.
class SharedMemory {
 public:
  // A look begins: its tensors are noted, and then asked about. If it ends otherwise, this is of no
  // more use.
  void start();

  void note(const Extent& extent, bool written) { (written ? written_ : read_).note(extent); }

  // The owners of memory that two tensors have, of one parameter or of two, and one of them writes.
  // They may repeat.
  std::vector<std::size_t> find();

 private:
  // Most often each step has the same memory as the last, and nothing is sorted again.
  struct Extents {
    std::vector<Extent> given;
    std::vector<Extent> in_order;
    std::size_t count = 0;
    bool same = true;  // as those of the last step, so far

    void note(const Extent& extent) {
      if (count == given.size()) given.emplace_back();
      Extent& last = given[count++];
      if (same && last == extent) return;
      same = false;
      last = extent;
    }
    bool all_same() const { return same && count == given.size(); }
    void sort();
  };

  Extents written_;
  Extents read_;
  bool apart_ = false;  // the last step had nothing that is shared
};

}  // namespace proxadam
