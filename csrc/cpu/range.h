// The CPU loop as its callers see it: one function in each instruction set that was compiled in.

#pragma once

#include <stdint.h>  // for int64_t, uint32_t

#include "../prox_adam.h"     // for StepConstants, Update
#include "../scalar_types.h"  // for Buffers, Exponents, TensorTypes

namespace proxadam {

// A step's constants, as StepConstants<float> and as StepConstants<double>.
struct AllConstants : StepConstants<float>, StepConstants<double> {};

// What is rounded by chance, and with which chance: csrc/rounding.h.
struct Stochastic {
  bool state;
  bool param;
  uint32_t step_key;
  int64_t offset;
};

// The rows that l21 takes as one: csrc/group_prox.h.
struct Rows {
  int64_t numel;     // of a row; 0: each element goes by itself
  int64_t together;  // elements of as many rows as are taken at a time, and a multiple of kBlock
                     // where moments are codes
  double pull;       // lr · l21 · √n
  void* scratch;     // kScratch numbers of the type of computation
};

// Elements of the longest stretch of rows that are taken together, and room for what is kept of it:
// five numbers each. What belongs to one element must not lie at one place of five pages, where
// the tensors lie too: a first-level cache has room for eight lines of one place.
constexpr int64_t kLongestRows = 1 << 16;
constexpr int64_t kApart = 17 * 16;
constexpr int64_t kScratch = 5 * (kLongestRows + kApart);

// Elements [begin, end) of a dense tensor and of its gradient and state, and what to do with them.
// A range begins with a block of csrc/codes.h, and with a row.
struct Range {
  Buffers buffers;
  Exponents exponents;
  TensorTypes types;
  Stochastic stochastic;
  Rows rows;
  Update update;
  bool unscale;  // divide the gradients by grad_scale, and write them back
  const AllConstants* constants;
  int64_t begin;
  int64_t end;
};
using UpdateRange = void (*)(const Range&);

namespace baseline {
void update_range(const Range& range);
}
namespace avx2 {
void update_range(const Range& range);
}
namespace avx512 {
void update_range(const Range& range);
}
namespace avx512_bf16 {
void update_range(const Range& range);
}

}  // namespace proxadam
