// The CPU loop over the scores of one tensor; included as update_range.h is, and by the same rules.

#include "../prox_adam.h"
#include "../scalar_types.h"
#include "codec.h"
#include "scores.h"

namespace proxadam {
namespace PROXADAM_CPU_CAPABILITY {
namespace {

template <typename opmath_t>
PROXADAM_INLINE void score_tile(const ScoreRange& range, const opmath_t* weights,
                                const opmath_t* moments, int64_t numel, opmath_t* scores) {
  Exact math;
  const opmath_t factor = range.factor;
  const opmath_t offset = range.offset;
  if (!moments) {
    for (int64_t i = 0; i < numel; ++i) scores[i] = magnitude(weights[i]) * factor;
    return;
  }
  for (int64_t i = 0; i < numel; ++i) {
    const opmath_t denom = square_root(math, moments[i]) * factor + offset;
    scores[i] = square_root(math, denom) * magnitude(weights[i]);
  }
}

// Counted in 32 bits, of which a register holds more.
template <typename opmath_t>
PROXADAM_INLINE ScoreCounts count_tile(const ScoreRange& range, const opmath_t* weights,
                                       const opmath_t* scores, int64_t numel) {
  const opmath_t low = range.low;
  const opmath_t high = range.high;
  int32_t below = 0;
  int32_t until = 0;
  int32_t nonzeros = 0;
  for (int64_t i = 0; i < numel; ++i) {
    below += scores[i] < low;
    until += scores[i] <= high;
    nonzeros += weights[i] != 0;
  }
  return {below, until, nonzeros};
}

// Writes the positions and the scores of those between the bounds, and returns how many they are.
// Few are, so they are looked for eight flags at a time.
template <typename opmath_t>
PROXADAM_INLINE int64_t collect(const ScoreRange& range, int64_t begin, const opmath_t* scores,
                                int64_t numel, int64_t* positions, opmath_t* found) {
  const opmath_t low = range.low;
  const opmath_t high = range.high;
  alignas(64) uint8_t between[kTile] = {};
  for (int64_t i = 0; i < numel; ++i) between[i] = (scores[i] >= low) & (scores[i] <= high);
  int64_t count = 0;
  for (int64_t i = 0; i < numel; i += sizeof(uint64_t)) {
    uint64_t flags;
    memcpy(&flags, between + i, sizeof(flags));
    if (!flags) continue;
    for (int64_t j = i; j < i + int64_t(sizeof(flags)); ++j) {
      positions[count] = begin + j;
      found[count] = scores[j];
      count += between[j];
    }
  }
  return count;
}

template <typename scalar_t, typename opmath_t>
PROXADAM_INLINE void zero_below(opmath_t low, const opmath_t* scores, int64_t numel,
                                scalar_t* weights) {
  for (int64_t i = 0; i < numel; ++i) weights[i] = scores[i] < low ? scalar_t{} : weights[i];
}

template <typename opmath_t>
void zero_below(const ScoreRange& range, int64_t begin, const opmath_t* scores, int64_t numel) {
  const opmath_t low = range.low;
  switch (range.weight_type) {
#define PROXADAM_CASE(name, scalar_t) \
  case ScalarType::k##name:           \
    return zero_below(low, scores, numel, static_cast<scalar_t*>(range.weights) + begin);
    PROXADAM_SCALAR_TYPES(PROXADAM_CASE)
#undef PROXADAM_CASE
  }
}

// Calls visit(begin, weights, scores, numel) for a tile at a time.
template <typename opmath_t, typename Visit>
PROXADAM_INLINE void for_tiles(const ScoreRange& range, Visit visit) {
  Tile<opmath_t> weights(range.weights, range.weight_type);
  Tile<opmath_t> moments(const_cast<void*>(range.moments), range.moment_type);
  alignas(64) opmath_t scores[kTile];
  for (int64_t begin = range.begin; begin < range.end; begin += kTile) {
    const int64_t numel = range.end - begin < kTile ? range.end - begin : kTile;
    const opmath_t* const tile = weights.load(begin, numel);
    score_tile<opmath_t>(range, tile, moments.load(begin, numel), numel, scores);
    visit(begin, tile, scores, numel);
  }
}

template <typename opmath_t>
ScoreCounts count_in(const ScoreRange& range, Between& between) {
  ScoreCounts counts = {0, 0, 0};
  for_tiles<opmath_t>(
      range, [&](int64_t begin, const opmath_t* weights, const opmath_t* scores, int64_t numel) {
        const ScoreCounts own = count_tile(range, weights, scores, numel);
        counts.below += own.below;
        counts.until += own.until;
        counts.nonzeros += own.nonzeros;
        if (own.until > own.below) {
          between.count += collect(range, begin, scores, numel, between.positions + between.count,
                                   static_cast<opmath_t*>(between.scores) + between.count);
        }
      });
  return counts;
}

template <typename opmath_t>
void zero_in(const ScoreRange& range) {
  for_tiles<opmath_t>(
      range, [&](int64_t begin, const opmath_t* weights, const opmath_t* scores, int64_t numel) {
        const ScoreCounts own = count_tile(range, weights, scores, numel);
        if (own.below > numel - own.nonzeros) zero_below(range, begin, scores, numel);
      });
}

// In eight sums, that whole registers add.
template <typename opmath_t>
void row_squares_in(const ScoreRange& range, int64_t width, double* squares) {
  constexpr int64_t kSums = 8;
  ScoreRange row = range;
  for (row.begin = range.begin; row.begin < range.end; row.begin = row.end) {
    row.end = row.begin + width;
    double sums[kSums] = {};
    for_tiles<opmath_t>(row, [&](int64_t, const opmath_t*, const opmath_t* scores, int64_t numel) {
      int64_t i = 0;
      for (; i + kSums <= numel; i += kSums) {
        for (int64_t j = 0; j < kSums; ++j)
          sums[j] += double(scores[i + j]) * double(scores[i + j]);
      }
      for (; i < numel; ++i) sums[0] += double(scores[i]) * double(scores[i]);
    });
    for (int64_t j = 1; j < kSums; ++j) sums[0] += sums[j];
    *squares++ = sums[0];
  }
}

}  // namespace

extern const ScoreUnit score_unit = {
    [](const ScoreRange& range, Between& between) {
      const bool is_double = range.weight_type == ScalarType::kFloat64;
      return is_double ? count_in<double>(range, between) : count_in<float>(range, between);
    },
    [](const ScoreRange& range) {
      const bool is_double = range.weight_type == ScalarType::kFloat64;
      is_double ? zero_in<double>(range) : zero_in<float>(range);
    },
    [](const ScoreRange& range, int64_t width, double* squares) {
      const bool is_double = range.weight_type == ScalarType::kFloat64;
      is_double ? row_squares_in<double>(range, width, squares)
                : row_squares_in<float>(range, width, squares);
    }};

}  // namespace PROXADAM_CPU_CAPABILITY
}  // namespace proxadam
