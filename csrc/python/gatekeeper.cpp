// Holds what a step was given, looks at it through DLPack's exchange table, and turns away what the
// kernel must not touch.

#include "gatekeeper.h"

#include <algorithm>  // for any_of, binary_search, remove_if, stable_sort, unique
#include <stdexcept>  // for invalid_argument, runtime_error
#include <string>     // for string, to_string
#include <utility>    // for exchange, move

#include "../rounding.h"  // for tensor_key
#include "candidate.h"    // for Candidate, check_memory, Terms
#include "overlap.h"      // for SharedMemory
#include "tensor_view.h"  // for numel, scalar_type, span

namespace proxadam {

namespace py = pybind11;

namespace {

const DLPackExchangeAPI* known_version(const py::capsule& capsule) {
  const auto* exchange = capsule.get_pointer<DLPackExchangeAPI>();
  const DLPackVersion& version = exchange->header.version;
  if (version.major != 1 || !exchange->dltensor_from_py_object_no_sync) {
    throw std::runtime_error("torch's DLPack exchange table is of version " +
                             std::to_string(version.major) + "." + std::to_string(version.minor) +
                             ", which this build of proxadam does not know; it knows 1.x");
  }
  return exchange;
}

py::tuple tuple_of(const py::object& list) {
  PyObject* tuple = PySequence_Tuple(list.ptr());
  if (!tuple) throw py::error_already_set();
  return py::reinterpret_steal<py::tuple>(tuple);
}

bool flag(py::handle options, const char* name) {
  const int truth = PyObject_IsTrue(py::object(options.attr(name)).ptr());
  if (truth < 0) throw py::error_already_set();
  return truth;
}

bool before(const Refusal& a, const Refusal& b) {
  return a.group != b.group ? a.group < b.group : a.param < b.param;
}

// `refusals` are in order.
bool holds(const std::vector<Refusal>& refusals, std::size_t group, std::size_t param) {
  const Refusal wanted{group, param, Reason::fits, kParams};
  return std::binary_search(refusals.begin(), refusals.end(), wanted, before);
}

bool same_param(const Refusal& a, const Refusal& b) {
  return a.group == b.group && a.param == b.param;
}

std::size_t size(const HeldGroup& group) { return group.tensors[kParams].size(); }

// Whether a group may have an empty list of this kind.
bool is_optional(int slot) { return slot == kExpAvgExponents || slot == kExpAvgSqExponents; }

std::vector<std::int64_t> integers(py::handle group, const char* name, std::size_t wanted) {
  std::vector<std::int64_t> read;
  for (const py::handle each : tuple_of(group.attr(name))) {
    read.push_back(each.cast<std::int64_t>());
  }
  if (!read.empty() && read.size() != wanted) {
    throw std::invalid_argument(std::string(name) + " and params differ in length");
  }
  return read;
}

// Adds refusals for what shares memory, which is the stronger reason, and takes those parameters
// out of the table.
void turn_away_shared(const std::vector<std::size_t>& shared, const HeldStep& step,
                      const std::vector<std::size_t>& params, Look& look) {
  if (shared.empty()) return;
  std::vector<Refusal> refusals;
  for (std::size_t param : shared) {
    std::size_t group = 0;
    while (param >= size(step.groups[group])) param -= size(step.groups[group++]);
    refusals.push_back({group, param, Reason::shares_memory, kParams});
  }
  refusals.insert(refusals.end(), look.refusals.begin(), look.refusals.end());
  std::stable_sort(refusals.begin(), refusals.end(), before);
  refusals.erase(std::unique(refusals.begin(), refusals.end(), same_param), refusals.end());
  look.refusals = std::move(refusals);
  auto& entries = look.table.entries;
  std::size_t kept = 0;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (!holds(look.refusals, entries[i].group, params[i])) entries[kept++] = entries[i];
  }
  entries.resize(kept);
}

}  // namespace

Gatekeeper::Gatekeeper(py::capsule exchange, py::type tensor, py::type parameter,
                       DLDeviceType device_type, const std::vector<bool>& devices,
                       TakesRow takes_row, const Functions& functions)
    : exchange_(known_version(exchange)),
      tensor_(std::move(tensor)),
      parameter_(std::move(parameter)),
      facts_(*exchange_, tensor_, parameter_, functions),
      device_type_(device_type),
      devices_(devices),
      takes_row_(takes_row) {}

// ---- holding ----------------------------------------------------------------------------------

HeldStep Gatekeeper::hold(const py::list& groups, const py::list& grad_scales,
                          const py::list& found_infs) const {
  HeldStep step{{}, tuple_of(grad_scales), tuple_of(found_infs)};
  for (const py::handle group : tuple_of(groups)) step.groups.push_back(hold(group));
  return step;
}

HeldGroup Gatekeeper::hold(py::handle group) const {
  HeldGroup held;
  const py::object options = group.attr("options");
  held.unwanted = !flag(options, "allows_kernel");
  py::object tensor;
#define PROXADAM_HOLD(name)                           \
  held.options.name = number(options, #name, tensor); \
  if (tensor) held.on_device.emplace_back(&Options::name, std::move(tensor));
#define PROXADAM_HOLD_FLAG(name) held.options.name = flag(options, #name);
#define PROXADAM_HOLD_INTEGER(name) held.options.name = options.attr(#name).cast<std::int64_t>();
  PROXADAM_OPTIONS(PROXADAM_HOLD, PROXADAM_HOLD_FLAG, PROXADAM_HOLD_INTEGER)
#undef PROXADAM_HOLD
#undef PROXADAM_HOLD_FLAG
#undef PROXADAM_HOLD_INTEGER
  for (int slot = 0; slot < kSlots; ++slot) {
    if (slot == kMaxExpAvgSqs && !held.options.amsgrad) continue;
    held.tensors[slot] = tuple_of(group.attr(kSlotNames[slot]));
    if (held.tensors[slot].empty() && is_optional(slot)) continue;
    if (held.tensors[slot].size() != size(held)) {
      throw std::invalid_argument(std::string(kSlotNames[slot]) + " and params differ in length");
    }
  }
  held.numbers = integers(group, "numbers", size(held));
  held.offsets = integers(group, "offsets", size(held));
  return held;
}

Number Gatekeeper::number(py::handle options, const char* name, py::object& on_device) const {
  py::object value = options.attr(name);
  if (!PyFloat_Check(value.ptr()) && device_type_ != kDLCPU && scalar(value).data) {
    on_device = std::move(value);
    return {};
  }
  on_device = py::object();
  const double read = PyFloat_AsDouble(py::float_(value).ptr());
  if (PyErr_Occurred()) throw py::error_already_set();
  return {read, {}};
}

// ---- looking ----------------------------------------------------------------------------------

Look Gatekeeper::look(const HeldStep& step, const std::vector<Refusal>& refused) const {
  const TensorFacts::Quiet quiet(facts_);
  const Terms terms{facts_, device_type_, devices_, takes_row_};
  const bool writes_grads = !step.grad_scales.empty();
  Look look;
  TensorTable& table = look.table;
  std::vector<std::size_t> params;                        // of each entry, its index in its group
  SharedMemory shared = std::exchange(last_memory_, {});  // another thread may look meanwhile
  shared.start();
  std::size_t owner = 0;

  for (std::size_t g = 0; g < step.groups.size(); ++g) {
    const HeldGroup& held = step.groups[g];
    Options& options = table.options.emplace_back(held.options);
    for (const auto& [number, tensor] : held.on_device) {
      (options.*number).on_device = scalar(tensor);
    }
    const bool by_chance = options.stochastic_state || options.stochastic_params;
    double last_step = 0;  // they count from 1
    for (std::size_t i = 0; i < size(held); ++i, ++owner) {
      prefetch(held, i);
      Candidate candidate;
      for (int slot = 0; slot < kSlots; ++slot) {
        candidate.tensors[slot] = nullptr;
        if (held.tensors[slot].empty()) continue;
        candidate.tensors[slot] =
            PyTuple_GET_ITEM(held.tensors[slot].ptr(), static_cast<Py_ssize_t>(i));
        const bool written = slot != kGrads || writes_grads;
        candidate.viewed[slot] = view(candidate.tensors[slot], written, candidate.seen[slot]);
        if (candidate.viewed[slot] != Reason::fits) continue;
        const DLTensor& seen = candidate.seen[slot];
        candidate.spans[slot] = span(seen);
        if (!seen.data || !candidate.spans[slot]) continue;
        const auto* begin = static_cast<const char*>(seen.data);
        const auto* end = begin + candidate.spans[slot] * (seen.dtype.bits / 8);
        shared.note({begin, end, owner}, written);
      }
      if (!refused.empty() && holds(refused, g, i)) continue;
      TensorEntry entry{};
      entry.group = static_cast<std::uint32_t>(g);
      entry.offset = held.offsets.empty() ? 0 : held.offsets[i];
      if (by_chance) {
        entry.tensor_key = tensor_key(options.seed, held.numbers.empty() ? 0 : held.numbers[i]);
      }
      const Reason reason =
          held.unwanted ? Reason::unwanted : candidate.check(terms, options, entry, last_step);
      if (reason != Reason::fits) {
        look.refusals.push_back({g, i, reason, candidate.slot});
        continue;
      }
      table.entries.push_back(entry);
      params.push_back(i);
    }
  }
  const std::vector<std::size_t> sharing = shared.find();
  last_memory_ = std::move(shared);
  if (!writes_grads && grads_moved(step, table.entries, params)) return this->look(step, refused);
  turn_away_shared(sharing, step, params, look);
  if (!refused.empty()) {
    const auto known = [&](const Refusal& r) { return holds(refused, r.group, r.param); };
    look.refusals.erase(std::remove_if(look.refusals.begin(), look.refusals.end(), known),
                        look.refusals.end());
  }

  for (const TensorEntry& entry : table.entries) {
    const auto known = [&](const Device& d) { return d.index == entry.device; };
    if (std::any_of(table.devices.begin(), table.devices.end(), known)) continue;
    table.devices.push_back(device(entry.device, step));
  }
  return look;
}

// Asks memory for what the looks at the next parameters read: behind a backward pass none of it is
// in a cache.
void Gatekeeper::prefetch(const HeldGroup& held, std::size_t param) const {
  constexpr std::size_t kAhead = 3;
  for (const py::tuple& tensors : held.tensors) {
    if (param + 2 * kAhead >= tensors.size()) continue;  // true of lists that are not there
    PyObject** next = &PyTuple_GET_ITEM(tensors.ptr(), static_cast<Py_ssize_t>(param + kAhead));
    if (is_plain(*next)) facts_.prefetch(*next);
    __builtin_prefetch(next[kAhead]);
  }
}

bool Gatekeeper::is_plain(PyObject* tensor) const {
  const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(tensor));
  return type == tensor_.ptr() || type == parameter_.ptr();
}

Reason Gatekeeper::view(PyObject* tensor, bool written, DLTensor& out) const {
  if (!is_plain(tensor)) return Reason::subclass;
  return facts_.view(tensor, written, out) ? Reason::fits : Reason::no_view;
}

// Whether tensors that are written have taken along gradients that were seen before them. Looked at
// once more, all stay where they are.
bool Gatekeeper::grads_moved(const HeldStep& step, const std::vector<TensorEntry>& entries,
                             const std::vector<std::size_t>& params) const {
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const py::tuple& grads = step.groups[entries[i].group].tensors[kGrads];
    PyObject* grad = PyTuple_GET_ITEM(grads.ptr(), static_cast<Py_ssize_t>(params[i]));
    if (facts_.moved(grad, entries[i].buffers.grad)) return true;
  }
  return false;
}

DeviceScalar Gatekeeper::scalar(py::handle tensor) const {
  DLTensor seen;
  ScalarType type;
  if (view(tensor.ptr(), false, seen) != Reason::fits || seen.device.device_type != device_type_ ||
      numel(seen) != 1 || !scalar_type(seen.dtype, type) || is_16_bit(type) ||
      check_memory(facts_, tensor.ptr(), seen, 1) != Reason::fits) {
    return {};
  }
  return {seen.data, type == ScalarType::kFloat64, seen.device.device_id};
}

DeviceScalar Gatekeeper::scalar_on(const py::tuple& copies, std::int32_t device) const {
  if (copies.empty()) return {};
  for (const py::handle copy : copies) {
    const DeviceScalar found = scalar(copy);
    if (found.data && found.device == device) return found;
  }
  throw std::invalid_argument(
      "grad_scale and found_inf must be float32 or float64, of one element, with a copy on "
      "device " +
      std::to_string(device));
}

Device Gatekeeper::device(std::int32_t index, const HeldStep& step) const {
  Device found{index, nullptr, scalar_on(step.grad_scales, index),
               scalar_on(step.found_infs, index)};
  if (device_type_ != kDLCPU &&
      exchange_->current_work_stream(device_type_, index, &found.stream) != 0) {
    throw py::error_already_set();
  }
  return found;
}

}  // namespace proxadam
