#include "step.h"

#include "../chunk_plan.h"  // for ChunkPlan

namespace proxadam {
namespace {

// Elements that are worth a thread: some 40 µs of work, where waking one takes 10.
constexpr std::int64_t kGrain = 65536;

struct Work {
  const TensorTable& table;
  ChunkPlan plan;
  std::vector<RangeKernel> kernels;  // one an entry
};

void run(std::int64_t from, std::int64_t to, void* context) {
  const Work& work = *static_cast<const Work*>(context);
  work.plan.visit(from, to, [&](std::size_t i, std::int64_t begin, std::int64_t end) {
    const TensorEntry& entry = work.table.entries[i];
    const Buffers& b = entry.buffers;
    work.kernels[i]({b.param, b.grad, b.exp_avg, b.exp_avg_sq, b.max_exp_avg_sq,
                     &work.table.constants[entry.constants], begin, end});
  });
}

}  // namespace

void step_cpu(const TensorTable& table, const Capability& capability, ParallelFor parallel_for) {
  const bool unscale = !table.devices.empty() && table.devices.front().grad_scale.data;
  Work work{table, {}, {}};
  work.plan.reserve(table.entries.size());
  work.kernels.reserve(table.entries.size());
  for (const TensorEntry& entry : table.entries) {
    const Options& options = table.options[entry.group];
    work.plan.add(entry.numel);
    work.kernels.push_back(
        capability.range_kernel({entry.types, update_of(options), options.amsgrad, unscale}));
  }
  if (parallel_for && work.plan.work() > kGrain) {
    parallel_for(0, work.plan.work(), kGrain, run, &work);  // fails only where run() throws
  } else {
    run(0, work.plan.work(), &work);
  }
}

}  // namespace proxadam
