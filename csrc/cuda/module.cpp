// The Python module _cuda: converts, releases the GIL, calls.

#include <cuda_runtime.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>   // for make_unique, unique_ptr
#include <string>   // for string, to_string
#include <utility>  // for swap
#include <vector>   // for vector

#include "../python/gatekeeper.h"  // for Gatekeeper
#include "../python/plan.h"        // for Plan
#include "device.h"                // for check_cuda
#include "launch_table.h"          // for kLargeTable, kSmallTable
#include "step.h"                  // for DeviceContext, step_cuda

namespace py = pybind11;
using namespace proxadam;

namespace {

struct Bound {
  Gatekeeper gatekeeper;
  std::vector<bool> loaded;  // devices that have the kernels
};
Bound* bound = nullptr;  // never freed: it holds Python objects until the process ends

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

void load(int device) {
  if (!bound) throw std::runtime_error("proxadam._cuda.bind() must be called before load()");
  if (static_cast<std::size_t>(device) >= bound->loaded.size() || bound->loaded[device]) return;
  load_kernels(device);
  bound->loaded[device] = true;
}

// The tensor among `copies` that is on a device, as the kernel reads it.
DeviceScalar scalar_on(const py::list& copies, int device) {
  for (const py::handle copy : copies) {
    const DeviceScalar scalar = bound->gatekeeper.scalar(copy, device);
    if (scalar.data) return scalar;
  }
  throw std::invalid_argument(
      "grad_scale and found_inf must be float32 or float64, of one"
      " element, with a copy on device " +
      std::to_string(device));
}

std::vector<DeviceContext> contexts_of(const TensorTable& table, const py::list& grad_scales,
                                       const py::list& found_infs) {
  std::vector<DeviceContext> contexts;
  for (const TensorEntry& entry : table.entries) {
    bool known = false;
    for (const DeviceContext& context : contexts) known = known || context.device == entry.device;
    if (known) continue;
    load(entry.device);
    contexts.push_back({entry.device, bound->gatekeeper.stream(entry.device),
                        grad_scales.empty() ? DeviceScalar{} : scalar_on(grad_scales, entry.device),
                        found_infs.empty() ? DeviceScalar{} : scalar_on(found_infs, entry.device)});
  }
  return contexts;
}

std::unique_ptr<Plan> step(py::list groups, py::list grad_scales, py::list found_infs) {
  if (!bound) throw std::runtime_error("proxadam._cuda.bind() must be called before step()");
  Admission admission = bound->gatekeeper.admit(groups, !grad_scales.empty());
  const auto contexts = contexts_of(admission.table, grad_scales, found_infs);
  return launch_if_whole(std::make_unique<Plan>(
      py::make_tuple(groups, grad_scales, found_infs), std::move(admission), 1,
      [contexts](const TensorTable& table) { step_cuda(table, contexts); }));
}

}  // namespace

PYBIND11_MODULE(_cuda, m, py::mod_gil_not_used()) {
  m.doc() = "The proximal Adam step on CUDA devices. proxadam.backends is its only user.";
  define_plan(m);
  m.def(
      "bind",
      [](py::capsule exchange, py::type tensor, py::type parameter, std::uintptr_t storage_bytes,
         std::uintptr_t storage_offset) {
        const StorageFunctions storage{
            reinterpret_cast<StorageFunctions::Function>(storage_bytes),
            reinterpret_cast<StorageFunctions::Function>(storage_offset)};
        std::vector<bool> usable = usable_devices();
        check_driver();
        const std::vector<bool> none(usable.size());
        auto* fresh = new Bound{{exchange, tensor, parameter, kDLCUDA, usable, storage}, none};
        std::swap(bound, fresh);
        delete fresh;
      },
      py::arg("exchange"), py::arg("tensor"), py::arg("parameter"), py::arg("storage_bytes") = 0,
      py::arg("storage_offset") = 0,
      "Tell the module about this process's torch: its DLPack exchange table, its two tensor\n"
      "types, and the addresses of aoti_torch_get_storage_size and aoti_torch_get_storage_offset\n"
      "(0: do not ask how large a storage is). Raises RuntimeError where no device can run the\n"
      "kernel, or the driver is too old for it.");
  m.def("load", &load, py::arg("device"),
        "Load every kernel to a device, once: while a graph is captured it would be too late.");
  m.def("step", &step, py::arg("groups"), py::arg("grad_scales") = py::list(),
        py::arg("found_infs") = py::list(),
        "Queue the step of every parameter of every Group on torch's current streams and return\n"
        "None; or, where some tensor does not fit the kernel, queue nothing and return a Plan.\n"
        "`grad_scales` and `found_infs` have a copy on each device, or none; the kernel reads\n"
        "them: gradients are divided by the one and written back divided, and a found_inf that\n"
        "is not zero leaves everything as it is. Counters on the host are advanced at once, so\n"
        "found_inf needs the counters on the device.");
  m.def("chunk_for", &chunk_for, py::arg("numel"), py::arg("multiprocessors"),
        "Elements of a chunk, for a launch over so many elements on such a device; for tests.");
}
