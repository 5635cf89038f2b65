"""keep_zeros: what is zero before a step is +0.0 behind it, on every path."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn import Parameter
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from proxadam import ProxAdam, ProxAdamW, prox_adam
from storages import FP32
from tools import BUSY, assert_same_bits, each_class, params_of, saved_and_loaded, snapshot

KEPT = {**BUSY, "keep_zeros": True}


def _with_zeros(storage, device="cpu", size=3000):
    """Two thirds zeros of either sign, and a gradient that would wake all of them."""
    values = torch.randn(size)
    values[::3], values[1::3] = 0.0, -0.0
    param = storage.parameter(values.to(device))
    param.grad = storage.gradient(torch.randn(size, device=device))
    return param


def _is_plus_zero(tensor):
    return (tensor == 0) & ~tensor.signbit()


@pytest.mark.parametrize("own", [{}, {"l1": 0.0, "l2": 0.0}, {"metric": "euclidean"}], ids=str)
def test_no_zero_wakes_and_the_others_go_on(backend, storage, own):
    param = _with_zeros(storage, backend.device)
    twin = Parameter(param.detach().clone())
    twin.grad_dtype = param.grad.dtype
    options = {**storage.options, **backend.options}
    ours, other = (
        ProxAdam([p], **{**BUSY, **own, "keep_zeros": keep}, **options)
        for p, keep in ((param, True), (twin, False))
    )
    zeros = param == 0
    for _ in range(4):
        twin.grad = param.grad.clone()
        ours.step()
        other.step()
        assert _is_plus_zero(param.detach())[zeros].all()
        zeros = param == 0
    assert 2000 <= zeros.sum() < 3000
    assert_same_bits(param.detach()[~zeros], twin.detach()[~zeros])
    for name in ("exp_avg", "exp_avg_sq"):
        resting = ours.state[param][name][zeros]
        assert resting.count_nonzero() > 1900, "the moments of a kept zero go on"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_zero_stays_whatever_its_gradient(backend, storage, bad):
    param = _with_zeros(storage, backend.device)
    param.grad[:3] = bad
    ProxAdam([param], **KEPT, **storage.options, **backend.options).step()
    assert _is_plus_zero(param.detach()[:2]).all()
    assert param.detach()[2].isnan()


def test_lr_zero_writes_nothing(backend, storage):
    param = _with_zeros(storage, backend.device)
    before = param.detach().clone()
    options = {**KEPT, "lr": 0.0, **storage.options, **backend.options}
    ProxAdam([param], **options).step()
    assert_same_bits(param.detach(), before)


def test_what_the_threshold_makes_zero_stays(backend, storage):
    param = storage.parameter(torch.randn(2000).to(backend.device))
    optimizer = ProxAdam(
        [param], lr=0.05, l1=0.5, keep_zeros=True, **storage.options, **backend.options
    )
    last = torch.zeros_like(param, dtype=torch.bool)
    for _ in range(30):
        param.grad = storage.gradient(torch.randn_like(param))
        optimizer.step()
        zeros = param.detach() == 0
        assert zeros[last].all()
        last = zeros
    assert 0 < last.sum() < len(last)


@each_class
def test_it_can_be_lifted_again(cls, any_backend):
    """And is read at every step."""
    param = _with_zeros(FP32, any_backend.device)
    optimizer = cls([param], **{**KEPT, "l1": 0.0}, **any_backend.options)
    optimizer.step()
    assert (param == 0).sum() == 2000
    optimizer.param_groups[0]["keep_zeros"] = False
    optimizer.step()
    assert (param == 0).sum() == 0


@pytest.mark.parametrize("path", [{}, {"foreach": False}, {"foreach": True}], ids=str)
def test_ten_thousand_steps(path):
    param = _with_zeros(FP32, size=300)
    optimizer = ProxAdamW([param], lr=1e-2, keep_zeros=True, **path)
    zeros = param.detach() == 0
    for step in range(10_000):
        if step % 50 == 0:
            param.grad = torch.randn_like(param)
        optimizer.step()
    assert_same_bits(param.detach() == 0, zeros)
    assert not param.detach()[zeros].signbit().any()


def test_complex_weights():
    param = Parameter(torch.zeros(4, dtype=torch.complex64))
    param.data[2:] = 1 + 1j
    param.grad = torch.full_like(param, 1 - 1j)
    options = {"lr": 0.1, "l1": 0.1, "metric": "euclidean", "keep_zeros": True, "l1_knee": 0.1}
    ProxAdam([param], **options).step()
    assert param.detach().eq(0).tolist() == [True, True, False, False]


def test_the_functional_step_and_autograd():
    """A kept zero has no gradient through the step."""
    zero = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    param, grad = zero.clone(), torch.ones(2, dtype=torch.float64, requires_grad=True)
    param[1] = 1.0
    lists = [[param], [grad], *([torch.zeros(2, dtype=torch.float64)] for _ in range(2))]
    prox_adam(
        *lists, [], [torch.tensor(0.0)], differentiable=True, lr=0.1, beta1=0.5, beta2=0.75,
        eps=1e-8, weight_decay=0.0, amsgrad=False, maximize=False, l1=0.1, keep_zeros=True,
    )  # fmt: skip
    param.sum().backward()
    assert param.tolist()[0] == 0.0
    assert grad.grad[0] == 0
    assert param[1] != 1


def test_grad_scaler(any_backend):
    """Also where a step is skipped."""
    if any_backend.device != "cpu":
        pytest.skip("the scaler of the CPU")
    param = _with_zeros(FP32)
    optimizer = ProxAdamW([param], **KEPT, **any_backend.options)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for overflows in (False, True, False):
        scaler.scale(torch.ones(()))
        param.grad = torch.randn_like(param) * 8
        if overflows:
            param.grad[0] = math.inf
        scaler.step(optimizer)
        scaler.update()
        assert (param == 0).sum() >= 2000


def test_an_average_that_begins_behind_the_zeros_keeps_them():
    """Of SWA and of EMA."""
    model = torch.nn.Linear(30, 20)
    optimizer = ProxAdamW(model.parameters(), lr=0.01, keep_zeros=True)
    model.weight.data[torch.rand(20, 30) < 0.8] = 0.0
    zeros = model.weight == 0
    ema = get_ema_multi_avg_fn(0.9)
    averages = [AveragedModel(model), AveragedModel(model, multi_avg_fn=ema)]
    for _ in range(10):
        for param in model.parameters():
            param.grad = torch.randn_like(param)
        optimizer.step()
        for average in averages:
            average.update_parameters(model)
    for average in averages:
        weight = average.module.weight
        assert_same_bits(weight == 0, zeros)
        assert not torch.equal(weight, model.weight)


def test_autocast():
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 5))
    optimizer = ProxAdamW(model.parameters(), lr=0.01, keep_zeros=True)
    zeros = []
    for param in model.parameters():
        param.data[torch.rand_like(param) < 0.7] = 0.0
        zeros.append(param == 0)
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(torch.randn(16, 20)).square().mean()
        loss.backward()
        optimizer.step()
    for param, zero in zip(model.parameters(), zeros, strict=True):
        assert_same_bits(param == 0, zero)


def test_checkpoints(any_backend):
    """To the bit, and through a file of AdamW that has taken no step."""
    param = _with_zeros(FP32, any_backend.device)
    optimizer = ProxAdamW([param], **KEPT, **any_backend.options)
    optimizer.step()
    twin = Parameter(param.detach().clone())
    resumed = ProxAdamW([twin], **any_backend.options)
    resumed.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    theirs = Parameter(param.detach().clone())
    adamw = torch.optim.AdamW([theirs])
    adamw.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    through = ProxAdamW([theirs], **any_backend.options)
    through.load_state_dict(saved_and_loaded(adamw.state_dict()))
    for each in (optimizer, resumed, through):
        (own,) = params_of(each)
        own.grad = torch.linspace(-1, 1, own.numel(), device=own.device)
        each.step()
        assert each.param_groups[0]["keep_zeros"] is True
    assert_same_bits(snapshot(resumed), snapshot(optimizer))
    assert_same_bits(theirs.detach(), param.detach())
    assert (param == 0).sum() >= 2000
