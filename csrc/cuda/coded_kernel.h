// The CUDA kernel for moments in codes (csrc/codes.h): a warp takes a block of codes at a time.
//
// A lane has four elements at each half of a block, so that every access of a warp is of whole
// lines. All lanes take part in looking for the block's largest, by which what they have is coded;
// until then nothing of moments is written. A block that is cut short, or whose buffers are not
// aligned, and one of which the Math cannot tell that it is right, goes element by element, twice.

#pragma once

#include <type_traits>  // for is_same

#include "../codes.h"     // for block_exponent, code_base, decode, encode, finite_magnitude, ...
#include "../rounding.h"  // for draw
#include "../scalar_types.h"  // for code8
#include "branch_free.h"      // for MathOf, wants_redo
#include "chance.h"           // for Chance, store_params
#include "chunk.h"            // for Chunk, kIsBlackwell, with_chunk, with_grad
#include "launch_table.h"     // for ChanceTable, kChunkStride, kLongestChunk, kThreads
#include "memory.h"           // for at, load, read, store, write
#include "warp.h"             // for kAllLanes, kWarp, kWarps

namespace proxadam {

constexpr int32_t kInfinity = 0x7f800000;  // as an integer, where NaNs lie above it
constexpr int kVector = 4;
constexpr int kVectors = kBlock / (kWarp * kVector);  // of a lane
static_assert(kChunkStride % kBlock == 0, "a block of codes in two chunks");

// For both moments: the lower and the upper half are what the two are rounded with.
template <int width>
__device__ __forceinline__ void draw_moments(const Chance& chance, int i,
                                             uint32_t (&draws)[width]) {
#pragma unroll
  for (int k = 0; k < width; ++k) draws[k] = kToNearest << 16 | kToNearest;
  if (chance.state) draw_vector(chance.key, i, draws);
}

// A number for each moment of a block.
template <typename T>
struct ForBoth {
  T exp_avg, exp_avg_sq;
};

// What codes are added to.
template <typename Chunk>
__device__ __forceinline__ ForBoth<uint32_t> decoding_bases(const Chunk& chunk, int block) {
  return {decoding_base(Moment::kFirst, chunk.exponents.exp_avg[block]),
          decoding_base(Moment::kSecond, chunk.exponents.exp_avg_sq[block])};
}

// The largest numbers, as integers.
using Largest = ForBoth<int32_t>;

__device__ __forceinline__ void take_in(Largest& largest, int32_t exp_avg, int32_t exp_avg_sq) {
  largest.exp_avg = exp_avg > largest.exp_avg ? exp_avg : largest.exp_avg;
  largest.exp_avg_sq = exp_avg_sq > largest.exp_avg_sq ? exp_avg_sq : largest.exp_avg_sq;
}

// Those of all lanes, which have to call it.
__device__ __forceinline__ Largest of_warp(const Largest& of_lane) {
  return {__reduce_max_sync(kAllLanes, of_lane.exp_avg),
          __reduce_max_sync(kAllLanes, of_lane.exp_avg_sq)};
}

// Stores the exponents of a block and returns what is taken from its numbers, to have codes.
template <typename Chunk>
__device__ __forceinline__ ForBoth<int32_t> rescale(const Chunk& chunk, int block,
                                                    const Largest& largest) {
  const uint8_t exp_avg = block_exponent(Moment::kFirst, largest.exp_avg);
  const uint8_t exp_avg_sq = block_exponent(Moment::kSecond, largest.exp_avg_sq);
  if (threadIdx.x % kWarp == 0) {
    chunk.exponents.exp_avg[block] = exp_avg;
    chunk.exponents.exp_avg_sq[block] = exp_avg_sq;
  }
  return {code_base(Moment::kFirst, exp_avg), code_base(Moment::kSecond, exp_avg_sq)};
}

// ---- whole blocks -----------------------------------------------------------------------------

template <Moment moment>
__device__ __forceinline__ void load_codes(const code8* from, uint32_t base, float (&to)[kVector]) {
  read<kVector>(from, [&](int k, code8 code) { to[k] = decode(moment, code.bits, base); });
}

// Of numbers none of which is NaN. `shift`: of the draws are used the bits from there on.
template <Moment moment>
__device__ __forceinline__ void store_codes(const float (&from)[kVector], int32_t base,
                                            const uint32_t (&draws)[kVector], int shift,
                                            code8* to) {
  uint32_t codes = 0, signs = 0;  // little-endian
#pragma unroll
  for (int k = 0; k < kVector; ++k) {
    const uint32_t chance = anew(draws[k] >> shift & 0xffff);
    codes |= encode_magnitude(moment, from[k], base, chance) << 8 * k;
    signs |= as_bits(from[k]) >> 24 << 8 * k;
  }
  *reinterpret_cast<uint32_t*>(to) = moment == Moment::kFirst ? with_signs(codes, signs) : codes;
}

template <typename Math>
__device__ __forceinline__ void divide(Math& math, float (&grad)[kVector], float scale) {
#pragma unroll
  for (int k = 0; k < kVector; ++k) grad[k] = quotient(math, grad[k], scale);
}

// Updates a block; or writes nothing, where a number is not finite or the Math cannot tell that it
// is right, and returns false. All lanes have to call it.
template <Update update, typename Math, typename Chunk>
__device__ __forceinline__ bool update_block(const StepConstants<float>& c, const Chunk& chunk,
                                             int block) {
  using param_t = typename Chunk::param_t;
  const Buffers& buffers = chunk.buffers;
  const int first = block * kBlock + threadIdx.x % kWarp * kVector;
  constexpr int kNext = kWarp * kVector;
  float param[kVectors][kVector], grad[kVectors][kVector], exp_avg[kVectors][kVector],
      exp_avg_sq[kVectors][kVector], unused = 0;
  const ForBoth<uint32_t> old = decoding_bases(chunk, block);
  const uint32_t base = anew(old.exp_avg), base_sq = anew(old.exp_avg_sq);
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = first + v * kNext;
    load(at<param_t>(buffers.param, i), param[v]);
    with_grad(chunk, i, [&](const auto* from) { load(from, grad[v]); });
    load_codes<Moment::kFirst>(at<code8>(buffers.exp_avg, i), base, exp_avg[v]);
    load_codes<Moment::kSecond>(at<code8>(buffers.exp_avg_sq, i), base_sq, exp_avg_sq[v]);
  }
  Math math{};
  Largest largest{};
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    if (chunk.unscale) divide(math, grad[v], c.grad_scale);
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      prox_adam_update<update, false>(math, c, grad[v][k], param[v][k], exp_avg[v][k],
                                      exp_avg_sq[v][k], unused);
      take_in(largest, int32_t(as_bits(exp_avg[v][k]) & 0x7fffffffu),
              int32_t(as_bits(exp_avg_sq[v][k]) & 0x7fffffffu));
    }
  }
  if (wants_redo(math)) largest.exp_avg = kInfinity;
  largest = of_warp(largest);
  if (largest.exp_avg >= kInfinity || largest.exp_avg_sq >= kInfinity) return false;
  const ForBoth<int32_t> bases = rescale(chunk, block, largest);
  const int again = is_16_bit(kScalarType<param_t>) ? anew(first) : first;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = again + v * kNext;
    if (chunk.unscale) {  // once more, for registers to keep them there are none
      with_grad(chunk, anew(i), [&](auto* at) {
        load(at, grad[v]);
        divide(math, grad[v], c.grad_scale);
        store(grad[v], at);
      });
    }
    if constexpr (update != Update::kFrozen) {
      store_params<has_prox(update)>(chunk.rounding, i, param[v], at<param_t>(buffers.param, i));
    }
    uint32_t draws[kVector];
    draw_moments(chunk.rounding, i, draws);
    store_codes<Moment::kFirst>(exp_avg[v], bases.exp_avg, draws, 0, at<code8>(buffers.exp_avg, i));
    store_codes<Moment::kSecond>(exp_avg_sq[v], bases.exp_avg_sq, draws, 16,
                                 at<code8>(buffers.exp_avg_sq, i));
  }
  return true;
}

// ---- blocks by their elements -----------------------------------------------------------------

struct Element {
  float param[1], grad[1], exp_avg, exp_avg_sq;
};

// Element i of a chunk after its step; nothing is written.
template <Update update, typename Chunk>
__device__ __forceinline__ Element updated(const StepConstants<float>& c, const Chunk& chunk, int i,
                                           const ForBoth<uint32_t>& bases) {
  const Buffers& buffers = chunk.buffers;
  Element element;
  load(at<typename Chunk::param_t>(buffers.param, i), element.param);
  with_grad(chunk, i, [&](const auto* from) { load(from, element.grad); });
  element.exp_avg = decode(Moment::kFirst, at<code8>(buffers.exp_avg, i)->bits, bases.exp_avg);
  element.exp_avg_sq =
      decode(Moment::kSecond, at<code8>(buffers.exp_avg_sq, i)->bits, bases.exp_avg_sq);
  Exact math;
  float unused = 0;
  if (chunk.unscale) element.grad[0] = quotient(math, element.grad[0], c.grad_scale);
  prox_adam_update<update, false>(math, c, element.grad[0], element.param[0], element.exp_avg,
                                  element.exp_avg_sq, unused);
  return element;
}

// All lanes have to call it, for a block that has one element or more.
template <Update update, typename Chunk>
__device__ __forceinline__ void update_by_elements(const StepConstants<float>& c,
                                                   const Chunk& chunk, int block) {
  using param_t = typename Chunk::param_t;
  const Buffers& buffers = chunk.buffers;
  const int begin = block * kBlock + threadIdx.x % kWarp;
  const int behind = (block + 1) * kBlock;
  const int end = behind < chunk.numel ? behind : chunk.numel;
  const ForBoth<uint32_t> old = decoding_bases(chunk, block);
  Largest largest{};
#pragma unroll 1
  for (int i = begin; i < end; i += kWarp) {
    const Element element = updated<update>(c, chunk, i, old);
    take_in(largest, finite_magnitude(element.exp_avg), finite_magnitude(element.exp_avg_sq));
  }
  const ForBoth<int32_t> bases = rescale(chunk, block, of_warp(largest));
#pragma unroll 1
  for (int i = begin; i < end; i += kWarp) {
    const Element element = updated<update>(c, chunk, i, old);
    if (chunk.unscale) with_grad(chunk, i, [&](auto* to) { store(element.grad, to); });
    if constexpr (update != Update::kFrozen) {
      store_params<has_prox(update)>(chunk.rounding, i, element.param,
                                     at<param_t>(buffers.param, i));
    }
    uint32_t drawn[1];
    draw_moments(chunk.rounding, i, drawn);
    at<code8>(buffers.exp_avg, i)->bits =
        uint8_t(encode(Moment::kFirst, element.exp_avg, bases.exp_avg, drawn[0] & 0xffff));
    at<code8>(buffers.exp_avg_sq, i)->bits =
        uint8_t(encode(Moment::kSecond, element.exp_avg_sq, bases.exp_avg_sq, drawn[0] >> 16));
  }
}

// ---- the chunk --------------------------------------------------------------------------------

// Whether a lane's vectors may be read and written at once.
template <typename Chunk>
__device__ __forceinline__ bool is_aligned(const Chunk& chunk) {
  const Buffers& buffers = chunk.buffers;
  const int of_params = sizeof(Access<typename Chunk::param_t, kVector>);
  const int of_grads = kVector * chunk.grad_bytes;
  const int of_codes = sizeof(Access<code8, kVector>);
  return beyond_alignment(buffers.param) % of_params == 0 &&
         beyond_alignment(buffers.grad) % of_grads == 0 &&
         beyond_alignment(buffers.exp_avg) % of_codes == 0 &&
         beyond_alignment(buffers.exp_avg_sq) % of_codes == 0;
}

template <Update update, typename Chunk>
__device__ __forceinline__ void update_blocks(const StepConstants<float>& c, const Chunk& chunk) {
  using Math = typename MathOf<typename Chunk::param_t>::type;
  const int warp = threadIdx.x / kWarp;
  const int whole = is_aligned(chunk) ? chunk.numel / kBlock : 0;
  static_assert(kLongestChunk <= 32 * kWarps * kBlock, "more blocks than bits");
  uint32_t redo = 0;  // a bit for each of the warp's blocks
  for (int block = warp; block < whole; block += kWarps) {
    if (!update_block<update, Math>(c, chunk, block)) redo |= 1u << block / kWarps;
  }
  for (int block = warp; block * kBlock < chunk.numel; block += kWarps) {
    if (block >= whole || redo >> block / kWarps & 1) update_by_elements<update>(c, chunk, block);
  }
}

// As of kernel.h's.
template <typename param_t>
constexpr int kBlocksOfWarps =
    kIsBlackwell || std::is_same<typename MathOf<param_t>::type, Exact>::value ? 3 : 4;

template <typename param_t>
__global__ void __launch_bounds__(kThreads, kBlocksOfWarps<param_t>)
    prox_adam_codes_kernel(const __grid_constant__ ChanceTable table) {
  using Block = Chunk<param_t, code8, float, Chance>;
  with_chunk<Block, false>(table, [](auto update, const auto& constants, const Block& chunk) {
    update_blocks<decltype(update)::value>(constants, chunk);
  });
}

}  // namespace proxadam
