// The CUDA kernels: a loop around csrc/prox_adam.h.
//
// A block takes one chunk of one tensor. It moves 16 bytes at a time through every buffer, in
// vectors of as many elements as the narrowest buffer has in 16 bytes; what lies before the first
// aligned address and behind the last goes element by element, and so does a chunk whose buffers
// are not aligned at the same elements. Gradients are in the parameters' type or in opmath_t, which
// a launch tells at run time.
//
// The tests compile this file for the host as well, with threads for threads.

#pragma once

#include <string.h>  // for memcpy

#include "../scalar_types.h"  // for Buffers, narrow, widen, ...
#include "launch_table.h"     // for kThreads, LaunchTable

namespace proxadam {

// Blocks that must fit a multiprocessor at once: as many as the registers of the loop allow without
// spilling; each thread then has 64 bytes and more on their way.
template <typename param_t, bool amsgrad>
constexpr int kBlocksPerMultiprocessor = sizeof(param_t) == 8              ? 2
                                         : sizeof(param_t) == 4 || amsgrad ? 3
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

template <typename scalar_t, int width, typename opmath_t>
__device__ __forceinline__ void load(const scalar_t* from, opmath_t (&to)[width]) {
  if constexpr (width == 1) {
    to[0] = widen(*from);
  } else {
    constexpr int kElements = kAccess / sizeof(scalar_t);
    static_assert(width % kElements == 0, "an access would reach beyond the vector");
    scalar_t values[kElements];
#pragma unroll
    for (int i = 0; i < width; i += kElements) {
      const uint4 bits = *reinterpret_cast<const uint4*>(from + i);
      memcpy(values, &bits, kAccess);
#pragma unroll
      for (int j = 0; j < kElements; ++j) to[i + j] = widen(values[j]);
    }
  }
}

template <bool drops_zero_signs = false, typename scalar_t, int width, typename opmath_t>
__device__ __forceinline__ void store(const opmath_t (&from)[width], scalar_t* to) {
  constexpr int kElements = width == 1 ? 1 : kAccess / sizeof(scalar_t);
  scalar_t values[kElements];
#pragma unroll
  for (int i = 0; i < width; i += kElements) {
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      narrow(from[i + j], values[j]);
      if (drops_zero_signs) drop_zero_sign(values[j]);
    }
    if constexpr (width == 1) {
      *to = values[0];
    } else {
      uint4 bits;
      memcpy(&bits, values, kAccess);
      *reinterpret_cast<uint4*>(to + i) = bits;
    }
  }
}

// ---- the chunk --------------------------------------------------------------------------------

// What a block takes: so many elements from the first of its buffers on.
template <typename param, typename state, typename opmath>
struct Chunk {
  using param_t = param;
  using state_t = state;
  using opmath_t = opmath;
  // Elements of a vector; no gradient is narrower than its parameter.
  static constexpr int kWidth =
      kAccess / (sizeof(state_t) < sizeof(param_t) ? sizeof(state_t) : sizeof(param_t));

  Buffers buffers;
  int numel;
  int grad_bytes;  // of an element: as the parameter, or in opmath_t
  bool unscale;
};

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

template <Update update, bool amsgrad, int width, typename Chunk>
__device__ __forceinline__ void update_elements(const StepConstants<typename Chunk::opmath_t>& c,
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
  if (chunk.unscale) {
#pragma unroll
    for (int k = 0; k < width; ++k) grad[k] = grad[k] / c.grad_scale;
    with_grad(chunk, i, [&](auto* to) { store(grad, to); });
  }
#pragma unroll
  for (int k = 0; k < width; ++k) {
    prox_adam_update<update, amsgrad>(c, grad[k], param[k], exp_avg[k], exp_avg_sq[k],
                                      max_exp_avg_sq[k]);
  }
  if constexpr (update != Update::kFrozen) {
    store<has_prox(update)>(param, at<param_t>(buffers.param, i));
  }
  store(exp_avg, at<state_t>(buffers.exp_avg, i));
  store(exp_avg_sq, at<state_t>(buffers.exp_avg_sq, i));
  if constexpr (amsgrad) store(max_exp_avg_sq, at<state_t>(buffers.max_exp_avg_sq, i));
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

  // A stride that the compiler does not know: for a constant it keeps a pointer a buffer, and
  // spills.
  for (int i = threadIdx.x * kWidth; i < in_vectors; i += blockDim.x * kWidth) {
    update_elements<update, amsgrad, kWidth>(c, chunk, head + i);
  }
  for (int i = threadIdx.x; i < chunk.numel - in_vectors; i += blockDim.x) {
    update_elements<update, amsgrad, 1>(c, chunk, i < head ? i : i + in_vectors);
  }
}

// ---- the constants ----------------------------------------------------------------------------

template <typename opmath_t>
struct BlockConstants {
  StepConstants<opmath_t> values;
  Update update;
  bool skips;  // found_inf
};

template <typename opmath_t, int bytes>
__device__ __forceinline__ BlockConstants<opmath_t> compute_constants(
    const LaunchTable<opmath_t, bytes>& table, int index) {
  const Options options = read_numbers(table.sources[table.constants[index]]);
  const StepKind kind = table.step_kind[index];
  double step = table.entry[index].step.number;
  if (kind == StepKind::kFloat32) {
    step = *static_cast<const float*>(table.entry[index].step.address) + 1.0;
  } else if (kind == StepKind::kFloat64) {
    step = *static_cast<const double*>(table.entry[index].step.address) + 1.0;
  }
  return {step_constants<opmath_t>(options, step, read_or(table.grad_scale, 1)), update_of(options),
          read_or(table.found_inf, 0) != 0};
}

// The last entry whose first chunk is not behind `chunk`.
template <typename opmath_t, int bytes>
__device__ __forceinline__ int entry_of(const LaunchTable<opmath_t, bytes>& table, uint32_t chunk) {
  int low = 0;
  int high = table.entries;
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
__global__ void __launch_bounds__(kThreads, (kBlocksPerMultiprocessor<param_t, amsgrad>))
    prox_adam_kernel(const __grid_constant__ LaunchTable<opmath_t, bytes> table) {
  const int index = entry_of(table, blockIdx.x);
  BlockConstants<opmath_t> block;
  if (table.computes_constants) {
    __shared__ BlockConstants<opmath_t> shared;
    if (threadIdx.x == 0) shared = compute_constants(table, index);
    __syncthreads();
    block = shared;
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
