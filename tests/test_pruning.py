"""An update of a ramp: the exact projection, of weights and of rows."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch.nn import Parameter

from proxadam import ProxAdam, ProxAdamW, SparsityRamp, sparsity
from proxadam._sparsity.pruning import score_pass
from proxadam._sparsity.pruning.scores import Scored
from ramps import (
    border,  # noqa: F401 (a fixture)
    costs_of,
    each_border,
    each_pass,
    flat,
    passes,  # noqa: F401 (a fixture)
    projection,
    running,
    update,
    zeros,
)
from storages import each_storage
from tools import assert_same_bits, params_of

# ---- the projection ---------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"metric": "euclidean"}], ids=str)
@pytest.mark.parametrize("score", ["metric", "magnitude"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_border
@each_pass
def test_the_lowest_costs_become_zero(dtype, score, options, share):
    optimizer = running(dtype, **options)
    for param in params_of(optimizer):
        param.data[::4] = -0.0
    costs, before = flat(costs_of(optimizer, score)), flat(params_of(optimizer))
    scheduler = update(optimizer, share, score=score)
    zero, expected = zeros(optimizer), projection(costs, before == 0, share)
    assert_same_bits(zero, expected)
    after = flat(params_of(optimizer))
    assert_same_bits(after[~zero], before[~zero])
    assert not after[zero & (before != 0)].signbit().any()
    assert scheduler.last_sparsity == zero.double().mean().item()


@pytest.mark.parametrize("seed", range(20))
def test_against_all_supports_that_there_are(seed):
    """argmin_z Σ d (w − z)² / lr with at most k of nine z not zero, by trying all of them."""
    torch.manual_seed(seed)
    lrs = [0.01, 0.1] if seed % 2 else [0.01, 0.01]
    params = [Parameter(torch.randn(n, dtype=torch.float64)) for n in (5, 4)]
    optimizer = ProxAdam([{"params": [p], "lr": lr} for p, lr in zip(params, lrs, strict=True)])
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer.step()
    params[0].data[1] = 0.0
    params[1].data[:2] = params[1].data[2]  # ties
    optimizer.state[params[1]]["exp_avg_sq"][:2] = optimizer.state[params[1]]["exp_avg_sq"][2]
    costs, before = flat(costs_of(optimizer)), flat(params)
    update(optimizer, seed % 9 / 9, groups=[0, 1])
    after = flat(params)
    assert (after == 0).sum() == max(1, seed % 9)
    kept = 9 - seed % 9
    best = min(
        sum(costs[i].item() for i in set(range(9)) - set(support))
        for support in itertools.combinations(range(9), kept)
    )
    dropped = ((after == 0) * costs).sum().item()
    assert dropped == pytest.approx(best, rel=1e-12, abs=1e-300)
    assert_same_bits(after[after != 0], before[after != 0])


@each_storage
@each_pass
def test_every_storage(storage):
    own = None if storage.state == storage.param else storage.state
    optimizer = running(storage.param, state_dtype=own)
    costs = flat(costs_of(optimizer))
    before = zeros(optimizer)
    update(optimizer, 0.8)
    zero = zeros(optimizer)
    assert zero.sum() == max(before.sum().item(), round(0.8 * len(zero)))
    kept, dropped = costs[~zero].min(), costs[zero & ~before].max()
    assert dropped <= kept * (1 + 1e-6), "but for the rounding of a score"


@each_border
@each_pass
def test_ties_go_by_group_parameter_and_position():
    optimizer = running(lrs=(0.01, 0.01))
    for param in params_of(optimizer):
        param.data.fill_(1.0)
        optimizer.state[param]["exp_avg_sq"].fill_(0.25)
    update(optimizer, 0.6)
    zero = zeros(optimizer)
    count = round(0.6 * len(zero))
    assert zero[:count].all()
    assert not zero[count:].any()


@each_pass
def test_weights_too_small_to_be_squared():
    """And denominators of 0, with eps = 0 and no gradient."""
    param = Parameter(10.0 ** torch.linspace(-37, 3, 81)[torch.randperm(81)])
    optimizer = ProxAdamW([param])
    param.grad = torch.zeros_like(param)
    optimizer.step()
    optimizer.param_groups[0]["eps"] = 0.0
    order = param.detach().argsort()
    update(optimizer, 40 / 81)
    assert (param[order[:40]] == 0).all()
    assert (param[order[40:]] != 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@each_border
@each_pass
def test_what_is_not_finite_goes_last(bad):
    optimizer = running()
    odd = params_of(optimizer)[0]
    odd.data[0] = bad
    update(optimizer, 0.98)
    zero = zeros(optimizer)
    assert zero.sum() == round(0.98 * len(zero))
    assert (odd[0] != 0).all()


@each_pass
def test_each_tensor_by_itself():
    optimizer = running()
    costs = costs_of(optimizer)
    scheduler = update(optimizer, 0.75, scope="tensor")
    for param, cost in zip(params_of(optimizer), costs, strict=True):
        flat = param.detach().reshape(-1)
        expected = projection(cost.reshape(-1), torch.zeros_like(flat, dtype=torch.bool), 0.75)
        assert_same_bits(flat == 0, expected)
    assert scheduler.last_sparsity == float(sparsity(optimizer))


@each_pass
def test_as_many_zeros_as_there_were():
    optimizer = running()
    for param in params_of(optimizer):
        param.data[: len(param) // 2] = 0.0
    before = flat(params_of(optimizer))
    scheduler = update(optimizer, 0.2)
    assert_same_bits(flat(params_of(optimizer)), before)
    assert scheduler.last_sparsity == (before == 0).double().mean().item()


@each_pass
def test_autograd_hears_of_it():
    optimizer = running()
    versions = [param._version for param in params_of(optimizer)]
    update(optimizer, 0.5)
    assert all(p._version > v for p, v in zip(params_of(optimizer), versions, strict=True))


@each_pass
def test_millions_of_weights():
    """Sampled as by default, over several chunks."""
    param = Parameter(torch.randn(3_000_000))
    optimizer = ProxAdamW([param])
    param.grad = torch.randn_like(param)
    optimizer.step()
    optimizer.state[param]["exp_avg_sq"].copy_(torch.rand_like(param))
    for share in (0.02, 0.5, 0.95):
        update(optimizer, share)
        assert (param == 0).sum() == round(share * param.numel())
    costs = flat(costs_of(optimizer))
    sure = (param.detach() != 0).logical_and(costs > 0)
    assert sure.sum() == param.numel() - round(0.95 * param.numel())


# ---- rows -------------------------------------------------------------------------------------


@each_pass
@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_rows(scope, share):
    optimizer = running()
    params = params_of(optimizer)
    params[0].data[3] = 0.0
    costs = [cost.reshape(len(cost), -1).sum(1) for cost in costs_of(optimizer)]
    before = copy.deepcopy(params)
    scheduler = update(optimizer, share, unit="row", scope=scope)
    dead = [(p == 0).reshape(len(p), -1).all(1) for p in params]
    was = [(p == 0).reshape(len(p), -1).all(1) for p in before]
    if scope == "global":
        costs, was, together = [torch.cat(costs)], [torch.cat(was)], [torch.cat(dead)]
    else:
        together = dead
    for cost, own, found in zip(costs, was, together, strict=True):
        assert_same_bits(found, projection(cost, own, share))
    for param, old, rows in zip(params, before, dead, strict=True):
        assert_same_bits(param.detach()[~rows], old.detach()[~rows])
    assert scheduler.last_sparsity == torch.cat(dead).double().mean().item()


@each_pass
def test_rows_too_small_to_be_squared():
    param = Parameter(torch.ones(20, 3) * (10.0 ** torch.linspace(-37, 3, 20))[:, None])
    optimizer = ProxAdamW([param])
    param.grad = torch.zeros_like(param)
    optimizer.step()
    update(optimizer, 0.5, unit="row")
    assert (param[:10] == 0).all()
    assert (param[10:] != 0).all()


def test_a_parameter_at_an_odd_address_is_scored_by_torch_ops(kernel_module):  # noqa: ARG001
    """The native pass reads whole numbers, which have to lie at multiples of their size."""
    odd = torch.frombuffer(bytearray(4 * 600 + 1), dtype=torch.float32, offset=1).view(20, 30)
    for at_odd in (False, True):
        param = Parameter(odd if at_odd else torch.empty(20, 30))
        param.data.copy_(torch.arange(600).view(20, 30) - 300)
        optimizer = ProxAdam([param], l1=1.0)
        one = Scored(param, optimizer.param_groups[0], None, 1.0, 0)
        assert (score_pass._native(one, torch.float32) is None) == at_odd
        ramp = SparsityRamp(optimizer, 0.5, begin=0, end=1, score="magnitude")
        param.grad = torch.zeros_like(param)
        optimizer.step()
        ramp.step()
        assert (param == 0).sum() == 300
