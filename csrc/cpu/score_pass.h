// A pass over the weights of one tensor and their scores: counting, or zeroing and collecting.

#pragma once

#include <cstdint>  // for int64_t

#include "scores.h"  // for CountScores, ScoreCounts, ScoreRange
#include "step.h"    // for ParallelFor

namespace proxadam {

// Elements of a chunk: what is counted together.
constexpr std::int64_t kScoreChunk = 1 << 16;

constexpr std::int64_t score_chunks(std::int64_t numel) {
  return (numel + kScoreChunk - 1) / kScoreChunk;
}

// Counts each chunk of `all` into `counts`, on torch's threads; serially where `parallel_for` is
// null.
void count_chunks(const ScoreRange& all, CountScores count, ParallelFor parallel_for,
                  ScoreCounts* counts);

// Zeroes the weights below, and writes what lies between the bounds to `all.positions` and
// `all.scores`, in order. `counts` are those of the same bounds, weights and moments.
void zero_chunks(const ScoreRange& all, CountScores count, ParallelFor parallel_for,
                 const ScoreCounts* counts);

}  // namespace proxadam
