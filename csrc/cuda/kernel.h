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

// Elements of a vector; no gradient is narrower than its parameter.
template <typename param_t, typename state_t>
constexpr int kWidth = kAccess /
                       (sizeof(state_t) < sizeof(param_t) ? sizeof(state_t) : sizeof(param_t));

// ---- memory -----------------------------------------------------------------------------------

template <typename scalar_t>
__device__ __forceinline__ bool is_aligned(const void* buffer, int i) {
  return reinterpret_cast<uintptr_t>(static_cast<const scalar_t*>(buffer) + i) % kAccess == 0;
}

// Elements before the first address that a vector may begin at.
template <typename scalar_t>
__device__ __forceinline__ int elements_to_alignment(const void* buffer) {
  const int beyond = static_cast<int>(reinterpret_cast<uintptr_t>(buffer) % kAccess);
  return (kAccess - beyond) % kAccess / static_cast<int>(sizeof(scalar_t));
}

template <typename scalar_t, int width, typename opmath_t>
__device__ __forceinline__ void load(const void* buffer, int begin, opmath_t (&to)[width]) {
  const scalar_t* from = static_cast<const scalar_t*>(buffer) + begin;
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

template <typename scalar_t, bool drops_zero_signs = false, int width, typename opmath_t>
__device__ __forceinline__ void store(const opmath_t (&from)[width], void* buffer, int begin) {
  scalar_t* to = static_cast<scalar_t*>(buffer) + begin;
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
struct Chunk {
  Buffers buffers;
  int numel;
  bool wide_grad;  // in opmath_t; else as the parameter
  bool unscale;
};

template <typename scalar_t>
__device__ __forceinline__ void move_to(void*& buffer, int64_t begin) {
  buffer = static_cast<scalar_t*>(buffer) + begin;
}

// The chunk from element `begin` on.
template <typename param_t, typename state_t, bool amsgrad, typename opmath_t, int bytes>
__device__ __forceinline__ Chunk chunk_of(const LaunchTable<opmath_t, bytes>& table, int index,
                                          int64_t begin) {
  const int64_t left = table.entry[index].numel - begin;
  Chunk chunk{table.entry[index].buffers, static_cast<int>(left < table.chunk ? left : table.chunk),
              table.grad_type != kScalarType<param_t>, table.grad_scale.data != nullptr};
  move_to<param_t>(chunk.buffers.param, begin);
  if (chunk.wide_grad) {
    move_to<opmath_t>(chunk.buffers.grad, begin);
  } else {
    move_to<param_t>(chunk.buffers.grad, begin);
  }
  move_to<state_t>(chunk.buffers.exp_avg, begin);
  move_to<state_t>(chunk.buffers.exp_avg_sq, begin);
  if (amsgrad) move_to<state_t>(chunk.buffers.max_exp_avg_sq, begin);
  return chunk;
}

template <typename param_t, typename state_t, Update update, bool amsgrad, int width,
          typename opmath_t>
__device__ __forceinline__ void update_elements(const StepConstants<opmath_t>& c,
                                                const Chunk& chunk, int i) {
  const Buffers& buffers = chunk.buffers;
  opmath_t param[width], grad[width], exp_avg[width], exp_avg_sq[width], max_exp_avg_sq[width];
  load<param_t>(buffers.param, i, param);
  load<state_t>(buffers.exp_avg, i, exp_avg);
  load<state_t>(buffers.exp_avg_sq, i, exp_avg_sq);
  if constexpr (amsgrad) load<state_t>(buffers.max_exp_avg_sq, i, max_exp_avg_sq);
  if (chunk.wide_grad) {
    load<opmath_t>(buffers.grad, i, grad);
  } else {
    load<param_t>(buffers.grad, i, grad);
  }
  if (chunk.unscale) {
#pragma unroll
    for (int k = 0; k < width; ++k) grad[k] = grad[k] / c.grad_scale;
    if (chunk.wide_grad) {
      store<opmath_t>(grad, buffers.grad, i);
    } else {
      store<param_t>(grad, buffers.grad, i);
    }
  }
#pragma unroll
  for (int k = 0; k < width; ++k) {
    prox_adam_update<update, amsgrad>(c, grad[k], param[k], exp_avg[k], exp_avg_sq[k],
                                      max_exp_avg_sq[k]);
  }
  if constexpr (update != Update::kFrozen) {
    store<param_t, has_prox(update)>(param, buffers.param, i);
  }
  store<state_t>(exp_avg, buffers.exp_avg, i);
  store<state_t>(exp_avg_sq, buffers.exp_avg_sq, i);
  if constexpr (amsgrad) store<state_t>(max_exp_avg_sq, buffers.max_exp_avg_sq, i);
}

template <typename param_t, typename state_t, Update update, bool amsgrad, typename opmath_t>
__device__ __forceinline__ void update_chunk(const StepConstants<opmath_t>& c, const Chunk& chunk) {
  constexpr int kVector = kWidth<param_t, state_t>;
  const Buffers& buffers = chunk.buffers;
  const int to_alignment = elements_to_alignment<param_t>(buffers.param);
  const int head = to_alignment < chunk.numel ? to_alignment : chunk.numel;
  const bool together = (chunk.wide_grad ? is_aligned<opmath_t>(buffers.grad, head)
                                         : is_aligned<param_t>(buffers.grad, head)) &&
                        is_aligned<state_t>(buffers.exp_avg, head) &&
                        is_aligned<state_t>(buffers.exp_avg_sq, head) &&
                        (!amsgrad || is_aligned<state_t>(buffers.max_exp_avg_sq, head));
  const int in_vectors = together ? (chunk.numel - head) / kVector * kVector : 0;

  for (int i = threadIdx.x * kVector; i < in_vectors; i += kThreads * kVector) {
    update_elements<param_t, state_t, update, amsgrad, kVector>(c, chunk, head + i);
  }
  for (int i = threadIdx.x; i < chunk.numel - in_vectors; i += kThreads) {
    update_elements<param_t, state_t, update, amsgrad, 1>(c, chunk, i < head ? i : i + in_vectors);
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

  const int64_t begin = int64_t(blockIdx.x - table.first_chunk[index]) * table.chunk;
  const Chunk chunk = chunk_of<param_t, state_t, amsgrad>(table, index, begin);
  switch (block.update) {
#define PROXADAM_CASE(name, prox) \
  case Update::k##name:           \
    return update_chunk<param_t, state_t, Update::k##name, amsgrad>(block.values, chunk);
    PROXADAM_UPDATES(PROXADAM_CASE)
#undef PROXADAM_CASE
  }
}

}  // namespace proxadam
