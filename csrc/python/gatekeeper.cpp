#include "gatekeeper.h"

#include <algorithm>  // for binary_search, sort, unique
#include <array>      // for array
#include <stdexcept>  // for invalid_argument, runtime_error
#include <string>     // for string, to_string
#include <utility>    // for move

#include "overlap.h"      // for Extent, extent_of, overlapping
#include "tensor_view.h"  // for is_dense, numel, same_layout, ...

namespace proxadam {
namespace {

namespace py = pybind11;

enum Slot { kParam, kGrad, kExpAvg, kExpAvgSq, kMaxExpAvgSq, kStep, kSlots };
constexpr const char* kListNames[kSlots] = {"params",      "grads",           "exp_avgs",
                                            "exp_avg_sqs", "max_exp_avg_sqs", "state_steps"};

bool flag(py::handle group, const char* name) {
  const int truth = PyObject_IsTrue(py::object(group.attr(name)).ptr());
  if (truth < 0) throw py::error_already_set();
  return truth;
}

// Where in the Python objects of a type the at::Tensor is, looked for in an example by the one
// pointer that it consists of; 0 if it is not found.
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

constexpr std::int32_t kAnyDevice = -1;

// Whether a kernel on `device` can read all of these.
bool reaches(const DeviceOptions& options, std::int32_t device) {
  for (const DeviceScalar& scalar :
       {options.lr, options.beta1, options.beta2, options.l1, options.l2}) {
    if (scalar.data && scalar.device != device) return false;
  }
  return true;
}

}  // namespace

Gatekeeper::Gatekeeper(py::capsule exchange, py::type tensor, py::type parameter,
                       DLDeviceType device_type, std::vector<bool> devices,
                       StorageFunctions storage)
    : exchange_(exchange.get_pointer<DLPackExchangeAPI>()),
      tensor_(std::move(tensor)),
      parameter_(std::move(parameter)),
      is_neg_(tensor_.attr("is_neg")),
      version_(py::reinterpret_steal<py::str>(PyUnicode_InternFromString("_version"))),
      untyped_storage_(tensor_.attr("untyped_storage")),
      device_type_(device_type),
      devices_(std::move(devices)),
      storage_(storage) {
  const DLPackVersion& version = exchange_->header.version;
  if (version.major != 1 || !exchange_->dltensor_from_py_object_no_sync) {
    throw std::runtime_error("torch's DLPack exchange table is of version " +
                             std::to_string(version.major) + "." + std::to_string(version.minor) +
                             ", which this build of proxadam does not know; it knows 1.x");
  }
  if (storage_.bytes && storage_.offset) {
    at_tensor_ = find_at_tensor(tensor_);
    if (at_tensor_ != find_at_tensor(parameter_)) at_tensor_ = 0;
  }
}

Admission Gatekeeper::admit(const py::list& groups, bool writes_grads) const {
  Admission admission;
  TensorTable& table = admission.table;
  admission.rejected.resize(groups.size());
  std::vector<std::size_t> positions;  // of each entry, in its group's lists
  std::vector<Extent> extents;

  for (std::size_t g = 0; g < groups.size(); ++g) {
    const py::handle group = groups[g];
    DeviceOptions device_options{};
    const Options options = read_options(group, device_options);
    table.options.push_back(options);
    table.device_options.push_back(device_options);

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
      if (writes_grads && view(tensors[kGrad], grad)) extents.push_back(extent_of(grad, g, i));
      TensorEntry entry{};
      entry.group = static_cast<std::uint32_t>(g);
      if (!seen || !fits(param, tensors, options.amsgrad, entry) ||
          !reaches(device_options, entry.device)) {
        admission.rejected[g].push_back(i);
        continue;
      }
      table.entries.push_back(entry);
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
      const auto& rejected = admission.rejected[table.entries[i].group];
      if (std::binary_search(rejected.begin(), rejected.end(), positions[i])) continue;
      table.entries[kept++] = table.entries[i];
    }
    table.entries.resize(kept);
  }
  return admission;
}

Options Gatekeeper::read_options(py::handle group, DeviceOptions& device_options) const {
  DeviceScalar none{};
  Options o;
  o.lr = number(group, "lr", device_options.lr);
  o.beta1 = number(group, "beta1", device_options.beta1);
  o.beta2 = number(group, "beta2", device_options.beta2);
  o.eps = number(group, "eps", none);
  o.weight_decay = number(group, "weight_decay", none);
  o.l1 = number(group, "l1", device_options.l1);
  o.l2 = number(group, "l2", device_options.l2);
  o.max_shrink = number(group, "max_shrink", none);
  o.euclidean = group.attr("metric").cast<std::string>() == "euclidean";
  o.amsgrad = flag(group, "amsgrad");
  o.maximize = flag(group, "maximize");
  o.decoupled_weight_decay = flag(group, "decoupled_weight_decay");
  return o;
}

double Gatekeeper::number(py::handle group, const char* name, DeviceScalar& on_device) const {
  const py::object attribute = group.attr(name);
  if (!PyFloat_Check(attribute.ptr()) && device_type_ != kDLCPU) {
    on_device = scalar(attribute, kAnyDevice);
    if (on_device.data) return 0;
  }
  const double value = PyFloat_AsDouble(py::float_(attribute).ptr());
  if (PyErr_Occurred()) throw py::error_already_set();
  return value;
}

DeviceScalar Gatekeeper::scalar(py::handle tensor, std::int32_t device) const {
  DLTensor seen;
  DeviceScalar found{};
  if (!view(tensor.ptr(), seen) || seen.device.device_type != device_type_ || numel(seen) != 1 ||
      (device != kAnyDevice && seen.device.device_id != device) ||
      !scalar_type(seen.dtype, found.dtype) || is_16_bit(found.dtype)) {
    return {};
  }
  found.data = seen.data;
  found.device = seen.device.device_id;
  return found;
}

void* Gatekeeper::stream(std::int32_t device) const {
  void* stream = nullptr;
  if (exchange_->current_work_stream(device_type_, device, &stream) != 0) {
    throw py::error_already_set();
  }
  return stream;
}

bool Gatekeeper::fits(const DLTensor& param, PyObject* const* tensors, bool amsgrad,
                      TensorEntry& entry) const {
  DLTensor other;
  ScalarType type;
  if (param.device.device_type != device_type_ || !scalar_type(param.dtype, entry.types.param)) {
    return false;
  }
  entry.device = param.device.device_id;
  if (static_cast<std::size_t>(entry.device) >= devices_.size() || !devices_[entry.device]) {
    return false;
  }
  entry.numel = numel(param);
  if (!is_dense(param, entry.numel) || !is_whole(param) || !is_allocated(tensors[kParam], param)) {
    return false;
  }
  entry.param = param.data;
  entry.types.grad = entry.types.state = entry.types.param;

  void** addresses[kSlots] = {nullptr, &entry.grad, &entry.exp_avg, &entry.exp_avg_sq,
                              &entry.max_exp_avg_sq};
  for (int slot = kGrad; slot <= (amsgrad ? kMaxExpAvgSq : kExpAvgSq); ++slot) {
    if (!view(tensors[slot], other) || !same_device(param, other) ||
        !scalar_type(other.dtype, type) || !goes_with(entry.types.param, type) ||
        !same_layout(param, other, entry.numel) || !is_whole(other) ||
        !is_allocated(tensors[slot], other)) {
      return false;
    }
    if (slot == kGrad) entry.types.grad = type;
    if (slot == kExpAvg) entry.types.state = type;
    if (slot > kExpAvg && type != entry.types.state) return false;
    *addresses[slot] = other.data;
  }
  if (!counts(tensors[kStep], entry, entry.counter)) return false;
  if (entry.counter.on_host) entry.step = entry.counter.read() + 1;

  // DLPack does not show these: a view that negates on reading, and a tensor that may be written
  // in inference mode alone.
  return !is_inference(tensors[kParam]) && !is_negated(tensors[kParam]) &&
         !is_negated(tensors[kGrad]);
}

bool Gatekeeper::counts(PyObject* tensor, const TensorEntry& entry, StepCounter& counter) const {
  DLTensor step;
  ScalarType type;
  if (!view(tensor, step) || numel(step) != 1 || !scalar_type(step.dtype, type) ||
      is_16_bit(type) || !is_allocated(tensor, step)) {
    return false;
  }
  counter = {step.data, type == ScalarType::kFloat64, step.device.device_type == kDLCPU};
  if (counter.on_host) return counter.read() >= 0;  // NaN is not
  return step.device.device_type == device_type_ && step.device.device_id == entry.device;
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
  if (numel(view) == 0) return true;
  if (at_tensor_) {
    void* at_tensor = reinterpret_cast<char*>(tensor) + at_tensor_;
    std::int64_t bytes = 0, offset = 0;
    if (storage_.bytes(at_tensor, &bytes) || storage_.offset(at_tensor, &offset)) return false;
    return (offset + span(view)) * (view.dtype.bits / 8) <= bytes;
  }
  // A freed storage has no address, and a view into it is at the view's offset from zero. No
  // process maps tensors below 1 TiB on the usual 47-bit layout; where one does, ask the storage.
  constexpr std::uintptr_t kLow = std::uintptr_t{1} << 40;
  if (reinterpret_cast<std::uintptr_t>(view.data) >= kLow) return true;
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
