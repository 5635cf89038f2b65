// Admit, then launch: between the two Python checks what no kernel takes, and nothing is written.

#include "protocol.h"

#include <pybind11/stl.h>

#include <algorithm>  // for binary_search, find_if
#include <stdexcept>  // for runtime_error
#include <string>     // for string, to_string
#include <tuple>      // for tuple
#include <utility>    // for move

#include "gatekeeper.h"  // for Gatekeeper, HeldStep, Look

namespace proxadam {
namespace {

namespace py = pybind11;

// A part of a step on its way to a kernel. The modules are compiled apart and may be stepped
// together, so that this is what one sees of the other's plans.
class Launchable {
 public:
  virtual ~Launchable() = default;
  virtual void look_again() = 0;     // with the GIL; throws where it no longer fits
  virtual void run() = 0;            // without it
  virtual void count_on_host() = 0;  // the steps that are counted there
};
constexpr const char* kLaunchable = "proxadam.Launchable";

// A module's kernel, and what it was told about torch.
struct Backend {
  std::unique_ptr<Kernel> kernel;
  std::unique_ptr<Gatekeeper> gatekeeper;  // null until bind()
};

// Owns references to the tensors of a step and its options as they were read, and no address but
// between look_again() and count_on_host().
class Plan : public Launchable {
 public:
  Plan(const Backend& backend, HeldStep step)
      : backend_(backend), step_(std::move(step)), look_(backend.gatekeeper->look(step_)) {
    if (!backend.kernel->prepare(look_.table)) look_ = backend.gatekeeper->look(step_);
    refused_ = look_.refusals;
  }

  std::vector<std::tuple<std::size_t, std::size_t, const char*, const char*>> rejected() const {
    std::vector<std::tuple<std::size_t, std::size_t, const char*, const char*>> found;
    for (const Refusal& r : refused_) {
      found.emplace_back(r.group, r.param, name_of(r.reason), kSlotNames[r.slot]);
    }
    return found;
  }

  // At once, where nothing was turned away and no Python code has run since.
  void launch_unseen() {
    {
      py::gil_scoped_release no_gil;
      run();
    }
    count_on_host();
  }

  void forget() { look_ = {}; }

  void look_again() override {
    look_ = backend_.gatekeeper->look(step_, refused_);
    if (!look_.refusals.empty()) {
      const Refusal& first = look_.refusals.front();
      throw std::runtime_error("parameter " + std::to_string(first.param) + " of group " +
                               std::to_string(first.group) +
                               " was changed by other code while its step was checked (" +
                               name_of(first.reason) + " in " + kSlotNames[first.slot] +
                               "); nothing has been written, so the step can be taken again.");
    }
  }

  void run() override { backend_.kernel->run(look_.table); }

  void count_on_host() override {
    for (const TensorEntry& entry : look_.table.entries) {
      if (entry.counter.on_host) entry.counter.write(entry.step);
    }
    forget();
  }

 private:
  const Backend& backend_;
  HeldStep step_;
  Look look_;
  std::vector<Refusal> refused_;  // those that torch ops take
};

void launch(const py::list& plans) {
  const py::tuple held(plans);  // the caller's list may change while the GIL is free
  std::vector<Launchable*> all;
  for (const py::handle plan : held) {
    const py::capsule launchable = plan.attr("_launchable")();
    if (std::string(launchable.name()) != kLaunchable) {
      throw py::type_error("expected plans of proxadam's native modules");
    }
    all.push_back(launchable.get_pointer<Launchable>());
  }
  for (Launchable* plan : all) plan->look_again();
  {
    py::gil_scoped_release no_gil;
    for (Launchable* plan : all) plan->run();
  }
  for (Launchable* plan : all) plan->count_on_host();
}

}  // namespace

void define_protocol(py::module_& module, std::unique_ptr<Kernel> kernel) {
  // Never freed, as the module is not: a step that runs in another thread may hold it.
  auto* backend = new Backend{std::move(kernel), nullptr};

  py::class_<Plan>(module, "Plan", py::module_local(), "Tensors looked at and not yet written.")
      .def_property_readonly(
          "rejected", &Plan::rejected,
          "(group, parameter, reason, list) of what the kernel cannot take: the indices of the\n"
          "parameter, and the name of the list with the tensor that the reason is about.")
      .def("_launchable",
           [](Plan& self) { return py::capsule(static_cast<Launchable*>(&self), kLaunchable); });
  module.def(
      "bind",
      [backend](py::capsule exchange, py::type tensor, py::type parameter,
                const Functions& functions) {
        const std::vector<bool>& devices = backend->kernel->bind(functions);
        auto fresh = std::make_unique<Gatekeeper>(exchange, tensor, parameter,
                                                  backend->kernel->device_type(), devices,
                                                  backend->kernel->takes_row(), functions);
        // The first one stays: a step in another thread may be using it.
        if (!backend->gatekeeper) backend->gatekeeper = std::move(fresh);
      },
      py::arg("exchange"), py::arg("tensor"), py::arg("parameter"), py::arg("functions"),
      "Tell the module about this process's torch: its DLPack exchange table, its two tensor\n"
      "types, and the addresses of its functions by the names of backends.FUNCTIONS. Raises\n"
      "RuntimeError where the kernel cannot run with it.");
  module.def(
      "admit",
      [backend](const py::list& groups, const py::list& grad_scales, const py::list& found_infs,
                bool launch) -> std::unique_ptr<Plan> {
        if (!backend->gatekeeper) throw std::runtime_error("call bind() before admit()");
        auto plan = std::make_unique<Plan>(
            *backend, backend->gatekeeper->hold(groups, grad_scales, found_infs));
        if (launch && plan->rejected().empty()) {
          plan->launch_unseen();
          return nullptr;
        }
        plan->forget();
        return plan;
      },
      py::arg("groups"), py::arg("grad_scales") = py::list(), py::arg("found_infs") = py::list(),
      py::arg("launch") = true,
      "Look at the step of every parameter of every Group. Where the kernel takes all of them,\n"
      "and `launch` says so, step them and return None; else write nothing and return a Plan.\n"
      "`grad_scales` and `found_infs` have one element on each device, or none: gradients are\n"
      "divided by the one and written back divided, and on a device anything but zero in the\n"
      "other leaves all as it is. Counters on the host are advanced at once, so found_inf needs\n"
      "the counters on the device.");
  module.def("launch", &launch, py::arg("plans"),
             "Look at every tensor of the plans again, and then step what was admitted. Raises\n"
             "RuntimeError, before anything is written, where a tensor no longer fits.");
}

}  // namespace proxadam
