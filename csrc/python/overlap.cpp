// A sweep over the parameters' memory in the order of addresses.

#include "overlap.h"

#include <algorithm>  // for sort

#include "tensor_view.h"  // for span

namespace proxadam {

Extent extent_of(const DLTensor& t, std::size_t group, std::size_t param) {
  const auto* begin = static_cast<const char*>(t.data);
  return {begin, begin + span(t) * (t.dtype.bits / 8), group, param};
}

std::vector<std::pair<std::size_t, std::size_t>> overlapping(std::vector<Extent> extents) {
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  std::vector<std::pair<std::size_t, std::size_t>> found;
  const Extent* furthest = nullptr;
  for (const Extent& extent : extents) {
    if (extent.begin == extent.end) continue;
    if (furthest && extent.begin < furthest->end) {
      found.emplace_back(furthest->group, furthest->param);
      found.emplace_back(extent.group, extent.param);
    }
    if (!furthest || extent.end > furthest->end) furthest = &extent;
  }
  return found;
}

}  // namespace proxadam
