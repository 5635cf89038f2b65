// From a storage format to the type of computation and back, a tile at a time. Codecs are picked at
// run time, for each buffer its own, so that a storage format costs two conversion loops and no
// update loop; what update_halves.h has is faster without.

#pragma once

#include "../codes.h"
#include "../rounding.h"
#include "../scalar_types.h"

#ifndef PROXADAM_CPU_CAPABILITY
#error "name the instruction set's namespace in PROXADAM_CPU_CAPABILITY"
#endif

#if defined(__AVX512BW__)
#include "vectors_avx512.h"
#define PROXADAM_VECTORS
#elif defined(__AVX2__) && defined(__F16C__)
#include "vectors_avx2.h"
#define PROXADAM_VECTORS
#endif

namespace proxadam {
namespace PROXADAM_CPU_CAPABILITY {
namespace {

// Elements of a tile: five of floats stay in any first-level cache.
constexpr int64_t kTile = 512;

// So few elements that the processor converts the next ones, and asks memory for those behind them,
// while it still divides in these. For pieces that cost no call of a codec.
constexpr int64_t kFew = 128;

// How a tile is rounded.
struct Rounding {
  bool drops_zero_signs;  // under the prox no zero has a sign, and float16 makes some −0.0
  const uint32_t* draws;  // 32 random bits for each element; null: to the nearest
  int shift;              // of these bits are used those from here on
};
constexpr Rounding kNearest{false, nullptr, 0};

// Where a draw has a moment's chance.
constexpr int shift_of(Moment moment) { return moment == Moment::kFirst ? 0 : 16; }

// A buffer, and what its elements mean.
struct Stored {
  void* elements;
  uint8_t* exponents;  // of code8
};

// Elements [begin, begin + numel) of a buffer, to and from a tile. Null: the buffer holds opmath_t,
// and is worked on in place.
template <typename opmath_t>
struct Codec {
  void (*load)(const Stored& from, int64_t begin, int64_t numel, opmath_t* tile);
  void (*store)(const opmath_t* tile, int64_t begin, int64_t numel, const Stored& to, Rounding how);
};

// i · kGolden for the elements of a tile: an addition of memory for a multiplication.
struct Scattered {
  uint32_t of[kTile];
  constexpr Scattered() : of() {
    for (uint32_t i = 0; i < kTile; ++i) of[i] = i * kGolden;
  }
};
alignas(64) constexpr Scattered kScattered;

// What the elements of a tile draw, which begins with element `first`.
PROXADAM_INLINE const uint32_t* fill_draws(uint32_t key, uint32_t first, int64_t numel,
                                           uint32_t* draws) {
  const uint32_t base = first * kGolden + key;
  for (int64_t i = 0; i < numel; ++i) draws[i] = hash32(base + kScattered.of[i]);
  return draws;
}

#if defined(PROXADAM_VECTORS)
// kFloats elements of a 16-bit format.
template <typename scalar_t>
PROXADAM_INLINE void widen_vector(const scalar_t* from, float* to) {
  store_floats(widen_floats(from), to);
}
// kHalves elements.
template <typename scalar_t>
PROXADAM_INLINE void narrow_vectors(const float* from, scalar_t* to, bool drops_zero_signs) {
  const Halves halves = narrow_floats(load_floats(from), load_floats(from + kFloats), to);
  store_halves(drops_zero_signs ? drop_zero_signs(halves) : halves, to);
}
// The same by chance, from the i-th draw on.
PROXADAM_INLINE void narrow_vectors(const float* from, bfloat16* to, Rounding how, int64_t i) {
  const Halves halves = narrow_floats(load_floats(from), load_floats(from + kFloats),
                                      load_chances(how.draws + i, how.shift),
                                      load_chances(how.draws + i + kFloats, how.shift));
  store_halves(how.drops_zero_signs ? drop_zero_signs(halves) : halves, to);
}
#endif

template <typename scalar_t, typename opmath_t>
void load(const Stored& stored, int64_t begin, int64_t numel, opmath_t* tile) {
  const scalar_t* from = static_cast<const scalar_t*>(stored.elements) + begin;
  int64_t i = 0;
#if defined(PROXADAM_VECTORS)
  if constexpr (is_16_bit(kScalarType<scalar_t>)) {
    for (; i + kFloats <= numel; i += kFloats) widen_vector(from + i, tile + i);
  }
#endif
  for (; i < numel; ++i) tile[i] = widen(from[i]);
}

// Returns how many elements were stored.
template <typename scalar_t, typename opmath_t>
int64_t store_vectors([[maybe_unused]] const opmath_t* tile, [[maybe_unused]] int64_t numel,
                      [[maybe_unused]] scalar_t* to, [[maybe_unused]] Rounding how) {
  int64_t i = 0;
#if defined(PROXADAM_VECTORS)
  if constexpr (kScalarType<scalar_t> == ScalarType::kBFloat16) {
    if (how.draws) {
      for (; i + kHalves <= numel; i += kHalves) narrow_vectors(tile + i, to + i, how, i);
    }
  }
  if constexpr (is_16_bit(kScalarType<scalar_t>)) {
    if (!how.draws) {
      for (; i + kHalves <= numel; i += kHalves) {
        narrow_vectors(tile + i, to + i, how.drops_zero_signs);
      }
    }
  }
#endif
  return i;
}

template <typename scalar_t, typename opmath_t>
void store(const opmath_t* tile, int64_t begin, int64_t numel, const Stored& stored, Rounding how) {
  scalar_t* to = static_cast<scalar_t*>(stored.elements) + begin;
  const int64_t rest = store_vectors(tile, numel, to, how);
  if (how.draws) {
    for (int64_t i = rest; i < numel; ++i) narrow(tile[i], how.draws[i] >> how.shift, to[i]);
  } else {
    for (int64_t i = rest; i < numel; ++i) narrow(tile[i], to[i]);
  }
  if (!how.drops_zero_signs) return;
  for (int64_t i = rest; i < numel; ++i) drop_zero_sign(to[i]);
}

template <Moment moment>
PROXADAM_INLINE void load_block(const uint8_t* from, int64_t numel, uint8_t exponent, float* to) {
  const uint32_t base = decoding_base(moment, exponent);
  for (int64_t i = 0; i < numel; ++i) to[i] = decode(moment, from[i], base);
}

// `draws`: null to round to the nearest.
template <Moment moment>
PROXADAM_INLINE void encode_block(const float* from, int64_t numel, const uint32_t* draws,
                                  int32_t base, uint8_t* to) {
  alignas(64) uint32_t codes[kBlock];
  for (int64_t i = 0; i < numel; ++i) {
    const uint32_t chance = draws ? draws[i] >> shift_of(moment) & 0xffff : kToNearest;
    codes[i] = encode(moment, from[i], base, chance);
  }
  int64_t i = 0;
#if defined(PROXADAM_VECTORS)
  for (; i + kCodes <= numel; i += kCodes) narrow_codes(codes + i, to + i);
#endif
  for (; i < numel; ++i) to[i] = uint8_t(codes[i]);
}

// Returns the block's exponent.
template <Moment moment>
PROXADAM_INLINE uint8_t store_block(const float* from, int64_t numel, const uint32_t* draws,
                                    uint8_t* to) {
#if defined(__AVX512BW__)
  if (numel == kBlock && draws) {
    const int32_t largest = largest_magnitude<moment>(from);
    if (largest < kHuge) {
      const uint8_t exponent = block_exponent(moment, largest);
      encode_vectors<moment>(from, draws, code_base(moment, exponent), to);
      return exponent;
    }
  }
#endif
  int32_t largest = 0;
  for (int64_t i = 0; i < numel; ++i) {
    const int32_t magnitude = finite_magnitude(from[i]);
    largest = magnitude > largest ? magnitude : largest;
  }
  const uint8_t exponent = block_exponent(moment, largest);
  encode_block<moment>(from, numel, draws, code_base(moment, exponent), to);
  return exponent;
}

// `begin` is a block's first element.
template <Moment moment>
void load_codes(const Stored& stored, int64_t begin, int64_t numel, float* tile) {
  const uint8_t* from = static_cast<const uint8_t*>(stored.elements) + begin;
  const uint8_t* exponents = stored.exponents + begin / kBlock;
  for (int64_t i = 0; i < numel; i += kBlock) {
    const int64_t block = numel - i < kBlock ? numel - i : kBlock;
    load_block<moment>(from + i, block, exponents[i / kBlock], tile + i);
  }
}

template <Moment moment>
void store_codes(const float* tile, int64_t begin, int64_t numel, const Stored& stored,
                 Rounding how) {
  uint8_t* to = static_cast<uint8_t*>(stored.elements) + begin;
  uint8_t* exponents = stored.exponents + begin / kBlock;
  for (int64_t i = 0; i < numel; i += kBlock) {
    const int64_t block = numel - i < kBlock ? numel - i : kBlock;
    const uint32_t* draws = how.draws ? how.draws + i : nullptr;
    exponents[i / kBlock] = store_block<moment>(tile + i, block, draws, to + i);
  }
}

template <typename scalar_t, typename opmath_t>
Codec<opmath_t> codec_of(Moment moment) {
  constexpr bool kOfFloats = kScalarType<opmath_t> == ScalarType::kFloat32;
  constexpr bool kCopies = kScalarType<scalar_t> != kScalarType<opmath_t> &&
                           kScalarType<typename OpMath<scalar_t>::type> == kScalarType<opmath_t>;
  if constexpr (kScalarType<scalar_t> == ScalarType::kCode8 && kOfFloats) {
    return moment == Moment::kFirst
               ? Codec<opmath_t>{load_codes<Moment::kFirst>, store_codes<Moment::kFirst>}
               : Codec<opmath_t>{load_codes<Moment::kSecond>, store_codes<Moment::kSecond>};
  } else if constexpr (kScalarType<scalar_t> != ScalarType::kCode8 && kCopies) {
    return {load<scalar_t, opmath_t>, store<scalar_t, opmath_t>};
  }
  return {nullptr, nullptr};
}

template <typename opmath_t>
Codec<opmath_t> codec(ScalarType type, Moment moment) {
  switch (type) {
#define PROXADAM_CASE(name, scalar_t) \
  case ScalarType::k##name:           \
    return codec_of<scalar_t, opmath_t>(moment);
    PROXADAM_SCALAR_TYPES(PROXADAM_CASE)
#undef PROXADAM_CASE
  }
  return {nullptr, nullptr};
}

// A buffer's tile in opmath_t: the buffer itself, or a copy on the stack.
template <typename opmath_t>
class Tile {
 public:
  Tile(void* buffer, ScalarType type, uint8_t* exponents = nullptr, Moment moment = Moment::kFirst)
      : stored_{buffer, exponents}, codec_(codec<opmath_t>(type, moment)), bytes_(bytes_of(type)) {}

  // Null where there is no buffer.
  opmath_t* load(int64_t begin, int64_t numel) {
    if (!stored_.elements) return nullptr;
    if (!codec_.load) return static_cast<opmath_t*>(stored_.elements) + begin;
    codec_.load(stored_, begin, numel, values_);
    return values_;
  }

  bool converts() const { return stored_.elements && codec_.load; }

  // Asks memory for what will be loaded, into the second-level cache. Inlined always: of a function
  // that only asks GCC says that it does nothing.
  __attribute__((always_inline)) void prefetch(int64_t begin, int64_t numel) const {
    constexpr int64_t kLine = 64;
    const char* from = static_cast<const char*>(stored_.elements) + begin * bytes_;
    for (int64_t i = 0; i < numel * bytes_; i += kLine) __builtin_prefetch(from + i, 0, 2);
  }

  void store(int64_t begin, int64_t numel, Rounding how = kNearest) {
    if (converts()) codec_.store(values_, begin, numel, stored_, how);
  }

  // What was computed elsewhere.
  void store_from(const opmath_t* values, int64_t begin, int64_t numel, Rounding how) {
    if (converts()) codec_.store(values, begin, numel, stored_, how);
  }

 private:
  Stored stored_;
  Codec<opmath_t> codec_;
  int64_t bytes_;  // of an element
  alignas(64) opmath_t values_[kTile];
};

}  // namespace
}  // namespace PROXADAM_CPU_CAPABILITY
}  // namespace proxadam
