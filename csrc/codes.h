// Moments in 8 bits: code8, and an exponent for each block of 256 elements as they lie in memory.
//
// First moments have a sign, 4 bits of exponent and 3 of mantissa; second ones 5 bits of exponent
// and 3 of mantissa. There are no subnormals: code 0 is 0. A block's exponent is float32's of its
// largest finite number, which lies one binade below the top of the code, so that what is rounded
// up still has one. Decoding is a shift and an addition, and exact; scales are powers of two.
//
// A positive second moment is never coded 0: beside a first moment that is not 0 the denominator
// would be eps alone. First moments below about 2^-14 of their block's largest are coded 0, and
// second ones below 2^-30 by the least code.

#pragma once

#include <stdint.h>  // for int32_t, uint8_t, uint32_t

#include "macros.h"        // for PROXADAM_INLINE
#include "scalar_types.h"  // for as_bits, as_float, code8

namespace proxadam {

constexpr int kBlock = 256;

// Which of the two moments is coded.
enum class Moment { kFirst, kSecond };

PROXADAM_INLINE constexpr int32_t top_code(Moment moment) {
  return moment == Moment::kFirst ? 0x7f : 0xff;
}
// The exponent of a block whose code 8 is the smallest normal number.
PROXADAM_INLINE constexpr int32_t lowest_exponent(Moment moment) {
  return moment == Moment::kFirst ? 15 : 31;
}

// What a number counts when its block's largest is looked for: NaN and infinity nothing.
PROXADAM_INLINE int32_t finite_magnitude(float x) {
  const int32_t magnitude = int32_t(as_bits(x) & 0x7fffffffu);
  return magnitude < 0x7f800000 ? magnitude : 0;
}

PROXADAM_INLINE uint8_t block_exponent(Moment moment, int32_t largest_magnitude) {
  const int32_t exponent = largest_magnitude >> 23;
  const int32_t lowest = lowest_exponent(moment);
  return uint8_t(exponent < lowest ? lowest : exponent > 253 ? 253 : exponent);
}

// What a code is added to, to be the upper twelve bits of a float.
PROXADAM_INLINE int32_t code_base(Moment moment, uint8_t exponent) {
  return 8 * (int32_t(exponent) - (lowest_exponent(moment) - 1));
}

// The same where it is added, twenty bits further up.
PROXADAM_INLINE uint32_t decoding_base(Moment moment, uint8_t exponent) {
  return uint32_t(code_base(moment, exponent)) << 20;
}

PROXADAM_INLINE float decode(Moment moment, uint32_t code, uint32_t decoding_base) {
  const uint32_t magnitude = code & uint32_t(top_code(moment));
  const uint32_t sign = moment == Moment::kFirst ? (code & 0x80u) << 24 : 0;
  return as_float(magnitude ? ((magnitude << 20) + decoding_base) | sign : 0);
}

// A code without its sign. `chance`: 16 random bits, or kToNearest.
constexpr uint32_t kToNearest = 0x8000;
PROXADAM_INLINE uint32_t encode_magnitude(Moment moment, float x, int32_t base, uint32_t chance) {
  const uint32_t magnitude = as_bits(x) & 0x7fffffffu;
  const int32_t rounded = int32_t((magnitude + (chance << 4)) >> 20) - base;
  const int32_t lowest = moment == Moment::kSecond && magnitude != 0;
  const int32_t top = top_code(moment);
  const int32_t code = rounded < lowest ? lowest : rounded;
  return uint32_t(code > top ? top : code);
}

// Magnitudes of first moments with their signs, a byte each: adding carries into the sign's place
// where a code is not 0.
PROXADAM_INLINE uint32_t with_signs(uint32_t magnitudes, uint32_t signs) {
  return magnitudes | ((magnitudes + 0x7f7f7f7fu) & signs & 0x80808080u);
}

// A NaN, whose sign depends on who made it, has none.
PROXADAM_INLINE uint32_t encode(Moment moment, float x, int32_t base, uint32_t chance) {
  const uint32_t code = encode_magnitude(moment, x, base, chance);
  const bool is_nan = (as_bits(x) & 0x7fffffffu) > 0x7f800000u;
  const uint32_t sign = moment == Moment::kFirst && !is_nan ? as_bits(x) >> 24 : 0;
  return moment == Moment::kFirst ? with_signs(code, sign) : code;
}

}  // namespace proxadam
