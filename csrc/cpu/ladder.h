// From what is known at run time to what a loop is compiled for.

#pragma once

#include "../prox_adam.h"

#ifndef PROXADAM_CPU_CAPABILITY
#error "name the instruction set's namespace in PROXADAM_CPU_CAPABILITY"
#endif

namespace proxadam {
namespace PROXADAM_CPU_CAPABILITY {
namespace {

template <typename T, T of>
struct Constant {
  static constexpr T value = of;
};

// Calls f with the update as a Constant.
template <typename F>
auto with_update(Update update, F f) {
  switch (update) {
#define PROXADAM_CASE(name, prox) \
  case Update::k##name:           \
    return f(Constant<Update, Update::k##name>{});
    PROXADAM_UPDATES(PROXADAM_CASE)
#undef PROXADAM_CASE
  }
  return f(Constant<Update, Update::kFrozen>{});  // not reached
}

// Likewise with two flags.
template <typename F>
auto with_flags(bool first, bool second, F f) {
  using Yes = Constant<bool, true>;
  using No = Constant<bool, false>;
  if (first) return second ? f(Yes{}, Yes{}) : f(Yes{}, No{});
  return second ? f(No{}, Yes{}) : f(No{}, No{});
}

}  // namespace
}  // namespace PROXADAM_CPU_CAPABILITY
}  // namespace proxadam
