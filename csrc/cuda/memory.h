// How a thread reads and writes what lies together: by up to 16 bytes at a time.

#pragma once

#include <cuda_runtime.h>  // for __device__
#include <stdint.h>        // for int64_t, uintptr_t

#include "../scalar_types.h"  // for drop_zero_sign, narrow, widen

namespace proxadam {

constexpr int kAccess = 16;  // bytes

// What a block shares, of as many bytes as its launch asked for.
#if defined(__CUDACC__)
__device__ __forceinline__ void* dynamic_shared() {
  extern __shared__ uint4 shared[];
  return shared;
}
#else  // on the host, where the tests run the kernels
inline void* dynamic_shared() { return on_host::shared; }
#endif

__device__ __forceinline__ int beyond_alignment(const void* address) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(address) % kAccess);
}

// The address of element i of a buffer.
template <typename scalar_t>
__device__ __forceinline__ scalar_t* at(void* buffer, int64_t i) {
  return static_cast<scalar_t*>(buffer) + i;
}

// The same number, of which the compiler does not know it. What depends on it is then computed
// anew, and not kept in a register from one use to the next.
template <typename T>
__device__ __forceinline__ T anew(T i) {
  asm("" : "+r"(i));
  return i;
}

// As many elements as one instruction moves, of those that make a vector.
template <typename scalar_t, int width>
struct alignas(sizeof(scalar_t) * width < kAccess ? sizeof(scalar_t) * width : kAccess) Access {
  scalar_t values[sizeof(scalar_t) * width < kAccess ? width : kAccess / sizeof(scalar_t)];
};

// Calls f(k, element) for each element of a vector.
template <int width, typename scalar_t, typename F>
__device__ __forceinline__ void read(const scalar_t* from, F f) {
  using Moved = Access<scalar_t, width>;
  constexpr int kElements = sizeof(Moved) / sizeof(scalar_t);
#pragma unroll
  for (int i = 0; i < width; i += kElements) {
    const Moved moved = *reinterpret_cast<const Moved*>(from + i);
#pragma unroll
    for (int j = 0; j < kElements; ++j) f(i + j, moved.values[j]);
  }
}

// Has each element set by f(k, element).
template <int width, typename scalar_t, typename F>
__device__ __forceinline__ void write(scalar_t* to, F f) {
  using Moved = Access<scalar_t, width>;
  constexpr int kElements = sizeof(Moved) / sizeof(scalar_t);
#pragma unroll
  for (int i = 0; i < width; i += kElements) {
    Moved moved;
#pragma unroll
    for (int j = 0; j < kElements; ++j) f(i + j, moved.values[j]);
    *reinterpret_cast<Moved*>(to + i) = moved;
  }
}

template <typename scalar_t, int width, typename opmath_t>
__device__ __forceinline__ void load(const scalar_t* from, opmath_t (&to)[width]) {
  read<width>(from, [&](int k, scalar_t element) { to[k] = widen(element); });
}

template <bool drops_zero_signs = false, typename scalar_t, int width, typename opmath_t>
__device__ __forceinline__ void store(const opmath_t (&from)[width], scalar_t* to) {
  write<width>(to, [&](int k, scalar_t& element) {
    narrow(from[k], element);
    if (drops_zero_signs) drop_zero_sign(element);
  });
}

}  // namespace proxadam
