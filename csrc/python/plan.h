// Admitted tensors on their way to a kernel: the Python class Plan of each native module.

#pragma once

#include <pybind11/pybind11.h>

#include <functional>  // for function
#include <memory>      // for unique_ptr
#include <utility>     // for pair
#include <vector>      // for vector

#include "../tensor_table.h"  // for TensorTable
#include "gatekeeper.h"       // for Admission

namespace proxadam {

// Tensors looked at a moment ago and about to be written. Keeps no address beyond that.
class Plan {
 public:
  // `launch` runs without the GIL; it is given the table with its constants.
  using Launch = std::function<void(const TensorTable&)>;

  // `keep`: the Python objects whose memory the plan refers to.
  Plan(pybind11::object keep, Admission admission, double grad_scale, Launch launch);

  // (group, parameters turned away), for each group that has any.
  std::vector<std::pair<std::size_t, std::vector<std::size_t>>> rejected() const;

  // Steps what was admitted, and counts the steps that are counted on the host.
  void launch();

 private:
  pybind11::object keep_;
  Admission admission_;
  double grad_scale_;
  Launch launch_;
};

// Launches a plan that has turned nothing away, and returns null; hands out any other.
std::unique_ptr<Plan> launch_if_whole(std::unique_ptr<Plan> plan);

// Makes Plan known to a module.
void define_plan(pybind11::module_& module);

}  // namespace proxadam
