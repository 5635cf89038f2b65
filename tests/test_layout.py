"""Strides, offsets and aliases: a step gives the contiguous result and writes nowhere else.

Torch's own fused CPU step is silently wrong on many of these, and writes outside the tensor.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import Parameter

from conftest import BACKENDS, Backend, using
from proxadam import ProxAdam
from tools import BUSY, assert_same_bits, error_of, params_of, snapshot, weights

SENTINEL = 12345.0
SHAPE = (3, 4, 2, 5)
LOOP = {"foreach": False}


@pytest.fixture(params=[*BACKENDS, Backend("auto")], ids=lambda backend: backend.name)
def backend(request):
    """Every backend, and the choice tensor by tensor that users get by default."""
    with using(request.param):
        yield request.param


def _in(base_shape, index, dims=None):
    """A maker of views of SHAPE: part of a larger tensor that is full of sentinels."""

    def make(values):
        base = torch.full(base_shape, SENTINEL, dtype=values.dtype)
        view = base[index].permute(dims) if dims else base[index]
        return view.copy_(values)

    return make


DENSE = {
    "contiguous": torch.clone,
    "transposed": _in((4, 3, 2, 5), ..., (1, 0, 2, 3)),
    "reversed": _in((5, 2, 4, 3), ..., (3, 2, 1, 0)),
    "channels_last": lambda values: values.clone(memory_format=torch.channels_last),
    "rows of more": _in((6, 4, 2, 5), slice(1, 4)),
    "off by one": lambda values: torch.full((122,), SENTINEL)[1:-1].view(SHAPE).copy_(values),
}
GAPS = {
    "every other column": _in((3, 4, 2, 10), (..., slice(None, None, 2))),
    "columns": _in((3, 4, 2, 7), (..., slice(1, 6))),
    "inner slice": _in((3, 4, 4, 5), (slice(None), slice(None), slice(1, 3))),
    "last index": _in((*SHAPE, 2), (..., 0)),
    "transposed slice": _in((5, 2, 4, 4), (..., slice(3)), (3, 2, 1, 0)),
}
LAYOUTS = {**DENSE, **GAPS}


def holes(view):
    """What the storage of a view holds beside it."""
    storage = view.untyped_storage()
    whole = torch.empty(0, dtype=view.dtype).set_(storage)
    mask = torch.ones_like(whole, dtype=torch.bool)
    mask.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(False)
    return whole[mask]


def assert_one_sentence(error):
    kind, text = error
    assert kind is RuntimeError
    assert "\n" not in text
    assert text.startswith("`fused=True` needs the kernel for every parameter, and parameter 0 of")


@pytest.mark.parametrize("grad_layout", [*LAYOUTS, "expanded", "negated"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_step_as_the_contiguous_copy(backend, layout, grad_layout):
    values, gradients = torch.randn(2, *SHAPE)
    if grad_layout == "expanded":
        grad = gradients[:, :1, :1].expand(SHAPE)
    elif grad_layout == "negated":
        grad = torch.complex(torch.zeros(SHAPE), -gradients).conj().imag
        assert grad.is_neg()
    else:
        grad = LAYOUTS[grad_layout](gradients)
    param, twin = Parameter(LAYOUTS[layout](values)), Parameter(values.clone())
    param.grad, twin.grad = grad, grad.clone(memory_format=torch.contiguous_format)
    around = holes(param.detach())
    optimizer = ProxAdam([param], **BUSY, **backend.options)
    expected = ProxAdam([twin], **BUSY, **LOOP)

    same_strides = layout in DENSE and grad.stride() == param.stride() and not grad.is_neg()
    if backend.is_kernel and not same_strides:
        before = snapshot(optimizer)
        assert_one_sentence(error_of(optimizer.step))
        assert_same_bits(snapshot(optimizer)["0"], before["0"])
        assert optimizer.state[param]["step"] == 0
    else:
        for _ in range(2):
            optimizer.step()
            expected.step()
        actual, wanted = snapshot(optimizer), snapshot(expected)
        torch.testing.assert_close(actual, wanted, rtol=2e-6, atol=2e-7, check_stride=False)
    assert_same_bits(holes(param.detach()), around)
    assert_same_bits(grad.clone(), twin.grad.as_strided(grad.shape, twin.grad.stride()))


@pytest.mark.parametrize("numel", [1, 3, 17, 1025])
@pytest.mark.parametrize("offset", [1, 3])
def test_misaligned_views_write_nothing_beside_them(backend, dtype, numel, offset):
    """All of parameter, gradient and moments start and end off any vector boundary."""

    def misaligned(values):
        return torch.full((numel + 2 * offset,), SENTINEL, dtype=dtype)[offset:-offset].copy_(values)

    (aligned,) = weights((numel,), dtype=dtype)
    param = Parameter(misaligned(aligned.detach()))
    param.grad = misaligned(aligned.grad)
    optimizers = [ProxAdam([p], **BUSY, **backend.options) for p in (param, aligned)]
    for optimizer in optimizers:
        optimizer.step()
    state = optimizers[0].state[param]
    for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        state[name] = misaligned(state[name])
    for optimizer in optimizers:
        optimizer.step()
    assert_same_bits(*map(snapshot, optimizers))
    written = [param.detach(), param.grad, *(t for t in state.values() if t.dim())]
    assert all((holes(tensor) == SENTINEL).all() for tensor in written)


def test_the_layout_may_change_after_the_state_is_made(backend):
    param, twin = (Parameter(torch.arange(12.0).view(3, 4)) for _ in range(2))
    optimizer, expected = ProxAdam([param], **BUSY, **backend.options), ProxAdam([twin], **BUSY, **LOOP)
    for transposed in (False, True):
        if transposed:
            param.data = param.data.t().contiguous().t()
        for p, each in ((param, optimizer), (twin, expected)):
            p.grad = torch.ones_like(p)
        if backend.is_kernel and transposed:
            assert "has a exp_avg" not in error_of(optimizer.step)[1]
            assert_one_sentence(error_of(optimizer.step))
            return
        optimizer.step()
        expected.step()
    torch.testing.assert_close(snapshot(optimizer), snapshot(expected), check_stride=False)
