// The Python module _cpu: converts, releases the GIL, calls.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>  // for getpid

#include <cstdlib>   // for getenv
#include <memory>    // for make_unique, unique_ptr
#include <optional>  // for optional
#include <utility>   // for move

#include "../chunk_plan.h"         // for ChunkPlan
#include "../python/gatekeeper.h"  // for Admission, Gatekeeper
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

// Admitted tensors, looked at a moment ago and about to be written. Keeps no tensor beyond that.
class Plan {
 public:
  Plan(py::list groups, Admission admission)
      : groups_(std::move(groups)), admission_(std::move(admission)) {}

  // (group, parameters turned away), for each group that has any.
  std::vector<std::pair<std::size_t, std::vector<std::size_t>>> rejected() const {
    std::vector<std::pair<std::size_t, std::vector<std::size_t>>> pairs;
    for (std::size_t g = 0; g < admission_.rejected.size(); ++g) {
      if (!admission_.rejected[g].empty()) pairs.emplace_back(g, admission_.rejected[g]);
    }
    return pairs;
  }

  void launch() {
    TensorTable& table = admission_.table;
    std::vector<double> steps(table.entries.size());
    for (std::size_t i = 0; i < steps.size(); ++i) {
      TensorEntry& entry = table.entries[i];
      steps[i] = admission_.counters[i].read() + 1;
      const bool as_before =
          i > 0 && steps[i] == steps[i - 1] && entry.group == table.entries[i - 1].group;
      if (!as_before) {
        table.constants.push_back(
            step_constants(table.options[entry.group], steps[i], table.grad_scale));
      }
      entry.constants = static_cast<std::uint32_t>(table.constants.size() - 1);
    }
    // A forked child has none of the pool's threads, and waiting for them would never end.
    const ParallelFor pool = getpid() == bound->process ? bound->parallel_for : nullptr;
    {
      py::gil_scoped_release no_gil;
      step_cpu(table, capability, pool);
    }
    for (std::size_t i = 0; i < steps.size(); ++i) admission_.counters[i].write(steps[i]);
  }

 private:
  py::list groups_;  // keeps the tensors alive
  Admission admission_;
};

std::unique_ptr<Plan> step(py::list groups, double grad_scale) {
  if (!bound) throw std::runtime_error("proxadam._cpu.bind() must be called before step()");
  auto plan = std::make_unique<Plan>(
      groups, bound->gatekeeper.admit(groups, grad_scale, DLDeviceType::kDLCPU));
  if (!plan->rejected().empty()) return plan;
  plan->launch();
  return nullptr;
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

  py::class_<Plan>(m, "Plan", "Tensors looked at and not yet written.")
      .def_property_readonly("rejected", &Plan::rejected,
                             "(group, parameters) that the kernel cannot take.")
      .def("launch", &Plan::launch, "Step the others, in place.");
  m.def(
      "bind",
      [](py::capsule exchange, py::type tensor, py::type parameter, std::uintptr_t parallel_for) {
        auto* fresh = new Bound{
            {exchange, tensor, parameter}, reinterpret_cast<ParallelFor>(parallel_for), getpid()};
        std::swap(bound, fresh);
        delete fresh;
      },
      py::arg("exchange"), py::arg("tensor"), py::arg("parameter"), py::arg("parallel_for"),
      "Tell the module about this process's torch: its DLPack exchange table, its two tensor\n"
      "types, and the address of torch_parallel_for (0: run serially).");
  m.def("step", &step, py::arg("groups"), py::arg("grad_scale") = 1.0,
        "Step every parameter of every Group in place and return None; or, where some tensor does\n"
        "not fit the kernel, write nothing and return a Plan.");
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
