// A pass over the weights of one tensor and their scores, on torch's threads.

#pragma once

#include <cstdint>  // for int64_t
#include <vector>   // for vector

#include "scores.h"  // for ScoreCounts, ScoreRange, ScoreUnit
#include "step.h"    // for ParallelFor

namespace proxadam {

// What lies between the bounds in one chunk; scores are in opmath_t.
struct Chunk {
  std::vector<std::int64_t> positions;
  std::vector<char> scores;
};

struct Looked {
  ScoreCounts counts;
  std::vector<Chunk> between;  // in order
};

// Counts the scores of a range, and collects those between the bounds. Serial where `parallel_for`
// is null.
Looked look(const ScoreRange& all, const ScoreUnit& unit, ParallelFor parallel_for);

// Zeroes the weights whose scores are below.
void zero_below(const ScoreRange& all, const ScoreUnit& unit, ParallelFor parallel_for);

// The sum of the squares of the scores of each row of `width` elements.
void row_squares(const ScoreRange& all, std::int64_t width, const ScoreUnit& unit,
                 ParallelFor parallel_for, double* squares);

}  // namespace proxadam
