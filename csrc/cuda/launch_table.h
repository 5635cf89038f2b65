// How a launch is shaped and what it is given, by value: nothing is copied to the device before
// it, and a captured graph keeps it.

#pragma once

#include <cuda_runtime.h>  // for CUDART_VERSION

#include <cstdint>      // for int64_t, uint8_t, uint16_t, uint32_t
#include <type_traits>  // for is_same

#include "../options.h"       // for DeviceScalar, Options
#include "../prox_adam.h"     // for StepConstants, Update
#include "../scalar_types.h"  // for Buffers, Exponents

namespace proxadam {

#ifndef PROXADAM_CUDA_THREADS
#define PROXADAM_CUDA_THREADS 256
#endif
constexpr int kThreads = PROXADAM_CUDA_THREADS;  // of a block

// Elements of a chunk: all are a multiple of this, and none is longer than those. Where elements
// are rounded to the nearest, the longest is shorter.
constexpr int kChunkStride = 8 * kThreads;
constexpr int kLongestChunk = 16 * kChunkStride;
constexpr int kLongestToNearest = 8 * kChunkStride;

// Bytes of arguments that a kernel takes. The small table costs less to pass. CUDA allows 32764,
// but the constant bank that they lie in begins with up to 7 KB of something else, and of an
// address behind its 2^15th byte, at an index that is not known, ptxas 13.0 makes a negative one.
constexpr int kSmallTable = 4096;
#if CUDART_VERSION >= 12010
constexpr int kLargeTable = 24 << 10;
#else
constexpr int kLargeTable = kSmallTable;
#endif

// Where a parameter's step number comes from: the table, or a tensor in the device's memory.
enum class StepKind : std::uint8_t { kNumber, kFloat32, kFloat64 };

struct LaunchEntry {
  Buffers buffers;
  union {
    const void* address;  // steps taken before this one
    double number;        // number of this step
  } step;
  std::int64_t numel;
};

// One of which something is rounded by chance, or whose moments are in codes. Its elements have one
// key: those behind a multiple of 2^32 are an entry of their own.
struct ChanceEntry : LaunchEntry {
  Exponents exponents;
  std::int64_t offset;
  std::uint32_t tensor_key;
  bool rounds_state;
  bool rounds_params;
};

// One whose rows l21 takes as one. It goes with either rounding, and is not cut at a multiple of
// 2^32.
struct RowEntry : ChanceEntry {
  double pull;  // lr · l21 · √n, where the host knows it
  std::int32_t row;
};

// Constants that the host has computed.
template <typename opmath_t>
struct KnownConstants {
  StepConstants<opmath_t> values;
  Update update;
};

// Tensors of one set of dtypes on one device, cut into chunks of `chunk` elements from each one's
// start: a block finds its tensor in `first_chunk`, the running sum of their counts of chunks.
template <typename opmath, int bytes, typename EntryOf = LaunchEntry>
struct LaunchTable {
  using opmath_t = opmath;
  using Entry = EntryOf;

  static constexpr int kEntryBytes = sizeof(Entry) + 4 + 2 + 1;
  static constexpr int kHeaderBytes = 2 * sizeof(DeviceScalar) + 16;
  static constexpr int kConstantBytes = bytes / 8 / 8 * 8;
  static constexpr int kEntries = (bytes - kHeaderBytes - kConstantBytes - 8) / kEntryBytes;
  static constexpr int kKnown = kConstantBytes / sizeof(KnownConstants<opmath_t>);
  static constexpr int kSources = kConstantBytes / sizeof(Options);

  DeviceScalar grad_scale;  // the gradients are divided by it, and written back divided
  DeviceScalar found_inf;   // anything but zero: the launch does nothing
  std::int32_t entries;
  std::int32_t chunk;
  std::int32_t grad_bytes;  // of an element: the gradients are as the parameters, or opmath_t
  bool computes_constants;  // from `sources`, once a block, where the host cannot
  union {
    KnownConstants<opmath_t> known[kKnown];
    Options sources[kSources];
  };
  Entry entry[kEntries];
  std::uint32_t first_chunk[kEntries];
  std::uint16_t constants[kEntries];  // index into `known` or `sources`
  StepKind step_kind[kEntries];
};

// Of one size, for the kernels are many.
using ChanceTable = LaunchTable<float, kLargeTable, ChanceEntry>;
template <typename Table>
constexpr bool kIsChanceTable = std::is_same<Table, ChanceTable>::value;

// For rows, of one size likewise.
template <typename opmath_t>
using RowTable = LaunchTable<opmath_t, kLargeTable, RowEntry>;
template <typename Table>
constexpr bool kIsRowTable = std::is_same<typename Table::Entry, RowEntry>::value;

static_assert(sizeof(LaunchTable<float, kSmallTable>) <= kSmallTable, "arguments too large");
static_assert(sizeof(LaunchTable<double, kLargeTable>) <= kLargeTable, "arguments too large");
static_assert(sizeof(ChanceTable) <= kLargeTable, "arguments too large");
static_assert(sizeof(RowTable<double>) <= kLargeTable, "arguments too large");
static_assert(LaunchTable<double, kSmallTable>::kSources >= 2, "room for a few groups");

// `step` tensors on one device, to be counted on when the step is done.
struct CounterTable {
  static constexpr int kCounters = (kSmallTable - 32) / 9;

  DeviceScalar found_inf;
  std::int32_t counters;
  void* counter[kCounters];
  bool is_double[kCounters];
};
static_assert(sizeof(CounterTable) <= kSmallTable, "arguments too large");

}  // namespace proxadam
