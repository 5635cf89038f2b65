// What is asked of a torch tensor: where it is and how it lies there, its storage's size, and two
// bits of its state.
//
// Functions of libtorch_cpu answer it, called by address on the at::Tensor in a Python tensor, in a
// few nanoseconds. Where one is not found, or does not know, DLPack's exchange table and the
// methods of torch.Tensor do, which cost four and twenty times that; no override of torch functions
// runs in any case.

#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>  // for int64_t

#include "dlpack_exchange.h"  // for DLPackExchangeAPI, DLTensor
#include "torch_views.h"      // for Ask, Functions, TorchViews

namespace proxadam {

class TensorFacts {
 public:
  // `functions` are believed if they are right about examples. Those of at::native, is_neg and
  // is_inference, are no stable interface; the others are.
  TensorFacts(const DLPackExchangeAPI& exchange, const pybind11::type& tensor,
              const pybind11::type& parameter, const Functions& functions);

  // The tensors below are exactly of one of the two types.

  // A view that is true as long as no Python code runs; false for a tensor that has none. A lazy
  // clone that is `written` gets memory of its own here, as it must have before a kernel writes it;
  // one that is not goes on sharing, if the functions are there.
  bool view(PyObject* tensor, bool written, DLTensor& out) const;

  // Whether a tensor is no longer where it was seen: a lazy clone that is written moves, and with
  // it all that is in its storage.
  bool moved(PyObject* tensor, const void* seen) const {
    return views_.moved(at_tensor(tensor), seen);
  }

  // Asks memory for most of what the questions read.
  void prefetch(PyObject* tensor) const {
    if (!at_tensor_) return;
    const char* impl = *static_cast<const char* const*>(at_tensor(tensor));
    for (int line = 0; line < 256; line += 64) __builtin_prefetch(impl + line);
  }

  bool is_neg(PyObject* tensor) const;
  bool is_inference(PyObject* tensor) const;

  // Whether the storage holds `elements` from the tensor's first one on.
  bool holds(PyObject* tensor, std::int64_t elements, std::int64_t itemsize) const;

  // Keeps overrides of torch functions from running while it lives: they could free what has been
  // looked at. Costs nothing where no method is called.
  class Quiet {
   public:
    explicit Quiet(const TensorFacts& facts);
    ~Quiet();
    Quiet(const Quiet&) = delete;
    Quiet& operator=(const Quiet&) = delete;

   private:
    pybind11::object guard_;
  };

 private:
  using Bit = bool (*)(const void* at_tensor);

  bool view_by_dlpack(PyObject* tensor, DLTensor& out) const;
  void learn_views(const Functions& functions);

  const void* at_tensor(PyObject* tensor) const {
    return reinterpret_cast<const char*>(tensor) + at_tensor_;
  }

  const DLPackExchangeAPI& exchange_;
  std::size_t at_tensor_ = 0;  // where in a Python tensor its at::Tensor is; 0: not known
  TorchViews views_;
  Ask<std::int64_t> storage_size_ = nullptr;
  Ask<std::int64_t> storage_offset_ = nullptr;
  Bit is_neg_ = nullptr;
  Bit is_inference_ = nullptr;
  pybind11::object disable_torch_function_;
};

}  // namespace proxadam
