// Sorts the tensors of a step into launches, fills their tables, and queues them.

#include <cuda_runtime.h>

#include <algorithm>  // for find, max, min
#include <iterator>   // for begin, end
#include <memory>     // for unique_ptr

#include "../codes.h"       // for kBlock
#include "../group_prox.h"  // for row_pull
#include "batches.h"        // for Batch, batches_of, bytes_of_number, Kind, longest_chunk, ...
#include "device.h"         // for check_cuda, DeviceGuard
#include "kernel_table.h"   // for Kernel, kernel_for, may_take_chance, may_take_none
#include "launch_table.h"   // for ChanceTable, CounterTable, kThreads, LaunchTable, RowTable
#include "row_plan.h"       // for kSharedBytes, longest_row, rows_of_chunk, shared_bytes
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
void launch(void (*kernel)(Table), const Table& table, std::int64_t blocks, int shared_bytes,
            void* stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  // By address: cudaLaunchKernelEx would take a copy of the table.
  void* arguments[] = {const_cast<Table*>(&table)};
  check_cuda(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), arguments),
             "launch the ProxAdam kernel");
}

// ---- filling tables ---------------------------------------------------------------------------

StepKind step_kind(const StepCounter& counter) {
  if (counter.on_host) return StepKind::kNumber;
  return counter.is_double ? StepKind::kFloat64 : StepKind::kFloat32;
}

void fill(LaunchEntry&, const TensorEntry&, const Options&) {}
void fill(ChanceEntry& packed, const TensorEntry& entry, const Options& options) {
  packed.exponents = entry.exponents;
  packed.offset = entry.offset;
  packed.tensor_key = entry.tensor_key;
  packed.rounds_state = rounds_state(entry, options);
  packed.rounds_params = rounds_params(entry, options);
}
void fill(RowEntry& packed, const TensorEntry& entry, const Options& options) {
  fill(static_cast<ChanceEntry&>(packed), entry, options);
  packed.pull = row_pull(options, entry.row);
  packed.row = static_cast<std::int32_t>(entry.row);
}

std::uint8_t* bytes_behind(void* address, std::int64_t bytes) {
  return address ? static_cast<std::uint8_t*>(address) + bytes : nullptr;
}

// The entry from one of its elements on, which begins a block where there are codes.
TensorEntry from(std::int64_t first, const TensorEntry& entry) {
  const std::int64_t of_state = first * bytes_of(entry.types.state);
  TensorEntry rest = entry;
  Buffers& buffers = rest.buffers;
  buffers.param = bytes_behind(buffers.param, first * bytes_of(entry.types.param));
  buffers.grad = bytes_behind(buffers.grad, first * bytes_of(entry.types.grad));
  buffers.exp_avg = bytes_behind(buffers.exp_avg, of_state);
  buffers.exp_avg_sq = bytes_behind(buffers.exp_avg_sq, of_state);
  buffers.max_exp_avg_sq = bytes_behind(buffers.max_exp_avg_sq, of_state);
  rest.exponents.exp_avg = bytes_behind(rest.exponents.exp_avg, first / kBlock);
  rest.exponents.exp_avg_sq = bytes_behind(rest.exponents.exp_avg_sq, first / kBlock);
  rest.offset += first;
  rest.numel -= first;
  return rest;
}

// Calls f for the pieces of an entry whose elements have one key each: up to a multiple of 2^32.
template <typename F>
void for_each_stretch(const TensorEntry& entry, F f) {
  constexpr std::int64_t kStretch = std::int64_t{1} << 32;
  TensorEntry rest = entry;
  for (;;) {
    const std::int64_t left = kStretch - (rest.offset & (kStretch - 1));
    if (rest.numel <= left) return f(rest);
    TensorEntry stretch = rest;
    stretch.numel = left;
    f(stretch);
    rest = from(left, rest);
  }
}

// Fills one table after the other with the tensors of a batch, and launches each when it is full.
template <typename param_t, typename Table>
class Packer {
 public:
  using opmath_t = typename Table::opmath_t;

  Packer(const TensorTable& table, const Device& device, const Kind& kind, std::int32_t chunk)
      : table_(table),
        stream_(device.stream),
        kernel_(kernel_for<param_t, Table>(kind.types, kind.amsgrad)),
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
    const std::int64_t chunks = chunks_of(entry);
    if (packed_->entries == Table::kEntries || (!shares_constants(entry) && sets_ == room) ||
        blocks_ + chunks > kMaxBlocks) {
      flush();
    }
    if (!shares_constants(entry)) add_constants(entry);
    const int i = packed_->entries++;
    typename Table::Entry& packed = packed_->entry[i];
    packed.buffers = entry.buffers;
    packed.numel = entry.numel;
    fill(packed, entry, table_.options[entry.group]);
    if (entry.counter.on_host) {
      packed.step.number = entry.step;
    } else {
      packed.step.address = entry.counter.data;
    }
    packed_->first_chunk[i] = static_cast<std::uint32_t>(blocks_);
    packed_->constants[i] = static_cast<std::uint16_t>(sets_ - 1);
    packed_->step_kind[i] = step_kind(entry.counter);
    blocks_ += chunks;
    if constexpr (kIsRowTable<Table>) {
      shared_ = std::max(shared_, shared_bytes(packed.row, sizeof(opmath_t)));
    }
  }

  void flush() {
    if (packed_->entries) launch(kernel_, *packed_, blocks_, shared_, stream_);
    packed_->entries = 0;
    blocks_ = 0;
    shared_ = 0;
    sets_ = 0;
  }

 private:
  // The grid's limit; chunks of a single tensor stay below it up to 2^41 elements.
  static constexpr std::int64_t kMaxBlocks = (std::int64_t{1} << 31) - 1;

  std::int64_t chunks_of(const TensorEntry& entry) const {
    std::int64_t numel = entry.numel, chunk = packed_->chunk;
    if constexpr (kIsRowTable<Table>) {
      numel /= entry.row;
      chunk = rows_of_chunk(packed_->chunk, static_cast<int>(entry.row), sizeof(opmath_t));
    }
    return (numel + chunk - 1) / chunk;
  }

  // Whether the constants are those of the entry before.
  bool shares_constants(const TensorEntry& entry) const {
    return sets_ != 0 && entry.group == group_ &&
           (packed_->computes_constants || entry.step == step_);
  }

  void add_constants(const TensorEntry& entry) {
    const Options& options = table_.options[entry.group];
    if (packed_->computes_constants) {
      packed_->sources[sets_++] = options;
    } else {
      packed_->known[sets_++] = {step_constants<opmath_t>(options, entry.step, 1),
                                 update_of(options)};
    }
    group_ = entry.group;
    step_ = entry.step;
  }

  const TensorTable& table_;
  void* stream_;
  Kernel<Table> kernel_;
  std::unique_ptr<Table> packed_;
  std::int64_t blocks_ = 0;
  int shared_ = 0;  // bytes
  int sets_ = 0;
  std::uint32_t group_ = 0;  // of the last to add constants
  double step_ = 0;
};

template <typename param_t, typename Table>
void launch_batch(const TensorTable& table, const Device& device, const Batch& batch,
                  std::int32_t chunk) {
  Packer<param_t, Table> packer(table, device, batch.kind, chunk);
  for (const TensorEntry* entry : batch.entries) {
    if constexpr (kIsChanceTable<Table>) {
      for_each_stretch(*entry, [&](const TensorEntry& stretch) { packer.add(stretch); });
    } else {
      packer.add(*entry);
    }
  }
  packer.flush();
}

void launch_batch(const TensorTable& table, const Device& device, const Batch& batch,
                  std::int32_t chunk) {
  with_types(batch.kind.types, [&](auto scalars) {
    using Types = decltype(scalars);
    using param_t = typename Types::param_t;
    using Rows = RowTable<typename OpMath<param_t>::type>;
    using Small = LaunchTable<typename OpMath<param_t>::type, kSmallTable>;
    using Large = LaunchTable<typename OpMath<param_t>::type, kLargeTable>;
    if (batch.kind.tables == Tables::kRows) {
      return launch_batch<param_t, Rows>(table, device, batch, chunk);
    }
    if constexpr (may_take_chance(Types::kTypes)) {
      if (batch.kind.tables == Tables::kChance) {
        return launch_batch<param_t, ChanceTable>(table, device, batch, chunk);
      }
    }
    if (batch.entries.size() <= Small::kEntries) {
      launch_batch<param_t, Small>(table, device, batch, chunk);
    } else {
      launch_batch<param_t, Large>(table, device, batch, chunk);
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
      launch(count_step_kernel, counters, 1, 0, device.stream);
      counters.counters = 0;
    }
  }
  if (counters.counters) launch(count_step_kernel, counters, 1, 0, device.stream);
}

// ---- loading ----------------------------------------------------------------------------------

template <typename Table>
void load(void (*kernel)(Table)) {
  cudaFuncAttributes attributes;
  check_cuda(cudaFuncGetAttributes(&attributes, kernel), "load the ProxAdam kernels");
}

// None where there is no kernel.
template <typename Table>
int blocks_at_once(void (*kernel)(Table), int multiprocessors) {
  if (!kernel) return 0;
  load(kernel);
  int blocks = 0;
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, 0),
             "tell how many blocks a multiprocessor holds");
  return blocks * multiprocessors;
}

// Likewise; and has a block share more than 48 KB.
template <typename opmath_t>
int blocks_at_once(void (*kernel)(RowTable<opmath_t>), int multiprocessors) {
  const int blocks = blocks_at_once<RowTable<opmath_t>>(kernel, multiprocessors);
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
      "have a block share memory");
  return blocks;
}

std::size_t index_of(const TensorTypes& types) {
  return std::find(std::begin(kTensorTypes), std::end(kTensorTypes), types) -
         std::begin(kTensorTypes);
}

}  // namespace

bool takes_row_cuda(std::int64_t numel, const TensorTypes& types) {
  if (types.state == ScalarType::kCode8 && numel % kBlock != 0) return false;
  return numel <= longest_row(bytes_of_number(types));
}

std::int32_t chunk_for(std::int64_t numel, int blocks_at_once, std::int32_t longest) {
  // One round of blocks over the device; whole vectors of every type for every thread.
  const std::int64_t round = std::int64_t{kChunkStride} * std::max(1, blocks_at_once);
  const std::int64_t strides = std::max<std::int64_t>((numel + round - 1) / round, 1);
  return static_cast<std::int32_t>(std::min<std::int64_t>(strides * kChunkStride, longest));
}

void step_cuda(const TensorTable& table, const std::vector<BlocksAtOnce>& blocks_at_once) {
  for (const Device& device : table.devices) {
    const DeviceGuard guard(device.index);
    for (const Batch& batch : batches_of(table, device)) {
      const Kind& kind = batch.kind;
      const auto& blocks = blocks_at_once[device.index][index_of(kind.types)];
      const std::int32_t chunk = chunk_for(
          batch.weight, blocks[static_cast<int>(kind.tables)][kind.amsgrad], longest_chunk(kind));
      launch_batch(table, device, batch, chunk);
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
        using Types = decltype(scalars);
        using param_t = typename Types::param_t;
        using opmath_t = typename OpMath<param_t>::type;
        auto& at_once = blocks[index_of(types)];
        if constexpr (may_take_none(Types::kTypes)) {
          load(kernel_for<param_t, LaunchTable<opmath_t, kSmallTable>>(types, amsgrad));
          at_once[static_cast<int>(Tables::kElements)][amsgrad] = blocks_at_once(
              kernel_for<param_t, LaunchTable<opmath_t, kLargeTable>>(types, amsgrad),
              multiprocessors);
        }
        if constexpr (may_take_chance(Types::kTypes)) {
          at_once[static_cast<int>(Tables::kChance)][amsgrad] =
              blocks_at_once(kernel_for<param_t, ChanceTable>(types, amsgrad), multiprocessors);
        }
        at_once[static_cast<int>(Tables::kRows)][amsgrad] = blocks_at_once(
            kernel_for<param_t, RowTable<opmath_t>>(types, amsgrad), multiprocessors);
      });
    }
  }
  load(count_step_kernel);
  return blocks;
}

}  // namespace proxadam
