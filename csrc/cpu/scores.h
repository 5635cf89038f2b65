// Scores of the weights of one tensor, counted against two bounds, and what comes of it: one
// function in each instruction set. proxadam/_sparsity/pruning/weights.py says what it is for.

#pragma once

#include <stdint.h>  // for int64_t

#include "../scalar_types.h"  // for ScalarType

namespace proxadam {

struct ScoreCounts {
  int64_t below;     // scores < low
  int64_t until;     // scores <= high
  int64_t nonzeros;  // weights that are not 0
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
};

// What lies between the bounds, in order. Room for all of the range is the caller's.
struct Between {
  int64_t* positions;
  void* scores;  // in opmath_t
  int64_t count;
};

struct ScoreUnit {
  ScoreCounts (*count)(const ScoreRange& range, Between& between);
  void (*zero_below)(const ScoreRange& range);  // the weights whose scores are below
  // The sum of the squares of each row's scores; a range is so many rows of `width` elements.
  void (*row_squares)(const ScoreRange& range, int64_t width, double* squares);
};

namespace baseline {
extern const ScoreUnit score_unit;
}
namespace avx2 {
extern const ScoreUnit score_unit;
}
namespace avx512 {
extern const ScoreUnit score_unit;
}
namespace avx512_bf16 {
extern const ScoreUnit score_unit;
}

}  // namespace proxadam
