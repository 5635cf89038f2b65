// The Python module _cuda: the protocol over the CUDA kernels, and what they ask of a driver.

#include <cuda_runtime.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>  // for make_unique
#include <string>  // for string, to_string
#include <vector>  // for vector

#include "../python/protocol.h"  // for define_protocol, Functions, Kernel
#include "device.h"              // for check_cuda
#include "launch_table.h"        // for kLargeTable, kSmallTable
#include "step.h"                // for chunk_for, load_kernels, step_cuda

namespace py = pybind11;
using namespace proxadam;

namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, which, device), "ask a device what it is");
  return value;
}

// Throws std::runtime_error where the driver does not take tables as large as ours.
void check_driver() {
  constexpr int kOldest = kLargeTable > kSmallTable ? 12010 : 0;
  int driver = 0;
  check_cuda(cudaDriverGetVersion(&driver), "tell the driver's version");
  if (driver < kOldest) {
    const std::string version =
        std::to_string(driver / 1000) + "." + std::to_string(driver % 1000 / 10);
    throw std::runtime_error(
        "the CUDA kernel needs a driver for CUDA 12.1 or newer, and the one here is for " +
        version + "; update it");
  }
}

// For each device, whether the oldest architecture that was compiled for runs there.
std::vector<bool> usable_devices() {
  int count = 0;
  check_cuda(cudaGetDeviceCount(&count), "count the devices");
  std::vector<bool> usable;
  std::string seen;
  bool any = false;
  for (int device = 0; device < count; ++device) {
    const int capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
                           attribute(cudaDevAttrComputeCapabilityMinor, device);
    usable.push_back(capability >= PROXADAM_CUDA_OLDEST);
    any = any || usable.back();
    seen += (seen.empty() ? "" : ", ") + std::to_string(capability);
  }
  if (!any) {
    throw std::runtime_error("the CUDA kernel is compiled for compute capability " +
                             std::to_string(PROXADAM_CUDA_OLDEST) + " and newer, and the devices" +
                             " here have: " + seen);
  }
  return usable;
}

class CudaKernel : public Kernel {
 public:
  DLDeviceType device_type() const override { return kDLCUDA; }

  std::vector<bool> bind(const Functions&) override {
    std::vector<bool> usable = usable_devices();
    check_driver();
    loaded_.resize(usable.size());
    return usable;
  }

  void prepare(const TensorTable& table) override {
    for (const Device& device : table.devices) load(device.index);
  }

  void run(const TensorTable& table) override { step_cuda(table); }

  // Brings the kernels to a device, once: while a graph is captured it would be too late.
  void load(int device) {
    if (static_cast<std::size_t>(device) >= loaded_.size() || loaded_[device]) return;
    load_kernels(device);
    loaded_[device] = true;
  }

 private:
  std::vector<bool> loaded_;  // devices that have the kernels
};

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "The proximal Adam step on CUDA devices. proxadam.backends is its only user.";
  auto kernel = std::make_unique<CudaKernel>();
  m.def("load", [kernel = kernel.get()](int device) { kernel->load(device); }, py::arg("device"),
        "Load every kernel to a device, once: while a graph is captured it would be too late.");
  define_protocol(m, std::move(kernel));
  m.def("chunk_for", &chunk_for, py::arg("numel"), py::arg("multiprocessors"),
        "Elements of a chunk, for a launch over so many elements on such a device; for tests.");
}
