// Shares the chunks of one tensor out among threads.

#include "score_pass.h"

#include <algorithm>  // for min
#include <vector>     // for vector

namespace proxadam {
namespace {

template <typename Visit>
void for_chunks(std::int64_t numel, ParallelFor parallel_for, Visit visit) {
  const auto run = [](std::int64_t from, std::int64_t to, void* context) {
    const Visit& visit = *static_cast<const Visit*>(context);
    for (std::int64_t chunk = from; chunk < to; ++chunk) visit(chunk);
  };
  const std::int64_t chunks = score_chunks(numel);
  if (parallel_for && chunks > 1) {
    parallel_for(0, chunks, 1, run, &visit);
  } else {
    run(0, chunks, &visit);
  }
}

ScoreRange chunk_of(const ScoreRange& all, std::int64_t chunk) {
  ScoreRange range = all;
  range.begin = chunk * kScoreChunk;
  range.end = std::min(range.begin + kScoreChunk, all.end);
  return range;
}

}  // namespace

void count_chunks(const ScoreRange& all, CountScores count, ParallelFor parallel_for,
                  ScoreCounts* counts) {
  for_chunks(all.end, parallel_for,
             [&](std::int64_t chunk) { counts[chunk] = count(chunk_of(all, chunk)); });
}

void zero_chunks(const ScoreRange& all, CountScores count, ParallelFor parallel_for,
                 const ScoreCounts* counts) {
  std::vector<std::int64_t> firsts{0};  // of each chunk, in what is collected
  for (std::int64_t chunk = 0; chunk < score_chunks(all.end); ++chunk) {
    firsts.push_back(firsts.back() + counts[chunk].until - counts[chunk].below);
  }
  const int bytes = all.weight_type == ScalarType::kFloat64 ? sizeof(double) : sizeof(float);
  for_chunks(all.end, parallel_for, [&](std::int64_t chunk) {
    ScoreRange range = chunk_of(all, chunk);
    range.room = firsts[chunk + 1] - firsts[chunk];
    range.positions = all.positions + firsts[chunk];
    range.scores = static_cast<char*>(all.scores) + firsts[chunk] * bytes;
    count(range);
  });
}

}  // namespace proxadam
