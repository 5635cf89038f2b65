// Looks at the tensors of a step as they are now and decides which the kernel may write.
//
// The only code that turns Python tensors into addresses. It writes nothing and raises nothing for
// a tensor that does not fit: that one is turned away with a reason, and Python puts the reason
// into words or uses torch ops.

#pragma once

#include <pybind11/pybind11.h>

#include <array>    // for array
#include <cstdint>  // for int32_t, int64_t
#include <utility>  // for pair
#include <vector>   // for vector

#include "../tensor_table.h"  // for TensorTable
#include "dlpack_exchange.h"  // for DLPackExchangeAPI, DLTensor
#include "overlap.h"          // for SharedMemory
#include "reasons.h"          // for kSlots, Reason, Slot
#include "tensor_facts.h"     // for Functions, TensorFacts

namespace proxadam {

// A parameter that is turned away, and the list in which the reason was found.
struct Refusal {
  std::size_t group;
  std::size_t param;
  Reason reason;
  Slot slot;
};

// A group as it was handed over: its options, and references to its tensors. Lists that the caller
// changes afterwards, and options that it sets, are not looked at again; memory is.
struct HeldGroup {
  Options options;
  std::vector<std::pair<Number Options::*, pybind11::object>> on_device;  // options in tensors
  std::array<pybind11::tuple, kSlots> tensors;  // empty ones of what the group does not have
  std::vector<std::int64_t> numbers;            // what tells tensors apart; none: nothing does
  std::vector<std::int64_t> offsets;            // of shards in their tensors; none: they are whole
  bool unwanted;  // here for the memory that it may share with other groups
};

// The arguments of a step.
struct HeldStep {
  std::vector<HeldGroup> groups;
  pybind11::tuple grad_scales;  // one element on each device, or none
  pybind11::tuple found_infs;   // likewise
};

// What a step's tensors are at one moment: of use as long as no Python code runs.
struct Look {
  TensorTable table;
  std::vector<Refusal> refusals;  // by group and parameter, at most one for each
};

class Gatekeeper {
 public:
  // `exchange`: torch.Tensor.__dlpack_c_exchange_api__. Throws std::runtime_error if its version
  // is not one that we know. `devices`: for each of this type, whether the kernel runs there.
  // `takes_row`: whether it takes rows of so many elements.
  Gatekeeper(pybind11::capsule exchange, pybind11::type tensor, pybind11::type parameter,
             DLDeviceType device_type, const std::vector<bool>& devices, TakesRow takes_row,
             const Functions& functions);

  // Reads what Python code may answer: attributes, truths and numbers of proxadam._step.group.Group
  // objects. Throws std::invalid_argument if the lists of one differ in length.
  HeldStep hold(const pybind11::list& groups, const pybind11::list& grad_scales,
                const pybind11::list& found_infs) const;

  // Looks at every tensor; no Python code runs. Turns away what does not fit, and what shares
  // memory that is written with another tensor of the step. Those that were `refused` before have
  // no entry, and no second refusal. Throws std::invalid_argument if a grad_scale or found_inf
  // cannot be read.
  Look look(const HeldStep& step, const std::vector<Refusal>& refused = {}) const;

 private:
  HeldGroup hold(pybind11::handle group) const;
  Number number(pybind11::handle options, const char* name, pybind11::object& on_device) const;
  void prefetch(const HeldGroup& held, std::size_t param) const;
  bool is_plain(PyObject* tensor) const;  // of one of the two types, and of none derived from them
  Reason view(PyObject* tensor, bool written, DLTensor& out) const;
  bool grads_moved(const HeldStep& step, const std::vector<TensorEntry>& entries,
                   const std::vector<std::size_t>& params) const;
  DeviceScalar scalar(pybind11::handle tensor) const;
  DeviceScalar scalar_on(const pybind11::tuple& copies, std::int32_t device) const;
  Device device(std::int32_t index, const HeldStep& step) const;

  const DLPackExchangeAPI* exchange_;
  pybind11::type tensor_;
  pybind11::type parameter_;
  TensorFacts facts_;
  DLDeviceType device_type_;
  const std::vector<bool>& devices_;
  TakesRow takes_row_;
  mutable SharedMemory last_memory_;  // what the last look found out
};

}  // namespace proxadam
