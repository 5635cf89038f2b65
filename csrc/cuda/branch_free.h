// Roots and divisions of float32 without a branch, so that the elements of a vector interleave.
//
// nvcc compiles a correctly rounded root or division to a short sequence and a call for the numbers
// that this is wrong for, and the calls keep a thread's elements apart. The sequences here are as
// short, and note in `redo` that a number was none of theirs; the kernel then takes the elements of
// that vector once more, with Exact.
//
// That a sequence rounds correctly rests on the device's tables behind rsqrt.approx and rcp.approx.
// roundings.cu compares them with IEEE's results for every float; architectures that passed are
// listed below, and float32 steps on others stay with Exact. A quotient needs no table: with the
// correctly rounded reciprocal it is correctly rounded (Markstein, Computation of elementary
// functions on the IBM RISC System/6000 processor, 1990, theorem 7).

#pragma once

#include <math.h>    // for fmaf, and on the host sqrtf
#include <stdint.h>  // for uint32_t

#include "../prox_adam.h"     // for Exact
#include "../scalar_types.h"  // for as_bits, bfloat16, float16

// Architectures on which tests/test_cuda_kernel.py compared every float: bench/results/NOTES.md.
#if !defined(PROXADAM_BRANCH_FREE)
#define PROXADAM_BRANCH_FREE (__CUDA_ARCH__ == 900)
#endif

namespace proxadam {

struct BranchFree {
  bool redo;  // a result may be wrong in its last place, or altogether
};

#if defined(__CUDA_ARCH__)
PROXADAM_INLINE float rsqrt_approx(float x) {
  float r;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
PROXADAM_INLINE float rcp_approx(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
PROXADAM_INLINE float min_or_nan(float a, float b) {
  float r;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
PROXADAM_INLINE float max_or_nan(float a, float b) {
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
#else  // on the host, where the tests run the kernels
PROXADAM_INLINE float flushed(float x) { return fabsf(x) < FLT_MIN ? copysignf(0, x) : x; }
PROXADAM_INLINE float rsqrt_approx(float x) { return float(1 / sqrt(double(flushed(x)))); }
PROXADAM_INLINE float rcp_approx(float x) { return flushed(1 / flushed(x)); }
PROXADAM_INLINE float min_or_nan(float a, float b) { return a != a ? a : b < a || b != b ? b : a; }
PROXADAM_INLINE float max_or_nan(float a, float b) { return a != a ? a : b > a || b != b ? b : a; }
#endif

// The reciprocal, for 2^-126 <= x <= 2^125; NaN for NaN, infinity and what is flushed to zero.
PROXADAM_INLINE float reciprocal_in_range(float x) {
  const float r = rcp_approx(x);
  return fmaf(r, -fmaf(x, r, -1.0f), r);
}

// For 0 and from 2^-101 on. Infinite or NaN, and noted when it is divided by, where x is below
// zero, -0, infinite or NaN.
PROXADAM_INLINE float square_root(BranchFree& math, float x) {
  math.redo |= as_bits(x) - 1 < as_bits(0x1p-101f) - 1;  // the residual below would be rounded
  const float r = min_or_nan(rsqrt_approx(x), 0x1p51f);  // finite, that 0 times it is 0
  const float y = x * r;
  return fmaf(fmaf(-y, y, x), 0.5f * r, y);
}

// For 2^-126 <= d <= 2^125. NaN, and noted in the end, for 0 and what is flushed to it.
PROXADAM_INLINE float reciprocal(BranchFree& math, float d) {
  math.redo |= d > 0x1p125f;
  return reciprocal_in_range(d);
}

// For 2^-126 <= b <= 2^63, and a zero or from 2^-62 on: the residuals are then exact, and the
// quotient is a normal number. A zero keeps its sign. NaN, and noted in the end, where b is
// smaller, a infinite, or the quotient overflows.
PROXADAM_INLINE float quotient(BranchFree& math, float a, float b) {
  math.redo |= (as_bits(a) << 1) - 1 < (as_bits(0x1p-62f) << 1) - 1;
  math.redo |= b > 0x1p63f;
  const float r = reciprocal_in_range(b);
  float q = a * r;                  // within 1.5 units in the last place
  q = fmaf(-fmaf(b, q, -a), r, q);  // within one
  return fmaf(-fmaf(b, q, -a), r, q);
}

// NaN where any of the three is.
PROXADAM_INLINE float clamp(BranchFree&, float x, float low, float high) {
  return min_or_nan(max_or_nan(x, low), high);
}

PROXADAM_INLINE void inspect(BranchFree& math, float param) { math.redo |= param != param; }

// The Math of a kernel's vectors. What is rounded to 16 bits anyhow waits for no proof.
template <typename param_t>
struct MathOf {
  using type = BranchFree;
};
template <>
struct MathOf<double> {
  using type = Exact;
};
#if !PROXADAM_BRANCH_FREE
template <>
struct MathOf<float> {
  using type = Exact;
};
#endif

PROXADAM_INLINE constexpr bool wants_redo(const Exact&) { return false; }
PROXADAM_INLINE bool wants_redo(const BranchFree& math) { return math.redo; }

}  // namespace proxadam
