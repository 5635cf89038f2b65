// The whole step on CUDA devices: a launch for each few hundred tensors.

#pragma once

#include <cstdint>  // for int32_t, int64_t

#include "../tensor_table.h"  // for TensorTable

namespace proxadam {

// Queues the update of every entry, in place, on the streams of its devices, and of the counters
// that lie there; waits for nothing. Counters on the host are left to the caller.
// Throws std::runtime_error if a launch fails.
void step_cuda(const TensorTable& table);

// Loads every kernel to a device: a capture in progress may forbid it later.
// Throws std::runtime_error where the device cannot run them.
void load_kernels(int device);

// Elements of a chunk for a launch over `numel` elements: small lists are spread over all
// multiprocessors, large ones cut into pieces that are long enough to be worth a block.
std::int32_t chunk_for(std::int64_t numel, int multiprocessors);

}  // namespace proxadam
