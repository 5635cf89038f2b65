// What the lanes of a warp do together.

#pragma once

#include <stdint.h>  // for int32_t

#include "launch_table.h"  // for kThreads

namespace proxadam {

constexpr unsigned kWarp = 32;
constexpr unsigned kAllLanes = ~0u;
constexpr int kWarps = kThreads / kWarp;  // of a block

__device__ __forceinline__ int lane() { return threadIdx.x % kWarp; }
__device__ __forceinline__ int warp() { return threadIdx.x / kWarp; }

}  // namespace proxadam
