"""What is counted and measured of shards is that of the whole."""

from __future__ import annotations

import math
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.nn import Parameter

from proxadam import ProxAdam, TargetSparsityL1, sparsity, stationarity, suggest_l1
from proxadam._sparsity import suggest_l1 as suggest_l1_module

from .checks import check
from .engines import mesh


@check((2,))
def numbers_of_shards_are_those_of_the_whole():
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    torch.manual_seed(0)
    values = [torch.randn(7, 3), torch.randn(5), torch.randn(4)]
    values[0][:5] = 0.0
    grads = [torch.randn_like(v) * torch.where(v == 0, 1e-3, 1.0) for v in values]
    placements = [[Shard(0)], [Shard(0)], [Replicate()]]

    def numbers(spread):
        params = [Parameter(spread(v, p)) for v, p in zip(values, placements, strict=True)]
        for param, grad, placement in zip(params, grads, placements, strict=True):
            param.grad = spread(grad, placement)
        optimizer = ProxAdam(params, l1=0.3, lr=1e-6)
        scheduler = TargetSparsityL1(optimizer, 0.9, every=1)
        optimizer.step()
        scheduler.step()
        zeros, residual = sparsity(optimizer), stationarity(optimizer)
        found = [zeros.total, *zeros.params.values(), residual.total, residual.max]
        return [*found, suggest_l1(optimizer, 0.6), *scheduler.get_last_l1()]

    expected = numbers(lambda tensor, _: tensor.clone())
    actual = numbers(lambda tensor, placement: distribute_tensor(tensor, mesh(), placement))
    assert 0.4 < expected[0] < 0.6, expected
    torch.testing.assert_close(
        *(torch.tensor(x, dtype=torch.float64) for x in (actual, expected)), rtol=1e-6, atol=0
    )


@check((2, 4))
def a_sample_of_shards_gives_all_ranks_one_guess():
    """Uneven shards, shards of two dimensions, empty ones, and replicas beside them."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    torch.manual_seed(0)
    grid = mesh(2, dist.get_world_size() // 2)
    values = [torch.randn(301, 7), torch.randn(2, 501), torch.randn(1000), torch.randn(1)]
    placements = [
        (Shard(0), Replicate()),
        (Shard(0), Shard(1)),
        (Replicate(), Replicate()),
        (Shard(0), Shard(0)),
    ]
    params = []
    for value, placement in zip(values, placements, strict=True):
        params.append(Parameter(distribute_tensor(value, grid, placement)))
        params[-1].grad = distribute_tensor(value, grid, placement)
    optimizer = ProxAdam(params, betas=(0.0, 0.999))
    optimizer.step()
    every = torch.cat([value.flatten() for value in values]).abs()
    for most in (every.numel(), 1000):  # all, and a sample
        with patch.object(suggest_l1_module, "_MOST", most):
            guess = suggest_l1(optimizer, 0.8)
        guesses = [0.0] * dist.get_world_size()
        dist.all_gather_object(guesses, guess)
        assert guesses == [guess] * len(guesses)
        if most == every.numel():
            assert guess == every.sort().values[math.ceil(0.8 * most) - 1].item()
        else:
            share = (every <= guess).double().mean().item()
            assert abs(share - 0.8) <= 3 * math.sqrt(0.8 * 0.2 / (most / 2)), share
