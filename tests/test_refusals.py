"""Tensors that do not fit a step: one sentence is raised, and nothing at all has changed.

Many of these crash torch.optim's fused CPU step, or make it write out of bounds.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from proxadam import ProxAdam, prox_adam
from tools import BUSY, assert_same_bits, error_of, quantised, weights

SHAPE = (3, 4)
UNALLOCATED = "The tensor has a non-zero number of elements, but its data is not allocated yet."
OVERLAP = "unsupported operation: more than one element of the written-to tensor refers to a single"
INFERENCE = "Inplace update to inference tensor outside InferenceMode is not allowed."


@pytest.fixture
def bystanders():
    """Three healthy parameters in two groups, stepped once; the fourth is the test's own."""
    return weights(SHAPE, (5,), (2, 2))


def refused(backend, bystanders, victim, spoil, text):
    """Spoil the victim after a step; the next one must raise, and leave every healthy tensor."""
    groups = [{"params": bystanders[:2]}, {"params": [bystanders[2], victim]}]
    optimizer = ProxAdam(groups, **BUSY, **backend.options)
    optimizer.step()
    healthy = [t for p in bystanders for t in (p, *optimizer.state[p].values())]
    of_victim = {"param": victim, "grad": victim.grad, **optimizer.state[victim]}
    spoil(victim, optimizer.state[victim])
    same = {name for name, tensor in of_victim.items() if readable(tensor)}
    before = [t.detach().clone() for t in healthy]
    before_of_victim = {name: of_victim[name].detach().clone() for name in same}
    kind, said = error_of(optimizer.step)
    assert kind is RuntimeError
    assert text in said
    assert "\n" not in said
    for tensor, copy in zip(healthy, before, strict=True):
        assert_same_bits(tensor, copy)
    for name in same:
        assert_same_bits(of_victim[name], before_of_victim[name], name)


def readable(tensor):
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


# ---- storage ----------------------------------------------------------------------------------


def free(tensor):
    tensor.untyped_storage().resize_(0)


FREED = {
    "parameter": lambda p, _: free(p),
    "gradient": lambda p, _: free(p.grad),
    "exp_avg": lambda _, state: free(state["exp_avg"]),
    "exp_avg_sq": lambda _, state: free(state["exp_avg_sq"]),
    "max_exp_avg_sq": lambda _, state: free(state["max_exp_avg_sq"]),
    "step": lambda _, state: free(state["step"]),
}


@pytest.mark.parametrize("what", FREED)
def test_freed_storage(any_backend, bystanders, what):
    """As FSDP frees it between the forward and the backward pass."""
    (victim,) = weights(SHAPE)
    refused(any_backend, bystanders, victim, FREED[what], UNALLOCATED)


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize("left", [0, 40], ids=["freed", "cut short"])
@pytest.mark.parametrize("name", ["grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"])
def test_a_subclass_beyond_its_storage(any_backend, bystanders, name, left):
    """torch's own ops read and write beyond it."""

    def spoil(param, state):
        tensor = (param.grad if name == "grad" else state[name]).clone().as_subclass(Subclass)
        tensor.untyped_storage().resize_(left)
        if name == "grad":
            param.grad = tensor
        else:
            state[name] = tensor

    refused(any_backend, bystanders, *weights(SHAPE), spoil, UNALLOCATED)


@pytest.mark.parametrize("offset", [1, 1000])
@pytest.mark.parametrize("freed", ["parameter", "gradient"])
def test_a_freed_flat_buffer_with_views_into_it(any_backend, bystanders, offset, freed):
    """The address of a view is then its offset, and not null."""
    flat = torch.randn(offset + 12)
    view = flat[offset:].view(SHAPE)
    (victim,) = weights(SHAPE)
    if freed == "parameter":
        victim = Parameter(view)
        victim.grad = torch.ones(SHAPE)
    else:
        victim.grad = view
    refused(any_backend, bystanders, victim, lambda *_: free(flat), UNALLOCATED)


def cut(tensor):
    tensor.untyped_storage().resize_(tensor.untyped_storage().nbytes() // 2)


CUT = {
    "parameter": lambda p, _: cut(p),
    "gradient": lambda p, _: cut(p.grad),
    **{name: lambda _, s, n=name: cut(s[n]) for name in ("exp_avg", "exp_avg_sq", "step")},
}


@pytest.mark.parametrize("what", CUT)
def test_storage_cut_short(any_backend, bystanders, what):
    (victim,) = weights(SHAPE)
    refused(any_backend, bystanders, victim, CUT[what], UNALLOCATED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("missing", [0, 1, 5, 500], ids=lambda n: f"{n} bytes short")
def test_a_flat_buffer_cut_short_of_a_view_into_it(any_backend, missing, dtype):
    """Torch ops would write beyond its end; one that holds the view to the last byte will do."""
    flat = torch.ones(1000, dtype=dtype)
    param = Parameter(flat[900:960].view(10, 6))
    param.grad = torch.ones(10, 6, dtype=dtype)
    optimizer = ProxAdam([param], lr=0.1, **any_backend.options)
    flat.untyped_storage().resize_(960 * flat.element_size() - missing)
    if missing == 0:
        optimizer.step()
        assert (param < 1).all()
        return
    assert error_of(optimizer.step)[1].startswith(UNALLOCATED)
    assert not optimizer.state


# ---- shape, dtype and device ------------------------------------------------------------------


def with_data(tensor, data):
    tensor.data = data


def with_state(state, name, value):
    state[name] = value


def resized(param, *shape):
    param.data = torch.ones(shape)
    param.grad = torch.ones(shape)


MISFITS = {
    "parameter grown": (lambda p, _: resized(p, 64, 64), "exp_avg of parameter 1 of shape (64, "),
    "parameter shrunk": (lambda p, _: resized(p, 2), "exp_avg of parameter 1 of shape (2,)"),
    "data alone grown": (lambda p, _: with_data(p, torch.ones(64, 64)), "gradient of parameter 1"),
    "data alone shrunk": (lambda p, _: with_data(p, torch.ones(2)), "gradient of parameter 1"),
    "transposed": (lambda p, _: with_data(p, p.data.t()), "has shape (3, 4), expected (4, 3)"),
    "a lazy zero": (
        lambda p, _: with_data(p, torch._efficientzerotensor(SHAPE)),
        "ProxAdam found this in parameter 1 of shape (3, 4)",
    ),
    "gradient longer": (
        lambda p, _: with_data(p.grad, torch.ones(64, 64)),
        "has shape (64, 64), expected (3, 4)",
    ),
    "gradient shorter": (
        lambda p, _: with_data(p.grad, torch.ones(4)),
        "the gradient of parameter 1 of shape (3, 4) has shape (4,)",
    ),
    "parameter cast": (
        lambda p, _: (with_data(p, p.data.double()), with_data(p.grad, p.grad.double())),
        "has dtype torch.float32, expected torch.float64",
    ),
    "gradient cast": (
        lambda p, _: with_data(p.grad, p.grad.double()),
        "the gradient of parameter 1 of shape (3, 4) has dtype torch.float64",
    ),
    **{
        f"{name} {change}": (lambda _, s, n=name, v=value: with_state(s, n, v), f"{name} of param")
        for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        for change, value in {
            "of another shape": torch.zeros(4, 3),
            "longer": torch.zeros(64),
            "a scalar": torch.zeros(()),
            "cast": torch.zeros(SHAPE, dtype=torch.float64),
            "expanded": torch.zeros(1).expand(SHAPE),
            "on another device": torch.zeros(SHAPE, device="meta"),
            "a lazy zero": torch._efficientzerotensor(SHAPE),
            "of another layout": torch.zeros(SHAPE).to_mkldnn(),  # which torch's Adam stops at
            "no tensor": 3.0,
            "nothing": None,
        }.items()
    },
    **{
        f"step {change}": (lambda _, s, v=value: with_state(s, "step", v), "step of parameter 1")
        for change, value in {
            "of two elements": torch.ones(2),
            "of integers": torch.tensor(1),
            "in 8 bits": torch.tensor(1.0).to(torch.float8_e4m3fn),
            "sparse": torch.tensor(1.0).to_sparse(),
            "a number": 1.0,
            "on another device": torch.tensor(1.0, device="meta"),
            "negative": torch.tensor(-1.0),
            "nan": torch.tensor(float("nan")),
            "a lazy zero": torch._efficientzerotensor(()),
            "of another layout": torch.ones(1).to_mkldnn(),
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("what", MISFITS)
def test_tensors_that_do_not_fit_one_another(any_backend, bystanders, what):
    """A step of −1 would divide by zero: 1 − betaᵗ is 0 at t = 0."""
    if any_backend.step_on_device and what in ("step negative", "step nan"):
        pytest.skip("no host waits to read a step that is on the device")
    (victim,) = weights(SHAPE)
    spoil, text = MISFITS[what]
    refused(any_backend, bystanders, victim, spoil, text)


# ---- tensors that cannot be written -----------------------------------------------------------


def test_an_expanded_parameter(any_backend, bystanders):
    (victim,) = weights(SHAPE)
    spoil = lambda p, _: with_data(p, torch.ones(1, 4).expand(SHAPE))  # noqa: E731
    refused(any_backend, bystanders, victim, spoil, OVERLAP)


def test_an_empty_expanded_tensor_is_fine(any_backend):
    param = Parameter(torch.ones(0, 1).expand(0, 4))
    param.grad = torch.ones(0, 4)
    ProxAdam([param], **any_backend.options).step()


def test_an_inference_parameter(any_backend, bystanders):
    with torch.inference_mode():
        victim = torch.ones(SHAPE)
    victim.grad = torch.ones(SHAPE)
    optimizer = ProxAdam([bystanders[0], victim], **BUSY, **any_backend.options)
    before = bystanders[0].detach().clone()
    kind, text = error_of(optimizer.step)
    assert kind is RuntimeError
    assert text.startswith(INFERENCE)
    assert_same_bits(bystanders[0], before)
    assert_same_bits(victim, torch.ones(SHAPE))
    with torch.inference_mode():
        assert any_backend.is_kernel or error_of(optimizer.step) is None


def test_state_made_in_inference_mode(any_backend, bystanders):
    """Right or refused: the kernel may write it, torch ops may not."""
    optimizer = ProxAdam(bystanders, **BUSY, **any_backend.options)
    with torch.inference_mode():
        optimizer.step()
    before = [p.detach().clone() for p in bystanders]
    error = error_of(optimizer.step)
    steps = 1 if error else 2
    assert error is None or error[1].startswith(INFERENCE)
    for param, same in zip(bystanders, before, strict=True):
        assert optimizer.state[param]["step"] == steps
        assert torch.equal(param, same) is bool(error)


def test_a_conjugated_parameter(any_backend):
    victim = Parameter(torch.randn(3, dtype=torch.complex64).conj())
    assert victim.is_conj()
    victim.grad = torch.ones_like(victim)
    (bystander,) = weights((3,))
    before = bystander.detach().clone()
    kind, text = error_of(ProxAdam([bystander, victim], **any_backend.options).step)
    assert kind is RuntimeError
    assert "parameter 1 of shape (3,) is a lazily conjugated view" in text
    assert_same_bits(bystander, before)


# ---- what Tensor.grad would not let through ---------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"grads": torch.ones(3, device="meta")}, "is on meta, expected "),
        ({"grads": torch.ones(3, dtype=torch.float64)}, "has dtype torch.float64"),
        ({"grads": torch.ones(3).to_sparse()}, "Adam does not support sparse gradients"),
        ({"params": torch.ones(3, dtype=torch.int64)}, "has dtype torch.int64, expected one of"),
        ({"params": torch.ones(3).to(torch.float8_e4m3fn)}, "has dtype torch.float8_e4m3fn"),
        ({"params": torch.ones(3, device="meta")}, ", expected meta"),
        (
            {"params": quantised()},
            "has dtype torch.qint8, expected one of",
        ),
        ({"params": torch.eye(3).to_sparse()}, "parameter 1 of shape (3, 3)"),
        ({"params": torch.ones(3, dtype=torch.bool)}, "has dtype torch.bool, expected one of"),
    ],
    ids=[
        "meta grad",
        "fp64 grad",
        "sparse grad",
        "integers",
        "float8",
        "meta param",
        "quantised",
        "sparse param",
        "booleans",
    ],
)
def test_the_functional_twin_checks_as_much(any_backend, change, text):
    names = ("params", "grads", "exp_avgs", "exp_avg_sqs")
    lists = {name: [torch.ones(3), torch.ones(3)] for name in names}
    steps = [torch.tensor(1.0), torch.tensor(1.0)]
    for name, tensor in change.items():
        lists[name][1] = tensor if tensor.is_meta else tensor.to(any_backend.device)
    options = {"foreach": None, "amsgrad": False, "maximize": False, "weight_decay": 0.1}
    numbers = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "l1": 0.1}
    kind, said = error_of(
        prox_adam, **lists, max_exp_avg_sqs=[], state_steps=steps,
        **{**options, **numbers, **any_backend.options},
    )  # fmt: skip
    assert kind is RuntimeError
    assert text in said
    assert all(lists[name][0].tolist() == [1.0] * 3 for name in names)
    assert steps == [torch.tensor(1.0), torch.tensor(1.0)]


@pytest.mark.filterwarnings("ignore:.*(prototype|beta|legacy|Sparse).*:UserWarning")
@pytest.mark.parametrize("layout", ["csr", "nested", "jagged"])
def test_tensors_of_other_layouts_are_called_what_they_are(any_backend, bystanders, layout):
    if any_backend.device != "cpu":
        pytest.skip("one device is enough")
    make = {
        "csr": lambda: torch.eye(3).to_sparse_csr(),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "jagged": lambda: torch.nested.nested_tensor(
            [torch.ones(2), torch.ones(3)], layout=torch.jagged
        ),
    }[layout]
    victim = make().requires_grad_()
    if layout == "nested":  # of which torch lets autograd alone set a gradient
        victim.to_padded_tensor(0.0).sum().backward()
    else:
        victim.grad = victim.detach().clone()
    optimizer = ProxAdam([*bystanders, victim], **BUSY, **any_backend.options)
    before = [p.detach().clone() for p in bystanders]
    kind, text = error_of(optimizer.step)
    assert kind is RuntimeError
    assert ("torch.sparse_csr" if layout == "csr" else "a nested tensor") in text
    assert "\n" not in text
    for param, same in zip(bystanders, before, strict=True):
        assert_same_bits(param, same)
