// The 16-bit formats in registers of AVX-512, to the bits of widen() and narrow(); and codes.

#pragma once

#include <immintrin.h>  // for AVX-512

#include "../codes.h"         // for kBlock, Moment
#include "../scalar_types.h"  // for bfloat16, float16

namespace proxadam {
namespace PROXADAM_CPU_CAPABILITY {
namespace {

using Floats = __m512;
using Halves = __m512i;  // what two Floats are narrowed to
constexpr int64_t kFloats = 16;
constexpr int64_t kHalves = 32;

PROXADAM_INLINE Floats load_floats(const float* from) { return _mm512_loadu_ps(from); }
PROXADAM_INLINE void store_floats(Floats x, float* to) { _mm512_storeu_ps(to, x); }
PROXADAM_INLINE void store_halves(Halves x, void* to) { _mm512_storeu_si512(to, x); }

PROXADAM_INLINE __m256i load_packed(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
PROXADAM_INLINE Floats widen_floats(const bfloat16* from) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_packed(from)), 16));
}
PROXADAM_INLINE Floats widen_floats(const float16* from) {
  return _mm512_cvtph_ps(load_packed(from));
}

// The lower 16 bits of what so many draws have from bit `shift` on.
PROXADAM_INLINE __m512i load_chances(const uint32_t* draws, int shift) {
  const __m512i shifted = _mm512_srl_epi32(_mm512_loadu_si512(draws), _mm_cvtsi32_si128(shift));
  return _mm512_and_si512(shifted, _mm512_set1_epi32(0xffff));
}

// Raised by half a unit or by chance, to a bfloat16 in the upper half of each lane.
PROXADAM_INLINE __m512i raise_to_upper_half(Floats x, __m512i raise) {
  const __m512i bits = _mm512_castps_si512(x);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(_mm512_add_epi32(bits, raise), is_nan, bits,
                              _mm512_set1_epi32(0x400000));
}
PROXADAM_INLINE __m512i round_to_upper_half(Floats x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  return raise_to_upper_half(x, _mm512_add_epi32(_mm512_set1_epi32(0x7fff), odd));
}
PROXADAM_INLINE Halves pack_upper_halves(__m512i first, __m512i second) {
  const __m512i upper_halves =
      _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33,  //
                       31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  return _mm512_permutex2var_epi16(first, upper_halves, second);
}
PROXADAM_INLINE Halves narrow_floats(Floats first, Floats second, const bfloat16*) {
#if defined(__AVX512BF16__)
  // This instruction takes subnormals for zeros.
  constexpr int kSubnormal = 0x20;
  const __mmask16 in_first = _mm512_fpclass_ps_mask(first, kSubnormal);
  const __mmask16 in_second = _mm512_fpclass_ps_mask(second, kSubnormal);
  if (__builtin_expect((in_first | in_second) == 0, 1)) {
    return Halves(_mm512_cvtne2ps_pbh(second, first));
  }
#endif
  return pack_upper_halves(round_to_upper_half(first), round_to_upper_half(second));
}
// By chance.
PROXADAM_INLINE Halves narrow_floats(Floats first, Floats second, __m512i of_first,
                                     __m512i of_second) {
  return pack_upper_halves(raise_to_upper_half(first, of_first),
                           raise_to_upper_half(second, of_second));
}
PROXADAM_INLINE Halves narrow_floats(Floats first, Floats second, const float16*) {
  const __m256i low = _mm512_cvtps_ph(first, _MM_FROUND_TO_NEAREST_INT);
  const __m256i high = _mm512_cvtps_ph(second, _MM_FROUND_TO_NEAREST_INT);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

PROXADAM_INLINE __m512i magnitude_bits(__m512i bits) {
  return _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
}

// So many codes, from 32 bits each.
constexpr int64_t kCodes = 16;
PROXADAM_INLINE void narrow_codes(const uint32_t* from, uint8_t* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_loadu_si512(from)));
}

// The magnitude from which codes may reach beyond their top, or the number is none; as an integer.
constexpr int32_t kHuge = 0x7f000000;

// Of a block, as an integer. Second moments have no sign, but for a NaN, which is of no size.
template <Moment moment>
PROXADAM_INLINE int32_t largest_magnitude(const float* from) {
  __m512i largest = _mm512_setzero_si512();
  for (int i = 0; i < kBlock; i += kFloats) {
    const __m512i bits = _mm512_loadu_si512(from + i);
    largest = _mm512_max_epi32(largest, moment == Moment::kFirst ? magnitude_bits(bits) : bits);
  }
  return _mm512_reduce_max_epi32(largest);
}

// encode() for a block of which none is kHuge, with the chances in its draws.
template <Moment moment>
PROXADAM_INLINE void encode_vectors(const float* from, const uint32_t* draws, int32_t base,
                                    uint8_t* to) {
  const __m512i mask = _mm512_set1_epi32(0xffff << 4);
  for (int i = 0; i < kBlock; i += kFloats) {
    const __m512i bits = _mm512_loadu_si512(from + i);
    const __m512i drawn = _mm512_loadu_si512(draws + i);
    constexpr bool kFirst = moment == Moment::kFirst;
    const __m512i magnitude = kFirst ? magnitude_bits(bits) : bits;
    const __m512i chance = kFirst ? _mm512_slli_epi32(drawn, 4) : _mm512_srli_epi32(drawn, 12);
    const __m512i raised = _mm512_add_epi32(magnitude, _mm512_and_si512(chance, mask));
    const __m512i code = _mm512_sub_epi32(_mm512_srli_epi32(raised, 20), _mm512_set1_epi32(base));
    __m512i found;
    if (kFirst) {
      const __mmask16 positive = _mm512_cmpgt_epi32_mask(code, _mm512_setzero_si512());
      constexpr int kOrAnd = 0xf8;  // a | (b & c)
      found = _mm512_maskz_ternarylogic_epi32(positive, code, _mm512_srli_epi32(bits, 24),
                                              _mm512_set1_epi32(0x80), kOrAnd);
    } else {
      const __mmask16 positive = _mm512_test_epi32_mask(bits, bits);
      found = _mm512_maskz_max_epi32(positive, code, _mm512_set1_epi32(1));
    }
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm512_cvtepi32_epi8(found));
  }
}

PROXADAM_INLINE Halves drop_zero_signs(Halves x) {
  const __mmask32 other = _mm512_cmpneq_epi16_mask(x, _mm512_set1_epi16(-0x8000));
  return _mm512_maskz_mov_epi16(other, x);
}

}  // namespace
}  // namespace PROXADAM_CPU_CAPABILITY
}  // namespace proxadam
