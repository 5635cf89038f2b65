// How rows that l21 takes as one are dealt out to blocks, as the launcher and the kernel both see
// it.
//
// What a row is computed with stays in the memory that a block shares, RowTerms for each element:
// csrc/group_prox.h. A warp takes a short row, a block a longer one, and torch ops
// one for which there is no room.

#pragma once

#include <stdint.h>  // for int32_t, int64_t

#include "../group_prox.h"  // for kSegment
#include "../macros.h"      // for PROXADAM_INLINE
#include "launch_table.h"   // for kThreads

namespace proxadam {

constexpr int kRowsOfWarps = kThreads / 32;  // that a block has at once, a warp each

// Bytes that a block shares, at most: each architecture has 99 KB for one.
constexpr int kSharedBytes = 96 << 10;
constexpr int kNumbersAnElement = 3;

// 8192 elements, and 4096 in float64.
PROXADAM_INLINE constexpr int longest_row(int bytes_of_number) {
  return kSharedBytes / (kNumbersAnElement * bytes_of_number);
}
// The longest that a warp takes: 1024, and 512 in float64. The tests have fewer threads.
PROXADAM_INLINE constexpr int longest_row_of_warp(int bytes_of_number) {
  return longest_row(bytes_of_number) / 8;
}
static_assert(longest_row_of_warp(4) <= kSegment, "a warp adds up one segment");
static_assert(kRowsOfWarps <= 8, "more warps than there is room for");

// Numbers that a row takes of each kind: whole vectors, so that the next ones are aligned.
PROXADAM_INLINE constexpr int padded(int row) { return (row + 7) / 8 * 8; }

PROXADAM_INLINE constexpr int rows_at_once(int row, int bytes_of_number) {
  return row <= longest_row_of_warp(bytes_of_number) ? kRowsOfWarps : 1;
}

PROXADAM_INLINE constexpr int shared_bytes(int row, int bytes_of_number) {
  return rows_at_once(row, bytes_of_number) * padded(row) * bytes_of_number * kNumbersAnElement;
}

// Elements that a row counts for, at least: what a warp does for each takes as long.
constexpr int kLeastRow = 256;
PROXADAM_INLINE constexpr int64_t weight_of_row(int64_t row) {
  return row < kLeastRow ? kLeastRow : row;
}

// Rows of a chunk of so many elements.
PROXADAM_INLINE constexpr int rows_of_chunk(int chunk, int row, int bytes_of_number) {
  const int at_once = rows_at_once(row, bytes_of_number);
  const int rounds = chunk / int(weight_of_row(row)) / at_once;
  return at_once * (rounds < 1 ? 1 : rounds);
}

}  // namespace proxadam
