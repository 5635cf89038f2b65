// The threads that have a row, and what they add up over it: csrc/group_prox.h.

#pragma once

#include <stdint.h>  // for int64_t

#include "../group_prox.h"  // for kLanes, kSegment, Sums, sums_of, Term
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

// A row for row_norm(), which the whole team has to call; all of its threads are told the same.
template <typename opmath_t, typename Math>
class SharedRow {
 public:
  __device__ __forceinline__ SharedRow(const SharedTerms<opmath_t>& terms, int numel,
                                       const Team& team)
      : terms_(terms), numel_(numel), team_(team) {}

  template <Term term>
  __device__ __forceinline__ Sums sum(opmath_t norm) const {
    // Two in turn: who comes to the next sum writes none that another still reads.
    __shared__ Sums of_segments[2][kSegments];
    Sums* totals = of_segments[sums_++ % 2];
    Sums of{0, 0};
#pragma unroll 1
    for (int begin = team_.warp_rank() * kSegment; begin < numel_; begin += kWarps * kSegment) {
      of = segment<term>(norm, begin);
      if (team_.is_block && lane() == 0) totals[begin / kSegment] = of;
    }
    if (!team_.is_block) return of;
    __syncthreads();
    Sums total{0, 0};
    for (int i = 0; i * kSegment < numel_; ++i) {
      total.squares += totals[i].squares;
      total.weighted += totals[i].weighted;
    }
    return total;
  }

 private:
  static constexpr int kSegments = longest_row(sizeof(opmath_t)) / kSegment;

  // By a warp.
  template <Term term>
  __device__ __forceinline__ Sums segment(opmath_t norm, int begin) const {
    const int left = numel_ - begin;
    const int end = left < kSegment ? numel_ : begin + kSegment;
    Math math{};
    Sums sum = of_lane<term>(math, norm, begin, end);
    if constexpr (term == Term::kAtNorm) {  // the others ask nothing of the Math
      inspect(math, opmath_t(sum.weighted));
      if (wants_redo(math)) {
        Exact exact;
        sum = of_lane<term>(exact, norm, begin, end);
      }
    }
    return of_warp(sum);
  }

  // Lanes folded in halves. With the first fold a half of them takes each sum over from the other.
  static __device__ __forceinline__ Sums of_warp(const Sums& of) {
    const bool has_weighted = lane() >= kLanes / 2;
    double sum = has_weighted ? of.weighted : of.squares;
    sum += __shfl_xor_sync(kAllLanes, has_weighted ? of.squares : of.weighted, kLanes / 2);
#pragma unroll
    for (int half = kLanes / 4; half; half /= 2) sum += __shfl_xor_sync(kAllLanes, sum, half);
    const double other = __shfl_xor_sync(kAllLanes, sum, kLanes / 2);
    return has_weighted ? Sums{other, sum} : Sums{sum, other};
  }

  template <Term term, typename MathOfSum>
  __device__ __forceinline__ Sums of_lane(MathOfSum& math, opmath_t norm, int begin,
                                          int end) const {
    Sums sum{0, 0};
    for (int i = begin + lane(); i < end; i += kLanes) {
      const Sums of = sums_of<term>(math, norm, terms_.shrunk[i], terms_.pulls[i]);
      sum.squares += of.squares;
      sum.weighted += of.weighted;
    }
    return sum;
  }

  const SharedTerms<opmath_t>& terms_;
  int numel_;
  Team team_;
  mutable unsigned sums_ = 0;
};

}  // namespace proxadam
