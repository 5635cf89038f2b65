// The lists that a step's tensors come in, and why one of them is turned away.

#pragma once

#include <cstddef>  // for size_t
#include <cstdint>  // for uint8_t

namespace proxadam {

// The lists of a proxadam._step.group.Group, by their names there.
enum Slot {
  kParams,
  kGrads,
  kExpAvgs,
  kExpAvgSqs,
  kMaxExpAvgSqs,
  kExpAvgExponents,
  kExpAvgSqExponents,
  kStateSteps,
  kSlots
};
constexpr const char* kSlotNames[kSlots] = {"params",
                                            "grads",
                                            "exp_avgs",
                                            "exp_avg_sqs",
                                            "max_exp_avg_sqs",
                                            "exp_avg_exponents",
                                            "exp_avg_sq_exponents",
                                            "state_steps"};

// Why a tensor is turned away. proxadam/_step/checks.py has a sentence for each name.
#define PROXADAM_REASONS(X)                                                              \
  X(subclass)      /* neither a torch.Tensor nor a Parameter */                          \
  X(no_view)       /* DLPack cannot show it: sparse, quantised, meta, ... */             \
  X(device)        /* not on this kernel's devices, or not beside its parameter */       \
  X(dtype)         /* unknown, or one that does not go with the parameter's */           \
  X(not_dense)     /* gaps or overlaps in memory */                                      \
  X(layout)        /* not of the parameter's shape and strides */                        \
  X(exponents)     /* not a byte for each block of codes */                              \
  X(misaligned)    /* not at a multiple of its elements' size */                         \
  X(no_memory)     /* no address, or a storage that was freed or cut short */            \
  X(negated)       /* a view that negates on reading */                                  \
  X(inference)     /* may be written in inference mode alone */                          \
  X(step)          /* not one float32 or float64 ≥ 0, on the host or beside the param */ \
  X(betas)         /* there is no bias correction with these at this step */             \
  X(shares_memory) /* that is written, with another tensor of the step */                \
  X(unwanted)      /* its options leave it to torch ops */                               \
  X(option_device) /* an option is a tensor on another device */                         \
  X(rows)          /* l21, and rows that lie apart or are longer than the kernel takes */

enum class Reason : std::uint8_t {
  fits,
#define PROXADAM_ENUMERATOR(name) name,
  PROXADAM_REASONS(PROXADAM_ENUMERATOR)
#undef PROXADAM_ENUMERATOR
};
inline const char* name_of(Reason reason) {
  static constexpr const char* kNames[] = {"fits",
#define PROXADAM_NAME(name) #name,
                                           PROXADAM_REASONS(PROXADAM_NAME)
#undef PROXADAM_NAME
  };
  return kNames[static_cast<std::size_t>(reason)];
}

}  // namespace proxadam
