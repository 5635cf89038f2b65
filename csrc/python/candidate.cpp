// Checks a parameter list by list, and stops at the first that does not fit.

#include "candidate.h"

#include "../codes.h"      // for kBlock
#include "../prox_adam.h"  // for has_bias_corrections
#include "tensor_view.h"   // for is_dense, numel, same_layout, ...

namespace proxadam {

namespace {

Reason check_options(const Options& options, const TensorEntry& entry, double& last_step) {
  if (!readable_on(options, entry.device)) return Reason::option_device;
  if (!entry.counter.on_host || entry.step == last_step) return Reason::fits;
  if (!has_bias_corrections(options, entry.step)) return Reason::betas;
  last_step = entry.step;
  return Reason::fits;
}

// bfloat16 moments beside wider or other parameters are rounded by chance, or they would be wrong.
bool is_asked_for(const TensorTypes& types, const Options& options) {
  return types.state != ScalarType::kBFloat16 || types.param == types.state ||
         options.stochastic_state;
}

}  // namespace

Reason check_memory(const TensorFacts& facts, PyObject* tensor, const DLTensor& view,
                    std::int64_t elements) {
  if (!is_whole(view)) return Reason::misaligned;
  if (elements && (!view.data || !facts.holds(tensor, elements, view.dtype.bits / 8))) {
    return Reason::no_memory;
  }
  return facts.is_neg(tensor) ? Reason::negated : Reason::fits;
}

Reason Candidate::check(const Terms& terms, const Options& options, TensorEntry& entry,
                        double& last_step) {
  Reason reason = check_tensors(terms, options, entry);
  if (reason == Reason::fits) reason = check_options(options, entry, last_step);
  if (reason == Reason::fits && takes_rows(options)) reason = check_rows(terms, entry);
  return reason;
}

Reason Candidate::check_tensors(const Terms& terms, const Options& options, TensorEntry& entry) {
  const DLTensor& param = seen[kParams];
  if (viewed[kParams] != Reason::fits) return viewed[kParams];
  if (param.device.device_type != terms.device_type) return Reason::device;
  entry.device = param.device.device_id;
  if (static_cast<std::size_t>(entry.device) >= terms.devices.size() ||
      !terms.devices[entry.device]) {
    return Reason::device;
  }
  if (!scalar_type(param.dtype, entry.types.param)) return Reason::dtype;
  entry.types.grad = entry.types.state = entry.types.param;
  entry.numel = numel(param);
  if (!is_dense(param, entry.numel)) return Reason::not_dense;

  void** addresses[] = {&entry.buffers.param, &entry.buffers.grad, &entry.buffers.exp_avg,
                        &entry.buffers.exp_avg_sq, &entry.buffers.max_exp_avg_sq};
  for (int each = kParams; each <= kMaxExpAvgSqs; ++each) {
    PyObject* tensor = tensors[each];
    if (!tensor) continue;
    slot = static_cast<Slot>(each);
    const DLTensor& view = seen[slot];
    if (slot != kParams) {
      ScalarType type;
      if (viewed[slot] != Reason::fits) return viewed[slot];
      if (!same_device(param, view)) return Reason::device;
      if (!state_type(view.dtype, type)) return Reason::dtype;
      if (slot == kGrads) entry.types.grad = type;
      if (slot == kExpAvgs) entry.types.state = type;
      if (slot > kExpAvgs && type != entry.types.state) return Reason::dtype;
      if (slot == kMaxExpAvgSqs && type == ScalarType::kCode8) return Reason::dtype;
      if (!is_legal(entry.types) || !is_asked_for(entry.types, options)) return Reason::dtype;
      if (!same_layout(param, view, entry.numel)) return Reason::layout;
    }
    const Reason reason = check_memory(terms.facts, tensor, view, spans[slot]);
    if (reason != Reason::fits) return reason;
    if (slot == kParams && terms.facts.is_inference(tensor)) return Reason::inference;
    *addresses[slot] = view.data;
  }
  const Reason reason = check_exponents(terms, entry);
  if (reason != Reason::fits) return reason;
  slot = kStateSteps;
  return check_step(terms, entry);
}

Reason Candidate::check_exponents(const Terms& terms, TensorEntry& entry) {
  const bool coded = entry.types.state == ScalarType::kCode8;
  std::uint8_t** addresses[] = {&entry.exponents.exp_avg, &entry.exponents.exp_avg_sq};
  for (const Slot each : {kExpAvgExponents, kExpAvgSqExponents}) {
    slot = each;
    PyObject* tensor = tensors[slot];
    if (!coded && !tensor) continue;
    if (!coded || !tensor || entry.offset % kBlock != 0) return Reason::exponents;
    const DLTensor& view = seen[slot];
    const std::int64_t blocks = (entry.numel + kBlock - 1) / kBlock;
    if (viewed[slot] != Reason::fits) return viewed[slot];
    if (!same_device(seen[kParams], view)) return Reason::device;
    if (!is_byte(view.dtype) || numel(view) != blocks || !is_dense(view, blocks)) {
      return Reason::exponents;
    }
    const Reason reason = check_memory(terms.facts, tensor, view, spans[slot]);
    if (reason != Reason::fits) return reason;
    *addresses[slot - kExpAvgExponents] = static_cast<std::uint8_t*>(view.data);
  }
  return Reason::fits;
}

Reason Candidate::check_step(const Terms& terms, TensorEntry& entry) {
  PyObject* tensor = tensors[kStateSteps];
  const DLTensor& step = seen[kStateSteps];
  ScalarType type;
  if (viewed[kStateSteps] != Reason::fits) return viewed[kStateSteps];
  if (numel(step) != 1 || !scalar_type(step.dtype, type) || is_16_bit(type)) return Reason::step;
  const Reason reason = check_memory(terms.facts, tensor, step, 1);
  if (reason != Reason::fits) return reason;
  entry.counter = {step.data, type == ScalarType::kFloat64, step.device.device_type == kDLCPU};
  if (!entry.counter.on_host) {
    return same_device(step, seen[kParams]) ? Reason::fits : Reason::device;
  }
  entry.step = entry.counter.read() + 1;
  return entry.step >= 1 ? Reason::fits : Reason::step;  // NaN is not
}

Reason Candidate::check_rows(const Terms& terms, TensorEntry& entry) {
  const DLTensor& param = seen[kParams];
  slot = kParams;
  if (param.ndim < 2 || entry.numel == 0) return Reason::fits;
  const std::int64_t row = entry.numel / param.shape[0];
  const bool apart = param.shape[0] != 1 && param.strides[0] != row;
  if (apart || !terms.takes_row(row, entry.types)) return Reason::rows;
  entry.row = row;
  return Reason::fits;
}

}  // namespace proxadam
