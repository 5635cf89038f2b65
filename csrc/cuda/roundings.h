// Whether branch_free.h rounds as IEEE 754 says: asked of a device, once for each architecture.

#pragma once

#include <cstdint>  // for uint64_t

namespace proxadam {

struct Roundings {
  std::uint64_t judged;  // results that were not noted as doubtful
  std::uint64_t wrong;   // of these, those that are not IEEE's to the bit
};

struct RoundingCounts {
  Roundings square_root, reciprocal, quotient;
};

// Compares roots and reciprocals of every `stride`-th float, and as many quotients: of floats drawn
// at random, and of some whose quotient is next to the middle of two floats. Waits for the device.
// Throws std::runtime_error if CUDA fails.
RoundingCounts count_roundings(int device, std::uint64_t stride);

}  // namespace proxadam
