"""A ramp over shards zeroes what it would zero in the whole tensors."""

from __future__ import annotations

from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.nn import Parameter

from proxadam import ProxAdamW, SparsityRamp
from proxadam._sparsity.pruning import weights
from tools import assert_same_bits

from .checks import check, check_each
from .engines import ENGINES, Net, assert_all_same, gathered, mesh, set_gradients, whole

UNITS = {
    f"{unit}-{scope}{'-sampled' if sample < 1e9 else ''}": (unit, scope, sample)
    for unit in ("weight", "row")
    for scope in ("global", "tensor")
    for sample in (1 << 30, 100)
    if unit == "weight" or sample == 100
}


@check((2, 4), **UNITS)
def a_ramp_over_shards_is_that_of_the_whole(unit, scope, sample):
    """Uneven shards, shards of two dimensions, empty ones, replicas beside them, and ties."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    torch.manual_seed(0)
    grid = mesh(2, dist.get_world_size() // 2)
    shapes = [(31, 7), (3, 51), (5, 6, 4), (100,), (1, 3)]
    placements = [
        (Shard(0), Replicate()),
        (Shard(0), Shard(1)),
        (Shard(1), Shard(0)),
        (Replicate(), Replicate()),
        (Shard(0), Shard(0)),
    ]
    values = [torch.randn(shape).mul(4).round() for shape in shapes]  # zeros and ties
    grads = [torch.ones(shape) for shape in shapes]

    def pruned(spread):
        params = [Parameter(spread(v, p)) for v, p in zip(values, placements, strict=True)]
        plain = Parameter(values[0].clone())
        groups = [{"params": params[:2]}, {"params": [*params[2:], plain], "lr": 0.02}]
        optimizer = ProxAdamW(groups, lr=0.01)
        ramp = SparsityRamp(optimizer, 0.85, begin=1, end=4, unit=unit, scope=scope)
        found = []
        for _ in range(5):
            for param, grad, placement in zip(params, grads, placements, strict=True):
                param.grad = spread(grad, placement)
            plain.grad = grads[0].clone()
            optimizer.step()
            ramp.step()
            found.append(ramp.last_sparsity)
        return [*(whole(param).detach() for param in params), plain.detach()], found

    with (
        patch.object(weights, "_SAMPLE", sample),
        patch.object(weights, "_FEW", 0.0),
    ):
        actual, shares = pruned(lambda t, placed: distribute_tensor(t.clone(), grid, placed))
        expected, wanted = pruned(lambda t, _: t.clone())
    assert shares == wanted
    for i, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert_same_bits(one, other, f"parameter {i}")


@check_each({name: ENGINES[name] for name in ("fsdp2", "hsdp", "fsdp2_tensor_parallel")})
def a_ramp_over_an_engine_is_that_of_one_process(engine):
    """With ties, that go by where a shard lies in the whole."""
    for unit in ("weight", "row"):
        model, optimizer = engine(ProxAdamW, lr=0.1)
        twin = Net()
        alone = ProxAdamW(twin.parameters(), lr=0.1)
        for net, own in ((model, optimizer), (twin, alone)):
            ramp = SparsityRamp(own, 0.5, begin=1, end=3, unit=unit, score="magnitude")
            for seed in range(3):
                set_gradients(net, seed)
                own.step()
                for param in net.parameters():
                    param.data.mul_(4).round_().div_(4)
                ramp.step()
        expected = [param.detach() for param in twin.parameters()]
        assert_all_same(gathered(model)[0], expected)
        assert any(0 < (param == 0).sum() < param.numel() for param in expected)
