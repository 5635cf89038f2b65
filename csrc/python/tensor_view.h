// What a DLPack view of a tensor tells: its type, its size, and how it lies in memory.

#pragma once

#include <algorithm>  // for sort
#include <cstdint>    // for int64_t, uintptr_t
#include <utility>    // for pair
#include <vector>     // for vector

#include "../scalar_types.h"  // for ScalarType
#include "dlpack_exchange.h"  // for DLTensor

namespace proxadam {

inline bool scalar_type(const DLDataType& dtype, ScalarType& out) {
  if (dtype.lanes != 1) return false;
  if (dtype.code == kDLBfloat && dtype.bits == 16) return out = ScalarType::kBFloat16, true;
  if (dtype.code != kDLFloat) return false;
  if (dtype.bits == 32) return out = ScalarType::kFloat32, true;
  if (dtype.bits == 64) return out = ScalarType::kFloat64, true;
  if (dtype.bits == 16) return out = ScalarType::kFloat16, true;
  return false;
}

inline bool is_byte(const DLDataType& dtype) {
  return dtype.lanes == 1 && dtype.code == kDLUInt && dtype.bits == 8;
}

// Of a moment, which may be kept in codes.
inline bool state_type(const DLDataType& dtype, ScalarType& out) {
  return is_byte(dtype) ? (out = ScalarType::kCode8, true) : scalar_type(dtype, out);
}

inline std::int64_t numel(const DLTensor& t) {
  std::int64_t n = 1;
  for (int d = 0; d < t.ndim; ++d) n *= t.shape[d];
  return n;
}

// Elements from the first to the last in memory, gaps included.
inline std::int64_t span(const DLTensor& t) {
  std::int64_t elements = 1;
  for (int d = 0; d < t.ndim; ++d) {
    if (t.shape[d] == 0) return 0;
    elements += (t.shape[d] - 1) * t.strides[d];
  }
  return elements;
}

// Whether the elements fill one stretch of memory, each place once, in any order of dimensions.
inline bool is_dense(const DLTensor& t, std::int64_t numel) {
  std::int64_t expected = 1;
  int d = t.ndim - 1;
  while (d >= 0 && (t.shape[d] == 1 || t.strides[d] == expected)) expected *= t.shape[d--];
  if (d < 0 || numel == 0) return true;

  std::vector<std::pair<std::int64_t, std::int64_t>> dims;  // stride, size
  for (d = 0; d < t.ndim; ++d) {
    if (t.shape[d] != 1) dims.emplace_back(t.strides[d], t.shape[d]);
  }
  std::sort(dims.begin(), dims.end());
  expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// Whether one index finds the same element in both.
inline bool same_layout(const DLTensor& a, const DLTensor& b, std::int64_t numel) {
  if (a.ndim != b.ndim) return false;
  for (int d = 0; d < a.ndim; ++d) {
    if (a.shape[d] != b.shape[d]) return false;
    if (a.strides[d] != b.strides[d] && a.shape[d] != 1 && numel != 0) return false;
  }
  return true;
}

inline bool same_device(const DLTensor& a, const DLTensor& b) {
  return a.device.device_type == b.device.device_type && a.device.device_id == b.device.device_id;
}

inline bool same_dtype(const DLTensor& a, const DLTensor& b) {
  return a.dtype.code == b.dtype.code && a.dtype.bits == b.dtype.bits &&
         a.dtype.lanes == b.dtype.lanes;
}

// A vector access to an element that lies across two would be one to the wrong place.
inline bool is_whole(const DLTensor& t) {
  const std::uintptr_t bytes = t.dtype.bits / 8;  // a power of two
  return (reinterpret_cast<std::uintptr_t>(t.data) & (bytes - 1)) == 0;
}

}  // namespace proxadam
