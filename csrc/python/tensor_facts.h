// What DLPack does not tell of a torch tensor: its storage's size, and two bits of its state.
//
// Functions of libtorch_cpu answer it, called by address on the at::Tensor in a Python tensor, in a
// few nanoseconds. Where one is not found, the methods of torch.Tensor do, which cost twenty times
// that; no override of torch functions runs in either case.

#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>  // for int32_t, int64_t, uintptr_t
#include <map>      // for map
#include <string>   // for string

namespace proxadam {

// Addresses of functions in this process, by names of ours; 0 or absent: not found.
using Functions = std::map<std::string, std::uintptr_t>;

class TensorFacts {
 public:
  // `functions`: storage_size and storage_offset, the stable C functions
  // aoti_torch_get_storage_size and aoti_torch_get_storage_offset; is_neg and is_inference, those
  // of at::native.
  TensorFacts(const pybind11::type& tensor, const pybind11::type& parameter,
              const Functions& functions);

  // The tensors below are exactly of one of the two types.

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
  using Size = std::int32_t (*)(const void* tensor, std::int64_t* out);  // 0 if all went well
  using Bit = bool (*)(const void* tensor);

  const void* at_tensor(PyObject* tensor) const {
    return reinterpret_cast<const char*>(tensor) + at_tensor_;
  }

  std::size_t at_tensor_ = 0;  // where in a Python tensor its at::Tensor is; 0: not known
  Size storage_size_ = nullptr;
  Size storage_offset_ = nullptr;
  Bit is_neg_ = nullptr;
  Bit is_inference_ = nullptr;
  pybind11::object disable_torch_function_;
};

}  // namespace proxadam
