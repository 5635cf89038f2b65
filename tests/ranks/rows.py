"""l21 on many ranks: rows that shards keep whole, rows that they cut, and what hides them."""

from __future__ import annotations

import copy
import warnings
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.nn import Parameter

from proxadam import ProxAdamW, TargetRowSparsity, sparsity, stationarity, suggest_l21
from proxadam._sparsity import reading
from proxadam._step import torch_ops
from proxadam._step.checks import check_rows
from proxadam._step.group import Group
from proxadam._step.options import Options
from tools import BUSY, error_of

from .checks import PATHS, check, check_each
from .engines import (
    ENGINES,
    Net,
    assert_all_same,
    beside_one_process,
    gathered,
    mesh,
    set_gradients,
    whole,
)

ROWS = {**BUSY, "l21": 0.15}
TRAINED = {**BUSY, "l21": 0.006}  # gradients of a loss are smaller
SHAPES = [(31, 7), (6, 4, 3), (3, 40), (1, 9), (5, 1), (100,)]


def shard(*dims):
    """Placements: the tensor's dimension that each of the mesh is along; None for copies."""
    from torch.distributed.tensor import Replicate, Shard

    return [Replicate() if dim is None else Shard(dim) for dim in dims]


def pair_of(shapes, placements, on, **options):
    """Optimizers of the same weights, spread over a mesh and whole; a third of the rows small."""
    from torch.distributed.tensor import distribute_tensor

    torch.manual_seed(0)
    values = [torch.randn(shape) for shape in shapes]
    for value in values:
        value[::3] *= 0.01
    spread = [
        Parameter(distribute_tensor(value.clone(), on, placed))
        for value, placed in zip(values, placements, strict=True)
    ]
    alone = [Parameter(value) for value in values]
    return [ProxAdamW(params, **{**ROWS, **options}) for params in (spread, alone)]


def step_both(pair, steps=4, seed=0):
    """With the same gradients; those of every third row are small."""
    from torch.distributed.tensor import distribute_tensor

    torch.manual_seed(seed)
    for _ in range(steps):
        for one, other in zip(*(o.param_groups[0]["params"] for o in pair), strict=True):
            other.grad = torch.randn(other.shape)
            other.grad[::3] *= 0.01
            one.grad = distribute_tensor(other.grad, one.device_mesh, one.placements)
        for optimizer in pair:
            optimizer.step()


def values_of(optimizer):
    return [whole(param.detach()) for param in optimizer.param_groups[0]["params"]]


def dead_rows(tensor):
    return (tensor.flatten(1) == 0).all(1) if tensor.ndim > 1 else tensor == 0


def assert_close_with_the_same_dead_rows(actual, expected, atol=1e-6):
    for i, (one, other) in enumerate(zip(actual, expected, strict=True)):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=atol, msg=f"parameter {i}")
        assert torch.equal(dead_rows(one), dead_rows(other)), f"parameter {i}"
    dead = torch.cat([dead_rows(one) for one in expected if one.ndim > 1])
    assert 0.1 < dead.float().mean() < 0.9


# ---- rows that are whole ----------------------------------------------------------------------

WHOLE = {
    f"{name}-{path}": (dims, PATHS[path])
    for name, dims in {"rows": (0, 0), "copies": (None, None), "rows-of-copies": (None, 0)}.items()
    for path in ("kernel", "loop")
}


@check(**WHOLE)
def whole_rows_step_as_in_one_process(dims, path):
    """To the last bit; with uneven shards and empty ones."""
    grid = mesh(2, dist.get_world_size() // 2)
    pair = pair_of(SHAPES, [shard(*dims)] * len(SHAPES), grid, **path)
    step_both(pair)
    actual, expected = map(values_of, pair)
    assert_close_with_the_same_dead_rows(actual, expected)
    if path == PATHS["kernel"]:
        assert_all_same(actual, expected)


@check_each({name: ENGINES[name] for name in ("ddp", "fsdp2", "hsdp", "fsdp2_offload")}, "kernel")
def engines_that_keep_rows_whole(engine, path):
    """Training with them gives one process's bits."""
    _trains_as_one_process(engine, path, assert_all_same)


# ---- rows that are cut ------------------------------------------------------------------------

CUT = {
    "columns": (1, None),
    "columns-twice": (1, 1),
    "rows-and-columns": (0, 1),
    "columns-and-rows": (1, 0),
    "last-columns": (None, -1),
}


@check(
    **{
        f"{name}-{path}": (dims, PATHS[path])
        for name, dims in CUT.items()
        for path in ("auto", "loop")
    }
)
def cut_rows_step_as_in_one_process(dims, path):
    """To a rounding, with the same rows dead; with uneven shards and empty ones."""
    grid = mesh(2, dist.get_world_size() // 2)
    shapes = [shape for shape in SHAPES if len(shape) > 1]
    pair = pair_of(shapes, [shard(*dims)] * len(shapes), grid, **path)
    step_both(pair)
    assert_close_with_the_same_dead_rows(*map(values_of, pair))


@check(kept=({"keep_zeros": True, "l1": 0.3},), euclidean=({"metric": "euclidean", "l21": 0.7},))
def cut_rows_with(options):
    """Other options of the prox."""
    shapes = [(31, 7), (8, 40)]
    pair = pair_of(shapes, [shard(1)] * 2, mesh(), **options)
    step_both(pair)
    assert_close_with_the_same_dead_rows(*map(values_of, pair))


@check_each({name: ENGINES[name] for name in ("tensor_parallel", "fsdp2_tensor_parallel")}, "auto")
def engines_that_cut_rows(engine, path):
    """Training with them gives one process's weights, to a rounding."""
    _trains_as_one_process(engine, path)


@check()
def large_cut_rows_wait_for_one_another():
    """A rank takes its part of a parameter at once, however large and whatever the others have."""
    shapes = [(40, 101)]
    limit, torch_ops.BLOCK_NUMEL = torch_ops.BLOCK_NUMEL, 1 << 8
    try:
        pair = pair_of(shapes, [shard(1)], mesh())
        step_both(pair)
    finally:
        torch_ops.BLOCK_NUMEL = limit
    assert_close_with_the_same_dead_rows(*map(values_of, pair))


@check(kernel=())
def a_demanded_kernel_takes_no_cut_rows():
    (optimizer, _) = pair = pair_of([(8, 8)], [shard(1)], mesh(), fused=True)
    kind, text = error_of(step_both, pair, 1)
    assert kind is RuntimeError
    assert "cut over processes" in text, text
    assert not any(optimizer.state.values())


@check((2,))
def cut_rows_under_torch_compile():
    """Even pieces as in an eager step, but for powers of beta in float32; others are refused."""
    shapes, dims = [(6, 4), (6, 4), (6, 3, 4)], (0, 1, 2)
    pair = pair_of(shapes, [shard(dim) for dim in dims], mesh())
    pair[0].step = torch.compile(pair[0].step, backend="aot_eager", fullgraph=True)
    step_both(pair)
    assert_close_with_the_same_dead_rows(*map(values_of, pair), atol=1e-5)
    uneven, _ = pair_of([(6, 5)], [shard(1)], mesh())
    group = Group.empty(Options.of(uneven.param_groups[0]))
    group.params.extend(uneven.param_groups[0]["params"])
    assert error_of(check_rows, group) is None
    with patch.object(torch.compiler, "is_compiling", lambda: True):
        kind, text = error_of(check_rows, group)
    assert kind is ValueError
    assert text.startswith("parameter 0 of shape (6, 5) has rows that are cut into uneven"), text


# ---- reports ----------------------------------------------------------------------------------


@check(**{name: (dims,) for name, dims in [*CUT.items(), ("rows", (0, 0)), ("copies", (None, 0))]})
def numbers_of_rows_are_those_of_the_whole(dims):
    """Also where all that a process has of them is empty; the same in all processes."""
    grid = mesh(2, dist.get_world_size() // 2)
    shapes = [shape for shape in SHAPES if len(shape) > 1]
    pair = pair_of(shapes, [shard(*dims)] * len(shapes), grid, l2=0.0, amsgrad=False)
    step_both(pair, 3)

    def numbers(optimizer):
        zeros, guess = sparsity(optimizer), suggest_l21(optimizer, 0.6)
        scheduler = TargetRowSparsity(optimizer, 0.5, every=1)
        scheduler.step()
        found = [*zeros.rows.params.values(), zeros.rows.total, guess, *scheduler.get_last_values()]
        for lr in (0.05, 0.0):
            optimizer.param_groups[0]["lr"] = lr
            residual = stationarity(optimizer)
            found += [residual.total, residual.max, *residual.params.values()]
        return found

    with patch.object(reading, "_CPU_CHUNK", 40):
        actual, expected = map(numbers, pair)
    assert 0.1 < expected[len(shapes)] < 0.9
    torch.testing.assert_close(
        *(torch.tensor(x, dtype=torch.float64) for x in (actual, expected)), rtol=1e-4, atol=1e-9
    )
    everywhere = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, actual)
    assert everywhere == [actual] * len(everywhere)


# ---- checkpoints, and what has no rows --------------------------------------------------------


@check_each({name: ENGINES[name] for name in ("fsdp2", "tensor_parallel")})
def a_checkpoint_resumes_to_the_bit(engine):
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    def stepped(model, optimizer, seeds):
        for seed in seeds:
            set_gradients(model, seed)
            optimizer.step()
        return gathered(model)[0]

    model, optimizer = engine(ProxAdamW, **ROWS)
    stepped(model, optimizer, range(3))
    weights, state = copy.deepcopy(get_state_dict(model, optimizer))
    expected = stepped(model, optimizer, (3, 4))
    other, loader = engine(ProxAdamW)
    set_state_dict(other, loader, model_state_dict=weights, optim_state_dict=state)
    assert loader.param_groups[0]["l21"] == ROWS["l21"]
    assert_all_same(stepped(other, loader, (3, 4)), expected)


@check()
def flat_parameters_of_fsdp1_are_refused():
    """With use_orig_params and without; the optimizer and the step say so."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    for original in (True, False):
        model = FullyShardedDataParallel(
            Net(), use_orig_params=original, device_id=torch.device("cpu")
        )
        before = [param.detach().clone() for param in model.parameters()]
        kind, text = error_of(ProxAdamW, model.parameters(), **ROWS)
        assert kind is ValueError
        assert "of a flat one of FSDP1; use FSDP2 (fully_shard)" in text, text
        optimizer = ProxAdamW(model.parameters(), **BUSY)
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.param_groups[0]["l21"] = 0.1
        kind, said = error_of(optimizer.step)
        assert (kind, said.split(", got")[0]) == (ValueError, text.split(", got")[0])
        assert_all_same([param.detach() for param in model.parameters()], before)


@check()
def fsdp1_without_shards_keeps_rows():
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    twin = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FutureWarning: take DDP
        model = FullyShardedDataParallel(
            Net(),
            use_orig_params=True,
            device_id=torch.device("cpu"),
            sharding_strategy=ShardingStrategy.NO_SHARD,
        )
    torch.manual_seed(0)
    batch = torch.randn(4, 8)
    for net in (model, twin):
        optimizer = ProxAdamW([p for p in net.parameters() if p.ndim > 1], **TRAINED)
        for _ in range(3):
            net(batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert_close_with_the_same_dead_rows(gathered(model)[0], gathered(twin)[0])


def _trains_as_one_process(engine, path, assert_alike=lambda *_: None):
    *_, (actual, weights) = beside_one_process(engine, {**TRAINED, **path})
    assert_close_with_the_same_dead_rows(actual, weights)
    assert_alike(actual, weights)
