// The CUDA runtime as we use it: every call checked, the caller's current device given back.

#pragma once

#include <cuda_runtime.h>

#include <stdexcept>  // for runtime_error
#include <string>     // for string, to_string

namespace proxadam {

// Throws std::runtime_error, in one sentence, if a call of the CUDA runtime failed.
inline void check_cuda(cudaError_t status, const char* action) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // it is told here, and not again by the next call that asks
  throw std::runtime_error("CUDA could not " + std::string(action) + ": " +
                           cudaGetErrorString(status) + " (" + cudaGetErrorName(status) + ")");
}

// Makes a device current for as long as it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check_cuda(cudaGetDevice(&before_), "tell the current device");
    if (device != before_) check_cuda(cudaSetDevice(device), "change the device");
    changed_ = device != before_;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace proxadam
