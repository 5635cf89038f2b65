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
      if (!between[j]) continue;
      positions[count] = begin + j;
      found[count++] = scores[j];
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

template <typename opmath_t>
ScoreCounts count_in(const ScoreRange& range) {
  Tile<opmath_t> weights(range.weights, range.weight_type);
  Tile<opmath_t> moments(const_cast<void*>(range.moments), range.moment_type);
  const opmath_t low = range.low;
  const opmath_t high = range.high;
  int64_t* positions = range.positions;
  opmath_t* found = static_cast<opmath_t*>(range.scores);
  int64_t room = range.room;
  ScoreCounts counts = {0, 0, 0};
  alignas(64) opmath_t scores[kTile];
  for (int64_t begin = range.begin; begin < range.end; begin += kTile) {
    const int64_t numel = range.end - begin < kTile ? range.end - begin : kTile;
    const opmath_t* const tile = weights.load(begin, numel);
    score_tile(range, tile, static_cast<const opmath_t*>(moments.load(begin, numel)), numel,
               scores);
    const ScoreCounts own = count_tile(range, tile, scores, numel);
    counts.below += own.below;
    counts.until += own.until;
    counts.nonzeros += own.nonzeros;
    if (!positions) continue;
    if (own.below > numel - own.nonzeros) zero_below(range, begin, scores, numel);
    if (own.until == own.below) continue;
    int64_t where[kTile];
    opmath_t what[kTile];
    const int64_t between = collect(range, begin, scores, numel, where, what);
    const int64_t kept = between < room ? between : room;
    memcpy(positions, where, kept * sizeof(int64_t));
    memcpy(found, what, kept * sizeof(opmath_t));
    positions += kept;
    found += kept;
    room -= kept;
  }
  return counts;
}

}  // namespace

ScoreCounts count_scores(const ScoreRange& range) {
  return range.weight_type == ScalarType::kFloat64 ? count_in<double>(range)
                                                   : count_in<float>(range);
}

}  // namespace PROXADAM_CPU_CAPABILITY
}  // namespace proxadam
