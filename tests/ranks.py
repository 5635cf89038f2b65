"""What the ranks of a distributed test do: ``python ranks.py WORLD_SIZE FOLDER CHECK...``.

Every check runs on all ranks of one gloo process group, and the ranks meet after each. The first
failure ends their processes: what is left of a collective would mislead the checks that follow.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import functools
import importlib
import json
import multiprocessing
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import Parameter

from proxadam import ProxAdam, ProxAdamW, _torch
from tools import BUSY, assert_same_bits, error_of, params_of

PATHS = {
    "auto": {},
    "kernel": {"fused": True},
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
}
FOLDER = Path()


# ---- models, whole and in parts ---------------------------------------------------------------


class Net(nn.Sequential):
    """A layer of 5 rows, of which four ranks have 2, 2, 1 and 0."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.LayerNorm(8), nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 5), nn.Linear(5, 4)
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

    def __call__(self, cls, **options):
        model = self.wrap(Net())
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
        param.grad = torch.randn(param.shape)
        if isinstance(param, DTensor):
            param.grad = distribute_tensor(param.grad, param.device_mesh, param.placements)


# ---- the steps of many ranks are those of one process -----------------------------------------


def steps_as_one_process(engine, path):
    """With the gradients of the ranks, one process makes the same weights to the last bit."""
    model, optimizer = engine(ProxAdamW, **BUSY, **path)
    twin = Net()
    expected = ProxAdamW(twin.parameters(), **BUSY, **path)
    torch.manual_seed(1 if engine.alike else 100 + dist.get_rank())
    for _ in range(3):
        model(torch.randn(4, 8)).square().mean().backward()
        _, grads = gathered(model)
        optimizer.step()
        for param, grad in zip(twin.parameters(), grads, strict=True):
            assert grad.abs().max() > 0
            param.grad = grad
        expected.step()
        for i, (actual, param) in enumerate(
            zip(gathered(model)[0], twin.parameters(), strict=True)
        ):
            assert_same_bits(actual, param.detach(), f"parameter {i}")
        optimizer.zero_grad()
    zeros = sum((p == 0).sum().item() for p in twin.parameters())
    assert 0 < zeros < sum(p.numel() for p in twin.parameters())


def takes_the_kernel(engine):
    """By default, and with not one parameter left to torch ops."""
    model, optimizer = engine(ProxAdamW, **BUSY)
    model(torch.randn(4, 8)).square().mean().backward()
    before, _ = gathered(model)
    on_torch_ops, _torch.step = _torch.step, None
    try:
        optimizer.step()
    finally:
        _torch.step = on_torch_ops
    assert not any(map(torch.equal, before, gathered(model)[0]))


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


# ---- gradient scaling -------------------------------------------------------------------------


def a_scaler_unscales_shards(path):
    """And where one rank alone has an overflow, every rank skips the step."""
    engine = ENGINES["fsdp2"]
    (model, optimizer), (twin, expected) = (engine(ProxAdamW, **BUSY, **path) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for seed in range(3):
        set_gradients(twin, seed)
        set_gradients(model, seed)
        scaler.scale(torch.ones(()))  # makes the scale
        for param in model.parameters():
            param.grad *= 8
        overflows = seed == 1
        if overflows and dist.get_rank() == 1:
            model[1].weight.grad._local_tensor[0, 0] = torch.inf
        before, _ = gathered(model)
        scaler.step(optimizer)
        scaler.update(8.0)
        if not overflows:
            expected.step()
        after, grads = gathered(model)
        wanted, wanted_grads = gathered(twin)
        for i, (actual, param) in enumerate(zip(after, wanted, strict=True)):
            assert_same_bits(actual, param, f"parameter {i}")
            if overflows:
                assert_same_bits(actual, before[i])
            else:
                assert_same_bits(grads[i], wanted_grads[i], f"gradient {i}")
    steps = {state["step"].item() for state in optimizer.state.values()}
    assert steps == {2.0}


def a_scaler_meets_summands():
    """They are not divided where they are; once the scaler has unscaled them, they are summed."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    params = [dtensor(Replicate()) for _ in range(2)]
    param, twin = params
    optimizer, expected = (ProxAdam([p], **BUSY, fused=True) for p in params)
    summand = twin.grad.to_local() / dist.get_world_size()
    param.grad = DTensor.from_local(8 * summand, mesh(), [Partial()])
    before = whole(param).clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))  # makes the scale
    kind, text = error_of(scaler.step, optimizer)
    assert kind is RuntimeError, text
    assert text.startswith("the gradient of parameter 0 of shape (6, 4) is a DTensor of"), text
    assert text.endswith("; call scaler.unscale_(optimizer) before the step."), text
    assert_same_bits(whole(param), before)
    optimizer = ProxAdam([param], **BUSY, fused=True)  # the scaler leaves its marks on the other
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    expected.step()
    assert_same_bits(whole(param), whole(twin))


def assert_all_same(actual, expected):
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert_same_bits(a, b, f"parameter {i}")


# ---- what a DTensor must be -------------------------------------------------------------------


def dtensor(placement, shape=(6, 4), on=None):
    """A parameter placed so, with a gradient like it."""
    from torch.distributed.tensor import distribute_tensor

    torch.manual_seed(0)
    param = Parameter(distribute_tensor(torch.randn(shape), on or mesh(), [placement]))
    param.grad = distribute_tensor(torch.randn(shape), on or mesh(), [placement])
    return param


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


# ---- checkpoints ------------------------------------------------------------------------------


def collecting_state_moves_nothing(engine):
    """It takes a step with lr = 0 to make the state that there is not yet."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    for options in ({}, {"full_state_dict": True}, {"flatten_optimizer_state_dict": True}):
        model, optimizer = engine(ProxAdamW, **BUSY)
        before, _ = gathered(model)
        state = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(**options))
        assert_all_same(gathered(model)[0], before)
        assert optimizer.param_groups[0]["lr"] == BUSY["lr"]
        names = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"}
        kept = state.get("state", state)
        assert all(any(name in str(entry) for entry in _keys(kept)) for name in names)


def _keys(state):
    for key, value in state.items():
        yield key
        if isinstance(value, dict):
            yield from _keys(value)


def saved(flatten):
    """Four ranks train, save, and take one step more."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    model, optimizer = ENGINES["fsdp2"](ProxAdamW, **BUSY)
    for seed in range(2):
        set_gradients(model, seed)
        optimizer.step()
    weights, state = get_state_dict(model, optimizer, options=options)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=FOLDER / f"saved-{flatten}")
    set_gradients(model, 2)
    optimizer.step()
    params, _ = gathered(model)
    if dist.get_rank() == 0:
        torch.save(params, FOLDER / f"expected-{flatten}.pt")


def loaded(flatten):
    """Two ranks load that, and take the same step; the options come from the checkpoint too."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_state_dict,
        set_state_dict,
    )

    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    model, optimizer = ENGINES["fsdp2"](ProxAdamW, amsgrad=True, metric="euclidean")
    weights, state = get_state_dict(model, optimizer, options=options)
    whole_state = {"model": weights, "optimizer": state}
    dcp.load(whole_state, checkpoint_id=FOLDER / f"saved-{flatten}")
    set_state_dict(
        model,
        optimizer,
        model_state_dict=whole_state["model"],
        optim_state_dict=whole_state["optimizer"],
        options=options,
    )
    group = optimizer.param_groups[0]
    assert {name: group[name] for name in BUSY} == BUSY
    assert group["metric"] == "adaptive"
    assert {state["step"].item() for state in optimizer.state.values()} == {2.0}
    set_gradients(model, 2)
    optimizer.step()
    assert_all_same(gathered(model)[0], torch.load(FOLDER / f"expected-{flatten}.pt"))


def zero_consolidates():
    """The state that ZeRO collects on one rank loads into a plain optimizer."""
    model, optimizer = ENGINES["zero"](ProxAdamW, **BUSY)
    set_gradients(model, 0)
    optimizer.step()
    optimizer.consolidate_state_dict(to=0)
    if dist.get_rank() == 0:
        twin = Net()
        for param, other in zip(twin.parameters(), model.parameters(), strict=True):
            param.data.copy_(other.detach())
        alone = ProxAdamW(twin.parameters(), **BUSY)
        alone.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        set_gradients(twin, 1)
        alone.step()
    set_gradients(model, 1)
    optimizer.step()
    if dist.get_rank() == 0:
        assert_all_same(list(model.parameters()), list(twin.parameters()))


# ---- the list, and its execution --------------------------------------------------------------

# name → (function, world sizes); what has "kernel" in its name cannot run without one
CHECKS: dict[str, tuple[Callable, tuple]] = {}


def _register(function, ranks=(2, 4), **cases):
    for name, arguments in (cases or {"": ()}).items():
        title = f"{function.__name__}-{name}" if name else function.__name__
        CHECKS[title] = functools.partial(function, *arguments), ranks


for _name, _engine in ENGINES.items():
    _paths = {f"{_name}-{path}": (_engine, PATHS[path]) for path in ("kernel", "loop", "foreach")}
    _register(steps_as_one_process, _engine.ranks, **_paths)
    _register(takes_the_kernel, _engine.ranks, **{_name: (_engine,)})
    if _engine.zero is None:
        _register(collecting_state_moves_nothing, _engine.ranks, **{_name: (_engine,)})
_each_path = {path: (options,) for path, options in PATHS.items()}
_register(a_rank_without_a_gradient)
_register(a_rank_that_does_not_use_a_layer)
_register(a_scaler_unscales_shards, **_each_path)
_register(a_scaler_meets_summands, kernel=())
_register(misfits_are_refused, **_each_path)
_register(versions_are_bumped, **_each_path)
_register(a_gradient_that_is_still_on_its_way, kernel=())
_register(autograd_goes_through_dtensors)
_register(zero_consolidates)
_register(saved, (4,), nested=(False,), flat=(True,))
_register(loaded, (2,), nested=(False,), flat=(True,))


def rank_of(world_size: int, rank: int, names: list[str]) -> None:
    """Run the checks; FOLDER/errors-RANK.json has, of each that was begun, the error or None."""
    warnings.filterwarnings("error", module="proxadam")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{FOLDER / 'meeting'}",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=60),
    )
    errors: dict[str, str | None] = {}

    def note(name, error):
        errors[name] = error
        (FOLDER / f"errors-{rank}.json").write_text(json.dumps(errors))

    for name in names:
        note(name, "the process died")
        try:
            CHECKS[name][0]()
            dist.barrier()
        except Exception:
            note(name, traceback.format_exc())
            sys.exit(1)
        note(name, None)
    dist.destroy_process_group()


def main(world_size: str, folder: str, *names: str) -> None:
    """Import once what is slow to import, then fork the ranks."""
    global FOLDER
    FOLDER = Path(folder)
    for module in ("checkpoint.state_dict", "fsdp", "optim", "tensor.parallel"):
        importlib.import_module(f"torch.distributed.{module}")
    fork = multiprocessing.get_context("fork")
    ranks = [
        fork.Process(target=rank_of, args=(int(world_size), rank, list(names)), daemon=True)
        for rank in range(int(world_size))
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
