// The CUDA runtime for a machine that has none: the part of it that csrc/cuda uses, on host
// threads.
//
// Found in place of NVIDIA's header, it lets g++ compile the kernels and their launcher as they
// are. A launch runs its blocks one after the other; the threads of a block are threads, and a
// barrier is one. Sanitizers then see every access that the kernel makes.

#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#define CUDART_VERSION 13000

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static  // one block at a time

struct dim3 {
  explicit dim3(unsigned x = 1) : x(x) {}
  unsigned x;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

// ---- threads for threads ----------------------------------------------------------------------

namespace on_host {

class Barrier {
 public:
  explicit Barrier(unsigned threads) : threads_(threads) {}

  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const std::uint64_t phase = phase_;
    if (++waiting_ == threads_) {
      waiting_ = 0;
      ++phase_;
      all_here_.notify_all();
    } else {
      all_here_.wait(lock, [&] { return phase_ != phase; });
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_here_;
  const unsigned threads_;
  unsigned waiting_ = 0;
  std::uint64_t phase_ = 0;
};

// The threads of a block, kept for the next launch: the caller is one more party at the barriers
// that begin and end a launch.
class Team {
 public:
  explicit Team(unsigned threads) : block_(threads), launch_(threads + 1) {
    for (unsigned i = 0; i < threads; i += kWarp) {
      warps_.emplace_back(new Warp(threads - i < kWarp ? threads - i : kWarp));
    }
    for (unsigned i = 0; i < threads; ++i) {
      std::thread([this, i, threads] { work(i, threads); }).detach();
    }
  }

  void run(unsigned blocks, const std::function<void()>& kernel) {
    blocks_ = blocks;
    kernel_ = &kernel;
    launch_.wait();
    launch_.wait();
  }

  void sync_block() { block_.wait(); }

  // The largest of what the threads of the caller's warp have.
  int warp_max(int value) {
    const auto& all = warp().exchange(value);
    return static_cast<int>(*std::max_element(all, all + warp().lanes()));
  }

  // What another lane of the caller's warp has.
  double from_lane(double value, unsigned lane) { return warp().exchange(value)[lane]; }

  void sync_warp() { warp().exchange(0); }

 private:
  static constexpr unsigned kWarp = 32;

  class Warp {
   public:
    explicit Warp(unsigned lanes) : lanes_(lanes), barrier_(lanes) {}

    unsigned lanes() const { return lanes_; }

    // What each lane has; a double holds any int. Two rows in turn: a lane that comes to the next
    // call writes none that another still reads.
    const double* exchange(double value) {
      thread_local unsigned calls = 0;
      double* row = values_[calls++ % 2];
      row[threadIdx.x % kWarp] = value;
      barrier_.wait();
      return row;
    }

   private:
    const unsigned lanes_;
    Barrier barrier_;
    double values_[2][kWarp];
  };

  Warp& warp() { return *warps_[threadIdx.x / kWarp]; }

  void work(unsigned thread, unsigned threads) {
    threadIdx = dim3(thread);
    blockDim = dim3(threads);
    for (;;) {
      launch_.wait();
      gridDim = dim3(blocks_);
      for (unsigned block = 0; block < blocks_; ++block) {
        blockIdx = dim3(block);
        (*kernel_)();
        block_.wait();
      }
      launch_.wait();
    }
  }

  Barrier block_;
  Barrier launch_;
  std::vector<std::unique_ptr<Warp>> warps_;
  unsigned blocks_ = 0;
  const std::function<void()>* kernel_ = nullptr;
};

inline Team* team = nullptr;    // never freed: its threads wait in it until the process ends
inline void* shared = nullptr;  // what a launch asked for, of its size

}  // namespace on_host

inline int __ffs(int x) { return __builtin_ffs(x); }
inline void __syncthreads() { on_host::team->sync_block(); }
// All lanes of a warp have to call it: those that stay away are waited for.
inline int __reduce_max_sync(unsigned, int value) { return on_host::team->warp_max(value); }
inline double __shfl_xor_sync(unsigned, double value, int lanes) {
  return on_host::team->from_lane(value, threadIdx.x % 32 ^ lanes);
}
inline void __syncwarp() { on_host::team->sync_warp(); }

// ---- the runtime ------------------------------------------------------------------------------

enum cudaError_t {
  cudaSuccess,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorInvalidResourceHandle = 400
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
};
struct cudaFuncAttributes {};
using cudaStream_t = void*;
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};

// What tests/cuda_on_host/fake_device.cpp says that torch's current stream is.
inline const cudaStream_t kCurrentStream = reinterpret_cast<cudaStream_t>(0x57);

inline const char* cudaGetErrorName(cudaError_t) { return "cudaErrorOnHost"; }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidResourceHandle    ? "not the current stream"
         : error == cudaErrorInvalidValue           ? "invalid argument"
         : error == cudaErrorNoKernelImageForDevice ? "no kernel image for the device"
                                                    : "no such device";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* version) {
  const char* told = std::getenv("CUDA_ON_HOST_DRIVER");
  return *version = told ? std::atoi(told) : CUDART_VERSION, cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = which == cudaDevAttrMultiProcessorCount      ? 2
           : which == cudaDevAttrComputeCapabilityMajor ? 9
                                                        : 0;
  return cudaSuccess;
}

// A launch is told no types. They are seen when a kernel is loaded, which comes first.
inline std::map<const void*, std::function<void(void**)>> loaded;

template <typename Table>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, void (*kernel)(Table)) {
  if (!kernel || std::getenv("CUDA_ON_HOST_NO_IMAGE")) return cudaErrorNoKernelImageForDevice;
  loaded[reinterpret_cast<const void*>(kernel)] = [kernel](void** arguments) {
    kernel(*static_cast<Table*>(arguments[0]));
  };
  return cudaSuccess;
}

template <typename Table>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*)(Table), int,
                                                          std::size_t) {
  return *blocks = 4, cudaSuccess;
}

// What a block may share: more than 48 KB have to be asked for.
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
inline std::map<const void*, std::size_t> shared_limits;
inline std::size_t shared_limit(const void* kernel) {
  const auto found = shared_limits.find(kernel);
  return found == shared_limits.end() ? 48 << 10 : found->second;
}
template <typename Table>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Table), cudaFuncAttribute, int bytes) {
  if (bytes > 99 << 10) return cudaErrorInvalidValue;  // compute capability 8.6
  shared_limits[reinterpret_cast<const void*>(kernel)] = bytes;
  return cudaSuccess;
}

inline cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel,
                                       void** arguments) {
  if (config->stream && config->stream != kCurrentStream) return cudaErrorInvalidResourceHandle;
#ifndef PROXADAM_DRY_LAUNCH
  const auto& call = loaded.at(kernel);
  if (config->dynamicSmemBytes > shared_limit(kernel)) return cudaErrorInvalidValue;
  const std::unique_ptr<void, void (*)(void*)> shared(std::malloc(config->dynamicSmemBytes),
                                                      std::free);
  on_host::shared = shared.get();
  if (!on_host::team) on_host::team = new on_host::Team(config->blockDim.x);
  on_host::team->run(config->gridDim.x, [&] { call(arguments); });
#endif
  return cudaSuccess;
}

enum cudaMemcpyKind { cudaMemcpyDeviceToHost = 2 };
inline cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  return *memory = std::malloc(bytes), cudaSuccess;
}
inline cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
