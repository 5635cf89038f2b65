"""What is counted and measured of shards is that of the whole."""

from __future__ import annotations

import torch
from torch.nn import Parameter

from proxadam import ProxAdam, TargetSparsityL1, sparsity, stationarity, suggest_l1

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
