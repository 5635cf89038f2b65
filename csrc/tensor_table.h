// What crosses from the Python side to a kernel: addresses, counts and constants. No Python here.

#pragma once

#include <cstdint>  // for int32_t, int64_t, uint32_t
#include <vector>   // for vector

#include "options.h"       // for DeviceScalar, Options
#include "scalar_types.h"  // for Buffers, Exponents, TensorTypes

namespace proxadam {

// A parameter's `step` tensor: one float32 or float64, on the host or beside the parameter.
struct StepCounter {
  void* data;
  bool is_double;
  bool on_host;

  // On the host alone.
  double read() const {
    return is_double ? *static_cast<double*>(data) : *static_cast<float*>(data);
  }
  void write(double step) const {
    if (is_double) {
      *static_cast<double*>(data) = step;
    } else {
      *static_cast<float*>(data) = static_cast<float>(step);
    }
  }
};

// One parameter on its way through a step.
struct TensorEntry {
  Buffers buffers;
  Exponents exponents;
  std::int64_t numel;
  std::int64_t offset;       // of the first element, where this is a shard: csrc/rounding.h
  std::uint32_t tensor_key;  // likewise
  StepCounter counter;
  double step;  // the number of this step, where the counter is on the host
  TensorTypes types;
  std::int64_t row;     // elements of a row that l21 takes as one; 0: each goes by itself
  std::int32_t device;  // its index among devices of its type
  std::uint32_t group;  // index into TensorTable::options
};

// What a step needs to know of a device that has parameters.
struct Device {
  std::int32_t index;
  void* stream;             // torch's current one; null on the CPU
  DeviceScalar grad_scale;  // in its memory; null where the gradients are as they should be
  DeviceScalar found_inf;   // anything but zero: the step is not taken; not asked on the CPU
};

// Whether a kernel takes rows of so many elements.
using TakesRow = bool (*)(std::int64_t numel, const TensorTypes& types);

struct TensorTable {
  std::vector<TensorEntry> entries;
  std::vector<Options> options;  // one a group
  std::vector<Device> devices;
};

}  // namespace proxadam
