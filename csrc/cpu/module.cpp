// The Python module _cpu: converts, releases the GIL, calls.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>  // for getpid

#include <cstdlib>   // for getenv
#include <memory>    // for make_unique, unique_ptr
#include <optional>  // for optional
#include <string>    // for string
#include <tuple>     // for tuple
#include <utility>   // for swap
#include <vector>    // for vector

#include "../chunk_plan.h"         // for ChunkPlan
#include "../python/gatekeeper.h"  // for Gatekeeper
#include "../python/plan.h"        // for Plan
#include "capability.h"            // for Capability
#include "step.h"                  // for ParallelFor, step_cpu

namespace py = pybind11;
using namespace proxadam;

namespace {

// What bind() is told about this process's torch.
struct Bound {
  Gatekeeper gatekeeper;
  ParallelFor parallel_for;
  pid_t process;
};
Bound* bound = nullptr;  // never freed: it holds Python objects until the process ends
Capability capability;

std::unique_ptr<Plan> step(py::list groups, std::optional<double> grad_scale) {
  if (!bound) throw std::runtime_error("proxadam._cpu.bind() must be called before step()");
  // A forked child has none of the pool's threads, and waiting for them would never end.
  const ParallelFor pool = getpid() == bound->process ? bound->parallel_for : nullptr;
  const bool unscale = grad_scale.has_value();
  return launch_if_whole(std::make_unique<Plan>(
      groups, bound->gatekeeper.admit(groups, unscale), grad_scale.value_or(1),
      [=](const TensorTable& table) { step_cpu(table, capability, pool, unscale); }));
}

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

PYBIND11_MODULE(_cpu, m, py::mod_gil_not_used()) {
  m.doc() = "The proximal Adam step on the CPU. proxadam.backends is its only user.";
  const char* wanted = std::getenv("PROXADAM_CPU_CAPABILITY");
  try {
    capability = choose_capability(wanted ? wanted : "");
  } catch (const std::invalid_argument& unknown) {
    throw py::import_error(unknown.what());
  }

  define_plan(m);
  m.def(
      "bind",
      [](py::capsule exchange, py::type tensor, py::type parameter, std::uintptr_t parallel_for,
         std::uintptr_t storage_bytes, std::uintptr_t storage_offset) {
        const StorageFunctions storage{
            reinterpret_cast<StorageFunctions::Function>(storage_bytes),
            reinterpret_cast<StorageFunctions::Function>(storage_offset)};
        auto* fresh = new Bound{{exchange, tensor, parameter, kDLCPU, {true}, storage},
                                reinterpret_cast<ParallelFor>(parallel_for),
                                getpid()};
        std::swap(bound, fresh);
        delete fresh;
      },
      py::arg("exchange"), py::arg("tensor"), py::arg("parameter"), py::arg("parallel_for"),
      py::arg("storage_bytes") = 0, py::arg("storage_offset") = 0,
      "Tell the module about this process's torch: its DLPack exchange table, its two tensor\n"
      "types, and the addresses of torch_parallel_for (0: run serially), of\n"
      "aoti_torch_get_storage_size and of aoti_torch_get_storage_offset (0: do not ask how large\n"
      "a storage is).");
  m.def(
      "step", &step, py::arg("groups"), py::arg("grad_scale") = py::none(),
      "Step every parameter of every Group in place and return None; or, where some tensor does\n"
      "not fit the kernel, write nothing and return a Plan. Gradients are divided by grad_scale,\n"
      "and written back divided.");
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
