// Numbers that stay on a device: the host passes on their addresses and never waits for them.

#pragma once

#include <stdint.h>  // for int32_t

#include "prox_adam.h"     // for Options, PROXADAM_INLINE
#include "scalar_types.h"  // for ScalarType

namespace proxadam {

// One float32 or float64 in a device's memory, or nothing.
struct DeviceScalar {
  const void* data;
  ScalarType dtype;
  int32_t device;  // its index among devices of its type

  PROXADAM_INLINE double read(const DeviceScalar& scalar, double otherwise) {
    if (!scalar.data) return otherwise;
    return scalar.dtype == ScalarType::kFloat64 ? *static_cast<const double*>(scalar.data)
                                                : *static_cast<const float*>(scalar.data);
  }
};

// The options of a group that the user keeps in tensors on a device, to change them under a
// captured graph.
struct DeviceOptions {
  DeviceScalar lr;
  DeviceScalar beta1;
  DeviceScalar beta2;
  DeviceScalar l1;
  DeviceScalar l2;

  // `host` with these in place of its own; where they are.
  PROXADAM_INLINE Options read(const DeviceOptions& device, Options host) {
    host.lr = DeviceScalar::read(device.lr, host.lr);
    host.beta1 = DeviceScalar::read(device.beta1, host.beta1);
    host.beta2 = DeviceScalar::read(device.beta2, host.beta2);
    host.l1 = DeviceScalar::read(device.l1, host.l1);
    host.l2 = DeviceScalar::read(device.l2, host.l2);
    return host;
  }
};

}  // namespace proxadam
