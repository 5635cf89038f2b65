// How a function that the host and a GPU both run is declared.
//
// Such functions have internal linkage: the CPU loop is compiled once for each instruction set, and
// the linker must not merge the copies. So they are free functions, never members.

#pragma once

#if defined(__CUDACC__)
#define PROXADAM_INLINE static __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define PROXADAM_INLINE static __forceinline
#else
#define PROXADAM_INLINE static inline __attribute__((always_inline))
#endif
