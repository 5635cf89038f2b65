// Shares the chunks of a step out among threads, each with the constants of its tensor.

#include "step.h"

#include <algorithm>  // for max
#include <memory>     // for unique_ptr
#include <numeric>    // for lcm
#include <vector>     // for vector

#include "../codes.h"       // for kBlock
#include "../group_prox.h"  // for row_pull
#include "../rounding.h"    // for step_key
#include "chunk_plan.h"     // for ChunkPlan
#include "range.h"          // for AllConstants, kLongestRows, Range, Rows, UpdateRange

namespace proxadam {
namespace {

// Elements that are worth a thread: some 40 µs of work, where waking one takes 10.
constexpr std::int64_t kGrain = 65536;

struct Work {
  const TensorTable& table;
  UpdateRange update_range;
  bool unscale;
  ChunkPlan plan;
  std::vector<Update> updates;              // one a group
  std::vector<AllConstants> constants;      // one for each distinct (group, step)
  std::vector<std::uint32_t> constants_of;  // one an entry: its index in `constants`
};

Stochastic stochastic_of(const Work& work, const TensorEntry& entry) {
  const Options& options = work.table.options[entry.group];
  Stochastic found{options.stochastic_state, options.stochastic_params, 0, entry.offset};
  if (found.state || found.param) found.step_key = step_key(entry.tensor_key, entry.step);
  return found;
}

// Elements that are worth what it costs to go over rows three times.
constexpr std::int64_t kTogether = 1024;

// What a stretch of whole rows is a multiple of: whole blocks too, where there are codes.
std::int64_t unit_of(std::int64_t row, const TensorTypes& types) {
  return types.state == ScalarType::kCode8 ? std::lcm<std::int64_t>(row, kBlock) : row;
}

// A thread's own, kept for its next step; untouched pages take no memory. It begins with a line of
// the cache: vectors that lie across two would take twice as long.
void* scratch() {
  struct alignas(64) Scratch {
    double numbers[kScratch];
  };
  static thread_local std::unique_ptr<Scratch> kept;
  if (!kept) kept.reset(new Scratch);
  return kept.get();
}

Rows rows_of(const Work& work, const TensorEntry& entry) {
  if (!entry.row || work.updates[entry.group] == Update::kFrozen) return {};
  const std::int64_t unit = unit_of(entry.row, entry.types);
  return {entry.row, unit * std::max<std::int64_t>(1, kTogether / unit),
          row_pull(work.table.options[entry.group], entry.row), scratch()};
}

void run(std::int64_t from, std::int64_t to, void* context) {
  const Work& work = *static_cast<const Work*>(context);
  work.plan.visit(from, to, [&](std::size_t i, std::int64_t begin, std::int64_t end) {
    const TensorEntry& entry = work.table.entries[i];
    work.update_range({entry.buffers, entry.exponents, entry.types, stochastic_of(work, entry),
                       rows_of(work, entry), work.updates[entry.group], work.unscale,
                       &work.constants[work.constants_of[i]], begin, end});
  });
}

}  // namespace

bool takes_row_cpu(std::int64_t numel, const TensorTypes& types) {
  return numel <= kLongestRows && unit_of(numel, types) <= kLongestRows;
}

void step_cpu(const TensorTable& table, const Capability& capability, ParallelFor parallel_for) {
  const DeviceScalar scale = table.devices.empty() ? DeviceScalar{} : table.devices[0].grad_scale;
  Work work{table, capability.update_range, scale.data != nullptr, {}, {}, {}, {}};
  for (const Options& options : table.options) work.updates.push_back(update_of(options));
  work.plan.reserve(table.entries.size());
  work.constants_of.reserve(table.entries.size());
  const TensorEntry* before = nullptr;
  for (const TensorEntry& entry : table.entries) {
    if (!before || entry.step != before->step || entry.group != before->group) {
      const Options& options = table.options[entry.group];
      work.constants.push_back({step_constants<float>(options, entry.step, read_or(scale, 1)),
                                step_constants<double>(options, entry.step, read_or(scale, 1))});
    }
    work.constants_of.push_back(static_cast<std::uint32_t>(work.constants.size() - 1));
    work.plan.add(entry.numel, entry.row ? unit_of(entry.row, entry.types) : 1);
    before = &entry;
  }
  if (parallel_for && work.plan.work() > kGrain) {
    parallel_for(0, work.plan.work(), kGrain, run, &work);  // fails only where run() throws
  } else {
    run(0, work.plan.work(), &work);
  }
}

}  // namespace proxadam
