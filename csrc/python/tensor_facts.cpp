// Finds the at::Tensor in a Python tensor, and asks libtorch, DLPack or Python about it.

#include "tensor_facts.h"

#include <vector>  // for vector

namespace proxadam {
namespace {

namespace py = pybind11;

// Where in the Python objects of a type the at::Tensor is, looked for in an example by the one
// pointer that it consists of, which Python knows as `_cdata`; 0 if it is not found. Asking each
// tensor for its `_cdata` would cost more than all else that is looked at.
std::size_t find_at_tensor(const py::type& type) {
  const py::object example = type();
  const auto address = example.attr("_cdata").cast<std::uintptr_t>();
  const auto* object = reinterpret_cast<const char*>(example.ptr());
  const auto size = static_cast<std::size_t>(Py_TYPE(example.ptr())->tp_basicsize);
  for (std::size_t at = sizeof(PyObject); at + sizeof(address) <= size; at += sizeof(address)) {
    if (*reinterpret_cast<const std::uintptr_t*>(object + at) == address) return at;
  }
  return 0;
}

}  // namespace

TensorFacts::TensorFacts(const DLPackExchangeAPI& exchange, const py::type& tensor,
                         const py::type& parameter, const Functions& functions)
    : exchange_(exchange),
      at_tensor_(find_at_tensor(tensor)),
      disable_torch_function_(
          py::module_::import("torch").attr("_C").attr("DisableTorchFunction")) {
  if (!at_tensor_ || at_tensor_ != find_at_tensor(parameter)) return;
  learn_views(functions);
  storage_size_ = find<Ask<std::int64_t>>(functions, "storage_size");
  storage_offset_ = find<Ask<std::int64_t>>(functions, "storage_offset");
  if (!storage_offset_) storage_size_ = nullptr;

  const auto is_neg = find<Bit>(functions, "is_neg");
  const auto is_inference = find<Bit>(functions, "is_inference");
  const py::object plain = tensor();
  const py::object negated = plain.attr("_neg_view")();
  if (is_neg && !is_neg(at_tensor(plain.ptr())) && is_neg(at_tensor(negated.ptr()))) {
    is_neg_ = is_neg;
  }
  if (is_inference &&
      is_inference(at_tensor(plain.ptr())) == plain.attr("is_inference")().cast<bool>()) {
    is_inference_ = is_inference;
  }
}

// The examples are in the middle of their storages, and transposed.
void TensorFacts::learn_views(const Functions& functions) {
  const py::module_ torch = py::module_::import("torch");
  std::vector<py::object> alive;
  std::vector<TorchViews::Example> examples;
  for (const char* dtype : {"float32", "float64", "bfloat16", "float16"}) {
    const py::object whole =
        torch.attr("empty")(4, 3, py::arg("dtype") = torch.attr(dtype), py::arg("device") = "cpu");
    alive.push_back(whole.attr("narrow")(0, 1, 2).attr("t")());
    DLTensor shown;
    if (!view_by_dlpack(alive.back().ptr(), shown)) return;
    examples.emplace_back(at_tensor(alive.back().ptr()), shown);
  }
  views_.learn(functions, examples);
}

bool TensorFacts::view(PyObject* tensor, bool written, DLTensor& out) const {
  return views_.view(at_tensor(tensor), written, out) || view_by_dlpack(tensor, out);
}

bool TensorFacts::view_by_dlpack(PyObject* tensor, DLTensor& out) const {
  if (exchange_.dltensor_from_py_object_no_sync(tensor, &out) != 0) {
    PyErr_Clear();  // Python's checks will say it
    return false;
  }
  out.data = static_cast<char*>(out.data) + out.byte_offset;
  return true;
}

bool TensorFacts::is_neg(PyObject* tensor) const {
  if (is_neg_) return is_neg_(at_tensor(tensor));
  return py::handle(tensor).attr("is_neg")().cast<bool>();
}

bool TensorFacts::is_inference(PyObject* tensor) const {
  if (is_inference_) return is_inference_(at_tensor(tensor));
  return py::handle(tensor).attr("is_inference")().cast<bool>();
}

bool TensorFacts::holds(PyObject* tensor, std::int64_t elements, std::int64_t itemsize) const {
  std::int64_t bytes = 0, offset = 0;
  if (storage_size_) {
    if (storage_size_(at_tensor(tensor), &bytes)) return false;
    if (storage_offset_(at_tensor(tensor), &offset)) return false;
  } else {
    const py::handle handle(tensor);
    bytes = handle.attr("untyped_storage")().attr("nbytes")().cast<std::int64_t>();
    offset = handle.attr("storage_offset")().cast<std::int64_t>();
  }
  return (offset + elements) * itemsize <= bytes;
}

TensorFacts::Quiet::Quiet(const TensorFacts& facts) {
  if (facts.storage_size_ && facts.is_neg_ && facts.is_inference_) return;
  guard_ = facts.disable_torch_function_();
  guard_.attr("__enter__")();
}

TensorFacts::Quiet::~Quiet() {
  if (!guard_) return;
  try {
    guard_.attr("__exit__")(py::none(), py::none(), py::none());
  } catch (py::error_already_set& error) {
    error.discard_as_unraisable("TensorFacts::Quiet");
  }
}

}  // namespace proxadam
