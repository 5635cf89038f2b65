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

#include "../scalar_types.h"  // for Buffers
#include "branch_free.h"      // for MathOf, wants_redo
#include "chance.h"           // for Chance, store_moments, store_params, ToNearest
#include "chunk.h"            // for advance, Chunk, kIsBlackwell, kIsHopper, RoundingOf, ...
#include "launch_table.h"     // for kLongestChunk, kLongestToNearest, kThreads
#include "memory.h"           // for at, beyond_alignment, kAccess, load, store

namespace proxadam {

// Blocks that a multiprocessor must hold at once: as many as the registers of the loop allow
// without spilling. Each thread then has 48 bytes and more on their way.
template <typename param_t, typename state_t, bool amsgrad, typename Rounding>
constexpr int kBlocksPerMultiprocessor =
    sizeof(param_t) == 8                                         ? 2
    : kIsBlackwell                                               ? 3 - amsgrad
    : std::is_same<typename MathOf<param_t>::type, Exact>::value ? 3
    : sizeof(state_t) == 2 && amsgrad                            ? 3
                                                                 : 4;
template <typename param_t, typename state_t, bool amsgrad>
constexpr int kBlocksPerMultiprocessor<param_t, state_t, amsgrad, Chance> =
    kIsBlackwell                      ? 2
    : sizeof(param_t) == 4            ? 3 - amsgrad
    : sizeof(state_t) == 2 && amsgrad ? 2
    : kIsHopper || amsgrad            ? 4
    : sizeof(state_t) == 4            ? 3
                                      : 4;

// Updates the elements from i on; or writes nothing, where the Math cannot tell that it is right,
// and returns false. `place`: where they are in the block's chunk, which tells what they draw.
template <Update update, bool amsgrad, int width, typename Math, typename Chunk>
__device__ __forceinline__ bool update_elements(const StepConstants<typename Chunk::opmath_t>& c,
                                                const Chunk& chunk, int i, int place) {
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
    store_params<has_prox(update)>(chunk.rounding, place, param, at<param_t>(buffers.param, i));
  }
  store_moments(chunk.rounding, place, exp_avg, exp_avg_sq, at<state_t>(buffers.exp_avg, i),
                at<state_t>(buffers.exp_avg_sq, i));
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
  constexpr bool kToNearest = std::is_same<typename Chunk::rounding_t, ToNearest>::value;
  constexpr int kLongest = kToNearest ? kLongestToNearest : kLongestChunk;
  static_assert(kLongest <= 32 * kThreads * kWidth, "more vectors than bits");
  uint32_t redo = 0;  // a bit for each of the thread's vectors
  uint32_t bit = 1;
  Chunk vectors = chunk;
  advance<amsgrad>(vectors, head + (kMoves ? threadIdx.x * kWidth : 0));
  for (int i = threadIdx.x * kWidth; i < in_vectors; i += stride, bit += bit) {
    using Math = typename MathOf<param_t>::type;
    const int from = kMoves ? 0 : i;
    if (!update_elements<update, amsgrad, kWidth, Math>(c, vectors, from, head + i)) redo |= bit;
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
    update_elements<update, amsgrad, 1, Exact>(c, chunk, i, i);
  }
}

// ---- the kernel -------------------------------------------------------------------------------

template <typename param_t, typename state_t, bool amsgrad, typename Table>
__global__ void __launch_bounds__(
    kThreads, (kBlocksPerMultiprocessor<param_t, state_t, amsgrad, RoundingOf<Table>>))
    prox_adam_kernel(const __grid_constant__ Table table) {
  using Block = Chunk<param_t, state_t, typename Table::opmath_t, RoundingOf<Table>>;
  with_chunk<Block, amsgrad>(table, [](auto update, const auto& constants, const Block& chunk) {
    update_chunk<decltype(update)::value, amsgrad>(constants, chunk);
  });
}

}  // namespace proxadam
