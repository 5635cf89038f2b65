// The CPU loop over rows that l21 takes as one: Adam and the elementwise prox into memory that stays
// in cache, then the prox of each row, then what is stored.

#pragma once

#include "../group_prox.h"
#include "../prox_adam.h"
#include "codec.h"
#include "range.h"
#include "tiles.h"
#include "update_elements.h"

namespace proxadam {
namespace PROXADAM_CPU_CAPABILITY {
namespace {

// RowTerms of as many rows as are taken together.
template <typename opmath_t>
struct Terms {
  opmath_t* z;
  opmath_t* shrunk;
  opmath_t* pulls;

  explicit Terms(const Range& range)
      : z(static_cast<opmath_t*>(range.rows.scratch)),
        shrunk(z + kLongestRows),
        pulls(shrunk + kLongestRows) {}

  Terms(const Terms& all, int64_t begin)
      : z(all.z + begin), shrunk(all.shrunk + begin), pulls(all.pulls + begin) {}
};

// Adam over at most kTile elements, and what they bring to their rows; the parameters stay.
template <typename opmath_t, Update update, bool amsgrad, bool unscale>
void update_terms(const StepConstants<opmath_t>& c, Bounded<opmath_t> math, opmath_t row_pull,
                  const opmath_t* __restrict params, opmath_t* __restrict grads,
                  opmath_t* __restrict exp_avgs, opmath_t* __restrict exp_avg_sqs,
                  opmath_t* __restrict max_exp_avg_sqs, const Terms<opmath_t>& terms,
                  int64_t numel) {
  alignas(64) opmath_t denoms[kTile];
  update_denoms<opmath_t, amsgrad, unscale>(c, math, params, grads, exp_avgs, exp_avg_sqs,
                                            max_exp_avg_sqs, denoms, numel);
  opmath_t* __restrict z = terms.z;
  opmath_t* __restrict shrunk = terms.shrunk;
  opmath_t* __restrict pulls = terms.pulls;
  for (int64_t i = 0; i < numel; ++i) {
    const RowTerms<opmath_t> found =
        row_terms<update>(math, c, row_pull, exp_avgs[i], denoms[i], params[i]);
    z[i] = found.z;
    shrunk[i] = found.shrunk;
    pulls[i] = found.pull;
  }
}

template <typename opmath_t, Update update>
auto terms_with_flags(bool amsgrad, bool unscale) {
  if (amsgrad) {
    return unscale ? update_terms<opmath_t, update, true, true>
                   : update_terms<opmath_t, update, true, false>;
  }
  return unscale ? update_terms<opmath_t, update, false, true>
                 : update_terms<opmath_t, update, false, false>;
}

template <typename opmath_t>
auto terms_for(Update update, bool amsgrad, bool unscale) {
  switch (update) {
#define PROXADAM_CASE(name, prox) \
  case Update::k##name:           \
    return terms_with_flags<opmath_t, Update::k##name>(amsgrad, unscale);
    PROXADAM_UPDATES(PROXADAM_CASE)
#undef PROXADAM_CASE
  }
  return decltype(terms_with_flags<opmath_t, Update::kAdam>(false, false)){};
}

// A row for row_norm().
template <typename opmath_t>
struct Row {
  const opmath_t* shrunk;
  const opmath_t* pulls;
  int64_t numel;

  template <Term term>
  Sums sum(opmath_t norm) const {
    Sums total{0, 0};
    for (int64_t begin = 0; begin < numel; begin += kSegment) {
      const int64_t left = numel - begin;
      const Sums of = segment<term>(norm, begin, left < kSegment ? left : kSegment);
      total.squares += of.squares;
      total.weighted += of.weighted;
    }
    return total;
  }

 private:
  template <Term term>
  Sums segment(opmath_t norm, int64_t begin, int64_t numel) const {
    Bounded<opmath_t> math;
    const opmath_t* __restrict c = shrunk + begin;
    const opmath_t* __restrict b = pulls + begin;
    alignas(64) double squares[kLanes] = {}, weighted[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= numel; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const Sums of = sums_of<term>(math, norm, c[i + lane], b[i + lane]);
        squares[lane] += of.squares;
        weighted[lane] += of.weighted;
      }
    }
    for (int lane = 0; lane < numel - i; ++lane) {
      const Sums of = sums_of<term>(math, norm, c[i + lane], b[i + lane]);
      squares[lane] += of.squares;
      weighted[lane] += of.weighted;
    }
    for (int half = kLanes / 2; half; half /= 2) {
      for (int lane = 0; lane < half; ++lane) {
        squares[lane] += squares[lane + half];
        weighted[lane] += weighted[lane + half];
      }
    }
    return {squares[0], weighted[0]};
  }
};

// The row's new values in the place of the elementwise prox.
template <typename opmath_t>
void prox_of_row(const StepConstants<opmath_t>& c, const Terms<opmath_t>& terms, int64_t numel) {
  Bounded<opmath_t> math;
  const opmath_t norm = row_norm<opmath_t>(Row<opmath_t>{terms.shrunk, terms.pulls, numel});
  const opmath_t* __restrict z = terms.z;
  opmath_t* __restrict shrunk = terms.shrunk;
  const opmath_t* __restrict pulls = terms.pulls;
  for (int64_t i = 0; i < numel; ++i) {
    shrunk[i] = element_of_row(math, c, RowTerms<opmath_t>{z[i], shrunk[i], pulls[i]}, norm);
  }
}

template <typename opmath_t>
void update_rows_in(const Range& range) {
  const StepConstants<opmath_t>& c = *range.constants;
  const auto loop = terms_for<opmath_t>(range.update, range.buffers.max_exp_avg_sq, range.unscale);
  const Terms<opmath_t> terms(range);
  Tiles<opmath_t> tiles(range);
  Draws draws(range);
  int64_t end, numel;
  for (int64_t first = range.begin; first < range.end; first = end) {
    end = range.end - first < range.rows.together ? range.end : first + range.rows.together;
    for (int64_t begin = first; begin < end; begin += numel) {
      numel = draws.numel(begin, tiles.numel(begin, end));
      draws.fill_state(begin, numel);
      loop(c, {}, opmath_t(range.rows.pull), tiles.params.load(begin, numel),
           tiles.grads.load(begin, numel), tiles.exp_avgs.load(begin, numel),
           tiles.exp_avg_sqs.load(begin, numel), tiles.max_exp_avg_sqs.load(begin, numel),
           {terms, begin - first}, numel);
      tiles.store_rest(begin, numel, draws.state);
    }
    for (int64_t row = first; row < end; row += range.rows.numel) {
      prox_of_row<opmath_t>(c, {terms, row - first}, range.rows.numel);
    }
    for (int64_t begin = first; begin < end; begin += numel) {
      numel = draws.numel(begin, tiles.numel(begin, end));
      draws.fill_param(begin, numel);
      tiles.params.store_from(terms.shrunk + (begin - first), begin, numel, draws.param);
    }
  }
}

PROXADAM_INLINE void update_rows(const Range& range) {
  if (range.types.param == ScalarType::kFloat64) return update_rows_in<double>(range);
  update_rows_in<float>(range);
}

}  // namespace
}  // namespace PROXADAM_CPU_CAPABILITY
}  // namespace proxadam
