// The global list of chunks: all tensors of a step laid end to end and cut from each one's start.
//
// Chunk boundaries depend on the tensors alone, never on who works on them, so a result is the
// same for every number of threads. The list is not stored: a prefix sum finds a chunk again.

#pragma once

#include <algorithm>  // for max, min, upper_bound
#include <cstdint>    // for int64_t
#include <vector>     // for vector

namespace proxadam {

class ChunkPlan {
 public:
  // Elements in a chunk: a multiple of every vector width, and a slice of an L2 cache.
  static constexpr std::int64_t kChunk = 1 << 14;
  // What opening a tensor costs, in elements, so that many tiny ones are shared out fairly.
  static constexpr std::int64_t kOverhead = 32;

  void reserve(std::size_t tensors) { starts_.reserve(tensors + 1); }
  // `unit`: what the tensor's chunks are a multiple of.
  void add(std::int64_t numel, std::int64_t unit = 1) {
    starts_.push_back(starts_.back() + numel + kOverhead);
    if (unit != 1 || !chunks_.empty()) {
      chunks_.resize(starts_.size() - 2, kChunk);
      chunks_.push_back(unit * std::max<std::int64_t>(1, kChunk / unit));
    }
  }

  // The range that is shared out among threads: one unit is the work of one element.
  std::int64_t work() const { return starts_.back(); }

  // Calls visit(tensor, begin, end) for each chunk whose first unit of work is in [from, to).
  // Disjoint ranges that cover [0, work()) visit every chunk exactly once.
  template <typename Visit>
  void visit(std::int64_t from, std::int64_t to, Visit visit) const {
    auto next = std::upper_bound(starts_.begin(), starts_.end(), from);
    for (std::size_t tensor = next - starts_.begin() - 1; tensor + 1 < starts_.size(); ++tensor) {
      const std::int64_t start = starts_[tensor];
      if (start >= to) return;
      const std::int64_t numel = starts_[tensor + 1] - start - kOverhead;
      const std::int64_t chunk = chunks_.empty() ? kChunk : chunks_[tensor];
      const std::int64_t skipped = from > start ? (from - start + chunk - 1) / chunk : 0;
      for (std::int64_t begin = skipped * chunk; begin < numel && begin < to - start;
           begin += chunk) {
        visit(tensor, begin, std::min(begin + chunk, numel));
      }
    }
  }

 private:
  std::vector<std::int64_t> starts_{0};
  std::vector<std::int64_t> chunks_;  // of each tensor; none: kChunk everywhere
};

}  // namespace proxadam
