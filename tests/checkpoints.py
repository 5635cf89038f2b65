"""What the tests of saving and loading share: steps that can be taken again, and refusals."""

from __future__ import annotations

import torch
from torch.nn import Parameter

from tools import assert_same_bits, error_of, params_of, snapshot


def train(optimizer, steps, seed=0):
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for _ in range(steps):
        for param in params_of(optimizer):
            grad = torch.randn(param.shape, generator=generator, device="cpu")
            param.grad = grad.to(param)
        optimizer.step()


def fresh(params, dtype=None):
    return [Parameter(param.detach().to(dtype or param.dtype, copy=True)) for param in params]


def lacking(name):
    return lambda state: state.pop(name)


def with_value(name, value):
    return lambda state: state.update({name: value})


def of_shape(name, *shape):
    return lambda state: state.update({name: torch.zeros(shape)})


def assert_refused_whole(loader, state_dict, text):
    before, groups = snapshot(loader), [dict(group) for group in loader.param_groups]
    error = error_of(loader.load_state_dict, state_dict)
    assert error is not None
    kind, said = error
    assert kind is ValueError, said
    assert text in said
    assert "\n" not in said
    assert_same_bits(snapshot(loader), before)
    assert loader.param_groups == groups
    assert not loader._optimizer_load_state_dict_pre_hooks
