// The CUDA kernels: a loop around csrc/prox_adam.h.
//
// A block takes one chunk of one tensor. It moves 16 bytes at a time through every buffer, in
// vectors of as many elements as the narrowest type has in 16 bytes; what lies before the first
// aligned address and behind the last goes element by element, and so does a chunk whose buffers
// are not aligned at the same elements.
//
// The tests compile this file for the host as well, with threads for threads.

#pragma once

#include <string.h>  // for memcpy

#include "../scalar_types.h"  // for OpMath, narrow, widen
#include "launch_table.h"     // for kThreads, LaunchTable

namespace proxadam {

// Blocks that must fit a multiprocessor at once: as many as the registers of the loop allow without
// spilling; each thread then has 64 bytes and more on their way.
template <typename param_t, bool amsgrad>
constexpr int kBlocksPerMultiprocessor = sizeof(param_t) == 8              ? 2
                                         : sizeof(param_t) == 4 || amsgrad ? 3
                                                                           : 4;

constexpr int kAccess = 16;  // bytes

template <typename param_t>
constexpr int kWidth = kAccess / sizeof(param_t);  // no gradient or moment is narrower

// ---- memory -----------------------------------------------------------------------------------

// Elements before the first address that a vector may begin at.
template <typename scalar_t>
__device__ __forceinline__ int elements_to_alignment(const scalar_t* data) {
  const int beyond = static_cast<int>(reinterpret_cast<uintptr_t>(data) % kAccess);
  return (kAccess - beyond) % kAccess / static_cast<int>(sizeof(scalar_t));
}

template <typename scalar_t>
__device__ __forceinline__ bool is_aligned(const scalar_t* data) {
  return reinterpret_cast<uintptr_t>(data) % kAccess == 0;
}

template <int width, typename scalar_t, typename opmath_t>
__device__ __forceinline__ void load(const scalar_t* from, opmath_t (&to)[width]) {
  if constexpr (width == 1) {
    to[0] = widen(*from);
  } else {
    constexpr int kElements = kAccess / sizeof(scalar_t);
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

template <bool drops_zero_signs, int width, typename scalar_t, typename opmath_t>
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

// The part of a tensor, its gradient and its state that a block takes.
template <typename param_t, typename grad_t, typename state_t>
struct Chunk {
  param_t* param;
  grad_t* grad;
  state_t* exp_avg;
  state_t* exp_avg_sq;
  state_t* max_exp_avg_sq;
  int numel;

  __device__ __forceinline__ Chunk(const Row& row, int64_t begin, int length)
      : param(static_cast<param_t*>(row.param) + begin),
        grad(static_cast<grad_t*>(row.grad) + begin),
        exp_avg(static_cast<state_t*>(row.exp_avg) + begin),
        exp_avg_sq(static_cast<state_t*>(row.exp_avg_sq) + begin),
        max_exp_avg_sq(row.max_exp_avg_sq ? static_cast<state_t*>(row.max_exp_avg_sq) + begin
                                          : nullptr),
        numel(length) {}
};

template <Update update, bool amsgrad, int width, typename opmath_t, typename param_t,
          typename grad_t, typename state_t>
__device__ __forceinline__ void update_elements(const StepConstants<opmath_t>& c, bool unscale,
                                                const Chunk<param_t, grad_t, state_t>& chunk,
                                                int i) {
  opmath_t param[width], grad[width], exp_avg[width], exp_avg_sq[width], max_exp_avg_sq[width];
  load(chunk.param + i, param);
  load(chunk.grad + i, grad);
  load(chunk.exp_avg + i, exp_avg);
  load(chunk.exp_avg_sq + i, exp_avg_sq);
  if constexpr (amsgrad) load(chunk.max_exp_avg_sq + i, max_exp_avg_sq);
  if (unscale) {
#pragma unroll
    for (int k = 0; k < width; ++k) grad[k] = grad[k] / c.grad_scale;
    store<false>(grad, chunk.grad + i);
  }
#pragma unroll
  for (int k = 0; k < width; ++k) {
    prox_adam_update<update, amsgrad>(c, grad[k], param[k], exp_avg[k], exp_avg_sq[k],
                                      max_exp_avg_sq[k]);
  }
  constexpr bool kProx = update == Update::kAdaptive || update == Update::kEuclidean;
  if constexpr (update != Update::kFrozen) store<kProx>(param, chunk.param + i);
  store<false>(exp_avg, chunk.exp_avg + i);
  store<false>(exp_avg_sq, chunk.exp_avg_sq + i);
  if constexpr (amsgrad) store<false>(max_exp_avg_sq, chunk.max_exp_avg_sq + i);
}

template <Update update, bool amsgrad, typename opmath_t, typename param_t, typename grad_t,
          typename state_t>
__device__ __forceinline__ void update_chunk(const StepConstants<opmath_t>& c, bool unscale,
                                             const Chunk<param_t, grad_t, state_t>& chunk) {
  const int to_alignment = elements_to_alignment(chunk.param);
  const int head = to_alignment < chunk.numel ? to_alignment : chunk.numel;
  const bool together = is_aligned(chunk.grad + head) && is_aligned(chunk.exp_avg + head) &&
                        is_aligned(chunk.exp_avg_sq + head) &&
                        (!amsgrad || is_aligned(chunk.max_exp_avg_sq + head));
  const int in_vectors = together ? (chunk.numel - head) / kWidth<param_t> * kWidth<param_t> : 0;

  for (int i = threadIdx.x * kWidth<param_t>; i < in_vectors; i += blockDim.x * kWidth<param_t>) {
    update_elements<update, amsgrad, kWidth<param_t>>(c, unscale, chunk, head + i);
  }
  for (int i = threadIdx.x; i < chunk.numel - in_vectors; i += blockDim.x) {
    update_elements<update, amsgrad, 1>(c, unscale, chunk, i < head ? i : i + in_vectors);
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
  double step = table.row[index].step.number;
  if (kind == StepKind::kFloat32) {
    step = *static_cast<const float*>(table.row[index].step.address) + 1.0;
  } else if (kind == StepKind::kFloat64) {
    step = *static_cast<const double*>(table.row[index].step.address) + 1.0;
  }
  const double grad_scale = read_or(table.grad_scale, 1);
  return {StepConstants<opmath_t>::from(step_constants(options, step, grad_scale)),
          update_of(options), read_or(table.found_inf, 0) != 0};
}

// The last row whose first chunk is not behind `chunk`.
template <typename opmath_t, int bytes>
__device__ __forceinline__ int row_of(const LaunchTable<opmath_t, bytes>& table, uint32_t chunk) {
  int low = 0;
  int high = table.rows;
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

template <typename param_t, typename grad_t, typename state_t, bool amsgrad, typename opmath_t,
          int bytes>
__global__ void __launch_bounds__(kThreads, (kBlocksPerMultiprocessor<param_t, amsgrad>))
    prox_adam_kernel(const __grid_constant__ LaunchTable<opmath_t, bytes> table) {
  const int index = row_of(table, blockIdx.x);
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

  const Row& row = table.row[index];
  const int64_t begin = int64_t(blockIdx.x - table.first_chunk[index]) * table.chunk;
  const int64_t left = row.numel - begin;
  const Chunk<param_t, grad_t, state_t> chunk(
      row, begin, static_cast<int>(left < table.chunk ? left : table.chunk));
  const bool unscale = table.grad_scale.data != nullptr;
  switch (block.update) {
    case Update::kFrozen:
      return update_chunk<Update::kFrozen, amsgrad>(block.values, unscale, chunk);
    case Update::kAdam:
      return update_chunk<Update::kAdam, amsgrad>(block.values, unscale, chunk);
    case Update::kAdaptive:
      return update_chunk<Update::kAdaptive, amsgrad>(block.values, unscale, chunk);
    case Update::kEuclidean:
      return update_chunk<Update::kEuclidean, amsgrad>(block.values, unscale, chunk);
  }
}

}  // namespace proxadam
