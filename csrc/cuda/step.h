// The whole step on CUDA devices: a launch for each few hundred tensors.

#pragma once

#include <vector>  // for vector

#include "../device_options.h"  // for DeviceScalar
#include "../tensor_table.h"    // for TensorTable

namespace proxadam {

// What a step needs to know of a device that has parameters.
struct DeviceContext {
  int device;
  void* stream;             // a cudaStream_t: torch's current one
  DeviceScalar grad_scale;  // in its memory; null where the gradients are as they should be
  DeviceScalar found_inf;
};

// Queues the update of every entry, in place, on the streams of `devices`, and of the counters
// that lie there; waits for nothing. Counters on the host are left to the caller.
// Throws std::runtime_error if a launch fails.
void step_cuda(const TensorTable& table, const std::vector<DeviceContext>& devices);

// Loads every kernel to a device: a capture in progress may forbid it later.
// Throws std::runtime_error where the device cannot run them.
void load_kernels(int device);

// Elements of a chunk for a launch over `numel` elements: small lists are spread over all
// multiprocessors, large ones cut into pieces that are long enough to be worth a block.
std::int32_t chunk_for(std::int64_t numel, int multiprocessors);

}  // namespace proxadam
