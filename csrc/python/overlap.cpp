// A sweep over the tensors' memory in the order of addresses.

#include "overlap.h"

#include <algorithm>  // for max, sort

namespace proxadam {
namespace {

// Calls `visit` with each extent of both lists in order, and whether it is of the first.
template <typename Visit>
void merge(const std::vector<Extent>& first, const std::vector<Extent>& second, Visit visit) {
  auto a = first.begin();
  auto b = second.begin();
  while (a != first.end() || b != second.end()) {
    const bool is_first = b == second.end() || (a != first.end() && a->begin <= b->begin);
    visit(is_first ? *a++ : *b++, is_first);
  }
}

bool any_shared(const std::vector<Extent>& written, const std::vector<Extent>& read) {
  const char* end_of_written = nullptr;
  const char* end = nullptr;
  bool shared = false;
  merge(written, read, [&](const Extent& extent, bool is_written) {
    shared |= extent.begin < (is_written ? end : end_of_written);
    end = std::max(end, extent.end);
    if (is_written) end_of_written = std::max(end_of_written, extent.end);
  });
  return shared;
}

}  // namespace

void SharedMemory::start() {
  written_.count = read_.count = 0;
  written_.same = read_.same = true;
}

void SharedMemory::Extents::sort() {
  if (all_same()) return;
  given.resize(count);
  in_order = given;
  std::sort(in_order.begin(), in_order.end(),
            [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
}

std::vector<std::size_t> SharedMemory::find() {
  const bool known = apart_ && written_.all_same() && read_.all_same();
  if (!known) written_.sort(), read_.sort();
  apart_ = known || !any_shared(written_.in_order, read_.in_order);
  if (apart_) return {};

  // What overlaps makes a cluster, from the first address to the last.
  std::vector<std::size_t> found, cluster;
  const char* end = nullptr;
  bool any_written = false;
  const auto close = [&] {
    if (any_written && cluster.size() > 1)
      found.insert(found.end(), cluster.begin(), cluster.end());
    cluster.clear();
    any_written = false;
  };
  merge(written_.in_order, read_.in_order, [&](const Extent& extent, bool is_written) {
    if (extent.begin >= end) close();
    cluster.push_back(extent.owner);
    any_written |= is_written;
    end = std::max(end, extent.end);
  });
  close();
  return found;
}

}  // namespace proxadam
