// The CPU loop over rows that l21 takes as one: Adam and the elementwise prox into memory that
// stays in cache, then the prox of each row, then what is stored.

#pragma once

#include "../group_prox.h"
#include "../prox_adam.h"
#include "codec.h"
#include "ladder.h"
#include "range.h"
#include "tiles.h"
#include "update_elements.h"

namespace proxadam {
namespace PROXADAM_CPU_CAPABILITY {
namespace {

// RowTerms of as many rows as are taken together, and what becomes of them.
template <typename opmath_t>
struct Terms {
  opmath_t* z;
  opmath_t* shrunk;
  opmath_t* pulls;
  opmath_t* left;
  opmath_t* params;  // where they are not stored so

  explicit Terms(const Range& range)
      : Terms(static_cast<opmath_t*>(range.rows.scratch), range.rows.together + kApart) {}

  Terms from(int64_t begin) const { return Terms(z + begin, shrunk - z); }

 private:
  Terms(opmath_t* first, int64_t apart)
      : z(first),
        shrunk(z + apart),
        pulls(shrunk + apart),
        left(pulls + apart),
        params(left + apart) {}
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

template <typename opmath_t>
auto terms_for(Update update, bool amsgrad, bool unscale) {
  return with_update(update, [&](auto taken) {
    return with_flags(amsgrad, unscale, [](auto with_amsgrad, auto with_unscale) {
      return &update_terms<opmath_t, decltype(taken)::value, decltype(with_amsgrad)::value,
                           decltype(with_unscale)::value>;
    });
  });
}

// Twice over the lanes: what is kept of them must not part sums from their registers.
template <typename At, typename opmath_t, typename sum_t>
PROXADAM_INLINE void add_lanes(At at, const opmath_t* __restrict shrunk,
                               const opmath_t* __restrict pulls, opmath_t* __restrict left,
                               int64_t lanes, sum_t (&squares)[kLanes], sum_t (&weighted)[kLanes]) {
  Bounded<opmath_t> math;
  sum_t more_squares[kLanes], more_weighted[kLanes];
  for (int lane = 0; lane < lanes; ++lane) {
    const Sums<sum_t> of = sums_of(math, at, shrunk[lane], pulls[lane], left[lane]);
    more_squares[lane] = of.squares;
    more_weighted[lane] = of.weighted;
  }
  for (int lane = 0; lane < lanes; ++lane) squares[lane] += more_squares[lane];
  for (int lane = 0; lane < lanes; ++lane) weighted[lane] += more_weighted[lane];
}

template <int half>
PROXADAM_INLINE void fold(double* lanes) {
  for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  if constexpr (half > 1) fold<half / 2>(lanes);
}

template <typename sum_t>
PROXADAM_INLINE double folded(const sum_t (&lanes)[kLanes]) {
  alignas(64) double halves[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) halves[lane] = lanes[lane];
  fold<kLanes / 2>(halves);
  return halves[0];
}

// A row for root_of().
template <typename opmath_t>
struct Row {
  Terms<opmath_t> terms;
  int64_t numel;

  template <typename At>
  Sums<double> add_up(At at) const {
    Sums<double> total{0, 0};
    for (int64_t begin = 0; begin < numel; begin += kSegment) {
      const int64_t left = numel - begin;
      add_segment(at, begin, left < kSegment ? left : kSegment, total);
    }
    return total;
  }

  template <typename At>
  void add_segment(At at, int64_t begin, int64_t length, Sums<double>& total) const {
    using sum_t = typename At::sum_t;
    const opmath_t* __restrict shrunk = terms.shrunk + begin;
    const opmath_t* __restrict pulls = terms.pulls + begin;
    opmath_t* __restrict left = terms.left + begin;
    alignas(64) sum_t squares[kLanes] = {}, weighted[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= length; i += kLanes) {
      add_lanes(at, shrunk + i, pulls + i, left + i, kLanes, squares, weighted);
    }
    add_lanes(at, shrunk + i, pulls + i, left + i, length - i, squares, weighted);
    total.squares += folded(squares);
    total.weighted += folded(weighted);
  }
};

// Sums at infinity, while what they are of is in the cache.
template <typename opmath_t>
struct FarSums {
  Sums<double> total{0, 0};
  int64_t summed = 0;

  // As far as whole segments of the row are there.
  void add(const Row<opmath_t>& row, int64_t there) {
    while (summed < there && (there - summed >= kSegment || there == row.numel)) {
      const int64_t left = there - summed;
      const int64_t length = left < kSegment ? left : kSegment;
      row.add_segment(AtInfinity<opmath_t>{}, summed, length, total);
      summed += length;
    }
  }
};

// The row's new values. `far`: its sums at infinity.
template <typename opmath_t>
void prox_of_row(const StepConstants<opmath_t>& c, const Row<opmath_t>& row,
                 const Sums<double>& far, opmath_t* __restrict params) {
  Bounded<opmath_t> math;
  const Terms<opmath_t>& terms = row.terms;
  const int64_t numel = row.numel;
  const Root<opmath_t> root = root_of<opmath_t>(row, far);
  const opmath_t* __restrict z = terms.z;
  const opmath_t* __restrict shrunk = terms.shrunk;
  const opmath_t* __restrict left = terms.left;
  if (root.is_zero) {
    for (int64_t i = 0; i < numel; ++i) {
      params[i] = element_of_row(math, c, shrunk[i], z[i], opmath_t(0));
    }
  } else {
    for (int64_t i = 0; i < numel; ++i) {
      params[i] = element_of_row(math, c, shrunk[i], z[i], left_at(root, left[i]));
    }
  }
}

template <typename opmath_t>
void update_rows_in(const Range& range) {
  const StepConstants<opmath_t>& c = *range.constants;
  const auto loop = terms_for<opmath_t>(range.update, range.buffers.max_exp_avg_sq, range.unscale);
  const Terms<opmath_t> terms(range);
  Tiles<opmath_t> tiles(range);
  Draws draws(range);
  const bool is_one = range.rows.together == range.rows.numel;
  int64_t end, numel;
  for (int64_t first = range.begin; first < range.end; first = end) {
    end = range.end - first < range.rows.together ? range.end : first + range.rows.together;
    const Row<opmath_t> whole{terms, end - first};
    FarSums<opmath_t> far;
    for (int64_t begin = first; begin < end; begin += numel) {
      numel = draws.numel(begin, tiles.numel(begin, end));
      draws.fill_state(begin, numel);
      // What memory is not asked for now would be waited for behind the rows. What lies behind the
      // range is most often the next one.
      tiles.prefetch(begin + range.rows.together, numel);
      loop(c, {}, opmath_t(range.rows.pull), tiles.params.load(begin, numel),
           tiles.grads.load(begin, numel), tiles.exp_avgs.load(begin, numel),
           tiles.exp_avg_sqs.load(begin, numel), tiles.max_exp_avg_sqs.load(begin, numel),
           terms.from(begin - first), numel);
      tiles.store_rest(begin, numel, draws.state);
      if (is_one) far.add(whole, begin + numel - first);
    }
    const bool converts = tiles.params.converts();
    opmath_t* const params = converts ? terms.params : tiles.params.load(first, 0);
    for (int64_t row = first; row < end; row += range.rows.numel) {
      const Row<opmath_t> of{terms.from(row - first), range.rows.numel};
      if (!is_one) far.total = of.add_up(AtInfinity<opmath_t>{});
      prox_of_row(c, of, far.total, params + (row - first));
    }
    if (!converts) continue;
    for (int64_t begin = first; begin < end; begin += numel) {
      numel = draws.numel(begin, tiles.numel(begin, end));
      draws.fill_param(begin, numel);
      tiles.params.store_from(params + (begin - first), begin, numel, draws.param);
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
