// How a number is stored and in what type it is computed: scalar_t and opmath_t, in ATen's words.
//
// bfloat16 and float16 are spelled with integer operations and selects alone, so that any compiler
// vectorises them for any instruction set; both round to nearest, ties to even, and keep NaN. On a
// GPU its own conversions do the same in one instruction.

#pragma once

#include <stdint.h>  // for uint8_t, uint16_t, uint32_t
#include <string.h>  // for memcpy

#include "macros.h"  // for PROXADAM_INLINE

namespace proxadam {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};
// A moment in 8 bits, which says nothing without the exponent of its block: csrc/codes.h.
struct code8 {
  uint8_t bits;
};

// The storage formats, X(name, scalar_t): each is a line here and, but for codes, its own widen()
// and narrow() below.
#define PROXADAM_SCALAR_TYPES(X) \
  X(Float32, float)              \
  X(Float64, double)             \
  X(BFloat16, bfloat16)          \
  X(Float16, float16)            \
  X(Code8, code8)

#define PROXADAM_ENUMERATOR(name, scalar_t) k##name,
enum class ScalarType : uint8_t { PROXADAM_SCALAR_TYPES(PROXADAM_ENUMERATOR) };
#undef PROXADAM_ENUMERATOR

PROXADAM_INLINE constexpr bool is_16_bit(ScalarType type) {
  return type == ScalarType::kBFloat16 || type == ScalarType::kFloat16;
}

template <typename scalar_t>
constexpr ScalarType kScalarType = ScalarType::kFloat32;
#define PROXADAM_SCALAR_TYPE(name, scalar_t) \
  template <>                                \
  inline constexpr ScalarType kScalarType<scalar_t> = ScalarType::k##name;
PROXADAM_SCALAR_TYPES(PROXADAM_SCALAR_TYPE)
#undef PROXADAM_SCALAR_TYPE

PROXADAM_INLINE int bytes_of(ScalarType type) {
  switch (type) {
#define PROXADAM_BYTES(name, scalar_t) \
  case ScalarType::k##name:            \
    return sizeof(scalar_t);
    PROXADAM_SCALAR_TYPES(PROXADAM_BYTES)
#undef PROXADAM_BYTES
  }
  return 0;
}

// How a parameter, its gradient and its moments are stored.
struct TensorTypes {
  ScalarType param;
  ScalarType grad;
  ScalarType state;
};
PROXADAM_INLINE constexpr bool operator==(const TensorTypes& a, const TensorTypes& b) {
  return a.param == b.param && a.grad == b.grad && a.state == b.state;
}

// Those that go together, X(param_t, grad_t, state_t): all alike; beside 16-bit parameters the
// gradient in float32; and moments in float32, in bfloat16 or in codes beside what is not wider.
#define PROXADAM_TENSOR_TYPES(X)  \
  X(float, float, float)          \
  X(float, float, bfloat16)       \
  X(float, float, code8)          \
  X(double, double, double)       \
  X(bfloat16, bfloat16, bfloat16) \
  X(bfloat16, bfloat16, float)    \
  X(bfloat16, bfloat16, code8)    \
  X(bfloat16, float, bfloat16)    \
  X(bfloat16, float, float)       \
  X(bfloat16, float, code8)       \
  X(float16, float16, float16)    \
  X(float16, float16, bfloat16)   \
  X(float16, float16, float)      \
  X(float16, float16, code8)      \
  X(float16, float, float16)      \
  X(float16, float, bfloat16)     \
  X(float16, float, float)        \
  X(float16, float, code8)

#define PROXADAM_TRIPLE(param_t, grad_t, state_t) \
  {kScalarType<param_t>, kScalarType<grad_t>, kScalarType<state_t>},
constexpr TensorTypes kTensorTypes[] = {PROXADAM_TENSOR_TYPES(PROXADAM_TRIPLE)};
#undef PROXADAM_TRIPLE

// Whether kernels are compiled for the three together.
PROXADAM_INLINE bool is_legal(const TensorTypes& types) {
  for (const TensorTypes& legal : kTensorTypes) {
    if (types == legal) return true;
  }
  return false;
}

template <typename param, typename grad, typename state>
struct Scalars {
  using param_t = param;
  using grad_t = grad;
  using state_t = state;
  static constexpr TensorTypes kTypes{kScalarType<param>, kScalarType<grad>, kScalarType<state>};
};

// Calls f with the Scalars of legal types.
template <typename F>
inline auto with_types(const TensorTypes& types, F f) {
#define PROXADAM_CASE(param_t, grad_t, state_t)             \
  if (types == Scalars<param_t, grad_t, state_t>::kTypes) { \
    return f(Scalars<param_t, grad_t, state_t>{});          \
  }
  PROXADAM_TENSOR_TYPES(PROXADAM_CASE)
#undef PROXADAM_CASE
  return f(Scalars<float, float, float>{});  // not reached
}

template <typename scalar_t>
struct OpMath {
  using type = float;
};
template <>
struct OpMath<double> {
  using type = double;
};

// Where they begin: dense, all of the same strides, so that one index finds the same element in
// each.
struct Buffers {
  void* param;
  void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  void* max_exp_avg_sq;  // null unless amsgrad
};

// A byte for each block of code8: csrc/codes.h. Null where the moments are stored otherwise.
struct Exponents {
  uint8_t* exp_avg;
  uint8_t* exp_avg_sq;
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
