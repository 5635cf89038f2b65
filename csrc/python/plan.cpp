#include "plan.h"

#include <pybind11/stl.h>

namespace py = pybind11;

namespace proxadam {

Plan::Plan(py::object keep, Admission admission, double grad_scale, Launch launch)
    : keep_(std::move(keep)),
      admission_(std::move(admission)),
      grad_scale_(grad_scale),
      launch_(std::move(launch)) {}

std::vector<std::pair<std::size_t, std::vector<std::size_t>>> Plan::rejected() const {
  std::vector<std::pair<std::size_t, std::vector<std::size_t>>> pairs;
  for (std::size_t g = 0; g < admission_.rejected.size(); ++g) {
    if (!admission_.rejected[g].empty()) pairs.emplace_back(g, admission_.rejected[g]);
  }
  return pairs;
}

void Plan::launch() {
  TensorTable& table = admission_.table;
  const TensorEntry* before = nullptr;
  for (TensorEntry& entry : table.entries) {
    if (!entry.counter.on_host) continue;
    if (!before || entry.step != before->step || entry.group != before->group) {
      table.constants.push_back(
          step_constants(table.options[entry.group], entry.step, grad_scale_));
    }
    entry.constants = static_cast<std::uint32_t>(table.constants.size() - 1);
    before = &entry;
  }
  {
    py::gil_scoped_release no_gil;
    launch_(table);
  }
  for (const TensorEntry& entry : table.entries) {
    if (entry.counter.on_host) entry.counter.write(entry.step);
  }
}

std::unique_ptr<Plan> launch_if_whole(std::unique_ptr<Plan> plan) {
  if (!plan->rejected().empty()) return plan;
  plan->launch();
  return nullptr;
}

void define_plan(py::module_& module) {
  py::class_<Plan>(module, "Plan", py::module_local(), "Tensors looked at and not yet written.")
      .def_property_readonly("rejected", &Plan::rejected,
                             "(group, parameters) that the kernel cannot take.")
      .def("launch", &Plan::launch, "Step the others, in place.");
}

}  // namespace proxadam
