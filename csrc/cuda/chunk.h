// What a block of threads takes: a piece of one tensor, and the constants of its step.

#pragma once

#include <type_traits>  // for conditional_t, integral_constant

#include "../codes.h"         // for kBlock
#include "../options.h"       // for Options, read_numbers, read_or
#include "../prox_adam.h"     // for step_constants, StepConstants, Update, update_of
#include "../rounding.h"      // for kGolden, param_draws, state_draws, step_key, stretch_key
#include "../scalar_types.h"  // for Buffers, Exponents, Scalars
#include "chance.h"           // for Chance, ToNearest
#include "launch_table.h"     // for ChanceEntry, kIsChanceTable, KnownConstants, StepKind
#include "memory.h"           // for at, kAccess

namespace proxadam {

#if defined(__CUDA_ARCH__)
constexpr bool kIsBlackwell = __CUDA_ARCH__ >= 1000;  // ptxas 13.0 takes some registers more for it
constexpr bool kIsHopper = __CUDA_ARCH__ == 900;
#else
constexpr bool kIsBlackwell = false;
constexpr bool kIsHopper = false;
#endif

// So many elements from the first of its buffers on.
template <typename param, typename state, typename opmath, typename rounding_of = ToNearest>
struct Chunk {
  using param_t = param;
  using state_t = state;
  using opmath_t = opmath;
  using rounding_t = rounding_of;
  // Elements of a vector.
  static constexpr int kWidth =
      kAccess / (sizeof(state_t) > sizeof(param_t) ? sizeof(state_t) : sizeof(param_t));

  Buffers buffers;
  Exponents exponents;  // of codes
  int numel;
  int grad_bytes;  // of an element: as the parameter, or in opmath_t
  bool unscale;
  rounding_t rounding;
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

// ---- the constants ----------------------------------------------------------------------------

template <typename opmath_t>
struct BlockConstants {
  StepConstants<opmath_t> values;
  Update update;
  bool skips;  // found_inf
};

// The number of the step that is being taken.
template <typename Table>
__device__ __forceinline__ double step_of(const Table& table, int index) {
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
template <typename Table>
__device__ __forceinline__ BlockConstants<typename Table::opmath_t> compute_constants(
    const Table& table, int index) {
  using opmath_t = typename Table::opmath_t;
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
template <typename Table>
__device__ __forceinline__ int entry_of(const Table& table, uint32_t chunk, uint32_t chunks) {
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

// ---- the block's chunk ------------------------------------------------------------------------

template <typename Table>
using RoundingOf = std::conditional_t<kIsChanceTable<Table>, Chance, ToNearest>;

template <typename Types, typename Table>
__device__ __forceinline__ void set(ToNearest&, const Table&, int, int64_t) {}

template <typename Types, typename Table>
__device__ __forceinline__ void set(Chance& chance, const Table& table, int index, int64_t begin) {
  const ChanceEntry& entry = table.entry[index];
  chance.key = stretch_key(step_key(entry.tensor_key, step_of(table, index)), entry.offset) +
               static_cast<uint32_t>(entry.offset + begin) * kGolden;
  // Where one of the two may draw, it does, or another kernel would run; codes go either way.
  constexpr bool kState = state_draws(Types::kTypes);
  constexpr bool kParams = param_draws(Types::kTypes);
  constexpr bool kKnown = kState != kParams && Types::kTypes.state != ScalarType::kCode8;
  chance.state = kState && (kKnown || entry.rounds_state);
  chance.params = kParams && (kKnown || entry.rounds_params);
}

template <bool amsgrad, typename Chunk, typename Table>
__device__ __forceinline__ Chunk chunk_of(const Table& table, int index) {
  using param_t = typename Chunk::param_t;
  using state_t = typename Chunk::state_t;
  const auto& entry = table.entry[index];
  const int64_t begin = int64_t(blockIdx.x - table.first_chunk[index]) * table.chunk;
  const int64_t left = entry.numel - begin;
  Chunk chunk;
  chunk.numel = static_cast<int>(left < table.chunk ? left : table.chunk);
  chunk.grad_bytes =
      sizeof(param_t) == sizeof(typename Chunk::opmath_t) ? sizeof(param_t) : table.grad_bytes;
  chunk.unscale = table.grad_scale.data != nullptr;
  chunk.buffers.param = at<param_t>(entry.buffers.param, begin);
  chunk.buffers.grad = at<char>(entry.buffers.grad, begin * chunk.grad_bytes);
  chunk.buffers.exp_avg = at<state_t>(entry.buffers.exp_avg, begin);
  chunk.buffers.exp_avg_sq = at<state_t>(entry.buffers.exp_avg_sq, begin);
  if (amsgrad) chunk.buffers.max_exp_avg_sq = at<state_t>(entry.buffers.max_exp_avg_sq, begin);
  if constexpr (kScalarType<state_t> == ScalarType::kCode8) {
    chunk.exponents.exp_avg = entry.exponents.exp_avg + begin / kBlock;
    chunk.exponents.exp_avg_sq = entry.exponents.exp_avg_sq + begin / kBlock;
  }
  set<Scalars<param_t, param_t, state_t>>(chunk.rounding, table, index, begin);
  return chunk;
}

// Calls f(update, constants, chunk) for what this block is to do, if it is to do something; the
// update is a type.
template <typename Chunk, bool amsgrad, typename Table, typename F>
__device__ __forceinline__ void with_chunk(const Table& table, F f) {
  using opmath_t = typename Table::opmath_t;
  const int index = entry_of(table, blockIdx.x, gridDim.x);
  BlockConstants<opmath_t> block;
  if (table.computes_constants) {
    block = compute_constants(table, index);
    if (block.skips) return;
  } else {
    const KnownConstants<opmath_t>& known = table.known[table.constants[index]];
    block = {known.values, known.update, false};
  }
  const Chunk chunk = chunk_of<amsgrad, Chunk>(table, index);
  switch (block.update) {
#define PROXADAM_CASE(name, prox) \
  case Update::k##name:           \
    return f(std::integral_constant<Update, Update::k##name>{}, block.values, chunk);
    PROXADAM_UPDATES(PROXADAM_CASE)
#undef PROXADAM_CASE
  }
}

}  // namespace proxadam
