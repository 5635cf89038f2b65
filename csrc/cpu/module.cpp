// The Python module _cpu: the protocol over the CPU loop, and which instruction set it runs with.

#include <pthread.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>   // for getenv
#include <memory>    // for make_unique
#include <optional>  // for optional
#include <string>    // for string
#include <tuple>     // for tuple
#include <vector>    // for vector

#include "../python/protocol.h"  // for define_protocol, Functions, Kernel
#include "capability.h"          // for Capability
#include "chunk_plan.h"          // for ChunkPlan
#include "score_binding.h"       // for define_scores
#include "step.h"                // for ParallelFor, step_cpu

namespace py = pybind11;
using namespace proxadam;

namespace {

Capability capability;
// A forked child has none of the pool's threads, and waiting for them would never end.
bool in_forked_child = false;
ParallelFor torchs_parallel_for = nullptr;

ParallelFor parallel_for() { return in_forked_child ? nullptr : torchs_parallel_for; }

class CpuKernel : public Kernel {
 public:
  DLDeviceType device_type() const override { return kDLCPU; }

  const std::vector<bool>& bind(const Functions& functions) override {
    const auto found = functions.find("parallel_for");
    if (found != functions.end()) {
      torchs_parallel_for = reinterpret_cast<ParallelFor>(found->second);
    }
    return usable_;
  }

  TakesRow takes_row() const override { return takes_row_cpu; }

  bool prepare(const TensorTable&) override { return true; }

  void run(const TensorTable& table) override { step_cpu(table, capability, parallel_for()); }

 private:
  const std::vector<bool> usable_{true};
};

using Chunk = std::tuple<std::size_t, std::int64_t, std::int64_t>;

std::vector<Chunk> chunks(const std::vector<std::int64_t>& numels, std::optional<std::int64_t> from,
                          std::optional<std::int64_t> to) {
  ChunkPlan plan;
  for (const std::int64_t numel : numels) plan.add(numel);
  std::vector<Chunk> visited;
  plan.visit(from.value_or(0), to.value_or(plan.work()),
             [&](auto... chunk) { visited.emplace_back(chunk...); });
  return visited;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "The proximal Adam step on the CPU. proxadam.backends is its only user.";
  const char* wanted = std::getenv("PROXADAM_CPU_CAPABILITY");
  try {
    capability = choose_capability(wanted ? wanted : "");
  } catch (const std::invalid_argument& unknown) {
    throw py::import_error(unknown.what());
  }
  pthread_atfork(nullptr, nullptr, [] { in_forked_child = true; });

  define_protocol(m, std::make_unique<CpuKernel>());
  define_scores(m, capability, parallel_for);
  m.def(
      "capabilities",
      [] {
        std::vector<std::string> names;
        for (const Capability& c : capabilities()) names.emplace_back(c.name);
        return names;
      },
      "Instruction sets compiled in that this processor has, the widest last.");
  m.def("capability", [] { return capability.name; }, "The instruction set in use.");
  m.def(
      "use_capability", [](const std::string& name) { capability = choose_capability(name); },
      py::arg("name"), "Change the instruction set in use; for tests and benchmarks.");
  m.def(
      "chunks", &chunks, py::arg("numels"), py::arg("begin") = py::none(),
      py::arg("end") = py::none(),
      "(tensor, begin, end) of the chunks that a thread with work [begin, end) takes; for tests.");
  m.def(
      "work",
      [](const std::vector<std::int64_t>& numels) {
        ChunkPlan plan;
        for (const std::int64_t numel : numels) plan.add(numel);
        return plan.work();
      },
      py::arg("numels"), "Length of the range that is shared out among threads; for tests.");
}
