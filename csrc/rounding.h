// Stochastic rounding: up or down by chance, so that what is kept is right in the mean.
//
// The random bits are a function of where an element is and of the step, and of nothing else: they
// depend on no thread, chunk or instruction set, and a run that is resumed draws what it would
// have. Element i of a tensor draws hash32(i · 0x9e3779b9 + key), with i modulo 2^32, and
//
//   key = mix(mix(mix(mix(mix(mix(0, seed), seed >> 32), number), number >> 32), step), i >> 32)
//   mix(key, word) = hash32((key ^ word) + 0x9e3779b9)
//
// in 32 bits. `number` tells the tensors of an optimizer apart: proxadam/_step/state.py has it.
// python/proxadam/_step/rounding_ops.py has the same on tensors.

#pragma once

#include <stdint.h>  // for int64_t, uint16_t, uint32_t

#include "macros.h"        // for PROXADAM_INLINE
#include "scalar_types.h"  // for as_bits, as_float, bfloat16, float16

namespace proxadam {

constexpr uint32_t kGolden = 0x9e3779b9u;  // 2^32 over the golden ratio

// What a parameter's key differs in from that of its moments.
constexpr uint32_t kParamDraws = 0x85ebca6bu;

// Wellons' finaliser of two multiplications, "lowbias32" (hash-prospector, 2018).
PROXADAM_INLINE uint32_t hash32(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  return x;
}

PROXADAM_INLINE uint32_t mix(uint32_t key, uint32_t word) { return hash32((key ^ word) + kGolden); }

PROXADAM_INLINE uint32_t tensor_key(int64_t seed, int64_t number) {
  const uint32_t of_seed = mix(mix(0, uint32_t(seed)), uint32_t(uint64_t(seed) >> 32));
  return mix(mix(of_seed, uint32_t(number)), uint32_t(uint64_t(number) >> 32));
}

// `step` counts from 1.
PROXADAM_INLINE uint32_t step_key(uint32_t tensor_key, double step) {
  return mix(tensor_key, uint32_t(uint64_t(step)));
}

// For the elements whose indices have `index`'s upper half.
PROXADAM_INLINE uint32_t stretch_key(uint32_t step_key, int64_t index) {
  return mix(step_key, uint32_t(uint64_t(index) >> 32));
}

PROXADAM_INLINE uint32_t draw(uint32_t key, uint32_t index) {
  return hash32(index * kGolden + key);
}

// What of a tensor is rounded by chance where the options say so.
PROXADAM_INLINE constexpr bool state_draws(const TensorTypes& types) {
  return types.state == ScalarType::kBFloat16 || types.state == ScalarType::kCode8;
}
PROXADAM_INLINE constexpr bool param_draws(const TensorTypes& types) {
  return is_16_bit(types.param);
}

// ---- 16 bits ----------------------------------------------------------------------------------
//
// What the format has is kept as it is, zeros among it. Of a draw bfloat16 takes the lower 16 bits.

PROXADAM_INLINE void narrow(float x, uint32_t draw, bfloat16& out) {
  const uint32_t bits = as_bits(x);
  const uint32_t rounded = (bits + (draw & 0xffffu)) >> 16;
  const uint32_t quiet_nan = bits >> 16 | 0x40u;
  out.bits = uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

// Finite numbers stay finite below 2^16, where float16 ends.
PROXADAM_INLINE void narrow(float x, uint32_t draw, float16& out) {
  const uint32_t sign = as_bits(x) & 0x80000000u;
  const uint32_t magnitude = as_bits(x) ^ sign;
  // Below 2^-14 in units of 2^-24, of which there is a whole number and a rest.
  const float units = magnitude < (113u << 23) ? as_float(magnitude) * 0x1p24f : 0.0f;
  const int32_t whole = int32_t(units);
  const uint32_t up = units - float(whole) > float(int32_t(draw >> 8)) * 0x1p-24f;
  const uint32_t rounded = (magnitude - (112u << 23) + (draw & 0x1fffu)) >> 13;
  const uint32_t normal = rounded < 0x7bffu ? rounded : 0x7bffu;
  uint32_t bits = magnitude < (113u << 23) ? uint32_t(whole) + up : normal;
  bits = magnitude >= (143u << 23) ? 0x7c00u : bits;
  bits = magnitude > 0x7f800000u ? 0x7e00u : bits;
  out.bits = uint16_t(bits | sign >> 16);
}

// There is nothing to round.
PROXADAM_INLINE void narrow(float x, uint32_t, float& out) { out = x; }
PROXADAM_INLINE void narrow(double x, uint32_t, double& out) { out = x; }

}  // namespace proxadam
