// Takes buffers, as NumPy's arrays over the memory of tensors are, and nothing that is kept.

#include "score_binding.h"

#include <pybind11/stl.h>

#include <optional>   // for optional
#include <stdexcept>  // for invalid_argument
#include <string>     // for string

#include "score_pass.h"  // for count_chunks, score_chunks, zero_chunks

namespace py = pybind11;

namespace proxadam {
namespace {

ScalarType scalar_type(const std::string& name) {
  if (name == "float32") return ScalarType::kFloat32;
  if (name == "float64") return ScalarType::kFloat64;
  if (name == "bfloat16") return ScalarType::kBFloat16;
  if (name == "float16") return ScalarType::kFloat16;
  throw std::invalid_argument("no weights are stored in " + name);
}

// One stretch of memory of `numel` elements; of any number where it is negative.
py::buffer_info stretch(const py::buffer& buffer, std::int64_t bytes, std::int64_t numel,
                        bool writable) {
  py::buffer_info info = buffer.request(writable);
  if (info.ndim != 1 || info.itemsize != bytes || (info.size > 1 && info.strides[0] != bytes) ||
      (numel >= 0 && info.size != numel)) {
    throw std::invalid_argument("expected flat buffers in one stretch of memory, of one size");
  }
  return info;
}

struct Pass {
  py::buffer_info weights;
  std::optional<py::buffer_info> moments;
  ScoreRange range;
};

Pass pass_over(const py::buffer& weights, const std::string& weight_type,
               const std::optional<py::buffer>& moments, const std::string& moment_type,
               double factor, double offset, double low, double high, bool writes) {
  Pass pass{};
  ScoreRange& range = pass.range;
  range.weight_type = scalar_type(weight_type);
  range.moment_type = scalar_type(moment_type);
  const bool is_double = range.weight_type == ScalarType::kFloat64;
  if (is_double != (range.moment_type == ScalarType::kFloat64)) {
    throw std::invalid_argument("expected weights and moments of one precision");
  }
  pass.weights = stretch(weights, bytes_of(range.weight_type), -1, writes);
  range.weights = pass.weights.ptr;
  range.end = pass.weights.size;
  if (moments) {
    pass.moments = stretch(*moments, bytes_of(range.moment_type), range.end, false);
    range.moments = pass.moments->ptr;
  }
  range.factor = factor;
  range.offset = offset;
  range.low = low;
  range.high = high;
  return pass;
}

}  // namespace

void define_scores(py::module_& module, const Capability& capability,
                   ParallelFor (*parallel_for)()) {
  using Optional = std::optional<py::buffer>;
  module.def(
      "count_scores",
      [&capability, parallel_for](const py::buffer& weights, const std::string& weight_type,
                                  const Optional& moments, const std::string& moment_type,
                                  double factor, double offset, double low, double high,
                                  const py::buffer& counts) {
        const Pass pass =
            pass_over(weights, weight_type, moments, moment_type, factor, offset, low, high, false);
        const std::int64_t chunks = score_chunks(pass.range.end);
        const py::buffer_info out = stretch(counts, sizeof(std::int64_t), 3 * chunks, true);
        const py::gil_scoped_release released;
        count_chunks(pass.range, capability.count_scores, parallel_for(),
                     static_cast<ScoreCounts*>(out.ptr));
      },
      "For each chunk of SCORE_CHUNK weights, write to counts (int64) how many scores are < low,\n"
      "how many <= high, and how many weights are not 0. A score is |w| sqrt(factor sqrt(v) +\n"
      "offset), or without moments |w| factor.");
  module.def(
      "zero_below",
      [&capability, parallel_for](
          const py::buffer& weights, const std::string& weight_type, const Optional& moments,
          const std::string& moment_type, double factor, double offset, double low, double high,
          const py::buffer& counts, const py::buffer& positions, const py::buffer& scores) {
        Pass pass =
            pass_over(weights, weight_type, moments, moment_type, factor, offset, low, high, true);
        ScoreRange& range = pass.range;
        const std::int64_t chunks = score_chunks(range.end);
        const py::buffer_info in = stretch(counts, sizeof(std::int64_t), 3 * chunks, false);
        const ScoreCounts* const counted = static_cast<const ScoreCounts*>(in.ptr);
        const bool is_double = range.weight_type == ScalarType::kFloat64;
        std::int64_t between = 0;
        for (std::int64_t i = 0; i < chunks; ++i) {
          const std::int64_t own = counted[i].until - counted[i].below;
          if (own < 0 || own > kScoreChunk) throw std::invalid_argument("these are no counts");
          between += own;
        }
        const py::buffer_info where = stretch(positions, sizeof(std::int64_t), between, true);
        const py::buffer_info what =
            stretch(scores, is_double ? sizeof(double) : sizeof(float), between, true);
        range.positions = static_cast<std::int64_t*>(where.ptr);
        range.scores = what.ptr;
        const py::gil_scoped_release released;
        zero_chunks(range, capability.count_scores, parallel_for(), counted);
      },
      "Zero the weights whose scores are < low, and write the positions (int64) and scores of "
      "those\n"
      "from low to high, of which there are as many as count_scores said.");
  module.attr("SCORE_CHUNK") = kScoreChunk;
}

}  // namespace proxadam
