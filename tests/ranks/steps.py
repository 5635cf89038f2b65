"""The steps of many ranks are those of one process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from proxadam import ProxAdamW
from proxadam._step import torch_ops
from tools import BUSY, assert_same_bits

from .checks import check, check_each
from .engines import ENGINES, beside_one_process, ddp, gathered, set_gradients


@check_each(ENGINES, "kernel", "loop", "foreach")
def steps_as_one_process(engine, path):
    """With the gradients of the ranks, one process makes the same weights to the last bit."""
    for weights, expected in beside_one_process(engine, {**BUSY, **path}):
        for i, (actual, param) in enumerate(zip(weights, expected, strict=True)):
            assert_same_bits(actual, param, f"parameter {i}")
    zeros = sum((p == 0).sum().item() for p in expected)
    assert 0 < zeros < sum(p.numel() for p in expected)


@check_each(ENGINES)
def takes_the_kernel(engine):
    """By default, and with not one parameter left to torch ops."""
    model, optimizer = engine(ProxAdamW, **BUSY)
    model(torch.randn(4, 8)).square().mean().backward()
    before, _ = gathered(model)
    on_torch_ops, torch_ops.step = torch_ops.step, None
    try:
        optimizer.step()
    finally:
        torch_ops.step = on_torch_ops
    assert not any(map(torch.equal, before, gathered(model)[0]))


@check()
def a_rank_without_a_gradient():
    """Its shard stays as it is, without state; no other rank waits for it."""
    from torch.distributed.tensor import DTensor

    model, optimizer = ENGINES["fsdp2"](ProxAdamW, **BUSY)
    set_gradients(model, seed=0)
    left = model[1].weight
    if dist.get_rank() == 1:
        left.grad = None
    before, moved = [p._local_tensor.clone() for p in (left, model[0].weight)]
    optimizer.step()
    assert isinstance(left, DTensor)
    assert torch.equal(left._local_tensor, before) == (dist.get_rank() == 1)
    assert (left in optimizer.state) == (dist.get_rank() != 1)
    assert not torch.equal(model[0].weight._local_tensor, moved)


@check()
def a_rank_that_does_not_use_a_layer():
    """DDP gives it the mean gradient of the others: all ranks make the same step."""
    torch.manual_seed(0)
    model = ddp(Branches(), find_unused_parameters=True)
    optimizer = ProxAdamW(model.parameters(), **BUSY)
    for i in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 8), use_second=dist.get_rank() == 0 and i != 1).sum().backward()
        optimizer.step()
    for param in model.parameters():
        copies = [torch.empty_like(param) for _ in range(dist.get_world_size())]
        dist.all_gather(copies, param.detach())
        for other in copies:
            assert_same_bits(other, param.detach())


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, inputs, *, use_second):
        outputs = self.first(inputs)
        return outputs + self.second(inputs) if use_second else outputs
