"""Building the optimizer: signature, defaults, groups and errors are those of torch.optim."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch.nn import Parameter

from proxadam import ProxAdam, backends
from tools import each_class, each_twin, error_of, weights

OWN_DEFAULTS = {
    "l1": 0.0,
    "l2": 0.0,
    "l21": 0.0,
    "l1_knee": math.inf,
    "metric": "adaptive",
    "max_shrink": 10.0,
    "state_dtype": None,
    "stochastic_rounding": None,
    "seed": 0,
    "keep_zeros": False,
}


def param(*shape):
    return Parameter(torch.ones(*shape))


# ---- signature and defaults -------------------------------------------------------------------


@each_twin
def test_signature_has_torchs_arguments(ours, theirs):
    arguments = inspect.signature(ours.__init__).parameters
    expected = inspect.signature(theirs.__init__).parameters
    for name, argument in expected.items():
        assert arguments[name].default == argument.default
        assert arguments[name].kind == argument.kind
    positional = [name for name, a in arguments.items() if a.kind is a.POSITIONAL_OR_KEYWORD]
    assert positional == ["self", "params", "lr", "betas", "eps", "weight_decay", "amsgrad"]
    assert set(arguments) - set(expected) == set(OWN_DEFAULTS)


@each_class
def test_a_seventh_positional_argument_is_a_type_error(cls):
    with pytest.raises(TypeError, match="takes from 2 to 7 positional arguments"):
        cls([param(1)], 1e-3, (0.9, 0.999), 1e-8, 0.0, False, 1e-5)


@each_twin
def test_defaults_are_torchs_and_no_prox(ours, theirs):
    optimizer = ours([param(1)])
    assert optimizer.defaults == {**theirs([param(1)]).defaults, **OWN_DEFAULTS}
    assert not optimizer.state


@each_class
def test_it_is_an_optimizer_and_not_torchs_adam(cls):
    assert issubclass(cls, torch.optim.Optimizer)
    assert not issubclass(cls, (torch.optim.Adam, torch.optim.AdamW))


@each_twin
def test_one_element_betas_of_any_shape_become_scalars(ours, theirs):
    betas = (torch.tensor([[[0.9]]]), torch.tensor([[0.99]]))
    for cls in (ours, theirs):
        assert [beta.shape for beta in cls([param(1)], betas=betas).defaults["betas"]] == [(), ()]


# ---- errors of torch's own options ------------------------------------------------------------

NOT_BOTH = "betas must be either both floats or both Tensors"
NOT_LISTWISE = "as a Tensor is not supported for capturable=False and foreach=True"
ERRORS = [
    ({"lr": -1.0}, ValueError, "Invalid learning rate: -1.0"),
    ({"lr": math.nan}, ValueError, "Invalid learning rate: nan"),
    ({"lr": torch.tensor(-0.5)}, ValueError, "Invalid learning rate: -0.5"),
    ({"lr": torch.ones(2)}, ValueError, "Tensor lr must be 1-element"),
    ({"lr": torch.ones(0)}, ValueError, "Tensor lr must be 1-element"),
    ({"lr": torch.tensor(1e-3), "foreach": True}, ValueError, f"lr {NOT_LISTWISE}"),
    ({"eps": -1e-8}, ValueError, "Invalid epsilon value: -1e-08"),
    ({"eps": math.nan}, ValueError, "Invalid epsilon value: nan"),
    ({"betas": (-0.1, 0.9)}, ValueError, "Invalid beta parameter at index 0: -0.1"),
    ({"betas": (1.0, 0.9)}, ValueError, "Invalid beta parameter at index 0: 1.0"),
    ({"betas": (0.9, 1.0)}, ValueError, "Invalid beta parameter at index 1: 1.0"),
    ({"betas": (0.9, math.nan)}, ValueError, "Invalid beta parameter at index 1: nan"),
    ({"betas": (0, 0)}, ValueError, NOT_BOTH),
    ({"betas": (0.9, torch.tensor(0.9))}, ValueError, NOT_BOTH),
    (
        {"betas": (torch.tensor(0.9), torch.tensor(0.9)), "foreach": True},
        ValueError,
        f"betas[0] {NOT_LISTWISE}",
    ),
    ({"weight_decay": -0.1}, ValueError, "Invalid weight_decay value: -0.1"),
    ({"weight_decay": math.nan}, ValueError, "Invalid weight_decay value: nan"),
    (
        {"fused": True, "foreach": True},
        RuntimeError,
        "`fused` and `foreach` cannot be `True` together.",
    ),
    (
        {"fused": True, "differentiable": True},
        RuntimeError,
        "`fused` does not support `differentiable`",
    ),
]


@pytest.mark.parametrize(("options", "kind", "text"), ERRORS, ids=lambda v: str(v)[:50])
@each_twin
def test_bad_options_raise_torchs_errors(ours, theirs, options, kind, text):
    assert error_of(theirs, [param(1)], **options) == (kind, text)
    assert error_of(ours, [param(1)], **options) == (kind, text)


@pytest.mark.parametrize("index", [0, 1])
@each_class
def test_betas_of_many_elements_are_named(cls, index):
    """torch means to say this, but trips over the truth value of the tensor before it does."""
    betas = [torch.tensor(0.9), torch.tensor(0.9)]
    betas[index] = torch.tensor([0.9, 0.9])
    text = f"Tensor betas[{index}] must be 1-element"
    assert error_of(cls, [param(1)], betas=tuple(betas)) == (ValueError, text)


@each_twin
def test_torchs_options_are_not_checked_in_a_group(ours, theirs):
    options = {"lr": -5.0, "eps": -1.0, "weight_decay": -1.0, "betas": (2.0, -1.0)}
    for cls in (ours, theirs):
        assert cls([{"params": [param(1)], **options}]).param_groups[0]["lr"] == -5.0


@each_class
def test_a_tensor_lr_set_through_a_group_is_refused_by_foreach_steps(cls):
    weight = param(2)
    weight.grad = torch.ones(2)
    optimizer = cls([{"params": [weight], "lr": torch.tensor(0.1)}], foreach=True)
    assert error_of(optimizer.step) == (RuntimeError, f"lr {NOT_LISTWISE}")
    assert torch.equal(weight, torch.ones(2))


@each_class
def test_fused_on_a_device_without_a_kernel_says_what_is_missing(cls, monkeypatch):
    monkeypatch.setattr(backends, "reason_for_fallback", lambda name: f"no kernel for {name}")
    with pytest.raises(RuntimeError, match=r"`fused=True` cannot be had: no kernel for cpu"):
        cls([param(1)], fused=True)


@each_twin
def test_fused_waits_for_parameters_without_data_as_in_torch(ours, theirs, kernel_module):  # noqa: ARG001
    """It is refused at the step, and what has data by then is stepped."""
    for cls in (ours, theirs):
        weight = Parameter(torch.ones(3, device="meta"))
        weight.grad = torch.ones(3, device="meta")
        optimizer = cls([weight], fused=True)
        kind, text = error_of(optimizer.step)
        assert kind is RuntimeError
        assert text.startswith("`fused=True` requires all the params to be floating point Tensors")
        weight.grad = None
        materialised = torch.nn.Linear(2, 2, device="meta").to_empty(device="cpu")
        optimizer.param_groups[0]["params"] = list(materialised.parameters())
        for p in materialised.parameters():
            p.data.fill_(1.0)
            p.grad = torch.ones_like(p)
        optimizer.step()
        assert all((p < 1).all() for p in materialised.parameters())


# ---- errors of our own options ----------------------------------------------------------------

OWN_ERRORS = [
    ("l1", -1e-5, "Invalid l1 value: -1e-05, expected finite and ≥ 0"),
    ("l1", math.nan, "Invalid l1 value: nan, "),
    ("l1", math.inf, "Invalid l1 value: inf, "),
    ("l1", torch.tensor(-1.0), "Invalid l1 value: -1.0, "),
    ("l1", torch.ones(2), "Tensor l1 must be 1-element, got shape (2,)"),
    ("l2", -1.0, "Invalid l2 value: -1.0, "),
    ("l2", math.nan, "Invalid l2 value: nan, "),
    ("l2", math.inf, "Invalid l2 value: inf, "),
    ("l2", torch.ones(0), "Tensor l2 must be 1-element, got shape (0,)"),
    ("max_shrink", 0.999, "Invalid max_shrink value: 0.999, expected ≥ 1 (inf allowed)"),
    ("max_shrink", math.nan, "Invalid max_shrink value: nan, "),
    ("l1_knee", 0.0, "Invalid l1_knee value: 0.0, expected above 0 (inf allowed)"),
    ("l1_knee", -1.0, "Invalid l1_knee value: -1.0, "),
    ("l1_knee", math.nan, "Invalid l1_knee value: nan, "),
    ("l1_knee", torch.ones(2), "Tensor l1_knee must be 1-element, got shape (2,)"),
    ("metric", "euklidean", "Invalid metric: 'euklidean', expected one of "),
    ("metric", None, "Invalid metric: None, "),
]


@pytest.mark.parametrize(("name", "value", "text"), OWN_ERRORS, ids=lambda v: str(v)[:30])
@pytest.mark.parametrize("where", ["argument", "group", "added group", "step"])
@each_class
def test_prox_options_are_checked_everywhere(cls, where, name, value, text):
    weight = param(2)
    weight.grad = torch.ones(2)
    optimizer = cls([weight])
    group = {"params": [param(1)], name: value}
    if where == "argument":
        kind, said = error_of(cls, [param(1)], **{name: value})
    elif where == "group":
        kind, said = error_of(cls, [group])
    elif where == "added group":
        kind, said = error_of(optimizer.add_param_group, group)
        assert len(optimizer.param_groups) == 1, "the refused group stayed"
    else:
        optimizer.param_groups[0][name] = value
        kind, said = error_of(optimizer.step)
        assert torch.equal(weight, torch.ones(2))
    assert kind is ValueError
    assert said.startswith(text)


@pytest.mark.parametrize("name", ["l1", "l2", "l1_knee", "max_shrink"])
@each_class
def test_prox_options_that_are_no_numbers_are_type_errors(cls, name):
    expected = TypeError, f"{name} is '10', expected a number or a one-element tensor."
    assert error_of(cls, [param(1)], **{name: "10"}) == expected
    optimizer = cls([param(1)])
    assert error_of(optimizer.add_param_group, {"params": [param(1)], name: "10"}) == expected
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"l1": 0, "l2": 0},
        {"l1": torch.tensor(1e-3), "l2": torch.tensor([1e-3])},
        {"max_shrink": 1},
        {"max_shrink": math.inf},
        {"l1_knee": 1},
        {"l1_knee": torch.tensor([0.5])},
        {"metric": "euclidean"},
    ],
    ids=str,
)
@each_class
def test_good_prox_options_reach_the_group_and_step(cls, backend, options):
    weight = param(3)
    weight.grad = torch.ones(3)
    optimizer = cls([weight], **options, **backend.options)
    optimizer.step()
    assert (weight < 1).all()
    assert all(optimizer.param_groups[0][name] is value for name, value in options.items())


def test_kernels_that_do_not_load(monkeypatch):
    """An error of CUDA's is no reason not to build an optimizer, unless the kernel is demanded."""

    class Kernel:
        def load(self, index):
            raise RuntimeError(f"CUDA could not load the ProxAdam kernels on {index}")

    monkeypatch.setattr(backends, "kernel", lambda device_type: Kernel())  # noqa: ARG005
    told = backends.load(torch.device("cuda", 3))
    assert told == "CUDA could not load the ProxAdam kernels on 3"
    monkeypatch.setattr(backends, "load", lambda device: told)  # noqa: ARG005
    optimizer = ProxAdam(weights((3,)))
    text = f"`fused=True` cannot be had: {told}; fused=None takes torch ops."
    group = {"params": weights((3,)), "fused": True}
    assert error_of(optimizer.add_param_group, group) == (RuntimeError, text)
    assert len(optimizer.param_groups) == 1


# ---- rules of torch's base class --------------------------------------------------------------


def in_two_groups(cls):
    weight = param(1)
    return cls([{"params": [weight]}, {"params": [weight]}])


def half_named_groups(cls):
    return cls([{"params": [("a", param(1))]}, {"params": [param(1)]}])


REFUSED = {
    "a tensor": (TypeError, lambda cls: cls(param(1))),
    "nothing": (ValueError, lambda cls: cls([])),
    "a set in a group": (TypeError, lambda cls: cls([{"params": {param(1)}}])),
    "a number": (TypeError, lambda cls: cls([1.0])),
    "a non-leaf": (ValueError, lambda cls: cls([param(1) * 2])),
    "one twice in a group": (UserWarning, lambda cls: cls([param(1)] * 2)),
    "one in two groups": (ValueError, in_two_groups),
    "half of them named": (ValueError, lambda cls: cls([("a", param(1)), param(1)])),
    "half of the groups named": (ValueError, half_named_groups),
}


@pytest.mark.parametrize(("kind", "build"), REFUSED.values(), ids=REFUSED.keys())
@each_twin
def test_base_class_refuses(ours, theirs, kind, build):
    assert error_of(build, ours) == error_of(build, theirs)
    assert error_of(build, ours)[0] is kind


@pytest.mark.filterwarnings("ignore:optimizer parameters need to be organized:FutureWarning")
@each_class
def test_base_class_accepts(cls):
    assert len(cls({param(1), param(1)}).param_groups[0]["params"]) == 2
    assert len(cls(iter([param(1), param(1)])).param_groups[0]["params"]) == 2
    assert cls([param(1) * 2], differentiable=True).param_groups


@each_class
def test_a_group_is_filled_in_and_kept_by_identity(cls):
    group = {"params": param(1), "l1": 0.5}
    optimizer = cls([group], lr=0.25)
    assert optimizer.param_groups[0] is group
    assert isinstance(group["params"], list)
    assert (group["lr"], group["l1"], group["l2"]) == (0.25, 0.5, 0.0)


@each_class
def test_names_are_kept_and_saved_and_not_loaded_by(cls):
    model = torch.nn.Linear(2, 3)
    optimizer = cls(model.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["param_names"] == ["weight", "bias"]
    swapped = cls([("bias", model.weight), ("weight", model.bias)], lr=0.5)
    swapped.load_state_dict(saved)
    assert swapped.param_groups[0]["params"] == [model.weight, model.bias]
    assert swapped.param_groups[0]["lr"] == 1e-3
