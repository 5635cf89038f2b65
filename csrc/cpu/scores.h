// Scores of the weights of one tensor, counted against two bounds, and what comes of it: one
// function in each instruction set. proxadam/_sparsity/prune_weights.py says what it is for.

#pragma once

#include <stdint.h>  // for int64_t

#include "../scalar_types.h"  // for ScalarType

namespace proxadam {

struct ScoreCounts {
  int64_t below;     // scores < low
  int64_t until;     // scores <= high
  int64_t nonzeros;  // weights
};

// Elements [begin, end) of a dense tensor and of its second moments. A score is
// |weight| · √(factor · √moment + offset), in opmath_t; or |weight| · factor without moments.
struct ScoreRange {
  void* weights;
  ScalarType weight_type;
  const void* moments;  // null: none
  ScalarType moment_type;
  double factor;
  double offset;
  double low;
  double high;
  int64_t begin;
  int64_t end;
  // Null: nothing is written. Otherwise weights below become 0, and of those from low to high, in
  // order, the positions and the scores (opmath_t) are written here.
  int64_t* positions;
  void* scores;
  int64_t room;  // for so many: weights may have changed since they were counted
};
using CountScores = ScoreCounts (*)(const ScoreRange&);

namespace baseline {
ScoreCounts count_scores(const ScoreRange& range);
}
namespace avx2 {
ScoreCounts count_scores(const ScoreRange& range);
}
namespace avx512 {
ScoreCounts count_scores(const ScoreRange& range);
}
namespace avx512_bf16 {
ScoreCounts count_scores(const ScoreRange& range);
}

}  // namespace proxadam
