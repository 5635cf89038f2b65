// What both native modules offer Python: bind, admit, launch, and the class Plan.

#pragma once

#include <pybind11/pybind11.h>

#include <memory>  // for unique_ptr
#include <vector>  // for vector

#include "../tensor_table.h"  // for TensorTable
#include "dlpack_exchange.h"  // for DLDeviceType
#include "tensor_facts.h"     // for Functions

namespace proxadam {

// The kernel of a device type.
class Kernel {
 public:
  virtual ~Kernel() = default;

  virtual DLDeviceType device_type() const = 0;

  // Tells the kernel about this process's torch. For each device of the type, whether it runs
  // there: looked at in every step, and for the kernel to change. Throws std::runtime_error where
  // it cannot run at all.
  virtual const std::vector<bool>& bind(const Functions& functions) = 0;

  // Whether the kernel takes rows of so many elements as one: csrc/group_prox.h.
  virtual TakesRow takes_row() const = 0;

  // What may fail before the first write: false where a device of the table turned out to be none
  // on which the kernel runs. Called with the GIL, runs no Python code.
  virtual bool prepare(const TensorTable& table) = 0;

  // Updates every entry, in place, and the counters that are not on the host. Called without the
  // GIL.
  virtual void run(const TensorTable& table) = 0;
};

// Defines the protocol in a module, over its kernel.
void define_protocol(pybind11::module_& module, std::unique_ptr<Kernel> kernel);

}  // namespace proxadam
