// The whole step on the CPU: one parallel region over the chunks of every tensor.

#pragma once

#include <cstdint>  // for int64_t

#include "../tensor_table.h"  // for TensorTable
#include "capability.h"       // for Capability

namespace proxadam {

// torch_parallel_for of libtorch_cpu's stable C interface: calls body(begin, end, context) on
// disjoint ranges that cover [begin, end), on the threads of torch.set_num_threads.
using ParallelFor = std::int32_t (*)(std::int64_t begin, std::int64_t end, std::int64_t grain,
                                     void (*body)(std::int64_t, std::int64_t, void*),
                                     void* context);

// Updates every entry in place. Touches no Python object, throws nothing but bad_alloc before it
// writes, and gives the same bits for every number of threads.
// A null `parallel_for` runs serially. Where there is a grad_scale, the gradients are divided by
// it, and written back divided.
void step_cpu(const TensorTable& table, const Capability& capability, ParallelFor parallel_for);

// Whether rows of so many elements are taken.
bool takes_row_cpu(std::int64_t numel, const TensorTypes& types);

}  // namespace proxadam
