// How a number is stored and in what type it is computed: scalar_t and opmath_t, in ATen's words.
//
// bfloat16 and float16 are spelled with integer operations and selects alone, so that any compiler
// vectorises them for any instruction set; both round to nearest, ties to even, and keep NaN. On a
// GPU its own conversions do the same in one instruction.

#pragma once

#include <stdint.h>  // for uint16_t, uint32_t
#include <string.h>  // for memcpy

#include "macros.h"  // for PROXADAM_INLINE

namespace proxadam {

enum class ScalarType : uint8_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

// How a parameter, its gradient and its moments are stored. Kernels are compiled for all three
// alike, and for 16-bit parameters with the gradient, the moments or both in float32.
struct TensorTypes {
  ScalarType param;
  ScalarType grad;
  ScalarType state;
};

PROXADAM_INLINE bool is_16_bit(ScalarType type) {
  return type == ScalarType::kBFloat16 || type == ScalarType::kFloat16;
}

// Whether a gradient or a moment of this type may go with such a parameter.
PROXADAM_INLINE bool goes_with(ScalarType param, ScalarType type) {
  return type == param || (is_16_bit(param) && type == ScalarType::kFloat32);
}

// Whether kernels are compiled for the three together.
PROXADAM_INLINE bool is_legal(const TensorTypes& types) {
  return goes_with(types.param, types.grad) && goes_with(types.param, types.state);
}

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

template <typename scalar_t>
struct OpMath {
  using type = float;
};
template <>
struct OpMath<double> {
  using type = double;
};

PROXADAM_INLINE float as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
PROXADAM_INLINE uint32_t as_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

PROXADAM_INLINE float widen(float x) { return x; }
PROXADAM_INLINE double widen(double x) { return x; }
PROXADAM_INLINE float widen(bfloat16 x) { return as_float(uint32_t(x.bits) << 16); }
PROXADAM_INLINE float widen(float16 x) {
#if defined(__CUDA_ARCH__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
#else
  // Shift the exponent and fraction into place and move the bias from 15 to 127. A subnormal is
  // mantissa · 2^-24: built as 2^-14 + that, less 2^-14. Infinity and NaN take the top exponent.
  const uint32_t magnitude = uint32_t(x.bits & 0x7fffu) << 13;
  const uint32_t rebased = magnitude + (112u << 23);
  const float subnormal = as_float(magnitude + (113u << 23)) - as_float(113u << 23);
  uint32_t bits = magnitude < (1u << 23) ? as_bits(subnormal) : rebased;
  bits = magnitude >= (31u << 23) ? magnitude | (255u << 23) : bits;
  return as_float(bits | uint32_t(x.bits & 0x8000u) << 16);
#endif
}

PROXADAM_INLINE void narrow(float x, float& out) { out = x; }
PROXADAM_INLINE void narrow(double x, double& out) { out = x; }
PROXADAM_INLINE void narrow(float x, bfloat16& out) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#else
  const uint32_t bits = as_bits(x);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const uint32_t quiet_nan = bits >> 16 | 0x40u;
  out.bits = uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
#endif
}
PROXADAM_INLINE void narrow(float x, float16& out) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#else
  // Adding 2^-1 to a value below 2^-14 leaves its float16 subnormal, rounded, in the low bits.
  const uint32_t sign = as_bits(x) & 0x80000000u;
  const uint32_t magnitude = as_bits(x) ^ sign;
  const uint32_t subnormal = as_bits(as_float(magnitude) + 0.5f) - as_bits(0.5f);
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  uint32_t bits = magnitude < (113u << 23) ? subnormal : normal;
  bits = magnitude >= (143u << 23) ? 0x7c00u : bits;
  bits = magnitude > 0x7f800000u ? 0x7e00u : bits;
  out.bits = uint16_t(bits | sign >> 16);
#endif
}

// −0.0 made +0.0 where rounding to 16 bits may have made one: under the prox no zero has a sign.
PROXADAM_INLINE void drop_zero_sign(float&) {}
PROXADAM_INLINE void drop_zero_sign(double&) {}
PROXADAM_INLINE void drop_zero_sign(bfloat16& x) { x.bits = x.bits == 0x8000u ? 0 : x.bits; }
PROXADAM_INLINE void drop_zero_sign(float16& x) { x.bits = x.bits == 0x8000u ? 0 : x.bits; }

}  // namespace proxadam
