// What crosses from the Python side to a kernel: addresses, counts and constants. No Python here.

#pragma once

#include <cstdint>  // for int64_t, uint32_t
#include <vector>   // for vector

#include "prox_adam.h"     // for Options, StepConstants
#include "scalar_types.h"  // for ScalarType

namespace proxadam {

// One parameter with its gradient and state: dense, all of the same strides, so that one index
// finds the same element in each. The moments have the parameter's dtype.
struct TensorEntry {
  void* param;
  void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  void* max_exp_avg_sq;  // null unless amsgrad
  std::int64_t numel;
  ScalarType dtype;
  std::uint32_t group;      // index into TensorTable::options
  std::uint32_t constants;  // index into TensorTable::constants
};

struct TensorTable {
  std::vector<TensorEntry> entries;
  std::vector<Options> options;                  // one a group
  std::vector<StepConstants<double>> constants;  // one for each distinct (group, step)
  double grad_scale = 1;
};

}  // namespace proxadam
