// What of a chunk is rounded by chance, and with which: csrc/rounding.h, as a thread does it.

#pragma once

#include <stdint.h>  // for uint32_t

#include "../rounding.h"      // for draw, kGolden, kParamDraws, narrow
#include "../scalar_types.h"  // for drop_zero_sign, is_16_bit, kScalarType
#include "memory.h"           // for store, write

namespace proxadam {

// In kernels that know of no chance.
struct ToNearest {};

struct Chance {
  // Element i of the chunk draws draw(key, i): it is the tensor's key, moved by where the chunk
  // begins. All of a chunk's elements have one, for step.cu cuts tensors where it changes.
  uint32_t key;
  bool state;
  bool params;
};

// What the elements of a chunk draw from element i on.
template <int width>
__device__ __forceinline__ void draw_vector(uint32_t key, int i, uint32_t (&draws)[width]) {
  const uint32_t of_first = anew(key + uint32_t(i) * kGolden);
#pragma unroll
  for (int k = 0; k < width; ++k) draws[k] = draw(of_first, k);
}

// Stores parameters from element i of the chunk on.
template <bool drops_zero_signs, typename scalar_t, int width, typename opmath_t>
__device__ __forceinline__ void store_params(const ToNearest&, int, const opmath_t (&from)[width],
                                             scalar_t* to) {
  store<drops_zero_signs>(from, to);
}

template <bool drops_zero_signs, typename scalar_t, int width>
__device__ __forceinline__ void store_params(const Chance& chance, int i,
                                             const float (&from)[width], scalar_t* to) {
  if (!is_16_bit(kScalarType<scalar_t>) || !chance.params) {
    store<drops_zero_signs>(from, to);
    return;
  }
  uint32_t draws[width];
  draw_vector(chance.key + kParamDraws, i, draws);
  write<width>(to, [&](int k, scalar_t& element) {
    narrow(from[k], draws[k], element);
    if (drops_zero_signs) drop_zero_sign(element);
  });
}

// Stores both moments, likewise. Only bfloat16 is rounded by chance.
template <typename Rounding, typename scalar_t, int width, typename opmath_t>
__device__ __forceinline__ void store_moments(const Rounding&, int,
                                              const opmath_t (&exp_avg)[width],
                                              const opmath_t (&exp_avg_sq)[width],
                                              scalar_t* to_exp_avg, scalar_t* to_exp_avg_sq) {
  store(exp_avg, to_exp_avg);
  store(exp_avg_sq, to_exp_avg_sq);
}

template <int width>
__device__ __forceinline__ void store_moments(const Chance& chance, int i,
                                              const float (&exp_avg)[width],
                                              const float (&exp_avg_sq)[width],
                                              bfloat16* to_exp_avg, bfloat16* to_exp_avg_sq) {
  if (!chance.state) {
    store(exp_avg, to_exp_avg);
    store(exp_avg_sq, to_exp_avg_sq);
    return;
  }
  uint32_t draws[width];
  draw_vector(chance.key, i, draws);
  write<width>(to_exp_avg,
               [&](int k, bfloat16& element) { narrow(exp_avg[k], draws[k], element); });
  write<width>(to_exp_avg_sq,
               [&](int k, bfloat16& element) { narrow(exp_avg_sq[k], draws[k] >> 16, element); });
}

}  // namespace proxadam
