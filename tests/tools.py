"""What several test files share: our classes beside torch's, and tensors to step and compare."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import warnings

import pytest
import torch
from torch.nn import Parameter

from proxadam import ProxAdam, ProxAdamW

TWINS = {"Adam": (ProxAdam, torch.optim.Adam), "AdamW": (ProxAdamW, torch.optim.AdamW)}

# The test gets `ours` and `theirs`, once for Adam and once for AdamW; or ours alone, as `cls`.
each_twin = pytest.mark.parametrize(("ours", "theirs"), TWINS.values(), ids=TWINS.keys())
each_class = pytest.mark.parametrize("cls", [ProxAdam, ProxAdamW])
# In the environment of a process that forks: the child of one that has looked for a GPU has none,
# and torch asks for one in every step.
HIDES_GPUS = {"CUDA_VISIBLE_DEVICES": ""}
forks = pytest.mark.skipif(
    not hasattr(os, "fork") or torch.cuda.is_available(),
    reason="needs a platform that forks, and CUDA_VISIBLE_DEVICES='' where there is a GPU",
)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

LOOP = {"foreach": False}
# Everything that moves or shrinks a weight, at once.
BUSY = {"lr": 0.05, "l1": 0.01, "l2": 0.02, "weight_decay": 0.1, "amsgrad": True}


def error_of(function, *args, **kwargs):
    """Type and text of the exception, or warning made one, that a call raises; None if none."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        return type(error), str(error)
    return None


def weights(*shapes, dtype=torch.float32):
    """Random parameters with random gradients."""
    params = [Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def regression(contiguous=True):
    """A weight, a bias and a closure of them, as torch has it in its tests of the direction."""
    if contiguous:
        weight, bias = torch.randn(10, 5), torch.randn(10)
    else:
        weight, bias = torch.randn(10, 5, 2)[..., 0], torch.randn(10, 2)[..., 0]
    weight, bias, x = Parameter(weight), Parameter(bias), torch.randn(5)

    def loss():
        weight.grad = bias.grad = None
        value = (weight.mv(x) + bias).square().sum()
        value.backward()
        return value

    return weight, bias, loss


def quantised():
    """A tensor of a dtype that torch is about to give up, and says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


@contextlib.contextmanager
def threads(count):
    """Run torch, and with it the kernel, on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def saved_and_loaded(saved):
    """What comes back from a file."""
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def snapshot(optimizer):
    """Copies of all parameters and of their state, by position and name.

    Steps are copied to the host: where they are kept depends on the path and the version of torch.
    """
    copies = {}
    for i, param in enumerate(params_of(optimizer)):
        copies[f"{i}"] = param.detach().clone()
        tensors = optimizer.state.get(param, {}).items()
        for name, tensor in (pair for pair in tensors if isinstance(pair[1], torch.Tensor)):
            copies[f"{name} of {i}"] = tensor.to(
                "cpu" if name == "step" else tensor.device, copy=True
            )
    return copies


def assert_same_bits(actual, expected, what="tensor"):
    """Equal tensors, or dicts of them, the sign of a zero and the bits of a NaN included."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for name, tensor in expected.items():
            assert_same_bits(actual[name], tensor, name)
        return
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    bits = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (actual, expected)]
    assert torch.equal(*bits), f"{what} is {actual}, expected {expected}"


def twin_of(optimizer):
    """A copy with parameters, gradients and state of its own."""
    other = copy.deepcopy(optimizer)
    for param, twin in zip(params_of(optimizer), params_of(other), strict=True):
        twin.grad_dtype = param.grad_dtype
        twin.grad = None if param.grad is None else param.grad.clone()
    return other
