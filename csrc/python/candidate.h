// One parameter of a step with all that belongs to it: what the gatekeeper sees of it, and whether
// a kernel may write it.

#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>  // for int64_t
#include <vector>   // for vector

#include "../tensor_table.h"  // for TensorEntry
#include "dlpack_exchange.h"  // for DLDeviceType, DLTensor
#include "reasons.h"          // for kParams, kSlots, Reason, Slot
#include "tensor_facts.h"     // for TensorFacts

namespace proxadam {

// What the kernel takes. `devices`: for each of its type, whether it runs there.
struct Terms {
  const TensorFacts& facts;
  DLDeviceType device_type;
  const std::vector<bool>& devices;
  TakesRow takes_row;
};

// What a kernel that reads or writes at the address of a view must know.
Reason check_memory(const TensorFacts& facts, PyObject* tensor, const DLTensor& view,
                    std::int64_t elements);

struct Candidate {
  PyObject* tensors[kSlots];  // null where the group has none of a kind
  DLTensor seen[kSlots];
  std::int64_t spans[kSlots];  // of what is seen
  Reason viewed[kSlots];
  Slot slot = kParams;  // the one that is looked at, in the end the one that a reason is about

  // Fills the entry, as far as the tensors fit. `last_step`: one that the group's betas have bias
  // corrections at, as most often is the next one.
  Reason check(const Terms& terms, const Options& options, TensorEntry& entry, double& last_step);

 private:
  Reason check_tensors(const Terms& terms, const Options& options, TensorEntry& entry);
  Reason check_exponents(const Terms& terms, TensorEntry& entry);
  Reason check_step(const Terms& terms, TensorEntry& entry);
  Reason check_rows(const Terms& terms, TensorEntry& entry);
};

}  // namespace proxadam
