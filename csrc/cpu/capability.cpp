// Asks the processor which of the compiled instruction sets it has.

#include "capability.h"

#include <stdexcept>  // for invalid_argument

namespace proxadam {

std::vector<Capability> capabilities() {
  std::vector<Capability> found{{"baseline", baseline::update_range, &baseline::score_unit}};
#ifdef PROXADAM_X86_UNITS
  __builtin_cpu_init();
  // Every processor with AVX2 has F16C, which older compilers have no name for here.
  if (__builtin_cpu_supports("avx2"))
    found.push_back({"avx2", avx2::update_range, &avx2::score_unit});
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    found.push_back({"avx512", avx512::update_range, &avx512::score_unit});
#ifdef PROXADAM_AVX512_BF16_UNIT
    if (__builtin_cpu_supports("avx512bf16")) {
      found.push_back({"avx512_bf16", avx512_bf16::update_range, &avx512_bf16::score_unit});
    }
#endif
  }
#endif
  return found;
}

Capability choose_capability(const std::string& name) {
  const std::vector<Capability> found = capabilities();
  if (name.empty()) return found.back();
  std::string names;
  for (const Capability& capability : found) {
    if (name == capability.name) return capability;
    names += (names.empty() ? "" : ", ") + std::string(capability.name);
  }
  throw std::invalid_argument("PROXADAM_CPU_CAPABILITY is \"" + name +
                              "\", expected one that this machine has: " + names);
}

}  // namespace proxadam
