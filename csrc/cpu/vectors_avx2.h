// The 16-bit formats in registers of AVX2 and F16C, to the bits of widen() and narrow(); and codes.

#pragma once

#include <immintrin.h>  // for AVX2, F16C

#include "../scalar_types.h"  // for bfloat16, float16

namespace proxadam {
namespace PROXADAM_CPU_CAPABILITY {
namespace {

using Floats = __m256;
using Halves = __m256i;  // what two Floats are narrowed to
constexpr int64_t kFloats = 8;
constexpr int64_t kHalves = 16;

PROXADAM_INLINE Floats load_floats(const float* from) { return _mm256_loadu_ps(from); }
PROXADAM_INLINE void store_floats(Floats x, float* to) { _mm256_storeu_ps(to, x); }
PROXADAM_INLINE void store_halves(Halves x, void* to) {
  _mm256_storeu_si256(static_cast<__m256i*>(to), x);
}

PROXADAM_INLINE __m128i load_packed(const void* from) {
  return _mm_loadu_si128(static_cast<const __m128i*>(from));
}
PROXADAM_INLINE Floats widen_floats(const bfloat16* from) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_packed(from)), 16));
}
PROXADAM_INLINE Floats widen_floats(const float16* from) {
  return _mm256_cvtph_ps(load_packed(from));
}

// The lower 16 bits of what so many draws have from bit `shift` on.
PROXADAM_INLINE __m256i load_chances(const uint32_t* draws, int shift) {
  const __m256i loaded = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(draws));
  const __m256i shifted = _mm256_srl_epi32(loaded, _mm_cvtsi32_si128(shift));
  return _mm256_and_si256(shifted, _mm256_set1_epi32(0xffff));
}

// Raised by half a unit or by chance, to a bfloat16 in the lower half of each lane.
PROXADAM_INLINE __m256i raise_to_lower_half(Floats x, __m256i raise) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i rounded = _mm256_add_epi32(bits, raise);
  const __m256i quiet_nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet_nan, is_nan), 16);
}
PROXADAM_INLINE __m256i round_to_lower_half(Floats x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return raise_to_lower_half(x, _mm256_add_epi32(_mm256_set1_epi32(0x7fff), odd));
}
// From 0, 2, 1, 3, in which order packing leaves the quarters.
PROXADAM_INLINE Halves pack_lower_halves(__m256i first, __m256i second) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(first, second), _MM_SHUFFLE(3, 1, 2, 0));
}
PROXADAM_INLINE Halves narrow_floats(Floats first, Floats second, const bfloat16*) {
  return pack_lower_halves(round_to_lower_half(first), round_to_lower_half(second));
}
// By chance.
PROXADAM_INLINE Halves narrow_floats(Floats first, Floats second, __m256i of_first,
                                     __m256i of_second) {
  return pack_lower_halves(raise_to_lower_half(first, of_first),
                           raise_to_lower_half(second, of_second));
}
PROXADAM_INLINE Halves narrow_floats(Floats first, Floats second, const float16*) {
  const __m128i low = _mm256_cvtps_ph(first, _MM_FROUND_TO_NEAREST_INT);
  const __m128i high = _mm256_cvtps_ph(second, _MM_FROUND_TO_NEAREST_INT);
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

// So many codes, from 32 bits each.
constexpr int64_t kCodes = 16;
PROXADAM_INLINE void narrow_codes(const uint32_t* from, uint8_t* to) {
  const __m256i* words = reinterpret_cast<const __m256i*>(from);
  const __m256i halves =
      pack_lower_halves(_mm256_loadu_si256(words), _mm256_loadu_si256(words + 1));
  const __m256i packed = _mm256_packus_epi16(halves, halves);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(_mm256_permute4x64_epi64(
                                                       packed, _MM_SHUFFLE(3, 1, 2, 0))));
}

PROXADAM_INLINE Halves drop_zero_signs(Halves x) {
  return _mm256_andnot_si256(_mm256_cmpeq_epi16(x, _mm256_set1_epi16(-0x8000)), x);
}

}  // namespace
}  // namespace PROXADAM_CPU_CAPABILITY
}  // namespace proxadam
