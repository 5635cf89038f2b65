// Views of torch tensors by torch's own stable C functions, in DLPack's terms.

#pragma once

#include <cstdint>  // for int32_t, int64_t, uintptr_t
#include <map>      // for map
#include <string>   // for string
#include <utility>  // for pair
#include <vector>   // for vector

#include "dlpack_exchange.h"  // for DLDataType, DLTensor

namespace proxadam {

// Addresses of functions in this process, by the names of proxadam.backends.FUNCTIONS; absent: not
// found.
using Functions = std::map<std::string, std::uintptr_t>;

// Finds a function; null if it is not there.
template <typename Function>
Function find(const Functions& functions, const char* name) {
  const auto found = functions.find(name);
  return found == functions.end() ? nullptr : reinterpret_cast<Function>(found->second);
}

// Such a function writes what it is asked for and returns 0. One that throws inside returns another
// number, and in some versions of torch says so on stderr.
template <typename T>
using Ask = std::int32_t (*)(const void* at_tensor, T* out);

class TorchViews {
 public:
  using Example = std::pair<const void*, DLTensor>;  // an at::Tensor, and DLPack's view of it

  // Finds the functions, and learns torch's numbers for dtypes and the host from examples on it.
  // False, and there will be no views, if one is not there or does not say what DLPack says.
  bool learn(const Functions& functions, const std::vector<Example>& examples);

  // Fills `out`, or returns false for a tensor that is not plainly one in memory: what that is,
  // DLPack must tell. A lazy clone stays one unless it is `written`.
  bool view(const void* at_tensor, bool written, DLTensor& out) const;

  // Whether a tensor that was seen in memory is elsewhere now.
  bool moved(const void* at_tensor, const void* seen) const {
    void* data = nullptr;
    return known_ && seen && (const_data_ptr_(at_tensor, &data) || data != seen);
  }

 private:
  bool find_all(const Functions& functions);

  bool known_ = false;
  Ask<std::int32_t> layout_;
  Ask<std::int32_t> dtype_;
  Ask<std::int32_t> device_type_;
  Ask<std::int32_t> device_index_;
  Ask<std::int64_t> dim_;
  Ask<std::int64_t*> sizes_;
  Ask<std::int64_t*> strides_;
  Ask<void*> const_data_ptr_;
  Ask<void*> mutable_data_ptr_;
  // Torch's numbers.
  std::int32_t strided_;
  std::int32_t cpu_;
  std::int32_t cuda_;
  std::vector<std::pair<std::int32_t, DLDataType>> dtypes_;
};

}  // namespace proxadam
