// Looks at the tensors of a step as they are now and decides which the kernel may write.
//
// The only code that turns Python tensors into addresses. It writes nothing and raises nothing for
// a tensor that does not fit: that one is turned away, and Python says why or uses torch ops.

#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>  // for int32_t
#include <vector>   // for vector

#include "../tensor_table.h"  // for TensorTable
#include "dlpack_exchange.h"  // for DLPackExchangeAPI, DLTensor

namespace proxadam {

struct Admission {
  TensorTable table;
  std::vector<std::vector<std::size_t>> rejected;  // for each group, the parameters turned away
};

// Two functions of torch's stable C interface, by their addresses. They take a pointer to an
// at::Tensor, which is one pointer to what `Tensor._cdata` names, and return 0 if all went well.
struct StorageFunctions {
  using Function = std::int32_t (*)(void* tensor, std::int64_t* out);

  Function bytes = nullptr;   // aoti_torch_get_storage_size
  Function offset = nullptr;  // aoti_torch_get_storage_offset, in elements
};

class Gatekeeper {
 public:
  // `exchange`: torch.Tensor.__dlpack_c_exchange_api__. Throws std::runtime_error if its version
  // is not one that we know. `devices`: for each of this type, whether the kernel runs there.
  // Without `storage`, a storage that was freed is noticed and one that was cut short is not.
  Gatekeeper(pybind11::capsule exchange, pybind11::type tensor, pybind11::type parameter,
             DLDeviceType device_type, std::vector<bool> devices, StorageFunctions storage = {});

  // `groups`: proxadam._group.Group objects. Turns away what does not fit and what shares memory
  // with another parameter, or with another's gradient where those are written too.
  // Throws std::invalid_argument if the lists of one differ in length.
  Admission admit(const pybind11::list& groups, bool writes_grads) const;

  // The one float32 or float64 of a tensor, if it is on `device`; else an empty one.
  DeviceScalar scalar(pybind11::handle tensor, std::int32_t device) const;

  // torch's current stream there.
  void* stream(std::int32_t device) const;

 private:
  Options read_options(pybind11::handle group, DeviceOptions& device_options) const;
  double number(pybind11::handle group, const char* name, DeviceScalar& on_device) const;
  bool fits(const DLTensor& param, PyObject* const* tensors, bool amsgrad,
            TensorEntry& entry) const;
  bool counts(PyObject* tensor, const TensorEntry& entry, StepCounter& counter) const;
  bool view(PyObject* tensor, DLTensor& out) const;
  bool is_allocated(PyObject* tensor, const DLTensor& view) const;
  bool is_negated(PyObject* tensor) const;
  bool is_inference(PyObject* tensor) const;

  const DLPackExchangeAPI* exchange_;
  pybind11::type tensor_;
  pybind11::type parameter_;
  pybind11::object is_neg_;
  pybind11::str version_;
  pybind11::object untyped_storage_;
  DLDeviceType device_type_;
  std::vector<bool> devices_;
  StorageFunctions storage_;
  std::size_t at_tensor_ = 0;  // where in a Python tensor its at::Tensor is; 0: not known
};

}  // namespace proxadam
