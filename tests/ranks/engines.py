"""A model, whole and as the engines of torch.distributed cut it up, and what to do with either."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import Parameter

from proxadam import ProxAdamW
from tools import assert_same_bits


class Net(nn.Sequential):
    """A layer of 5 rows, of which four ranks have 2, 2, 1 and 0."""

    def __init__(self, a: int = 8, b: int = 12, c: int = 5, d: int = 4) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.LayerNorm(a), nn.Linear(a, b), nn.Tanh(), nn.Linear(b, c), nn.Linear(c, d)
        )
        for param in self.parameters():
            param.data.add_(torch.randn_like(param), alpha=0.1)


@dataclass
class Engine:
    """How a model and its optimizer are distributed."""

    wrap: Callable
    ranks: tuple = (2, 4)
    alike: bool = False  # all ranks are to see the same batch
    zero: dict | None = None  # options of ZeroRedundancyOptimizer

    def __call__(self, cls, net=None, **options):
        model = self.wrap(net or Net())
        if self.zero is None:
            return model, cls(model.parameters(), **options)
        from torch.distributed.optim import ZeroRedundancyOptimizer

        return model, ZeroRedundancyOptimizer(
            model.parameters(), optimizer_class=cls, **self.zero, **options
        )


def mesh(*shape, names=None):
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", shape or (dist.get_world_size(),), mesh_dim_names=names)


def ddp(model, **options):
    return nn.parallel.DistributedDataParallel(model, **options)


def fsdp1(model):
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    layers = ModuleWrapPolicy({nn.Linear})
    return FullyShardedDataParallel(
        model, use_orig_params=True, auto_wrap_policy=layers, device_id=torch.device("cpu")
    )


def fsdp2(model, on=None, **options):
    from torch.distributed.fsdp import fully_shard

    for part in (model[1], model[3], model):
        fully_shard(part, mesh=on or mesh(), **options)
    return model


def fsdp2_mixed(model):
    """DTensors and plain tensors in one group; the gradients of these are each rank's own."""
    fsdp2(model, ignored_params={model[0].weight, model[4].weight})
    assert {type(p).__name__ for p in model.parameters()} == {"DTensor", "Parameter"}
    return model


def fsdp2_offload(model):
    from torch.distributed.fsdp import CPUOffloadPolicy

    return fsdp2(model, offload_policy=CPUOffloadPolicy(pin_memory=False))


def tensor_parallel(model, on=None, **more):
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    colwise = ColwiseParallel(input_layouts=Shard(0) if more else Replicate())
    return parallelize_module(model, on or mesh(), {**more, "1": colwise, "3": RowwiseParallel()})


def sequence_parallel(model):
    """The gradients of the norm are summands, one a rank, of those that are wanted."""
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.distributed.tensor.parallel import SequenceParallel

    on = mesh()
    model.register_forward_pre_hook(lambda _, args: distribute_tensor(args[0], on, [Shard(0)]))
    return tensor_parallel(model, on, **{"0": SequenceParallel(sequence_dim=0)})


def fsdp2_and_tensor_parallel(model):
    grid = mesh(2, 2, names=("data", "tensor"))
    return fsdp2(tensor_parallel(model, grid["tensor"]), grid["data"])


ENGINES = {
    "ddp": Engine(ddp),
    "ddp_views": Engine(functools.partial(ddp, gradient_as_bucket_view=True)),
    "fsdp1": Engine(fsdp1),
    "fsdp2": Engine(fsdp2),
    "fsdp2_mixed": Engine(fsdp2_mixed),
    "fsdp2_offload": Engine(fsdp2_offload),
    "hsdp": Engine(lambda m: fsdp2(m, mesh(2, 2, names=("copy", "shard"))), ranks=(4,)),
    "zero": Engine(ddp, zero={}),
    "zero_views": Engine(ddp, zero={"parameters_as_bucket_view": True}),
    "tensor_parallel": Engine(tensor_parallel, alike=True),
    "sequence_parallel": Engine(sequence_parallel, alike=True),
    "fsdp2_tensor_parallel": Engine(fsdp2_and_tensor_parallel, ranks=(4,), alike=True),
}


def dtensor(placement, shape=(6, 4), on=None):
    """A parameter placed so, with a gradient like it."""
    from torch.distributed.tensor import distribute_tensor

    torch.manual_seed(0)
    param = Parameter(distribute_tensor(torch.randn(shape), on or mesh(), [placement]))
    param.grad = distribute_tensor(torch.randn(shape), on or mesh(), [placement])
    return param


def whole(tensor):
    """The full tensor of what may be a DTensor."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gathered(model):
    """Copies of all parameters and of all gradients, whole."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    gather = contextlib.nullcontext()
    if isinstance(model, FullyShardedDataParallel):
        gather = FullyShardedDataParallel.summon_full_params(model, with_grads=True)
    with gather, torch.no_grad():
        params = list(model.parameters())
        grads = [None if p.grad is None else whole(p.grad).clone() for p in params]
        return [whole(p).clone() for p in params], grads


def set_gradients(model, seed):
    """Random gradients that do not depend on the number of ranks."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    torch.manual_seed(seed)
    for param in model.parameters():
        param.grad = torch.randn(param.shape).to(param.dtype)
        if isinstance(param, DTensor):
            param.grad = distribute_tensor(param.grad, param.device_mesh, param.placements)


def assert_all_same(actual, expected):
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert_same_bits(a, b, f"parameter {i}")


def beside_one_process(engine, options, steps=3):
    """Train an engine, and the whole model in one process with the gradients of the ranks.

    Yields (weights of the engine, gathered; those of the one process) after each step.
    """
    model, optimizer = engine(ProxAdamW, **options)
    twin = Net()
    expected = ProxAdamW(twin.parameters(), **options)
    torch.manual_seed(1 if engine.alike else 100 + dist.get_rank())
    for _ in range(steps):
        model(torch.randn(4, 8)).square().mean().backward()
        _, grads = gathered(model)
        optimizer.step()
        for param, grad in zip(twin.parameters(), grads, strict=True):
            assert grad.abs().max() > 0
            param.grad = grad
        expected.step()
        yield gathered(model)[0], [param.detach() for param in twin.parameters()]
        optimizer.zero_grad()
