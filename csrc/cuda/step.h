// The whole step on CUDA devices: a launch for each few hundred tensors.

#pragma once

#include <array>     // for array
#include <cstdint>   // for int32_t, int64_t
#include <iterator>  // for size
#include <vector>    // for vector

#include "../scalar_types.h"  // for kTensorTypes, TensorTypes
#include "../tensor_table.h"  // for TensorTable

namespace proxadam {

// What a launch goes over: elements, elements of which something is rounded by chance or in codes,
// or rows. Each has tables and kernels of its own.
enum class Tables { kElements, kChance, kRows };
constexpr int kTables = 3;

// How many blocks of a kernel a device runs at once, by the place of its types in kTensorTypes, by
// its tables, and by amsgrad.
using BlocksAtOnce = std::array<std::array<std::array<int, 2>, kTables>, std::size(kTensorTypes)>;

// Queues the update of every entry, in place, on the streams of its devices, and of the counters
// that lie there; waits for nothing. Counters on the host are left to the caller.
// Throws std::runtime_error if a launch fails: what was queued before it is written, and no counter
// moves. `blocks_at_once`: by device, what load_kernels returned for it.
void step_cuda(const TensorTable& table, const std::vector<BlocksAtOnce>& blocks_at_once);

// Whether a kernel takes rows of so many elements as one. Codes have to be of whole blocks.
bool takes_row_cuda(std::int64_t numel, const TensorTypes& types);

// Loads every kernel to a device: a capture in progress may forbid it later.
// Throws std::runtime_error where the device cannot run them.
BlocksAtOnce load_kernels(int device);

// Elements of a chunk for a launch over `numel` elements: small lists are spread over the blocks
// that the device runs at once, large ones cut into the longest pieces that they may have.
std::int32_t chunk_for(std::int64_t numel, int blocks_at_once, std::int32_t longest);

}  // namespace proxadam
