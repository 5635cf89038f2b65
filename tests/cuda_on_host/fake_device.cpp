// Passes CPU tensors off as CUDA tensors: torch's DLPack exchange table with another device in it.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <unordered_set>
#include <utility>

#include "../../csrc/python/dlpack_exchange.h"

namespace py = pybind11;

namespace {

DLPackExchangeAPI* torchs = nullptr;
DLPackExchangeAPI ours;
std::unordered_set<std::uintptr_t> on_host;
std::intptr_t current_stream = 0x57;

int view(void* object, DLTensor* out) {
  const int status = torchs->dltensor_from_py_object_no_sync(object, out);
  if (status != 0 || out->device.device_type != kDLCPU) return status;
  if (!on_host.count(reinterpret_cast<std::uintptr_t>(out->data))) {
    out->device.device_type = kDLCUDA;
  }
  return status;
}

int stream(int32_t, int32_t, void** out) {
  *out = reinterpret_cast<void*>(current_stream);
  return 0;
}

}  // namespace

PYBIND11_MODULE(_fake_device, m) {
  m.def(
      "exchange",
      [](py::capsule capsule) {
        torchs = capsule.get_pointer<DLPackExchangeAPI>();
        ours = *torchs;
        ours.dltensor_from_py_object_no_sync = view;
        ours.current_work_stream = stream;
        return py::capsule(&ours, "dlpack_exchange_api");
      },
      "Like torch's exchange table, but its CPU tensors are on CUDA device 0.");
  m.def(
      "keep_on_host",
      [](std::unordered_set<std::uintptr_t> addresses) { on_host = std::move(addresses); },
      "The tensors at these addresses stay on the CPU.");
  m.def(
      "set_stream", [](std::intptr_t address) { current_stream = address; },
      "What torch's current stream is; the runtime knows 0x57 alone.");
}
