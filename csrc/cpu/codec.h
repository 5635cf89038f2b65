// From a storage format to the type of computation and back, a tile at a time. Codecs are picked at
// run time, for each buffer its own, so that a storage format costs two conversion loops and no
// update loop; what update_halves.h has is faster without.

#pragma once

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

// How a tile is rounded. The key of stochastic rounding belongs here; its other half, the index of
// an element in the tensor, is `begin` and on.
struct Rounding {
  bool drops_zero_signs;  // under the prox no zero has a sign, and float16 makes some −0.0
};

// Elements [begin, begin + numel) of a buffer, to and from a tile. Null: the buffer holds opmath_t,
// and is worked on in place.
template <typename opmath_t>
struct Codec {
  void (*load)(const void* buffer, int64_t begin, int64_t numel, opmath_t* tile);
  void (*store)(const opmath_t* tile, int64_t begin, int64_t numel, void* buffer, Rounding how);
};

#if defined(PROXADAM_VECTORS)
// kFloats elements of a 16-bit format.
template <typename scalar_t>
PROXADAM_INLINE void widen_vector(const scalar_t* from, float* to) {
  store_floats(widen_floats(from), to);
}
// kHalves elements.
template <typename scalar_t>
PROXADAM_INLINE void narrow_vectors(const float* from, scalar_t* to, Rounding how) {
  const Halves halves = narrow_floats(load_floats(from), load_floats(from + kFloats), to);
  store_halves(how.drops_zero_signs ? drop_zero_signs(halves) : halves, to);
}
#endif

template <typename scalar_t, typename opmath_t>
void load(const void* buffer, int64_t begin, int64_t numel, opmath_t* tile) {
  const scalar_t* from = static_cast<const scalar_t*>(buffer) + begin;
  int64_t i = 0;
#if defined(PROXADAM_VECTORS)
  if constexpr (is_16_bit(kScalarType<scalar_t>)) {
    for (; i + kFloats <= numel; i += kFloats) widen_vector(from + i, tile + i);
  }
#endif
  for (; i < numel; ++i) tile[i] = widen(from[i]);
}

template <typename scalar_t, typename opmath_t>
void store(const opmath_t* tile, int64_t begin, int64_t numel, void* buffer, Rounding how) {
  scalar_t* to = static_cast<scalar_t*>(buffer) + begin;
  int64_t rest = 0;
#if defined(PROXADAM_VECTORS)
  if constexpr (is_16_bit(kScalarType<scalar_t>)) {
    for (; rest + kHalves <= numel; rest += kHalves) narrow_vectors(tile + rest, to + rest, how);
  }
#endif
  for (int64_t i = rest; i < numel; ++i) narrow(tile[i], to[i]);
  if (!how.drops_zero_signs) return;
  for (int64_t i = rest; i < numel; ++i) drop_zero_sign(to[i]);
}

template <typename scalar_t, typename opmath_t>
Codec<opmath_t> codec_of() {
  constexpr bool kCopies = kScalarType<scalar_t> != kScalarType<opmath_t> &&
                           kScalarType<typename OpMath<scalar_t>::type> == kScalarType<opmath_t>;
  if constexpr (kCopies) return {load<scalar_t, opmath_t>, store<scalar_t, opmath_t>};
  return {nullptr, nullptr};
}

template <typename opmath_t>
Codec<opmath_t> codec(ScalarType type) {
  switch (type) {
#define PROXADAM_CASE(name, scalar_t) \
  case ScalarType::k##name:           \
    return codec_of<scalar_t, opmath_t>();
    PROXADAM_SCALAR_TYPES(PROXADAM_CASE)
#undef PROXADAM_CASE
  }
  return {nullptr, nullptr};
}

// A buffer's tile in opmath_t: the buffer itself, or a copy on the stack.
template <typename opmath_t>
class Tile {
 public:
  Tile(void* buffer, ScalarType type) : buffer_(buffer), codec_(codec<opmath_t>(type)) {}

  // Null where there is no buffer.
  opmath_t* load(int64_t begin, int64_t numel) {
    if (!buffer_) return nullptr;
    if (!codec_.load) return static_cast<opmath_t*>(buffer_) + begin;
    codec_.load(buffer_, begin, numel, values_);
    return values_;
  }

  bool converts() const { return buffer_ && codec_.load; }

  void store(int64_t begin, int64_t numel, Rounding how = {false}) {
    if (buffer_ && codec_.store) codec_.store(values_, begin, numel, buffer_, how);
  }

 private:
  void* buffer_;
  Codec<opmath_t> codec_;
  alignas(64) opmath_t values_[kTile];
};

}  // namespace
}  // namespace PROXADAM_CPU_CAPABILITY
}  // namespace proxadam
