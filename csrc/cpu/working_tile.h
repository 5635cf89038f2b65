// A tile of a tensor in the type it is computed in: the tensor itself where it is stored in that
// type, else widened copies on the stack, narrowed when the tile is done. The update loop then
// knows opmath_t alone, and a storage type costs two conversion loops, not an update loop each.

#if defined(__F16C__)
#include <immintrin.h>  // for _mm256_cvtph_ps, _mm256_cvtps_ph
#endif

#include "../scalar_types.h"

#ifndef PROXADAM_CPU_CAPABILITY
#error "name the instruction set's namespace in PROXADAM_CPU_CAPABILITY"
#endif

namespace proxadam {
namespace PROXADAM_CPU_CAPABILITY {
namespace {

// Five tiles of floats stay in any first-level cache.
constexpr int64_t kTile = 512;

template <typename scalar_t>
PROXADAM_INLINE void widen_all(const scalar_t* in, float* out, int64_t numel) {
  for (int64_t i = 0; i < numel; ++i) out[i] = widen(in[i]);
}

template <typename scalar_t>
PROXADAM_INLINE void narrow_all(const float* in, scalar_t* out, int64_t numel) {
  for (int64_t i = 0; i < numel; ++i) narrow(in[i], out[i]);
}

#if defined(__F16C__)
// Measured: the portable float16 conversions alone took longer than the update.
PROXADAM_INLINE void widen_all(const float16* in, float* out, int64_t numel) {
  int64_t i = 0;
  for (; i + 8 <= numel; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(halves));
  }
  for (; i < numel; ++i) out[i] = widen(in[i]);
}

PROXADAM_INLINE void narrow_all(const float* in, float16* out, int64_t numel) {
  int64_t i = 0;
  for (; i + 8 <= numel; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), halves);
  }
  for (; i < numel; ++i) narrow(in[i], out[i]);
}
#endif

template <typename scalar_t, typename opmath_t>
class WorkingTile {
 public:
  explicit WorkingTile(void* data) : data_(static_cast<scalar_t*>(data)) {}

  opmath_t* load(int64_t begin, int64_t numel) {
    widen_all(data_ + begin, values_, numel);
    return values_;
  }

  void store(int64_t begin, int64_t numel, bool drop_zero_signs = false) {
    scalar_t* out = data_ + begin;
    narrow_all(values_, out, numel);
    if (drop_zero_signs) {  // float16 rounds tiny negative values to −0.0
      for (int64_t i = 0; i < numel; ++i) drop_zero_sign(out[i]);
    }
  }

 private:
  scalar_t* data_;
  alignas(64) opmath_t values_[kTile];
};

template <typename opmath_t>
class WorkingTile<opmath_t, opmath_t> {
 public:
  explicit WorkingTile(void* data) : data_(static_cast<opmath_t*>(data)) {}
  opmath_t* load(int64_t begin, int64_t) { return data_ + begin; }
  void store(int64_t, int64_t, bool = false) {}

 private:
  opmath_t* data_;
};

}  // namespace
}  // namespace PROXADAM_CPU_CAPABILITY
}  // namespace proxadam
