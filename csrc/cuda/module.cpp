// The Python module _cuda: the protocol over the CUDA kernels, and what they ask of a driver.

#include <cuda_runtime.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>  // for uint64_t
#include <memory>   // for make_unique
#include <string>   // for string, to_string
#include <utility>  // for move, pair
#include <vector>   // for vector

#include "../python/protocol.h"  // for define_protocol, Functions, Kernel
#include "device.h"              // for check_cuda
#include "launch_table.h"        // for kLargeTable, kSmallTable
#include "roundings.h"           // for count_roundings
#include "step.h"  // for BlocksAtOnce, chunk_for, load_kernels, step_cuda, takes_row_cuda

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

  const std::vector<bool>& bind(const Functions&) override {
    std::vector<bool> usable = usable_devices();
    check_driver();
    if (usable_.empty()) {  // the gatekeeper of a first call goes on looking at it
      blocks_at_once_.resize(usable.size());
      loaded_.resize(usable.size());
      usable_ = std::move(usable);
    }
    return usable_;
  }

  bool prepare(const TensorTable& table) override {
    bool all = true;
    for (const Device& device : table.devices) {
      try {
        load(device.index);
      } catch (const std::runtime_error&) {  // torch ops take the step, and load() says why
        all = false;
      }
    }
    return all;
  }

  TakesRow takes_row() const override { return takes_row_cuda; }

  void run(const TensorTable& table) override { step_cuda(table, blocks_at_once_); }

  // Brings the kernels to a device, once: while a graph is captured it would be too late. The
  // device is not stepped on where that fails, until a later call succeeds.
  void load(int device) {
    if (static_cast<std::size_t>(device) >= loaded_.size() || loaded_[device]) return;
    usable_[device] = false;
    blocks_at_once_[device] = load_kernels(device);
    loaded_[device] = usable_[device] = true;
  }

 private:
  std::vector<BlocksAtOnce> blocks_at_once_;  // by device, where its kernels are loaded
  std::vector<bool> loaded_;
  std::vector<bool> usable_;
};

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "The proximal Adam step on CUDA devices. proxadam.backends is its only user.";
  auto kernel = std::make_unique<CudaKernel>();
  m.def(
      "load", [kernel = kernel.get()](int device) { kernel->load(device); }, py::arg("device"),
      "Load every kernel to a device, once: while a graph is captured it would be too late. "
      "Raises\n"
      "RuntimeError where the device cannot run them; it is then none that the kernel steps on.");
  define_protocol(m, std::move(kernel));
  m.def("chunk_for", &chunk_for, py::arg("numel"), py::arg("blocks_at_once"), py::arg("longest"),
        "Elements of a chunk, for a launch over so many elements on such a device; for tests.");
  m.def(
      "count_roundings",
      [](int device, std::uint64_t stride) {
        py::gil_scoped_release no_gil;
        const RoundingCounts counts = count_roundings(device, stride);
        py::gil_scoped_acquire gil;
        py::dict found;
        for (const auto& [name, of] :
             {std::pair{"square_root", counts.square_root},
              std::pair{"reciprocal", counts.reciprocal}, std::pair{"quotient", counts.quotient}}) {
          found[name] = py::make_tuple(of.judged, of.wrong);
        }
        return found;
      },
      py::arg("device"), py::arg("stride") = 1,
      "(judged, wrong) for roots, reciprocals and quotients of csrc/cuda/branch_free.h, on every\n"
      "stride-th float; for tests.");
}
