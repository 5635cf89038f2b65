"""Strides and offsets: a step gives the contiguous result, and writes nowhere else.

torch.optim's own fused CPU step is silently wrong on many of these, or writes outside the tensor.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from proxadam import ProxAdam
from storages import WIDE, assert_close
from tools import BUSY, LOOP, assert_same_bits, error_of, snapshot, weights

SENTINEL = 12345.0
SHAPE = (3, 4, 2, 5)


def part_of(base_shape, index, dims=None):
    """A maker of views of SHAPE into a larger tensor that is full of sentinels."""

    def make(values):
        view = torch.full(base_shape, SENTINEL)[index]
        return (view.permute(dims) if dims else view).copy_(values)

    return make


DENSE = {
    "contiguous": torch.clone,
    "transposed": part_of((4, 3, 2, 5), ..., (1, 0, 2, 3)),
    "reversed": part_of((5, 2, 4, 3), ..., (3, 2, 1, 0)),
    "channels_last": lambda values: values.clone(memory_format=torch.channels_last),
    "rows of more": part_of((6, 4, 2, 5), slice(1, 4)),
    "off by one": lambda values: torch.full((122,), SENTINEL)[1:-1].view(SHAPE).copy_(values),
}
GAPS = {
    "every other column": part_of((3, 4, 2, 10), (..., slice(None, None, 2))),
    "columns": part_of((3, 4, 2, 7), (..., slice(1, 6))),
    "inner slice": part_of((3, 4, 4, 5), (slice(None), slice(None), slice(1, 3))),
    "last index": part_of((*SHAPE, 2), (..., 0)),
    "transposed slice": part_of((5, 2, 4, 4), (..., slice(3)), (3, 2, 1, 0)),
}
LAYOUTS = {**DENSE, **GAPS}
GRADS = {
    **LAYOUTS,
    "expanded": lambda values: values[:, :1, :1].expand(SHAPE),
    "negated": lambda values: torch._neg_view(-values),
}


def holes(view):
    """What the storage of a view holds beside it."""
    whole = torch.empty(0, dtype=view.dtype).set_(view.untyped_storage())
    beside = torch.ones_like(whole, dtype=torch.bool)
    beside.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(False)
    return whole[beside]


def assert_kernel_refuses(optimizer, reason):
    before = snapshot(optimizer)
    kind, text = error_of(optimizer.step)
    assert kind is RuntimeError
    assert text.startswith("`fused=True` needs the kernel for every parameter, and parameter 0 of")
    assert reason in text
    assert "\n" not in text
    after = snapshot(optimizer)
    assert_same_bits({name: after[name] for name in before}, before)


@pytest.mark.parametrize("grad_layout", GRADS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_step_as_the_contiguous_copy(any_backend, layout, grad_layout):
    values, gradients = torch.randn(2, *SHAPE)
    param, twin = Parameter(LAYOUTS[layout](values)), Parameter(values.clone())
    param.grad = GRADS[grad_layout](gradients)
    twin.grad = param.grad.clone(memory_format=torch.contiguous_format)
    around = holes(param.detach())
    optimizer = ProxAdam([param], **BUSY, **any_backend.options)
    expected = ProxAdam([twin], **BUSY, **LOOP)
    if any_backend.is_kernel and layout in GAPS:
        assert_kernel_refuses(optimizer, "has gaps or overlaps in memory, with strides (")
    elif any_backend.is_kernel and param.grad.stride() != param.stride():
        assert_kernel_refuses(optimizer, f"{param.stride()} and its gradient {param.grad.stride()}")
    elif any_backend.is_kernel and param.grad.is_neg():
        assert_kernel_refuses(optimizer, "its gradient is a lazily negated view")
    else:
        for _ in range(2):
            optimizer.step()
            expected.step()
        actual, wanted = snapshot(optimizer), snapshot(expected)
        torch.testing.assert_close(actual, wanted, rtol=2e-6, atol=2e-7, check_stride=False)
    assert_same_bits(holes(param.detach()), around)
    assert torch.equal(param.grad, twin.grad), "the gradient is read and not written"


@pytest.mark.parametrize("numel", [1, 3, 17, 1025])
@pytest.mark.parametrize("offset", [1, 3])
def test_misaligned_views_write_nothing_beside_them(any_backend, storage, numel, offset):
    """Parameter, gradient and moments all begin and end off any vector's boundary."""

    def misaligned(values):
        base = torch.full((numel + 2 * offset,), SENTINEL, dtype=values.dtype)
        return base[offset:-offset].copy_(values)

    (aligned,) = storage.weights((numel,))
    param = storage.parameter(misaligned(aligned.detach()))
    param.grad = misaligned(aligned.grad)
    options = {**BUSY, **storage.options, **any_backend.options}
    optimizer, expected = (ProxAdam([p], **options) for p in (param, aligned))
    optimizer.step()
    expected.step()
    state = optimizer.state[param]
    for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        state[name] = misaligned(state[name])
    optimizer.step()
    expected.step()
    assert_same_bits(snapshot(optimizer), snapshot(expected))
    moments = [state[name] for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")]
    for written in (param.detach(), param.grad, *moments):
        assert (holes(written) == SENTINEL).all()


@pytest.mark.usefixtures("kernel_module")
def test_a_misaligned_parameter_is_called_what_it_is():
    data = torch.frombuffer(bytearray(45), dtype=torch.float32, count=10, offset=1)
    param = Parameter(data)
    param.grad = torch.ones(10)
    assert_kernel_refuses(ProxAdam([param], fused=True), "is no multiple of 4 bytes")


def test_the_layout_may_change_after_the_state_is_made(any_backend):
    param, twin = (Parameter(torch.arange(12.0).view(3, 4)) for _ in range(2))
    optimizer = ProxAdam([param], **BUSY, **any_backend.options)
    expected = ProxAdam([twin], **BUSY, **LOOP)
    for transposed in (False, True):
        if transposed:
            param.data = param.data.t().contiguous().t()
        param.grad, twin.grad = torch.ones_like(param), torch.ones_like(twin)
        if any_backend.is_kernel and transposed:
            assert_kernel_refuses(optimizer, "has strides (1, 3) and its exp_avg (4, 1)")
            return
        optimizer.step()
        expected.step()
    torch.testing.assert_close(snapshot(optimizer), snapshot(expected), check_stride=False)


def test_a_negated_view_may_be_a_parameter(any_backend):
    param = Parameter(torch._neg_view(torch.arange(12.0)))
    twin = Parameter(param.detach().resolve_neg().clone())
    param.grad = twin.grad = torch.ones(12)
    assert param.is_neg()
    optimizer = ProxAdam([param], **BUSY, **any_backend.options)
    expected = ProxAdam([twin], **BUSY, **LOOP)
    if any_backend.is_kernel:
        assert_kernel_refuses(optimizer, "is a lazily negated view")
        return
    for _ in range(2):
        optimizer.step()
        expected.step()
    torch.testing.assert_close(snapshot(optimizer), snapshot(expected))


# ---- float32 beside 16-bit parameters ----------------------------------------------------------


@pytest.mark.parametrize("storage", WIDE, ids=lambda storage: storage.name)
def test_float32_gradients_and_state_of_narrow_parameters(any_backend, storage):
    """16-bit weights step as float32 ones do, rounded once; the kernel takes them all."""
    (twin,) = weights((1000,))
    param = storage.parameter(twin.detach())
    options = {**BUSY, **any_backend.options}
    optimizer = ProxAdam([param], **options, **storage.options)
    expected = ProxAdam([twin], **options)
    for _ in range(3):
        twin.data.copy_(param.data)  # each step begins from what the one before has stored
        grad = torch.randn_like(twin)
        param.grad = storage.gradient(grad)
        twin.grad = param.grad.float()
        optimizer.step()
        expected.step()
        scale = twin.detach().abs().clamp(min=BUSY["lr"])
        assert_close(param, twin.detach(), scale, storage, "param")
        assert param.dtype == storage.param
        for name, moment in optimizer.state[param].items():
            of_twin = expected.state[twin][name]
            if name == "step":
                assert moment == of_twin
            elif storage.state == torch.float32:
                assert moment.dtype == torch.float32
                torch.testing.assert_close(moment, of_twin, rtol=1e-6, atol=1e-6)
            else:
                assert moment.dtype == storage.state
                of_twin.copy_(moment)


def test_moments_of_two_dtypes_go_to_torch_ops(any_backend):
    (param,) = weights((6,), dtype=torch.bfloat16)
    optimizer = ProxAdam([param], **BUSY, **any_backend.options)
    optimizer.step()
    optimizer.state[param]["exp_avg_sq"] = optimizer.state[param]["exp_avg_sq"].float()
    if any_backend.is_kernel:
        assert_kernel_refuses(optimizer, "has its exp_avg in torch.bfloat16 and its exp_avg_sq in")
        return
    optimizer.step()
    assert optimizer.state[param]["step"] == 2


# ---- what the step tells autograd, and whom it asks -------------------------------------------


def test_version_counters_are_bumped(any_backend):
    """Autograd refuses a backward pass through a weight that has changed since."""
    params = weights((3,), (4,))
    optimizer = ProxAdam(params, **BUSY, **any_backend.options)
    saved = (params[0] ** 2).sum()
    versions = [p._version for p in params]
    optimizer.step()
    assert all(p._version > before for p, before in zip(params, versions, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()


class Marked(torch.Tensor):
    """A subclass whose data torch ops alone may touch."""


class Weight(Parameter):
    """A parameter of a class of its own."""


@pytest.mark.parametrize("kind", [Marked, Weight])
def test_subclasses_go_to_torch_ops(any_backend, kind):
    plain, twin = weights((6,), (6,))
    special = twin.detach().clone().as_subclass(kind).requires_grad_()
    special.grad = twin.grad.clone()
    optimizer = ProxAdam([special, plain], **BUSY, **any_backend.options)
    expected = ProxAdam([twin], **BUSY, **{**LOOP, **any_backend.options})
    if any_backend.is_kernel:
        assert_kernel_refuses(optimizer, f"has data of the type {kind.__name__}")
        return
    for _ in range(2):
        optimizer.step()
        expected.step()
    assert type(special) is kind
    assert_same_bits(special.as_subclass(torch.Tensor), twin)
    assert optimizer.state[special]["step"] == optimizer.state[plain]["step"] == 2


def test_a_gradient_of_a_subclass_goes_to_torch_ops():
    (param,) = weights((6,))
    twin = Parameter(param.detach().clone())
    twin.grad, param.grad = param.grad, param.grad.as_subclass(Marked)
    for p, options in ((param, {}), (twin, LOOP)):
        ProxAdam([p], **BUSY, **options).step()
    assert_same_bits(param, twin)
