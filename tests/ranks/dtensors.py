"""What a DTensor must be to be stepped, and what a step may not hide from autograd."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.nn import Parameter

from proxadam import ProxAdam
from tools import BUSY, assert_same_bits, error_of, params_of

from .checks import EACH_PATH, check
from .engines import dtensor, mesh, whole


@check(**EACH_PATH)
def misfits_are_refused(path):
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    on = mesh()
    rows = "a DTensor of shape (6, 4) placed as (Shard(dim=0),)"

    def partial_parameter(_):
        param = Parameter(DTensor.from_local(torch.ones(6, 4), on, [Partial()]))
        param.grad = DTensor.from_local(torch.ones(6, 4), on, [Partial()])
        return param, "whose shards are summands of it"

    def plain_gradient(param):
        param.grad = torch.ones(6, 4)
        return param, f"the gradient of parameter 1 of shape (6, 4) is no DTensor, expected {LIKE}"

    def other_state(value):
        def spoil(param):
            optimizer.state[param]["exp_avg_sq"] = value()
            return param, f"the exp_avg_sq of parameter 1 of shape (6, 4) is {SAID[value]}"

        return spoil

    def distributed_gradient(_):
        param = Parameter(torch.ones(6, 4))
        param.grad = distribute_tensor(torch.ones(6, 4), on, [Replicate()])
        return param, "is a DTensor and the parameter a Parameter"

    def plain_state():
        return torch.ones(6, 4)

    def columns():
        return distribute_tensor(torch.ones(6, 4), on, [Shard(1)])

    def longer():
        return distribute_tensor(torch.ones(6 + dist.get_world_size(), 4), on, [Shard(0)])

    LIKE = f"one like the parameter, {rows}"
    SAID = {plain_state: "no DTensor", columns: "a DTensor", longer: "a DTensor of shape ("}
    spoilers = [partial_parameter, plain_gradient, distributed_gradient]
    for spoil in [*spoilers, *map(other_state, SAID)]:
        healthy, victim = dtensor(Shard(0)), dtensor(Shard(0))
        optimizer = ProxAdam([healthy, victim], **BUSY, **path)
        optimizer.step()
        victim, text = spoil(victim)
        optimizer.param_groups[0]["params"][1] = victim
        tensors = [t for p in params_of(optimizer) for t in (p, *optimizer.state[p].values())]
        before = [whole(t).clone() for t in tensors]
        kind, said = error_of(optimizer.step)
        assert kind is RuntimeError, said
        assert text in said, said
        assert "\n" not in said
        for tensor, same in zip(tensors, before, strict=True):
            assert_same_bits(whole(tensor), same)


@check(**EACH_PATH)
def versions_are_bumped(path):
    """Autograd keeps the DTensor, not its shard, and asks that for its version."""
    from torch.distributed.tensor import Shard

    param = dtensor(Shard(0))
    saved = (param**2).sum()
    optimizer = ProxAdam([param], **BUSY, **path)
    optimizer.grad_scale = torch.tensor(2.0)
    before = param.grad._version
    optimizer.step()
    assert param.grad._version > before
    kind, text = error_of(saved.backward)
    assert kind is RuntimeError
    assert "modified by an inplace operation" in text


@check(kernel=())
def a_gradient_that_is_still_on_its_way():
    """As a collective leaves it that nobody has waited for yet."""
    from torch.distributed._functional_collectives import AsyncCollectiveTensor, all_reduce
    from torch.distributed.tensor import DTensor, Replicate

    param, twin = (dtensor(Replicate()) for _ in range(2))
    coming = all_reduce(torch.ones(6, 4), "sum", mesh())
    assert type(coming) is AsyncCollectiveTensor
    param.grad = DTensor.from_local(coming, mesh(), [Replicate()], run_check=False)
    whole(twin.grad).fill_(dist.get_world_size())
    for p in (param, twin):
        ProxAdam([p], **BUSY, fused=True).step()
    assert_same_bits(whole(param), whole(twin))


@check()
def autograd_goes_through_dtensors():
    """differentiable=True leaves them whole."""
    from torch.distributed.tensor import Shard

    leaf, twin = dtensor(Shard(0)), dtensor(Shard(0))
    plain = Parameter(whole(twin.detach()))
    plain.grad = whole(twin.grad)
    for param in (leaf, plain):
        weight = param.clone()
        weight.grad = param.grad.clone()
        ProxAdam([weight], **{**BUSY, "amsgrad": False}, differentiable=True).step()
        param.grad = None
        weight.square().sum().backward()
    torch.testing.assert_close(whole(leaf.grad), plain.grad)
