// A sweep over the tensors' memory in the order of addresses.

#include "overlap.h"

#include <algorithm>  // for equal, max, merge, sort
#include <iterator>   // for back_inserter

#include "tensor_view.h"  // for span

namespace proxadam {
namespace {

bool starts_before(const Extent& a, const Extent& b) { return a.begin < b.begin; }

bool same(const std::vector<Extent>& a, const std::vector<Extent>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Extent& x, const Extent& y) {
    return x.begin == y.begin && x.end == y.end && x.group == y.group && x.param == y.param;
  });
}

}  // namespace

Extent extent_of(const DLTensor& t, std::size_t group, std::size_t param) {
  const auto* begin = static_cast<const char*>(t.data);
  return {begin, begin ? begin + span(t) * (t.dtype.bits / 8) : begin,
          static_cast<std::uint32_t>(group), static_cast<std::uint32_t>(param)};
}

SharedMemory::Owners SharedMemory::find(std::vector<Extent> written, std::vector<Extent> read) {
  const bool same_written = same(written, written_);
  if (apart_ && same_written && same(read, read_)) return {};
  if (!same_written) {
    written_in_order_ = written;
    std::sort(written_in_order_.begin(), written_in_order_.end(), starts_before);
    written_ = std::move(written);
  }
  read_ = read;
  std::sort(read.begin(), read.end(), starts_before);

  // Both lists at once. What overlaps makes a cluster, from the first address to the last.
  Owners found;
  std::vector<Extent> cluster;
  const char* end = nullptr;
  bool any_written = false;
  const auto close = [&] {
    if (any_written && cluster.size() > 1) {
      for (const Extent& extent : cluster) found.emplace_back(extent.group, extent.param);
    }
    cluster.clear();
    any_written = false;
  };
  auto w = written_in_order_.begin();
  auto r = read.begin();
  while (w != written_in_order_.end() || r != read.end()) {
    const bool writes = r == read.end() || (w != written_in_order_.end() && w->begin <= r->begin);
    const Extent& extent = writes ? *w++ : *r++;
    if (extent.begin == extent.end) continue;
    if (extent.begin >= end) close();
    cluster.push_back(extent);
    any_written |= writes;
    end = std::max(end, extent.end);
  }
  close();
  apart_ = found.empty();
  return found;
}

}  // namespace proxadam
