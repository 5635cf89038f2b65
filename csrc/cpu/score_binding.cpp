// Takes buffers, as NumPy's arrays over the memory of tensors are, and nothing that is kept.

#include "score_binding.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstring>    // for memcpy
#include <optional>   // for optional
#include <stdexcept>  // for invalid_argument
#include <string>     // for string

#include "score_pass.h"  // for Chunk, look, Looked, row_squares, zero_below

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

// The positions, or the scores, of all chunks in one array.
template <typename T, typename Member>
py::array joined(const std::vector<Chunk>& chunks, const py::dtype& type, Member member) {
  py::ssize_t bytes = 0;
  for (const Chunk& chunk : chunks) bytes += (chunk.*member).size() * sizeof(T);
  py::array array(type, bytes / type.itemsize());
  char* to = static_cast<char*>(array.mutable_data());
  for (const Chunk& chunk : chunks) {
    const auto& own = chunk.*member;
    if (!own.empty()) std::memcpy(to, own.data(), own.size() * sizeof(T));
    to += own.size() * sizeof(T);
  }
  return array;
}

}  // namespace

void define_scores(py::module_& module, const Capability& capability,
                   ParallelFor (*parallel_for)()) {
  using Optional = std::optional<py::buffer>;
  module.def(
      "look_at_scores",
      [&capability, parallel_for](const py::buffer& weights, const std::string& weight_type,
                                  const Optional& moments, const std::string& moment_type,
                                  double factor, double offset, double low, double high) {
        const Pass pass =
            pass_over(weights, weight_type, moments, moment_type, factor, offset, low, high, false);
        Looked looked;
        {
          const py::gil_scoped_release released;
          looked = look(pass.range, *capability.scores, parallel_for());
        }
        const bool is_double = pass.range.weight_type == ScalarType::kFloat64;
        const py::dtype score = is_double ? py::dtype::of<double>() : py::dtype::of<float>();
        return py::make_tuple(
            looked.counts.below, looked.counts.until, looked.counts.nonzeros,
            joined<std::int64_t>(looked.between, py::dtype::of<std::int64_t>(), &Chunk::positions),
            joined<char>(looked.between, score, &Chunk::scores));
      },
      "How many scores are < low, how many <= high, how many weights are not 0; and the positions\n"
      "and the scores of those from low to high. A score is |w| sqrt(factor sqrt(v) + offset), or\n"
      "without moments |w| factor.");
  module.def(
      "zero_below",
      [&capability, parallel_for](const py::buffer& weights, const std::string& weight_type,
                                  const Optional& moments, const std::string& moment_type,
                                  double factor, double offset, double low) {
        const Pass pass =
            pass_over(weights, weight_type, moments, moment_type, factor, offset, low, low, true);
        const py::gil_scoped_release released;
        zero_below(pass.range, *capability.scores, parallel_for());
      },
      "Zero the weights whose scores are < low.");
  module.def(
      "row_squares",
      [&capability, parallel_for](const py::buffer& weights, const std::string& weight_type,
                                  const Optional& moments, const std::string& moment_type,
                                  double factor, double offset, std::int64_t width) {
        const Pass pass =
            pass_over(weights, weight_type, moments, moment_type, factor, offset, 0, 0, false);
        if (width < 1 || pass.range.end % width != 0) {
          throw std::invalid_argument("expected whole rows");
        }
        py::array_t<double> squares(pass.range.end / width);
        double* const to = squares.mutable_data();
        {
          const py::gil_scoped_release released;
          row_squares(pass.range, width, *capability.scores, parallel_for(), to);
        }
        return squares;
      },
      "The sum of the squares of the scores of each row of `width` weights.");
}

}  // namespace proxadam
