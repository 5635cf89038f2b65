// What a thread does for elements of a row before the row's norm is known, and after.
//
// Before: Adam, what elements bring to the prox of their row, and all that is stored but the
// parameter. After: the parameter. Where the Math cannot tell that it is right, elements are taken
// once more.

#pragma once

#include <stdint.h>  // for int64_t, uint32_t

#include "../codes.h"       // for encode, finite_magnitude, kBlock, Moment
#include "../group_prox.h"  // for AtNorm, element_of_row, left_at, Root, row_terms, ...
#include "../rounding.h"    // for kGolden, step_key, stretch_key
#include "branch_free.h"    // for MathOf, wants_redo
#include "chance.h"         // for Chance, store_moments, store_params, ToNearest
#include "chunk.h"          // for Chunk, with_grad
#include "coded_kernel.h"   // for decoding_bases, draw_moments, Largest, of_warp, rescale, take_in
#include "memory.h"         // for anew, at, load, read, store, write
#include "row_sums.h"       // for SharedTerms
#include "warp.h"           // for kWarp, lane

namespace proxadam {

// ---- what a row draws -------------------------------------------------------------------------

// As Chance; but behind `wrap`, where the upper half of its indices changes, a row has another key.
struct RowChance {
  uint32_t key;
  uint32_t key_behind;
  int wrap;
  bool state;
  bool params;
};

// Of the row from the element of this index on.
__device__ __forceinline__ RowChance row_chance(uint32_t step_key, int64_t index, int row,
                                                bool state, bool params) {
  constexpr int64_t kStretch = int64_t(1) << 32;
  const int64_t left = kStretch - (index & (kStretch - 1));
  const uint32_t moved = uint32_t(index) * kGolden;
  return {stretch_key(step_key, index) + moved, stretch_key(step_key, index + row) + moved,
          int(left < row ? left : row), state, params};
}

// What a vector from element i on draws, all of which has one key.
__device__ __forceinline__ ToNearest chance_at(const ToNearest&, int) { return {}; }
__device__ __forceinline__ Chance chance_at(const RowChance& chance, int i) {
  return {i < chance.wrap ? chance.key : chance.key_behind, chance.state, chance.params};
}

__device__ __forceinline__ bool has_one_key(const ToNearest&, int) { return true; }
__device__ __forceinline__ bool has_one_key(const RowChance& chance, int row) {
  return chance.wrap == row;
}

// ---- before -----------------------------------------------------------------------------------

// A step's constants, and lr · l21 · √n.
template <typename opmath_t>
struct RowConstants {
  StepConstants<opmath_t> values;
  Update update;
  opmath_t pull;
};

// Elements with all that is theirs.
template <int width, typename opmath_t>
struct Elements {
  opmath_t param[width], grad[width], exp_avg[width], exp_avg_sq[width], max_exp_avg_sq[width];

  // Adam's part, and what is kept of it until the norm is known.
  template <typename Math>
  __device__ __forceinline__ void update(Math& math, const RowConstants<opmath_t>& row,
                                         bool unscale, const SharedTerms<opmath_t>& terms, int i) {
    const StepConstants<opmath_t>& c = row.values;
    opmath_t denom[width];
#pragma unroll
    for (int k = 0; k < width; ++k) {
      if (unscale) grad[k] = quotient(math, grad[k], c.grad_scale);
      denom[k] = update_moments<true>(math, c, grad[k], param[k], exp_avg[k], exp_avg_sq[k],
                                      max_exp_avg_sq[k]);
      inspect(math, exp_avg[k]);
    }
    switch (row.update) {
#define PROXADAM_CASE(name, prox) \
  case Update::k##name:           \
    return keep<Update::k##name>(math, row, denom, terms, i);
      PROXADAM_UPDATES(PROXADAM_CASE)
#undef PROXADAM_CASE
    }
  }

 private:
  template <Update update, typename Math>
  __device__ __forceinline__ void keep(Math& math, const RowConstants<opmath_t>& row,
                                       const opmath_t (&denom)[width],
                                       const SharedTerms<opmath_t>& terms, int i) const {
    if constexpr (update != Update::kFrozen) {
      opmath_t z[width], shrunk[width], pulls[width];
#pragma unroll
      for (int k = 0; k < width; ++k) {
        const RowTerms<opmath_t> found =
            row_terms<update>(math, row.values, row.pull, exp_avg[k], denom[k], param[k]);
        z[k] = found.z;
        shrunk[k] = found.shrunk;
        pulls[k] = found.pull;
        inspect(math, shrunk[k]);
        inspect(math, pulls[k]);
      }
      store(shrunk, terms.shrunk + i);
      store(pulls, terms.pulls + i);
      store(z, terms.z + i);
    }
  }
};

// Less than any second moment, so that without amsgrad it is none of the larger ones.
template <int width, typename opmath_t>
__device__ __forceinline__ void no_maxima(opmath_t (&maxima)[width]) {
#pragma unroll
  for (int k = 0; k < width; ++k) maxima[k] = -HUGE_VAL;
}

// Elements from i on; or writes nothing of them, where the Math cannot tell, and returns false.
template <int width, typename Math, typename Chunk>
__device__ __forceinline__ bool begin_elements(const RowConstants<typename Chunk::opmath_t>& c,
                                               const Chunk& row,
                                               const SharedTerms<typename Chunk::opmath_t>& terms,
                                               int i) {
  using param_t = typename Chunk::param_t;
  using state_t = typename Chunk::state_t;
  const Buffers& buffers = row.buffers;
  Elements<width, typename Chunk::opmath_t> of;
  load(at<param_t>(buffers.param, i), of.param);
  load(at<state_t>(buffers.exp_avg, i), of.exp_avg);
  load(at<state_t>(buffers.exp_avg_sq, i), of.exp_avg_sq);
  with_grad(row, i, [&](const auto* from) { load(from, of.grad); });
  no_maxima(of.max_exp_avg_sq);
  if (buffers.max_exp_avg_sq) load(at<state_t>(buffers.max_exp_avg_sq, i), of.max_exp_avg_sq);
  Math math{};
  of.update(math, c, row.unscale, terms, i);
  if (wants_redo(math)) return false;
  if (row.unscale) with_grad(row, i, [&](auto* to) { store(of.grad, to); });
  store_moments(chance_at(row.rounding, i), i, of.exp_avg, of.exp_avg_sq,
                at<state_t>(buffers.exp_avg, i), at<state_t>(buffers.exp_avg_sq, i));
  if (buffers.max_exp_avg_sq) store(of.max_exp_avg_sq, at<state_t>(buffers.max_exp_avg_sq, i));
  return true;
}

// ---- before, with moments in codes ------------------------------------------------------------

// In one access, or element by element where the address is none for that.
template <int width, typename scalar_t, typename opmath_t>
__device__ __forceinline__ void load_from(const scalar_t* from, opmath_t (&to)[width],
                                          bool is_aligned) {
  if (is_aligned) return load(from, to);
#pragma unroll
  for (int k = 0; k < width; ++k) to[k] = widen(from[k]);
}
template <int width, typename scalar_t, typename opmath_t>
__device__ __forceinline__ void store_to(const opmath_t (&from)[width], scalar_t* to,
                                         bool is_aligned) {
  if (is_aligned) return store(from, to);
#pragma unroll
  for (int k = 0; k < width; ++k) narrow(from[k], to[k]);
}
template <Moment moment>
__device__ __forceinline__ void load_codes(const code8* from, uint32_t base, float (&to)[kVector],
                                           bool is_aligned) {
  if (is_aligned) return load_codes<moment>(from, base, to);
#pragma unroll
  for (int k = 0; k < kVector; ++k) to[k] = decode(moment, from[k].bits, base);
}
template <Moment moment>
__device__ __forceinline__ void store_codes(const float (&from)[kVector], int32_t base,
                                            const uint32_t (&draws)[kVector], int shift, code8* to,
                                            bool is_aligned) {
  const auto code = [&](int k) {
    return code8{uint8_t(encode(moment, from[k], base, draws[k] >> shift & 0xffff))};
  };
  if (is_aligned) return write<kVector>(to, [&](int k, code8& at) { at = code(k); });
#pragma unroll
  for (int k = 0; k < kVector; ++k) to[k] = code(k);
}

// A block of the row's codes, by a warp: four elements at each half for a lane.
template <typename Chunk>
__device__ __forceinline__ void begin_block(const RowConstants<float>& c, const Chunk& row,
                                            const SharedTerms<float>& terms, int block,
                                            bool is_aligned) {
  using param_t = typename Chunk::param_t;
  const Buffers& buffers = row.buffers;
  const ForBoth<uint32_t> old = decoding_bases(row, block);
  Elements<kVector, float> of[kVectors];
  Largest largest{};
  const int first = block * kBlock + lane() * kVector;
  constexpr int kNext = kWarp * kVector;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = first + v * kNext;
    load_from(at<param_t>(buffers.param, i), of[v].param, is_aligned);
    with_grad(row, i, [&](const auto* from) { load_from(from, of[v].grad, is_aligned); });
    load_codes<Moment::kFirst>(at<code8>(buffers.exp_avg, i), old.exp_avg, of[v].exp_avg,
                               is_aligned);
    load_codes<Moment::kSecond>(at<code8>(buffers.exp_avg_sq, i), old.exp_avg_sq, of[v].exp_avg_sq,
                                is_aligned);
    no_maxima(of[v].max_exp_avg_sq);
  }
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = first + v * kNext;
    Exact math;
    of[v].update(math, c, row.unscale, terms, i);
    if (row.unscale) with_grad(row, i, [&](auto* to) { store_to(of[v].grad, to, is_aligned); });
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      take_in(largest, finite_magnitude(of[v].exp_avg[k]), finite_magnitude(of[v].exp_avg_sq[k]));
    }
  }
  const ForBoth<int32_t> bases = rescale(row, block, of_warp(largest));
  const int again = anew(first);
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = again + v * kNext;
    uint32_t draws[kVector];
    draw_moments(chance_at(row.rounding, i), i, draws);
    store_codes<Moment::kFirst>(of[v].exp_avg, bases.exp_avg, draws, 0,
                                at<code8>(buffers.exp_avg, i), is_aligned);
    store_codes<Moment::kSecond>(of[v].exp_avg_sq, bases.exp_avg_sq, draws, 16,
                                 at<code8>(buffers.exp_avg_sq, i), is_aligned);
  }
}

// ---- after ------------------------------------------------------------------------------------

// Parameters from i on; or writes nothing, likewise. `last`: where the root was told from.
template <int width, typename Math, typename Chunk>
__device__ __forceinline__ bool finish_elements(const StepConstants<typename Chunk::opmath_t>& c,
                                                const Chunk& row,
                                                const SharedTerms<typename Chunk::opmath_t>& terms,
                                                const AtNorm<typename Chunk::opmath_t>& last,
                                                const Root<typename Chunk::opmath_t>& root, int i) {
  using param_t = typename Chunk::param_t;
  typename Chunk::opmath_t shrunk[width], pulls[width], z[width], param[width];
  load(terms.shrunk + i, shrunk);
  load(terms.pulls + i, pulls);
  load(terms.z + i, z);
  Math math{};
#pragma unroll
  for (int k = 0; k < width; ++k) {
    typename Chunk::opmath_t left;
    sums_of(math, last, shrunk[k], pulls[k], left);
    param[k] = element_of_row(math, c, shrunk[k], z[k], left_at(root, left));
    inspect(math, param[k]);
  }
  if (wants_redo(math)) return false;
  store_params<true>(chance_at(row.rounding, i), i, param, at<param_t>(row.buffers.param, i));
  return true;
}

}  // namespace proxadam
