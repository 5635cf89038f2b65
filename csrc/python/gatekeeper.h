// Looks at the tensors of a step as they are now and decides which the kernel may write.
//
// The only code that turns Python tensors into addresses. It writes nothing and raises nothing for
// a tensor that does not fit: that one is turned away, and Python says why or uses torch ops.

#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>  // for int64_t
#include <vector>   // for vector

#include "../tensor_table.h"  // for TensorTable
#include "dlpack_exchange.h"  // for DLPackExchangeAPI, DLTensor

namespace proxadam {

// A parameter's `step` tensor: one float32 or float64 on the host.
struct StepCounter {
  void* data;
  bool is_double;

  double read() const {
    return is_double ? *static_cast<double*>(data) : *static_cast<float*>(data);
  }
  void write(double step) const {
    if (is_double) {
      *static_cast<double*>(data) = step;
    } else {
      *static_cast<float*>(data) = static_cast<float>(step);
    }
  }
};

struct Admission {
  TensorTable table;
  std::vector<StepCounter> counters;               // one an entry
  std::vector<std::vector<std::size_t>> rejected;  // for each group, the parameters turned away
};

class Gatekeeper {
 public:
  // `exchange`: torch.Tensor.__dlpack_c_exchange_api__. Throws std::runtime_error if its version
  // is not one that we know.
  Gatekeeper(pybind11::capsule exchange, pybind11::type tensor, pybind11::type parameter);

  // `groups`: proxadam._group.Group objects. Turns away what does not fit and what shares memory
  // with another parameter. Throws std::invalid_argument if the lists of one differ in length.
  Admission admit(const pybind11::list& groups, double grad_scale, DLDeviceType device) const;

 private:
  bool fits(const DLTensor& param, PyObject* const* tensors, bool amsgrad, DLDeviceType device,
            TensorEntry& entry, StepCounter& counter) const;
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
};

}  // namespace proxadam
