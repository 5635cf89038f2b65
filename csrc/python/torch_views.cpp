// Asks first what cannot throw: a tensor that is sparse, quantised, ... is not asked where it is.

#include "torch_views.h"

#include "tensor_view.h"  // for numel, same_device, same_dtype, same_layout

namespace proxadam {

bool TorchViews::learn(const Functions& functions, const std::vector<Example>& examples) {
  if (!find_all(functions)) return false;
  for (const auto& [tensor, shown] : examples) {
    std::int32_t dtype;
    if (layout_(tensor, &strided_) || device_type_(tensor, &cpu_) || dtype_(tensor, &dtype)) {
      return false;
    }
    dtypes_.emplace_back(dtype, shown.dtype);
  }
  known_ = true;
  for (const auto& [tensor, shown] : examples) {
    DLTensor seen;
    known_ = known_ && shown.device.device_type == kDLCPU && view(tensor, false, seen) &&
             seen.data == shown.data && same_device(seen, shown) && same_dtype(seen, shown) &&
             same_layout(seen, shown, numel(shown));
  }
  return known_;
}

bool TorchViews::view(const void* tensor, bool written, DLTensor& out) const {
  std::int32_t layout, dtype, device_type;
  if (!known_ || layout_(tensor, &layout) || layout != strided_) return false;
  if (dtype_(tensor, &dtype)) return false;
  out.dtype.lanes = 0;
  for (const auto& [number, meaning] : dtypes_) {
    if (number == dtype) out.dtype = meaning;
  }
  if (out.dtype.lanes == 0) return false;
  if ((written ? mutable_data_ptr_ : const_data_ptr_)(tensor, &out.data) || !out.data) return false;

  if (device_type_(tensor, &device_type)) return false;
  out.device = {kDLCPU, 0};
  if (device_type != cpu_) {
    if (device_type != cuda_ || device_index_(tensor, &out.device.device_id)) return false;
    out.device.device_type = kDLCUDA;
  }
  std::int64_t dim;
  if (dim_(tensor, &dim) || sizes_(tensor, &out.shape) || strides_(tensor, &out.strides)) {
    return false;
  }
  out.ndim = static_cast<std::int32_t>(dim);
  out.byte_offset = 0;
  return true;
}

bool TorchViews::find_all(const Functions& functions) {
  layout_ = find<Ask<std::int32_t>>(functions, "layout");
  dtype_ = find<Ask<std::int32_t>>(functions, "dtype");
  device_type_ = find<Ask<std::int32_t>>(functions, "device_type");
  device_index_ = find<Ask<std::int32_t>>(functions, "device_index");
  dim_ = find<Ask<std::int64_t>>(functions, "dim");
  sizes_ = find<Ask<std::int64_t*>>(functions, "sizes");
  strides_ = find<Ask<std::int64_t*>>(functions, "strides");
  const_data_ptr_ = find<Ask<void*>>(functions, "const_data_ptr");
  mutable_data_ptr_ = find<Ask<void*>>(functions, "mutable_data_ptr");
  const auto cuda = find<std::int32_t (*)()>(functions, "device_type_cuda");
  if (cuda) cuda_ = cuda();
  return layout_ && dtype_ && device_type_ && device_index_ && dim_ && sizes_ && strides_ &&
         const_data_ptr_ && mutable_data_ptr_ && cuda;
}

}  // namespace proxadam
