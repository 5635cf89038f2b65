#include "gatekeeper.h"

#include <algorithm>  // for binary_search, sort, unique
#include <array>      // for array
#include <stdexcept>  // for invalid_argument, runtime_error
#include <string>     // for string, to_string
#include <utility>    // for move, pair

namespace proxadam {
namespace {

namespace py = pybind11;

enum Slot { kParam, kGrad, kExpAvg, kExpAvgSq, kMaxExpAvgSq, kStep, kSlots };
constexpr const char* kListNames[kSlots] = {"params",      "grads",           "exp_avgs",
                                            "exp_avg_sqs", "max_exp_avg_sqs", "state_steps"};

double number(py::handle group, const char* name) {
  const double value = PyFloat_AsDouble(py::float_(group.attr(name)).ptr());
  if (PyErr_Occurred()) throw py::error_already_set();
  return value;
}

bool flag(py::handle group, const char* name) { return group.attr(name).cast<bool>(); }

Options read_options(py::handle group) {
  Options o;
  o.lr = number(group, "lr");
  o.beta1 = number(group, "beta1");
  o.beta2 = number(group, "beta2");
  o.eps = number(group, "eps");
  o.weight_decay = number(group, "weight_decay");
  o.l1 = number(group, "l1");
  o.l2 = number(group, "l2");
  o.max_shrink = number(group, "max_shrink");
  o.euclidean = group.attr("metric").cast<std::string>() == "euclidean";
  o.amsgrad = flag(group, "amsgrad");
  o.maximize = flag(group, "maximize");
  o.decoupled_weight_decay = flag(group, "decoupled_weight_decay");
  return o;
}

bool scalar_type(const DLDataType& dtype, ScalarType& out) {
  if (dtype.lanes != 1) return false;
  if (dtype.code == kDLBfloat && dtype.bits == 16) return out = ScalarType::kBFloat16, true;
  if (dtype.code != kDLFloat) return false;
  if (dtype.bits == 32) return out = ScalarType::kFloat32, true;
  if (dtype.bits == 64) return out = ScalarType::kFloat64, true;
  if (dtype.bits == 16) return out = ScalarType::kFloat16, true;
  return false;
}

std::int64_t numel(const DLTensor& t) {
  std::int64_t n = 1;
  for (int d = 0; d < t.ndim; ++d) n *= t.shape[d];
  return n;
}

// Whether the elements fill one stretch of memory, each place once, in any order of dimensions.
bool is_dense(const DLTensor& t, std::int64_t numel) {
  std::int64_t expected = 1;
  int d = t.ndim - 1;
  while (d >= 0 && (t.shape[d] == 1 || t.strides[d] == expected)) expected *= t.shape[d--];
  if (d < 0 || numel == 0) return true;

  std::vector<std::pair<std::int64_t, std::int64_t>> dims;  // stride, size
  for (d = 0; d < t.ndim; ++d) {
    if (t.shape[d] != 1) dims.emplace_back(t.strides[d], t.shape[d]);
  }
  std::sort(dims.begin(), dims.end());
  expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// Whether one index finds the same element in both.
bool same_layout(const DLTensor& a, const DLTensor& b, std::int64_t numel) {
  if (a.ndim != b.ndim) return false;
  for (int d = 0; d < a.ndim; ++d) {
    if (a.shape[d] != b.shape[d]) return false;
    if (a.strides[d] != b.strides[d] && a.shape[d] != 1 && numel != 0) return false;
  }
  return true;
}

bool same_place_and_type(const DLTensor& a, const DLTensor& b) {
  return a.dtype.code == b.dtype.code && a.dtype.bits == b.dtype.bits &&
         a.dtype.lanes == b.dtype.lanes && a.device.device_type == b.device.device_type &&
         a.device.device_id == b.device.device_id;
}

// Memory that the step writes, and the parameter on whose behalf.
struct Extent {
  const char* begin;
  const char* end;
  std::size_t group;
  std::size_t position;  // in the group's lists
};

Extent extent_of(const DLTensor& t, std::size_t group, std::size_t position) {
  std::int64_t elements = numel(t) ? 1 : 0;
  for (int d = 0; d < t.ndim && elements; ++d) elements += (t.shape[d] - 1) * t.strides[d];
  const auto* begin = static_cast<const char*>(t.data);
  return {begin, begin + elements * (t.dtype.bits / 8), group, position};
}

// (group, position) of what shares memory with something else. Two threads must not write it in
// one region, nor the kernel before torch ops do: those take them one after the other.
std::vector<std::pair<std::size_t, std::size_t>> overlapping(std::vector<Extent> extents) {
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  std::vector<std::pair<std::size_t, std::size_t>> found;
  const Extent* furthest = nullptr;
  for (const Extent& extent : extents) {
    if (extent.begin == extent.end) continue;
    if (furthest && extent.begin < furthest->end) {
      found.emplace_back(furthest->group, furthest->position);
      found.emplace_back(extent.group, extent.position);
    }
    if (!furthest || extent.end > furthest->end) furthest = &extent;
  }
  return found;
}

}  // namespace

Gatekeeper::Gatekeeper(py::capsule exchange, py::type tensor, py::type parameter)
    : exchange_(exchange.get_pointer<DLPackExchangeAPI>()),
      tensor_(std::move(tensor)),
      parameter_(std::move(parameter)),
      is_neg_(tensor_.attr("is_neg")),
      version_(py::reinterpret_steal<py::str>(PyUnicode_InternFromString("_version"))),
      untyped_storage_(tensor_.attr("untyped_storage")) {
  const DLPackVersion& version = exchange_->header.version;
  if (version.major != 1 || !exchange_->dltensor_from_py_object_no_sync) {
    throw std::runtime_error("torch's DLPack exchange table is of version " +
                             std::to_string(version.major) + "." + std::to_string(version.minor) +
                             ", which this build of proxadam does not know; it knows 1.x");
  }
}

Admission Gatekeeper::admit(const py::list& groups, double grad_scale, DLDeviceType device) const {
  Admission admission;
  admission.table.grad_scale = grad_scale;
  admission.rejected.resize(groups.size());
  std::vector<std::size_t> positions;  // of each entry, in its group's lists
  std::vector<Extent> extents;

  for (std::size_t g = 0; g < groups.size(); ++g) {
    const py::handle group = groups[g];
    const Options options = read_options(group);
    admission.table.options.push_back(options);

    std::array<py::list, kSlots> lists;
    for (int slot = 0; slot < kSlots; ++slot) lists[slot] = group.attr(kListNames[slot]);
    for (int slot = 0; slot < kSlots; ++slot) {
      if (slot == kMaxExpAvgSq && !options.amsgrad) continue;
      if (lists[slot].size() != lists[kParam].size()) {
        throw std::invalid_argument(std::string(kListNames[slot]) + " and params differ in length");
      }
    }
    for (std::size_t i = 0; i < lists[kParam].size(); ++i) {
      PyObject* tensors[kSlots] = {};
      for (int slot = 0; slot < kSlots; ++slot) {
        if (slot == kMaxExpAvgSq && !options.amsgrad) continue;
        tensors[slot] = PyList_GET_ITEM(lists[slot].ptr(), static_cast<Py_ssize_t>(i));
      }
      DLTensor param, grad;
      const bool seen = view(tensors[kParam], param);
      if (seen) extents.push_back(extent_of(param, g, i));
      if (grad_scale != 1 && view(tensors[kGrad], grad)) {
        extents.push_back(extent_of(grad, g, i));
      }
      TensorEntry entry{};
      StepCounter counter{};
      if (!seen || !fits(param, tensors, options.amsgrad, device, entry, counter)) {
        admission.rejected[g].push_back(i);
        continue;
      }
      entry.group = static_cast<std::uint32_t>(g);
      admission.table.entries.push_back(entry);
      admission.counters.push_back(counter);
      positions.push_back(i);
    }
  }

  const auto shared = overlapping(std::move(extents));
  for (const auto& [group, position] : shared) admission.rejected[group].push_back(position);
  for (std::vector<std::size_t>& indices : admission.rejected) {
    std::sort(indices.begin(), indices.end());
    indices.erase(std::unique(indices.begin(), indices.end()), indices.end());
  }
  if (!shared.empty()) {
    std::size_t kept = 0;
    for (std::size_t i = 0; i < positions.size(); ++i) {
      const auto& rejected = admission.rejected[admission.table.entries[i].group];
      if (std::binary_search(rejected.begin(), rejected.end(), positions[i])) continue;
      admission.table.entries[kept] = admission.table.entries[i];
      admission.counters[kept++] = admission.counters[i];
    }
    admission.table.entries.resize(kept);
    admission.counters.resize(kept);
  }
  return admission;
}

bool Gatekeeper::fits(const DLTensor& param, PyObject* const* tensors, bool amsgrad,
                      DLDeviceType device, TensorEntry& entry, StepCounter& counter) const {
  DLTensor other, step;
  if (param.device.device_type != device || !scalar_type(param.dtype, entry.dtype)) return false;
  entry.numel = numel(param);
  if (!is_dense(param, entry.numel) || !is_allocated(tensors[kParam], param)) return false;
  entry.param = param.data;

  void** addresses[kSlots] = {nullptr, &entry.grad, &entry.exp_avg, &entry.exp_avg_sq,
                              &entry.max_exp_avg_sq};
  for (int slot = kGrad; slot <= (amsgrad ? kMaxExpAvgSq : kExpAvgSq); ++slot) {
    if (!view(tensors[slot], other) || !same_place_and_type(param, other) ||
        !same_layout(param, other, entry.numel) || !is_allocated(tensors[slot], other)) {
      return false;
    }
    *addresses[slot] = other.data;
  }

  ScalarType step_type;
  if (!view(tensors[kStep], step) || step.device.device_type != kDLCPU || numel(step) != 1 ||
      !scalar_type(step.dtype, step_type) || !is_allocated(tensors[kStep], step)) {
    return false;
  }
  if (step_type != ScalarType::kFloat32 && step_type != ScalarType::kFloat64) return false;
  counter = {step.data, step_type == ScalarType::kFloat64};
  if (!(counter.read() >= 0)) return false;  // NaN too

  // DLPack does not show these: a view that negates on reading, and a tensor that may be written
  // in inference mode alone.
  return !is_inference(tensors[kParam]) && !is_negated(tensors[kParam]) &&
         !is_negated(tensors[kGrad]);
}

bool Gatekeeper::view(PyObject* tensor, DLTensor& out) const {
  const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(tensor));
  if (type != tensor_.ptr() && type != parameter_.ptr()) return false;  // a subclass may mean more
  if (exchange_->dltensor_from_py_object_no_sync(tensor, &out) == 0) {
    out.data = static_cast<char*>(out.data) + out.byte_offset;
    return true;
  }
  PyErr_Clear();  // sparse, quantised, no storage, ...: Python's checks will say it
  return false;
}

bool Gatekeeper::is_allocated(PyObject* tensor, const DLTensor& view) const {
  // A freed storage has no address, and a view into it is at the view's offset from zero. No
  // process maps tensors below 1 TiB on the usual 47-bit layout; where one does, ask the storage.
  constexpr std::uintptr_t kLow = std::uintptr_t{1} << 40;
  if (reinterpret_cast<std::uintptr_t>(view.data) >= kLow || numel(view) == 0) return true;
  const auto storage = untyped_storage_(py::handle(tensor));
  return storage.attr("data_ptr")().cast<std::uintptr_t>() != 0;
}

bool Gatekeeper::is_negated(PyObject* tensor) const {
  PyObject* answer = PyObject_CallOneArg(is_neg_.ptr(), tensor);
  if (!answer) throw py::error_already_set();
  Py_DECREF(answer);
  return answer == Py_True;
}

bool Gatekeeper::is_inference(PyObject* tensor) const {
  // Inference tensors are those that have no version; asking for it is half the price of
  // Tensor.is_inference(), which lets the GIL go and takes it again.
  PyObject* version = PyObject_GetAttr(tensor, version_.ptr());
  if (!version) PyErr_Clear();
  Py_XDECREF(version);
  return !version;
}

}  // namespace proxadam
