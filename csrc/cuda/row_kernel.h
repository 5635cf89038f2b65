// The CUDA kernel for rows that l21 takes as one: csrc/group_prox.h.
//
// A team, which is a warp or the block, goes over its row three times: Adam, with what is kept of
// it in the memory that the block shares; the sums that the row's norm is the root of; and the
// prox. A parameter, its gradient and its moments are read once and written once.

#pragma once

#include <type_traits>  // for conditional_t, integral_constant

#include "../group_prox.h"  // for Root, root_of, row_pull
#include "../rounding.h"    // for param_draws, state_draws, step_key
#include "branch_free.h"    // for MathOf
#include "chunk.h"          // for BlockConstants, Chunk, compute_constants, entry_of, step_of
#include "launch_table.h"   // for kThreads, RowTable
#include "memory.h"         // for at, beyond_alignment
#include "row_elements.h"   // for begin_block, begin_elements, finish_elements, row_chance, ...
#include "row_plan.h"       // for rows_at_once, rows_of_chunk
#include "row_sums.h"       // for SharedRow, SharedTerms, Team
#include "warp.h"           // for kWarps, warp

namespace proxadam {

template <typename param_t, typename state_t>
constexpr bool kMayDraw = state_draws(Scalars<param_t, param_t, state_t>::kTypes) ||
                          param_draws(Scalars<param_t, param_t, state_t>::kTypes);

template <typename param_t, typename state_t>
using RowChunk = Chunk<param_t, state_t, typename OpMath<param_t>::type,
                       std::conditional_t<kMayDraw<param_t, state_t>, RowChance, ToNearest>>;

// ---- the row ----------------------------------------------------------------------------------

template <typename Table>
__device__ __forceinline__ void set(ToNearest&, const Table&, const RowEntry&, uint32_t, int64_t) {}

template <typename Table>
__device__ __forceinline__ void set(RowChance& chance, const Table&, const RowEntry& entry,
                                    uint32_t step_key, int64_t begin) {
  chance = row_chance(step_key, entry.offset + begin, entry.row, entry.rounds_state,
                      entry.rounds_params);
}

template <typename Row, typename Table>
__device__ __forceinline__ Row row_of(const Table& table, int index, uint32_t step_key,
                                      int64_t number) {
  using state_t = typename Row::state_t;
  const RowEntry& entry = table.entry[index];
  const int64_t begin = number * entry.row;
  Row row;
  row.numel = entry.row;
  row.grad_bytes = table.grad_bytes;
  row.unscale = table.grad_scale.data != nullptr;
  row.buffers.param = at<typename Row::param_t>(entry.buffers.param, begin);
  row.buffers.grad = at<char>(entry.buffers.grad, begin * row.grad_bytes);
  row.buffers.exp_avg = at<state_t>(entry.buffers.exp_avg, begin);
  row.buffers.exp_avg_sq = at<state_t>(entry.buffers.exp_avg_sq, begin);
  row.buffers.max_exp_avg_sq =
      entry.buffers.max_exp_avg_sq ? at<state_t>(entry.buffers.max_exp_avg_sq, begin) : nullptr;
  if constexpr (kScalarType<state_t> == ScalarType::kCode8) {
    row.exponents.exp_avg = entry.exponents.exp_avg + begin / kBlock;
    row.exponents.exp_avg_sq = entry.exponents.exp_avg_sq + begin / kBlock;
  }
  set(row.rounding, table, entry, step_key, begin);
  return row;
}

// Whether the row's vectors may be read and written at once, and draw with one key each.
template <int width, typename Row>
__device__ __forceinline__ bool goes_by_vectors(const Row& row) {
  using param_t = typename Row::param_t;
  using state_t = typename Row::state_t;
  constexpr int kOfParams = sizeof(Access<param_t, width>);
  constexpr int kOfState = sizeof(Access<state_t, width>);
  const int of_grads = width * row.grad_bytes < kAccess ? width * row.grad_bytes : kAccess;
  return row.numel % width == 0 && has_one_key(row.rounding, row.numel) &&
         beyond_alignment(row.buffers.param) % kOfParams == 0 &&
         beyond_alignment(row.buffers.grad) % of_grads == 0 &&
         beyond_alignment(row.buffers.exp_avg) % kOfState == 0 &&
         beyond_alignment(row.buffers.exp_avg_sq) % kOfState == 0 &&
         (!row.buffers.max_exp_avg_sq ||
          beyond_alignment(row.buffers.max_exp_avg_sq) % kOfState == 0);
}

// Calls f(width, math, i), both of them as types, for the thread's vectors; and for its elements,
// where there are no vectors, and for those of a vector for which f returns false.
template <int width, typename Math, typename F>
__device__ __forceinline__ void for_each_vector(const Team& team, int numel, bool by_vectors, F f) {
  const int at_once = by_vectors ? width : 1;
#pragma unroll 1
  for (int i = team.rank() * at_once; i < numel; i += team.threads() * at_once) {
    if (by_vectors && f(std::integral_constant<int, width>{}, Math{}, i)) continue;
#pragma unroll 1
    for (int k = i; k < i + at_once; ++k) f(std::integral_constant<int, 1>{}, Exact{}, k);
  }
}

template <typename Row>
__device__ __forceinline__ void update_row(const Team& team,
                                           const RowConstants<typename Row::opmath_t>& c,
                                           const Row& row,
                                           const SharedTerms<typename Row::opmath_t>& terms) {
  using opmath_t = typename Row::opmath_t;
  using Math = typename MathOf<typename Row::param_t>::type;
  constexpr int kWidth = Row::kWidth < kVector ? Row::kWidth : kVector;
  const bool by_vectors = goes_by_vectors<kWidth>(row);
  if constexpr (kScalarType<typename Row::state_t> == ScalarType::kCode8) {
    for (int block = team.warp_rank(); block * kBlock < row.numel; block += team.warps()) {
      begin_block(c, row, terms, block, by_vectors);
    }
  } else {
    for_each_vector<kWidth, Math>(team, row.numel, by_vectors, [&](auto width, auto math, int i) {
      return begin_elements<decltype(width)::value, decltype(math)>(c, row, terms, i);
    });
  }
  team.sync();
  if (c.update == Update::kFrozen) return;
  const SharedRow<opmath_t, Math> shared(terms, row.numel, team);
  const Root<opmath_t> root = root_of<opmath_t>(shared, shared.add_up(AtInfinity<opmath_t>{}));
  for_each_vector<kWidth, Math>(team, row.numel, by_vectors, [&](auto width, auto math, int i) {
    return finish_elements<decltype(width)::value, decltype(math)>(c.values, row, terms,
                                                                   shared.last(), root, i);
  });
  team.sync();  // before others write what was read
}

// ---- the kernel -------------------------------------------------------------------------------

// Has the block's threads, which all have to call it, share what is the same for its rows: in
// registers there would be no room. False where the step is not taken.
template <typename Table>
__device__ __forceinline__ bool share_constants(const Table& table, int index,
                                                RowConstants<typename Table::opmath_t>& shared) {
  using opmath_t = typename Table::opmath_t;
  const RowEntry& entry = table.entry[index];
  BlockConstants<opmath_t> block{};
  if (table.computes_constants) block = compute_constants(table, index);
  if (block.skips) return false;
  if (threadIdx.x == 0) {
    if (table.computes_constants) {
      const Options options = read_numbers(table.sources[table.constants[index]]);
      shared = {block.values, block.update, opmath_t(row_pull(options, entry.row))};
    } else {
      const KnownConstants<opmath_t>& known = table.known[table.constants[index]];
      shared = {known.values, known.update, opmath_t(entry.pull)};
    }
  }
  __syncthreads();
  return true;
}

// As of kernel.h's: what a row is computed with takes as many registers.
constexpr int kBlocksOfRows = 2;

template <typename param_t, typename state_t>
__global__ void __launch_bounds__(kThreads, kBlocksOfRows)
    prox_adam_rows_kernel(const __grid_constant__ RowTable<typename OpMath<param_t>::type> table) {
  using opmath_t = typename OpMath<param_t>::type;
  const int index = entry_of(table, blockIdx.x, gridDim.x);
  __shared__ RowConstants<opmath_t> c;
  if (!share_constants(table, index, c)) return;
  const RowEntry& entry = table.entry[index];
  const uint32_t key =
      kMayDraw<param_t, state_t> ? step_key(entry.tensor_key, step_of(table, index)) : 0;
  const int at_once = rows_at_once(entry.row, sizeof(opmath_t));
  const int rows = rows_of_chunk(table.chunk, entry.row, sizeof(opmath_t));
  const int64_t first = int64_t(blockIdx.x - table.first_chunk[index]) * rows;
  const int64_t left = entry.numel / entry.row - first;
  const int end = left < rows ? int(left) : rows;
  const Team team{entry.row > longest_row_of_warp(sizeof(opmath_t))};
  const SharedTerms<opmath_t> terms(entry.row, team);
  for (int row = team.is_block ? 0 : warp(); row < end; row += at_once) {
    update_row(team, c, row_of<RowChunk<param_t, state_t>>(table, index, key, first + row), terms);
  }
}

}  // namespace proxadam
