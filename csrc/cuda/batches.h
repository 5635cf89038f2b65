// Which tensors of a step go together in launches.

#pragma once

#include <algorithm>  // for find_if
#include <cstdint>    // for int32_t, int64_t
#include <vector>     // for vector

#include "../options.h"       // for any_on_device, Options
#include "../rounding.h"      // for param_draws, state_draws
#include "../scalar_types.h"  // for bytes_of, ScalarType, TensorTypes
#include "../tensor_table.h"  // for Device, TensorEntry, TensorTable
#include "launch_table.h"     // for kChunkStride, kLongestChunk, kLongestToNearest
#include "row_plan.h"         // for kSharedBytes, shared_bytes, weight_of_row
#include "step.h"             // for Tables

namespace proxadam {

// What is the same for all tensors of a launch.
struct Kind {
  TensorTypes types;
  bool amsgrad;
  Tables tables;
  int row_class;  // of rows: they share about as much
  bool computes_constants;

  bool operator==(const Kind& other) const {
    return types == other.types && amsgrad == other.amsgrad && tables == other.tables &&
           row_class == other.row_class && computes_constants == other.computes_constants;
  }
};

inline bool rounds_state(const TensorEntry& entry, const Options& options) {
  return options.stochastic_state && state_draws(entry.types);
}
inline bool rounds_params(const TensorEntry& entry, const Options& options) {
  return options.stochastic_params && param_draws(entry.types);
}
inline bool takes_chance(const TensorEntry& entry, const Options& options) {
  return rounds_state(entry, options) || rounds_params(entry, options) ||
         entry.types.state == ScalarType::kCode8;
}

// Whether its rows are taken as one; where lr is 0 they stay, and elements go by themselves.
inline bool goes_by_rows(const TensorEntry& entry, const Options& options) {
  return entry.row != 0 && (options.lr.on_device.data || options.lr.value != 0);
}

inline Tables tables_of(const TensorEntry& entry, const Options& options) {
  if (goes_by_rows(entry, options)) return Tables::kRows;
  return takes_chance(entry, options) ? Tables::kChance : Tables::kElements;
}

inline int bytes_of_number(const TensorTypes& types) {
  return types.param == ScalarType::kFloat64 ? sizeof(double) : sizeof(float);
}

// What a launch's longest row shares is what all of its blocks have.
inline int row_class_of(const TensorEntry& entry) {
  constexpr int kClasses = 4;
  const int bytes = shared_bytes(static_cast<int>(entry.row), bytes_of_number(entry.types));
  int found = 1;
  for (int limit = kSharedBytes >> kClasses; limit < bytes; limit *= 2) ++found;
  return found;
}

// Elements that an entry counts for.
inline std::int64_t weight_of(const TensorEntry& entry, Tables tables) {
  if (tables != Tables::kRows) return entry.numel;
  return entry.numel / entry.row * weight_of_row(entry.row);
}

// Elements of a chunk, at most. Where a step does little but wait for memory, short ones keep the
// blocks that are at work close together in it, which makes it faster; the more arithmetic it does,
// the more it costs to begin a block: measured, bench/results/NOTES.md.
inline std::int32_t longest_chunk(const Kind& kind) {
  const TensorTypes& types = kind.types;
  if (kind.tables == Tables::kRows) return kLongestChunk;
  if (types.state == ScalarType::kFloat32) {
    return types.param == types.state ? kChunkStride : 4 * kChunkStride;
  }
  return kind.tables == Tables::kChance ? kLongestChunk : kLongestToNearest;
}

struct Batch {
  Kind kind;
  std::vector<const TensorEntry*> entries;
  std::int64_t weight = 0;
};

inline std::vector<Batch> batches_of(const TensorTable& table, const Device& device) {
  const bool amp = device.grad_scale.data || device.found_inf.data;
  std::vector<Batch> batches;
  for (const TensorEntry& entry : table.entries) {
    if (entry.device != device.index || entry.numel == 0) continue;
    const Options& options = table.options[entry.group];
    const Tables tables = tables_of(entry, options);
    const Kind kind{entry.types, options.amsgrad, tables,
                    tables == Tables::kRows ? row_class_of(entry) : 0,
                    amp || !entry.counter.on_host || any_on_device(options)};
    auto batch = std::find_if(batches.begin(), batches.end(),
                              [&](const Batch& b) { return b.kind == kind; });
    if (batch == batches.end()) batch = batches.insert(batch, Batch{kind, {}, 0});
    batch->entries.push_back(&entry);
    batch->weight += weight_of(entry, tables);
  }
  return batches;
}

}  // namespace proxadam
