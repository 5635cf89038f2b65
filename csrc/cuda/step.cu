// Sorts the tensors of a step into launches, fills their tables, and queues them.

#include <cuda_runtime.h>

#include <algorithm>  // for find, find_if, max, min
#include <iterator>   // for begin, end
#include <memory>     // for unique_ptr

#include "device.h"        // for check_cuda, DeviceGuard
#include "kernel_table.h"  // for Kernel, kernel_for
#include "launch_table.h"  // for CounterTable, kThreads, LaunchTable
#include "step.h"

namespace proxadam {
namespace {

// Adds one to each counter: a launch of its own, behind every block that reads one.
__global__ void __launch_bounds__(kThreads)
    count_step_kernel(const __grid_constant__ CounterTable table) {
  if (read_or(table.found_inf, 0) != 0) return;
  for (int i = threadIdx.x; i < table.counters; i += blockDim.x) {
    if (table.is_double[i]) {
      *static_cast<double*>(table.counter[i]) += 1;
    } else {
      *static_cast<float*>(table.counter[i]) += 1;
    }
  }
}

template <typename Table>
void launch(void (*kernel)(Table), const Table& table, std::int64_t blocks, void* stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  // By address: cudaLaunchKernelEx would take a copy of the table.
  void* arguments[] = {const_cast<Table*>(&table)};
  check_cuda(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), arguments),
             "launch the ProxAdam kernel");
}

// ---- which tensors go together ----------------------------------------------------------------

// What is the same for all tensors of a launch.
struct Kind {
  TensorTypes types;
  bool amsgrad;
  bool computes_constants;

  bool operator==(const Kind& other) const {
    return types == other.types && amsgrad == other.amsgrad &&
           computes_constants == other.computes_constants;
  }
};

struct Batch {
  Kind kind;
  std::vector<const TensorEntry*> entries;
  std::int64_t numel = 0;
};

std::vector<Batch> batches_of(const TensorTable& table, const Device& device) {
  const bool amp = device.grad_scale.data || device.found_inf.data;
  std::vector<Batch> batches;
  for (const TensorEntry& entry : table.entries) {
    if (entry.device != device.index || entry.numel == 0) continue;
    const Kind kind{entry.types, table.options[entry.group].amsgrad,
                    amp || !entry.counter.on_host || any_on_device(table.options[entry.group])};
    auto batch = std::find_if(batches.begin(), batches.end(),
                              [&](const Batch& b) { return b.kind == kind; });
    if (batch == batches.end()) batch = batches.insert(batch, Batch{kind, {}, 0});
    batch->entries.push_back(&entry);
    batch->numel += entry.numel;
  }
  return batches;
}

// ---- filling tables ---------------------------------------------------------------------------

StepKind step_kind(const StepCounter& counter) {
  if (counter.on_host) return StepKind::kNumber;
  return counter.is_double ? StepKind::kFloat64 : StepKind::kFloat32;
}

// Fills one table after the other with the tensors of a batch, and launches each when it is full.
template <typename param_t, int bytes>
class Packer {
 public:
  using opmath_t = typename OpMath<param_t>::type;
  using Table = LaunchTable<opmath_t, bytes>;

  Packer(const TensorTable& table, const Device& device, const Kind& kind, std::int32_t chunk)
      : table_(table),
        stream_(device.stream),
        kernel_(kernel_for<param_t, bytes>(kind.types, kind.amsgrad)),
        packed_(new Table) {  // not value-initialised: what is not filled is not read
    packed_->grad_scale = device.grad_scale;
    packed_->found_inf = device.found_inf;
    packed_->chunk = chunk;
    packed_->grad_bytes = bytes_of(kind.types.grad);
    packed_->computes_constants = kind.computes_constants;
    packed_->entries = 0;
  }

  void add(const TensorEntry& entry) {
    const int room = packed_->computes_constants ? Table::kSources : Table::kKnown;
    const std::int64_t chunks = (entry.numel + packed_->chunk - 1) / packed_->chunk;
    if (packed_->entries == Table::kEntries || (!shares_constants(entry) && sets_ == room) ||
        blocks_ + chunks > kMaxBlocks) {
      flush();
    }
    if (!shares_constants(entry)) add_constants(entry);
    const int i = packed_->entries++;
    LaunchEntry& packed = packed_->entry[i];
    packed.buffers = entry.buffers;
    packed.numel = entry.numel;
    if (entry.counter.on_host) {
      packed.step.number = entry.step;
    } else {
      packed.step.address = entry.counter.data;
    }
    packed_->first_chunk[i] = static_cast<std::uint32_t>(blocks_);
    packed_->constants[i] = static_cast<std::uint16_t>(sets_ - 1);
    packed_->step_kind[i] = step_kind(entry.counter);
    blocks_ += chunks;
  }

  void flush() {
    if (packed_->entries) launch(kernel_, *packed_, blocks_, stream_);
    packed_->entries = 0;
    blocks_ = 0;
    sets_ = 0;
    before_ = nullptr;
  }

 private:
  // The grid's limit; chunks of a single tensor stay below it up to 2^41 elements.
  static constexpr std::int64_t kMaxBlocks = (std::int64_t{1} << 31) - 1;

  // Whether the constants are those of the entry before.
  bool shares_constants(const TensorEntry& entry) const {
    return before_ && entry.group == before_->group &&
           (packed_->computes_constants || entry.step == before_->step);
  }

  void add_constants(const TensorEntry& entry) {
    const Options& options = table_.options[entry.group];
    if (packed_->computes_constants) {
      packed_->sources[sets_++] = options;
    } else {
      packed_->known[sets_++] = {step_constants<opmath_t>(options, entry.step, 1),
                                 update_of(options)};
    }
    before_ = &entry;
  }

  const TensorTable& table_;
  void* stream_;
  Kernel<opmath_t, bytes> kernel_;
  std::unique_ptr<Table> packed_;
  std::int64_t blocks_ = 0;
  int sets_ = 0;
  const TensorEntry* before_ = nullptr;  // the last to add constants
};

template <typename param_t, int bytes>
void launch_batch(const TensorTable& table, const Device& device, const Batch& batch,
                  std::int32_t chunk) {
  Packer<param_t, bytes> packer(table, device, batch.kind, chunk);
  for (const TensorEntry* entry : batch.entries) packer.add(*entry);
  packer.flush();
}

void launch_batch(const TensorTable& table, const Device& device, const Batch& batch,
                  std::int32_t chunk) {
  with_types(batch.kind.types, [&](auto scalars) {
    using param_t = typename decltype(scalars)::param_t;
    using Small = LaunchTable<typename OpMath<param_t>::type, kSmallTable>;
    if (batch.entries.size() <= Small::kEntries) {
      launch_batch<param_t, kSmallTable>(table, device, batch, chunk);
    } else {
      launch_batch<param_t, kLargeTable>(table, device, batch, chunk);
    }
  });
}

void count_steps(const TensorTable& table, const Device& device) {
  CounterTable counters;
  counters.found_inf = device.found_inf;
  counters.counters = 0;
  for (const TensorEntry& entry : table.entries) {
    if (entry.device != device.index || entry.counter.on_host) continue;
    counters.counter[counters.counters] = entry.counter.data;
    counters.is_double[counters.counters] = entry.counter.is_double;
    if (++counters.counters == CounterTable::kCounters) {
      launch(count_step_kernel, counters, 1, device.stream);
      counters.counters = 0;
    }
  }
  if (counters.counters) launch(count_step_kernel, counters, 1, device.stream);
}

// ---- loading ----------------------------------------------------------------------------------

template <typename Table>
void load(void (*kernel)(Table)) {
  cudaFuncAttributes attributes;
  check_cuda(cudaFuncGetAttributes(&attributes, kernel), "load the ProxAdam kernels");
}

template <typename Table>
int blocks_at_once(void (*kernel)(Table), int multiprocessors) {
  load(kernel);
  int blocks = 0;
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, 0),
             "tell how many blocks a multiprocessor holds");
  return blocks * multiprocessors;
}

std::size_t index_of(const TensorTypes& types) {
  return std::find(std::begin(kTensorTypes), std::end(kTensorTypes), types) -
         std::begin(kTensorTypes);
}

}  // namespace

std::int32_t chunk_for(std::int64_t numel, int blocks_at_once) {
  // One round of blocks over the device; whole vectors of every type for every thread.
  const std::int64_t round = std::int64_t{kChunkStride} * std::max(1, blocks_at_once);
  const std::int64_t strides = std::max<std::int64_t>((numel + round - 1) / round, 1);
  return static_cast<std::int32_t>(std::min<std::int64_t>(strides * kChunkStride, kLongestChunk));
}

void step_cuda(const TensorTable& table, const std::vector<BlocksAtOnce>& blocks_at_once) {
  for (const Device& device : table.devices) {
    const DeviceGuard guard(device.index);
    for (const Batch& batch : batches_of(table, device)) {
      const auto& blocks = blocks_at_once[device.index][index_of(batch.kind.types)];
      launch_batch(table, device, batch, chunk_for(batch.numel, blocks[batch.kind.amsgrad]));
    }
    count_steps(table, device);
  }
}

BlocksAtOnce load_kernels(int device) {
  const DeviceGuard guard(device);
  int multiprocessors = 0;
  check_cuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
             "count the multiprocessors");
  BlocksAtOnce blocks;
  for (const TensorTypes& types : kTensorTypes) {
    for (const bool amsgrad : {false, true}) {
      with_types(types, [&](auto scalars) {
        using param_t = typename decltype(scalars)::param_t;
        load(kernel_for<param_t, kSmallTable>(types, amsgrad));
        blocks[index_of(types)][amsgrad] =
            blocks_at_once(kernel_for<param_t, kLargeTable>(types, amsgrad), multiprocessors);
      });
    }
  }
  load(count_step_kernel);
  return blocks;
}

}  // namespace proxadam
