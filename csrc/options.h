// The options of a parameter group, each of them once.
//
// The list below is all that the native code spells of them: the struct, the reading from Python
// (csrc/python/gatekeeper.cpp, by these names), and the reading on a device follow from it.

#pragma once

#include <stdint.h>  // for int32_t, int64_t

#include "macros.h"  // for PROXADAM_INLINE

// NUMBER: a float, or a one-element tensor that a kernel reads where it lies. FLAG: a bool.
// INTEGER: one that is not negative.
#define PROXADAM_OPTIONS(NUMBER, FLAG, INTEGER) \
  NUMBER(lr)                                    \
  NUMBER(beta1)                                 \
  NUMBER(beta2)                                 \
  NUMBER(eps)                                   \
  NUMBER(weight_decay)                          \
  NUMBER(l1)                                    \
  NUMBER(l2)                                    \
  NUMBER(l21)                                   \
  NUMBER(l1_knee)                               \
  NUMBER(max_shrink)                            \
  FLAG(euclidean)                               \
  FLAG(keep_zeros)                              \
  FLAG(amsgrad)                                 \
  FLAG(maximize)                                \
  FLAG(decoupled_weight_decay)                  \
  FLAG(stochastic_state)                        \
  FLAG(stochastic_params)                       \
  INTEGER(seed)

namespace proxadam {

// One float32 or float64 in a device's memory, or nothing. The host passes on its address and never
// waits for it.
struct DeviceScalar {
  const void* data;
  bool is_double;
  int32_t device;  // its index among devices of its type
};

PROXADAM_INLINE double read_or(const DeviceScalar& scalar, double otherwise) {
  if (!scalar.data) return otherwise;
  return scalar.is_double ? *static_cast<const double*>(scalar.data)
                          : *static_cast<const float*>(scalar.data);
}

// A number that the user may keep on a device, to change it under a captured graph.
struct Number {
  double value;  // unless it is there
  DeviceScalar on_device;
};

struct Options {
#define PROXADAM_NUMBER(name) Number name;
#define PROXADAM_FLAG(name) bool name;
#define PROXADAM_INTEGER(name) int64_t name;
  PROXADAM_OPTIONS(PROXADAM_NUMBER, PROXADAM_FLAG, PROXADAM_INTEGER)
#undef PROXADAM_NUMBER
#undef PROXADAM_FLAG
#undef PROXADAM_INTEGER
};

#define PROXADAM_IGNORED(name)

// The options with every number in its `value`; called where the numbers are.
PROXADAM_INLINE Options read_numbers(Options o) {
#define PROXADAM_READ(name) o.name.value = read_or(o.name.on_device, o.name.value);
  PROXADAM_OPTIONS(PROXADAM_READ, PROXADAM_IGNORED, PROXADAM_IGNORED)
#undef PROXADAM_READ
  return o;
}

// Whether the host cannot know all of the numbers.
PROXADAM_INLINE bool any_on_device(const Options& o) {
  bool any = false;
#define PROXADAM_ASK(name) any = any || o.name.on_device.data;
  PROXADAM_OPTIONS(PROXADAM_ASK, PROXADAM_IGNORED, PROXADAM_IGNORED)
#undef PROXADAM_ASK
  return any;
}

// Whether l21 may be other than zero, so that rows are taken as one.
PROXADAM_INLINE bool takes_rows(const Options& o) {
  return o.l21.on_device.data || o.l21.value != 0;
}

// Whether a kernel on `device` can read all of them.
PROXADAM_INLINE bool readable_on(const Options& o, int32_t device) {
  bool readable = true;
#define PROXADAM_ASK(name) \
  readable = readable && (!o.name.on_device.data || o.name.on_device.device == device);
  PROXADAM_OPTIONS(PROXADAM_ASK, PROXADAM_IGNORED, PROXADAM_IGNORED)
#undef PROXADAM_ASK
  return readable;
}

}  // namespace proxadam
