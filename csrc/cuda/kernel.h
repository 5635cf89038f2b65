// The CUDA kernels: a loop around csrc/prox_adam.h.
//
// A block takes one chunk of one tensor. It goes through it in vectors, of as many elements as the
// widest of parameter and moments has in 16 bytes, so that the threads of a warp read and write
// whole lines of every buffer. What lies before the first aligned address and behind the last goes
// element by element, and so does a chunk whose buffers are not aligned at the same elements.
// Gradients are in the parameters' type or in opmath_t, which a launch tells at run time.
//
// The tests compile this file for the host as well, with threads for threads.

#pragma once

#include <type_traits>  // for is_same

#include "../scalar_types.h"  // for Buffers, narrow, widen, ...
#include "branch_free.h"      // for MathOf, wants_redo
#include "launch_table.h"     // for kThreads, LaunchTable

namespace proxadam {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr bool kIsBlackwell = true;  // for which ptxas 13.0 takes some registers more
#else
constexpr bool kIsBlackwell = false;
#endif

// Blocks that a multiprocessor must hold at once: as many as the registers of the loop allow
// without spilling. Each thread then has 48 bytes and more on their way.
template <typename param_t, typename state_t, bool amsgrad>
constexpr int kBlocksPerMultiprocessor =
    sizeof(param_t) == 8                                         ? 2
    : kIsBlackwell                                               ? 3 - amsgrad
    : std::is_same<typename MathOf<param_t>::type, Exact>::value ? 3
    : sizeof(state_t) == 2 && amsgrad                            ? 3
                                                                 : 4;

constexpr int kAccess = 16;  // bytes

// ---- memory -----------------------------------------------------------------------------------

__device__ __forceinline__ int beyond_alignment(const void* address) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(address) % kAccess);
}

// The address of element i of a buffer.
template <typename scalar_t>
__device__ __forceinline__ scalar_t* at(void* buffer, int64_t i) {
  return static_cast<scalar_t*>(buffer) + i;
}

// As many elements as one instruction moves, of those that make a vector.
template <typename scalar_t, int width>
struct alignas(sizeof(scalar_t) * width < kAccess ? sizeof(scalar_t) * width : kAccess) Access {
  scalar_t values[sizeof(scalar_t) * width < kAccess ? width : kAccess / sizeof(scalar_t)];
};

template <typename scalar_t, int width, typename opmath_t>
__device__ __forceinline__ void load(const scalar_t* from, opmath_t (&to)[width]) {
  using Moved = Access<scalar_t, width>;
  constexpr int kElements = sizeof(Moved) / sizeof(scalar_t);
#pragma unroll
  for (int i = 0; i < width; i += kElements) {
    const Moved moved = *reinterpret_cast<const Moved*>(from + i);
#pragma unroll
    for (int j = 0; j < kElements; ++j) to[i + j] = widen(moved.values[j]);
  }
}

template <bool drops_zero_signs = false, typename scalar_t, int width, typename opmath_t>
__device__ __forceinline__ void store(const opmath_t (&from)[width], scalar_t* to) {
  using Moved = Access<scalar_t, width>;
  constexpr int kElements = sizeof(Moved) / sizeof(scalar_t);
#pragma unroll
  for (int i = 0; i < width; i += kElements) {
    Moved moved;
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      narrow(from[i + j], moved.values[j]);
      if (drops_zero_signs) drop_zero_sign(moved.values[j]);
    }
    *reinterpret_cast<Moved*>(to + i) = moved;
  }
}

// ---- the chunk --------------------------------------------------------------------------------

// What a block takes: so many elements from the first of its buffers on.
template <typename param, typename state, typename opmath>
struct Chunk {
  using param_t = param;
  using state_t = state;
  using opmath_t = opmath;
  // Elements of a vector.
  static constexpr int kWidth =
      kAccess / (sizeof(state_t) > sizeof(param_t) ? sizeof(state_t) : sizeof(param_t));

  Buffers buffers;
  int numel;
  int grad_bytes;  // of an element: as the parameter, or in opmath_t
  bool unscale;
};

template <bool amsgrad, typename Chunk>
__device__ __forceinline__ void advance(Chunk& chunk, int elements) {
  using param_t = typename Chunk::param_t;
  using state_t = typename Chunk::state_t;
  Buffers& buffers = chunk.buffers;
  buffers.param = at<param_t>(buffers.param, elements);
  buffers.grad = at<char>(buffers.grad, elements * chunk.grad_bytes);
  buffers.exp_avg = at<state_t>(buffers.exp_avg, elements);
  buffers.exp_avg_sq = at<state_t>(buffers.exp_avg_sq, elements);
  if (amsgrad) buffers.max_exp_avg_sq = at<state_t>(buffers.max_exp_avg_sq, elements);
}

// Calls f with the address of element i of the gradient, in its type.
template <typename Chunk, typename F>
__device__ __forceinline__ void with_grad(const Chunk& chunk, int i, F f) {
  using opmath_t = typename Chunk::opmath_t;
  using param_t = typename Chunk::param_t;
  char* grad = at<char>(chunk.buffers.grad, i * chunk.grad_bytes);
  if (sizeof(param_t) == sizeof(opmath_t) || chunk.grad_bytes == sizeof(param_t)) {
    f(reinterpret_cast<param_t*>(grad));
  } else {
    f(reinterpret_cast<opmath_t*>(grad));
  }
}

// Updates the elements from i on; or writes nothing, where the Math cannot tell that it is right,
// and returns false.
template <Update update, bool amsgrad, int width, typename Math, typename Chunk>
__device__ __forceinline__ bool update_elements(const StepConstants<typename Chunk::opmath_t>& c,
                                                const Chunk& chunk, int i) {
  using param_t = typename Chunk::param_t;
  using state_t = typename Chunk::state_t;
  const Buffers& buffers = chunk.buffers;
  typename Chunk::opmath_t param[width], grad[width], exp_avg[width], exp_avg_sq[width],
      max_exp_avg_sq[width];
  load(at<param_t>(buffers.param, i), param);
  load(at<state_t>(buffers.exp_avg, i), exp_avg);
  load(at<state_t>(buffers.exp_avg_sq, i), exp_avg_sq);
  if constexpr (amsgrad) load(at<state_t>(buffers.max_exp_avg_sq, i), max_exp_avg_sq);
  with_grad(chunk, i, [&](const auto* from) { load(from, grad); });
  Math math{};
  if (chunk.unscale) {
#pragma unroll
    for (int k = 0; k < width; ++k) grad[k] = quotient(math, grad[k], c.grad_scale);
  }
#pragma unroll
  for (int k = 0; k < width; ++k) {
    prox_adam_update<update, amsgrad>(math, c, grad[k], param[k], exp_avg[k], exp_avg_sq[k],
                                      max_exp_avg_sq[k]);
  }
  if (wants_redo(math)) return false;
  if (chunk.unscale) with_grad(chunk, i, [&](auto* to) { store(grad, to); });
  if constexpr (update != Update::kFrozen) {
    store<has_prox(update)>(param, at<param_t>(buffers.param, i));
  }
  store(exp_avg, at<state_t>(buffers.exp_avg, i));
  store(exp_avg_sq, at<state_t>(buffers.exp_avg_sq, i));
  if constexpr (amsgrad) store(max_exp_avg_sq, at<state_t>(buffers.max_exp_avg_sq, i));
  return true;
}

template <Update update, bool amsgrad, typename Chunk>
__device__ __forceinline__ void update_chunk(const StepConstants<typename Chunk::opmath_t>& c,
                                             const Chunk& chunk) {
  using param_t = typename Chunk::param_t;
  using state_t = typename Chunk::state_t;
  constexpr int kWidth = Chunk::kWidth;
  const Buffers& buffers = chunk.buffers;
  const int to_alignment =
      (kAccess - beyond_alignment(buffers.param)) % kAccess / static_cast<int>(sizeof(param_t));
  const int head = to_alignment < chunk.numel ? to_alignment : chunk.numel;
  int beyond = beyond_alignment(at<char>(buffers.grad, head * chunk.grad_bytes)) |
               beyond_alignment(at<state_t>(buffers.exp_avg, head)) |
               beyond_alignment(at<state_t>(buffers.exp_avg_sq, head));
  if constexpr (amsgrad) beyond |= beyond_alignment(at<state_t>(buffers.max_exp_avg_sq, head));
  const int in_vectors = beyond == 0 ? (chunk.numel - head) / kWidth * kWidth : 0;

  // Pointers that move cost the fewest instructions; an index, and a stride that the compiler does
  // not know, the fewest registers.
  constexpr bool kMoves = sizeof(param_t) == sizeof(typename Chunk::opmath_t);
  const int stride = (kMoves ? kThreads : blockDim.x) * kWidth;
  static_assert(kLongestChunk <= 32 * kThreads * kWidth, "more vectors than bits");
  uint32_t redo = 0;  // a bit for each of the thread's vectors
  uint32_t bit = 1;
  Chunk vectors = chunk;
  advance<amsgrad>(vectors, head + (kMoves ? threadIdx.x * kWidth : 0));
  for (int i = threadIdx.x * kWidth; i < in_vectors; i += stride, bit += bit) {
    using Math = typename MathOf<param_t>::type;
    if (!update_elements<update, amsgrad, kWidth, Math>(c, vectors, kMoves ? 0 : i)) redo |= bit;
    if (kMoves) advance<amsgrad>(vectors, stride);
  }
  // What lies outside the vectors, and the elements of those that were not written.
  int outside = threadIdx.x;
  int k = 0;
  for (;;) {
    int i;
    if (redo != 0) {
      i = head + (threadIdx.x + (__ffs(redo) - 1) * kThreads) * kWidth + k;
      k = (k + 1) % kWidth;
      if (k == 0) redo &= redo - 1;
    } else if (outside < chunk.numel - in_vectors) {
      i = outside < head ? outside : outside + in_vectors;
      outside += kThreads;
    } else {
      break;
    }
    update_elements<update, amsgrad, 1, Exact>(c, chunk, i);
  }
}

// ---- the constants ----------------------------------------------------------------------------

template <typename opmath_t>
struct BlockConstants {
  StepConstants<opmath_t> values;
  Update update;
  bool skips;  // found_inf
};

// The number of the step that is being taken.
template <typename opmath_t, int bytes>
__device__ __forceinline__ double step_of(const LaunchTable<opmath_t, bytes>& table, int index) {
  const auto& step = table.entry[index].step;
  switch (table.step_kind[index]) {
    case StepKind::kFloat32:
      return *static_cast<const float*>(step.address) + 1.0;
    case StepKind::kFloat64:
      return *static_cast<const double*>(step.address) + 1.0;
    case StepKind::kNumber:
      break;
  }
  return step.number;
}

// Computes them once for all threads of a block, which all have to call it. A power takes longest,
// so two threads of a warp take one each.
template <typename opmath_t, int bytes>
__device__ __forceinline__ BlockConstants<opmath_t> compute_constants(
    const LaunchTable<opmath_t, bytes>& table, int index) {
  __shared__ double powers[2];
  __shared__ BlockConstants<opmath_t> shared;
  Options options;
  if (threadIdx.x < 2) {
    options = read_numbers(table.sources[table.constants[index]]);
    const double beta = threadIdx.x == 0 ? options.beta1.value : options.beta2.value;
    powers[threadIdx.x] = pow(beta, step_of(table, index));
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    shared = {step_constants<opmath_t>(options, powers[0], powers[1], read_or(table.grad_scale, 1)),
              update_of(options), read_or(table.found_inf, 0) != 0};
  }
  __syncthreads();
  return shared;
}

// The last entry whose first chunk is not behind `chunk`. Entries of about one size are found at
// once; from there the steps double, for every look is a wait.
template <typename opmath_t, int bytes>
__device__ __forceinline__ int entry_of(const LaunchTable<opmath_t, bytes>& table, uint32_t chunk,
                                        uint32_t chunks) {
  int low = static_cast<int>(uint64_t(chunk) * table.entries / chunks);
  int high = low + 1;
  int step = 1;
  if (table.first_chunk[low] <= chunk) {
    for (; high < table.entries && table.first_chunk[high] <= chunk; step *= 2) {
      low = high;
      high = high + step < table.entries ? high + step : table.entries;
    }
  } else {
    do {  // the first entry's first chunk is 0
      high = low;
      low = low > step ? low - step : 0;
      step *= 2;
    } while (table.first_chunk[low] > chunk);
  }
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (table.first_chunk[middle] <= chunk) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// ---- the kernel -------------------------------------------------------------------------------

template <typename param_t, typename state_t, bool amsgrad, typename opmath_t, int bytes>
__global__ void __launch_bounds__(kThreads, (kBlocksPerMultiprocessor<param_t, state_t, amsgrad>))
    prox_adam_kernel(const __grid_constant__ LaunchTable<opmath_t, bytes> table) {
  const int index = entry_of(table, blockIdx.x, gridDim.x);
  BlockConstants<opmath_t> block;
  if (table.computes_constants) {
    block = compute_constants(table, index);
    if (block.skips) return;
  } else {
    const KnownConstants<opmath_t>& known = table.known[table.constants[index]];
    block = {known.values, known.update, false};
  }

  const LaunchEntry& entry = table.entry[index];
  const int64_t begin = int64_t(blockIdx.x - table.first_chunk[index]) * table.chunk;
  const int64_t left = entry.numel - begin;
  Chunk<param_t, state_t, opmath_t> chunk;
  chunk.numel = static_cast<int>(left < table.chunk ? left : table.chunk);
  chunk.grad_bytes = sizeof(param_t) == sizeof(opmath_t) ? sizeof(param_t) : table.grad_bytes;
  chunk.unscale = table.grad_scale.data != nullptr;
  chunk.buffers.param = at<param_t>(entry.buffers.param, begin);
  chunk.buffers.grad = at<char>(entry.buffers.grad, begin * chunk.grad_bytes);
  chunk.buffers.exp_avg = at<state_t>(entry.buffers.exp_avg, begin);
  chunk.buffers.exp_avg_sq = at<state_t>(entry.buffers.exp_avg_sq, begin);
  if (amsgrad) chunk.buffers.max_exp_avg_sq = at<state_t>(entry.buffers.max_exp_avg_sq, begin);
  switch (block.update) {
#define PROXADAM_CASE(name, prox) \
  case Update::k##name:           \
    return update_chunk<Update::k##name, amsgrad>(block.values, chunk);
    PROXADAM_UPDATES(PROXADAM_CASE)
#undef PROXADAM_CASE
  }
}

}  // namespace proxadam
