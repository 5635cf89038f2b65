// The CPU loop over a range of one tensor.
//
// Included once by each instruction set's unit, which names its namespace first. No standard C++
// header is included here or below: an inline function compiled for AVX-512 must not reach the
// linker.

#include "../prox_adam.h"
#include "../scalar_types.h"
#include "codec.h"
#include "range.h"
#include "tiles.h"
#include "update_by_chance.h"
#include "update_elements.h"
#include "update_halves.h"
#include "update_rows.h"

namespace proxadam {
namespace PROXADAM_CPU_CAPABILITY {
namespace {

template <typename opmath_t>
void update_in(const Range& range) {
  const StepConstants<opmath_t>& c = *range.constants;
  const auto loop = loop_for<opmath_t>(range.update, range.buffers.max_exp_avg_sq, range.unscale);
  Tiles<opmath_t> tiles(range);
  Draws draws(range);
  int64_t numel;
  for (int64_t begin = range.begin; begin < range.end; begin += numel) {
    numel = draws.numel(begin, tiles.numel(begin, range.end));
    draws.fill_state(begin, numel);
    draws.fill_param(begin, numel);
    loop(c, {}, tiles.params.load(begin, numel), tiles.grads.load(begin, numel),
         tiles.exp_avgs.load(begin, numel), tiles.exp_avg_sqs.load(begin, numel),
         tiles.max_exp_avg_sqs.load(begin, numel), numel);
    if (range.update != Update::kFrozen) tiles.params.store(begin, numel, draws.param);
    tiles.store_rest(begin, numel, draws.state);
  }
}

}  // namespace

void update_range(const Range& range) {
  if (range.rows.numel) return update_rows(range);
  if (range.types.param == ScalarType::kFloat64) return update_in<double>(range);
  Range rest = range;
  rest.begin = update_halves(rest);
  if (rest.begin == rest.end) return;
  rest.begin = update_by_chance(rest, loop_for<float>(range.update, false, false));
  if (rest.begin < rest.end) update_in<float>(rest);
}

}  // namespace PROXADAM_CPU_CAPABILITY
}  // namespace proxadam
