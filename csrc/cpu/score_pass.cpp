// Shares the chunks of one tensor out among threads.

#include "score_pass.h"

#include <algorithm>  // for max, min
#include <cstring>    // for memcpy
#include <exception>  // for exception_ptr
#include <mutex>      // for lock_guard, mutex

namespace proxadam {
namespace {

// Elements of a chunk: what one thread looks at before it asks for more.
constexpr std::int64_t kChunk = 1 << 16;

// Calls visit(chunk, range) for each chunk of `size` elements. What a visit throws is thrown when
// all are over: nothing may leave torch's threads.
template <typename Visit>
void for_chunks(const ScoreRange& all, std::int64_t size, ParallelFor parallel_for, Visit visit) {
  struct Context {
    const ScoreRange& all;
    std::int64_t size;
    const Visit& visit;
    std::mutex mutex;
    std::exception_ptr thrown;
  } context{all, size, visit, {}, nullptr};
  const auto run = [](std::int64_t from, std::int64_t to, void* at) {
    Context& context = *static_cast<Context*>(at);
    try {
      for (std::int64_t chunk = from; chunk < to; ++chunk) {
        ScoreRange range = context.all;
        range.begin = chunk * context.size;
        range.end = std::min(range.begin + context.size, context.all.end);
        context.visit(chunk, range);
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(context.mutex);
      context.thrown = std::current_exception();
    }
  };
  const std::int64_t chunks = (all.end + size - 1) / size;
  if (parallel_for && chunks > 1) {
    parallel_for(0, chunks, 1, run, &context);
  } else {
    run(0, chunks, &context);
  }
  if (context.thrown) std::rethrow_exception(context.thrown);
}

}  // namespace

Looked look(const ScoreRange& all, const ScoreUnit& unit, ParallelFor parallel_for) {
  const std::int64_t chunks = (all.end + kChunk - 1) / kChunk;
  const int bytes = all.weight_type == ScalarType::kFloat64 ? sizeof(double) : sizeof(float);
  Looked looked{{0, 0, 0}, std::vector<Chunk>(chunks)};
  std::vector<ScoreCounts> counts(chunks);
  for_chunks(all, kChunk, parallel_for, [&](std::int64_t chunk, const ScoreRange& range) {
    thread_local std::vector<std::int64_t> positions(kChunk + 1);
    thread_local std::vector<double> scores(kChunk + 1);
    Between between{positions.data(), scores.data(), 0};
    counts[chunk] = unit.count(range, between);
    Chunk& found = looked.between[chunk];
    found.positions.assign(positions.data(), positions.data() + between.count);
    const char* const first = reinterpret_cast<const char*>(scores.data());
    found.scores.assign(first, first + between.count * bytes);
  });
  for (const ScoreCounts& own : counts) {
    looked.counts.below += own.below;
    looked.counts.until += own.until;
    looked.counts.nonzeros += own.nonzeros;
  }
  return looked;
}

void zero_below(const ScoreRange& all, const ScoreUnit& unit, ParallelFor parallel_for) {
  for_chunks(all, kChunk, parallel_for,
             [&](std::int64_t, const ScoreRange& range) { unit.zero_below(range); });
}

void row_squares(const ScoreRange& all, std::int64_t width, const ScoreUnit& unit,
                 ParallelFor parallel_for, double* squares) {
  const std::int64_t rows = std::max<std::int64_t>(kChunk / width, 1);
  for_chunks(all, rows * width, parallel_for, [&](std::int64_t chunk, const ScoreRange& range) {
    unit.row_squares(range, width, squares + chunk * rows);
  });
}

}  // namespace proxadam
