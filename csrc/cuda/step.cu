#include <cuda_runtime.h>

#include <algorithm>  // for find_if, max, min
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
  for (int i = threadIdx.x; i < table.rows; i += blockDim.x) {
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
  check_cuda(cudaLaunchKernelEx(&config, kernel, table), "launch the ProxAdam kernel");
}

// ---- which tensors go together ----------------------------------------------------------------

// What is the same for all tensors of a launch.
struct Kind {
  TensorTypes types;
  bool amsgrad;
  bool computes_constants;

  bool operator==(const Kind& other) const {
    return types.param == other.types.param && types.grad == other.types.grad &&
           types.state == other.types.state && amsgrad == other.amsgrad &&
           computes_constants == other.computes_constants;
  }
};

struct Batch {
  Kind kind;
  std::vector<const TensorEntry*> entries;
  std::int64_t numel = 0;
};

std::vector<Batch> batches_of(const TensorTable& table, const Device& context) {
  const bool amp = context.grad_scale.data || context.found_inf.data;
  std::vector<Batch> batches;
  for (const TensorEntry& entry : table.entries) {
    if (entry.device != context.index || entry.numel == 0) continue;
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

  Packer(const TensorTable& table, const Device& context, const Kind& kind,
         std::int32_t chunk)
      : table_(table),
        stream_(context.stream),
        kernel_(kernel_for<param_t, bytes>(kind.types.grad, kind.types.state, kind.amsgrad)),
        packed_(new Table) {  // not value-initialised: what is not filled is not read
    packed_->grad_scale = context.grad_scale;
    packed_->found_inf = context.found_inf;
    packed_->chunk = chunk;
    packed_->computes_constants = kind.computes_constants;
    packed_->rows = 0;
  }

  void add(const TensorEntry& entry) {
    const std::uint32_t key = packed_->computes_constants ? entry.group : entry.constants;
    const bool new_constants = sets_ == 0 || key != last_key_;
    const int room = packed_->computes_constants ? Table::kSources : Table::kKnown;
    const std::int64_t chunks = (entry.numel + packed_->chunk - 1) / packed_->chunk;
    if (packed_->rows == Table::kRows || (new_constants && sets_ == room) ||
        blocks_ + chunks > kMaxBlocks) {
      flush();
    }
    if (sets_ == 0 || key != last_key_) add_constants(entry, key);
    const int i = packed_->rows++;
    Row& row = packed_->row[i];
    row.param = entry.buffers.param;
    row.grad = entry.buffers.grad;
    row.exp_avg = entry.buffers.exp_avg;
    row.exp_avg_sq = entry.buffers.exp_avg_sq;
    row.max_exp_avg_sq = entry.buffers.max_exp_avg_sq;
    row.numel = entry.numel;
    if (entry.counter.on_host) {
      row.step.number = entry.step;
    } else {
      row.step.address = entry.counter.data;
    }
    packed_->first_chunk[i] = static_cast<std::uint32_t>(blocks_);
    packed_->constants[i] = static_cast<std::uint16_t>(sets_ - 1);
    packed_->step_kind[i] = step_kind(entry.counter);
    blocks_ += chunks;
  }

  void flush() {
    if (packed_->rows) launch(kernel_, *packed_, blocks_, stream_);
    packed_->rows = 0;
    blocks_ = 0;
    sets_ = 0;
  }

 private:
  // The grid's limit; chunks of a single tensor stay below it up to 2^41 elements.
  static constexpr std::int64_t kMaxBlocks = (std::int64_t{1} << 31) - 1;

  void add_constants(const TensorEntry& entry, std::uint32_t key) {
    const Options& options = table_.options[entry.group];
    if (packed_->computes_constants) {
      packed_->sources[sets_] = options;
    } else {
      packed_->known[sets_] = {StepConstants<opmath_t>::from(table_.constants[entry.constants]),
                               update_of(options)};
    }
    last_key_ = key;
    ++sets_;
  }

  const TensorTable& table_;
  void* stream_;
  Kernel<opmath_t, bytes> kernel_;
  std::unique_ptr<Table> packed_;
  std::int64_t blocks_ = 0;
  int sets_ = 0;
  std::uint32_t last_key_ = 0;
};

template <typename param_t, int bytes>
void launch_batch(const TensorTable& table, const Device& context, const Batch& batch,
                  std::int32_t chunk) {
  Packer<param_t, bytes> packer(table, context, batch.kind, chunk);
  for (const TensorEntry* entry : batch.entries) packer.add(*entry);
  packer.flush();
}

template <typename param_t>
void launch_batch(const TensorTable& table, const Device& context, const Batch& batch,
                  std::int32_t chunk) {
  using Small = LaunchTable<typename OpMath<param_t>::type, kSmallTable>;
  if (batch.entries.size() <= Small::kRows) {
    launch_batch<param_t, kSmallTable>(table, context, batch, chunk);
  } else {
    launch_batch<param_t, kLargeTable>(table, context, batch, chunk);
  }
}

void launch_batch(const TensorTable& table, const Device& context, const Batch& batch,
                  std::int32_t chunk) {
  switch (batch.kind.types.param) {
    case ScalarType::kFloat32:
      return launch_batch<float>(table, context, batch, chunk);
    case ScalarType::kFloat64:
      return launch_batch<double>(table, context, batch, chunk);
    case ScalarType::kBFloat16:
      return launch_batch<bfloat16>(table, context, batch, chunk);
    case ScalarType::kFloat16:
      return launch_batch<float16>(table, context, batch, chunk);
  }
}

void count_steps(const TensorTable& table, const Device& context) {
  CounterTable counters;
  counters.found_inf = context.found_inf;
  counters.rows = 0;
  for (const TensorEntry& entry : table.entries) {
    if (entry.device != context.index || entry.counter.on_host) continue;
    counters.counter[counters.rows] = entry.counter.data;
    counters.is_double[counters.rows] = entry.counter.is_double;
    if (++counters.rows == CounterTable::kRows) {
      launch(count_step_kernel, counters, 1, context.stream);
      counters.rows = 0;
    }
  }
  if (counters.rows) launch(count_step_kernel, counters, 1, context.stream);
}

int multiprocessors(int device) {
  int count = 0;
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
             "count the multiprocessors");
  return count;
}

// ---- loading ----------------------------------------------------------------------------------

template <typename param_t, int bytes>
void load(const char* action) {
  // kernel_for() looks for float32 beside 16 bits, and takes all else for param_t.
  const ScalarType own = sizeof(param_t) == 2 ? ScalarType::kBFloat16 : ScalarType::kFloat32;
  cudaFuncAttributes attributes;
  for (const ScalarType grad : {own, ScalarType::kFloat32}) {
    for (const ScalarType state : {own, ScalarType::kFloat32}) {
      for (const bool amsgrad : {false, true}) {
        const auto kernel = kernel_for<param_t, bytes>(grad, state, amsgrad);
        check_cuda(cudaFuncGetAttributes(&attributes, kernel), action);
      }
    }
  }
}

}  // namespace

std::int32_t chunk_for(std::int64_t numel, int multiprocessors) {
  // One round of blocks over the device; whole vectors of every type for every thread.
  constexpr std::int64_t kStride = kThreads * 8;
  constexpr std::int64_t kLongest = 8 * kStride;
  const std::int64_t blocks = std::max(1, 4 * multiprocessors);
  const std::int64_t strides = (numel + blocks * kStride - 1) / (blocks * kStride);
  return static_cast<std::int32_t>(
      std::min(std::max<std::int64_t>(strides, 1) * kStride, kLongest));
}

void step_cuda(const TensorTable& table) {
  for (const Device& context : table.devices) {
    const DeviceGuard guard(context.index);
    const int processors = multiprocessors(context.index);
    for (const Batch& batch : batches_of(table, context)) {
      launch_batch(table, context, batch, chunk_for(batch.numel, processors));
    }
    count_steps(table, context);
  }
}

void load_kernels(int device) {
  const DeviceGuard guard(device);
  const char* action = "load the ProxAdam kernels";
  load<float, kSmallTable>(action);
  load<float, kLargeTable>(action);
  load<double, kSmallTable>(action);
  load<double, kLargeTable>(action);
  load<bfloat16, kSmallTable>(action);
  load<bfloat16, kLargeTable>(action);
  load<float16, kSmallTable>(action);
  load<float16, kLargeTable>(action);
  cudaFuncAttributes attributes;
  check_cuda(cudaFuncGetAttributes(&attributes, count_step_kernel), action);
}

}  // namespace proxadam
