// The threads that have a row, and what they add up over it: csrc/group_prox.h.

#pragma once

#include <type_traits>  // for is_same

#include "../group_prox.h"  // for AtNorm, kLanes, kSegment, Sums, sums_of
#include "branch_free.h"    // for wants_redo
#include "launch_table.h"   // for kThreads
#include "memory.h"         // for dynamic_shared
#include "row_plan.h"       // for longest_row, padded, rows_at_once
#include "warp.h"           // for kAllLanes, kWarp, kWarps, lane, warp

namespace proxadam {

static_assert(kLanes == kWarp, "a lane's sums are those of group_prox.h");

// A warp, or the block.
struct Team {
  bool is_block;

  __device__ __forceinline__ int threads() const { return is_block ? kThreads : int(kWarp); }
  __device__ __forceinline__ int rank() const { return is_block ? threadIdx.x : lane(); }
  __device__ __forceinline__ int warps() const { return is_block ? kWarps : 1; }
  __device__ __forceinline__ int warp_rank() const { return is_block ? warp() : 0; }
  __device__ __forceinline__ void sync() const {
    if (is_block) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }
};

// RowTerms of a row, in the memory that the block shares.
template <typename opmath_t>
struct SharedTerms {
  opmath_t* shrunk;
  opmath_t* pulls;
  opmath_t* z;

  __device__ __forceinline__ SharedTerms(int row, const Team& team) {
    const int stride = padded(row);
    shrunk = static_cast<opmath_t*>(dynamic_shared());
    if (!team.is_block) shrunk += warp() * kNumbersAnElement * stride;
    pulls = shrunk + stride;
    z = pulls + stride;
  }
};

// The norm that elements were last added up at; 0 where that was none, and nothing is left of them.
template <typename opmath_t>
struct Last {
  AtNorm<opmath_t> at{0, 0};

  __device__ __forceinline__ void note(const AtNorm<opmath_t>& now) { at = now; }
  template <typename At>
  __device__ __forceinline__ void note(const At&) {}
};

// A row for root_of(), which the whole team has to call; all of its threads are told the same.
template <typename opmath_t, typename Math>
class SharedRow {
 public:
  __device__ __forceinline__ SharedRow(const SharedTerms<opmath_t>& terms, int numel,
                                       const Team& team)
      : terms_(terms), numel_(numel), team_(team) {}

  template <typename At>
  __device__ __forceinline__ Sums<double> add_up(At at) const {
    last_.note(at);
    // Two in turn: who comes to the next sums writes none that another still reads.
    __shared__ Sums<double> of_segments[2][kSegments];
    Sums<double>* totals = of_segments[sums_++ % 2];
    Sums<double> of{0, 0};
#pragma unroll 1
    for (int begin = team_.warp_rank() * kSegment; begin < numel_; begin += kWarps * kSegment) {
      of = segment(at, begin);
      if (team_.is_block && lane() == 0) totals[begin / kSegment] = of;
    }
    if (!team_.is_block) return of;
    __syncthreads();
    Sums<double> total{0, 0};
    for (int i = 0; i * kSegment < numel_; ++i) {
      total.squares += totals[i].squares;
      total.weighted += totals[i].weighted;
    }
    return total;
  }

  __device__ __forceinline__ const AtNorm<opmath_t>& last() const { return last_.at; }

 private:
  static constexpr int kSegments = longest_row(sizeof(opmath_t)) / kSegment;

  // By a warp.
  template <typename At>
  __device__ __forceinline__ Sums<double> segment(At at, int begin) const {
    const int left = numel_ - begin;
    const int end = left < kSegment ? numel_ : begin + kSegment;
    Math math{};
    auto sums = of_lane(math, at, begin, end);
    if constexpr (std::is_same<At, AtNorm<opmath_t>>::value) {  // the others ask nothing of it
      inspect(math, sums.weighted);
      if (wants_redo(math)) {
        Exact exact;
        sums = of_lane(exact, at, begin, end);
      }
    }
    return of_warp(sums.squares, sums.weighted);
  }

  template <typename At, typename MathOfSums>
  __device__ __forceinline__ Sums<typename At::sum_t> of_lane(MathOfSums& math, At at, int begin,
                                                              int end) const {
    Sums<typename At::sum_t> sums{0, 0};
    for (int i = begin + lane(); i < end; i += kLanes) {
      opmath_t unused;  // what is left is computed anew: there is no room to keep it
      const auto of = sums_of(math, at, terms_.shrunk[i], terms_.pulls[i], unused);
      sums.squares += of.squares;
      sums.weighted += of.weighted;
    }
    return sums;
  }

  // Lanes folded in halves. With the first fold a half of them takes each sum over from the other.
  static __device__ __forceinline__ Sums<double> of_warp(double squares, double weighted) {
    const bool has_weighted = lane() >= kLanes / 2;
    double sum = has_weighted ? weighted : squares;
    sum += __shfl_xor_sync(kAllLanes, has_weighted ? squares : weighted, kLanes / 2);
#pragma unroll
    for (int half = kLanes / 4; half; half /= 2) sum += __shfl_xor_sync(kAllLanes, sum, half);
    const double other = __shfl_xor_sync(kAllLanes, sum, kLanes / 2);
    return has_weighted ? Sums<double>{other, sum} : Sums<double>{sum, other};
  }

  const SharedTerms<opmath_t>& terms_;
  int numel_;
  Team team_;
  mutable unsigned sums_ = 0;
  mutable Last<opmath_t> last_;
};

}  // namespace proxadam
