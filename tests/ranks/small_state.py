"""Moments in 8 and 16 bits, and weights rounded by chance, on many ranks."""

from __future__ import annotations

import math
import warnings
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.nn import Parameter

from formats import CODED, LIVELY, NARROW, SMALL
from proxadam import (
    ProxAdamW,
    SparsityRamp,
    sparsity,
    state_bytes,
    stationarity,
    suggest_l1,
    to_adam_state_dict,
)
from proxadam._step import state as state_module
from tools import assert_same_bits, params_of

from .checks import PATHS, check, check_each
from .engines import ENGINES, Net, gathered, mesh, set_gradients, whole

# On two ranks and on four, blocks of 256 elements lie whole on the shards of the first two, and
# not on those of the last two. A fourth rank has no row of the last.
FIT = [(64, 64), (33, 256), (100,)]
MISFIT = [(20, 320), (9, 512)]
WIDE = 64, 96, 64, 64  # a net whose matrices all fit
TEXT = (
    "state_dtype='8bit' is torch.bfloat16 for 2 of 2 parameters, such as 0 of shape (20, 320),"
    " placed as (Shard(dim=0),), where ranks would have parts of blocks of 256."
)


def rows(tensor):
    from torch.distributed.tensor import Shard, distribute_tensor

    return distribute_tensor(tensor, mesh(), [Shard(0)])


def alone(tensor):
    return tensor.clone()


def optimizer_of(kept, place, shapes=(FIT, MISFIT), others=None, **options):
    """Random parameters in two groups; the second may have other options."""
    torch.manual_seed(0)
    groups = [
        {"params": [Parameter(place(torch.randn(s).to(kept.dtype))) for s in of_group], **more}
        for of_group, more in zip(shapes, ({}, others or {}), strict=False)
    ]
    return ProxAdamW(groups, **{**LIVELY, **kept.options, **options})


def quietly(make, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*arguments, **options)


def train(optimizer, place, steps=3, seed=0):
    torch.manual_seed(seed)
    for _ in range(steps):
        for param in params_of(optimizer):
            param.grad = place(torch.randn(param.shape).to(param.dtype))
        optimizer.step()


def whole_snapshot(optimizer):
    """Whole copies of all parameters and of their state."""
    copies = {}
    for i, param in enumerate(params_of(optimizer)):
        copies[f"{i}"] = whole(param.detach()).clone()
        for name, value in optimizer.state[param].items():
            copies[f"{name} of {i}"] = whole(torch.as_tensor(value)).clone()
    return copies


def said_by_all(value):
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, value)
    return every


# ---- steps ------------------------------------------------------------------------------------


@check(
    **{
        f"{kept.name}-{path}": (kept, PATHS[path])
        for kept in (*SMALL, *NARROW)
        for path in ("kernel", "loop")
    }
)
def rows_as_one_process(kept, path):
    """Weights, codes and exponents to the last bit, drawn by the place in the whole tensor."""
    sharded = quietly(optimizer_of, kept, rows, **path)
    widened = {"state_dtype": torch.bfloat16} if kept.moments is torch.uint8 else {}
    single = optimizer_of(kept, alone, others=widened, **path)
    for seed in range(2):
        train(sharded, rows, seed=seed)
        train(single, alone, seed=seed)
        assert_same_bits(whole_snapshot(sharded), whole_snapshot(single))


ALIKE = ("ddp", "fsdp2", "fsdp2_offload", "hsdp")


@check_each({name: ENGINES[name] for name in ALIKE})
def engines_as_one_process(engine):
    for kept in (CODED, NARROW[-2]):
        options = {**LIVELY, **kept.options}
        model, optimizer = engine(ProxAdamW, Net(*WIDE).to(kept.dtype), **options)
        twin = Net(*WIDE).to(kept.dtype)
        expected = ProxAdamW(twin.parameters(), **options)
        torch.manual_seed(100 + dist.get_rank())
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, WIDE[0]).to(kept.dtype)).square().mean().backward()
            for param, grad in zip(twin.parameters(), gathered(model)[1], strict=True):
                param.grad = grad
            optimizer.step()
            expected.step()
            assert_same_bits(whole_snapshot(optimizer), whole_snapshot(expected))
        coded = ["exp_avg_code" in expected.state[p] for p in twin.parameters() if p.ndim == 2]
        assert all(coded)


@check()
def blocks_that_do_not_fit_are_said_once():
    """And kept in bfloat16 on every rank alike, one without any row among them."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        optimizer = optimizer_of(CODED, rows)
        train(optimizer, rows)
        optimizer.load_state_dict(optimizer.state_dict())
        train(optimizer, rows)
    texts = [str(warning.message) for warning in said]
    assert said_by_all(texts) == [[TEXT]] * dist.get_world_size(), texts
    formats = [
        next(t for name, t in optimizer.state[p].items() if name.startswith("exp_avg")).dtype
        for p in params_of(optimizer)
    ]
    assert formats == [*[torch.uint8] * 2, torch.float32, *[torch.bfloat16] * 2]
    assert said_by_all(formats) == [formats] * dist.get_world_size()
    train(optimizer_of(CODED, rows, [FIT]), rows)  # a warning is an error again


@check()
def a_rank_without_codes():
    """It has no row, and no exponent."""
    with patch.object(state_module, "CODED_NUMEL", 256):
        sharded, single = (optimizer_of(CODED, place, [[(9, 256)]]) for place in (rows, alone))
        train(sharded, rows)
        train(single, alone)
    assert_same_bits(whole_snapshot(sharded), whole_snapshot(single))
    (state,) = sharded.state.values()
    sizes = [len(state[name]._local_tensor) for name in ("exp_avg_code", "exp_avg_exponent")]
    assert said_by_all(sizes) == ([[3, 3]] * 3 + [[0, 0]] if dist.get_world_size() == 4 else
                                  [[5, 5], [4, 4]])  # fmt: skip


def _of_placements():
    from torch.distributed.tensor import Replicate, Shard

    return {
        "columns": (Replicate(), Shard(1)),
        "rows": (Replicate(), Shard(0)),
        "rows-of-copies": (Shard(0), Replicate()),
        "tiles": (Shard(0), Shard(1)),
        "rows-of-rows": (Shard(0), Shard(0)),
        "copies": (Replicate(), Replicate()),
    }


@check((4,), **{name: (name,) for name in _of_placements()})
def replicas_draw_alike_and_shards_apart(name):
    """All elements are alike, and every second one is rounded up: which, only chance says."""
    from torch.distributed.tensor import distribute_tensor

    placements = _of_placements()[name]
    grid = mesh(2, 2)

    def place(tensor):
        return distribute_tensor(tensor, grid, placements)

    param = Parameter(place(torch.zeros(64, 128)))
    param.grad = place(torch.full((64, 128), 10 * (1 + 2.0**-8)))
    single = Parameter(torch.zeros(64, 128))
    single.grad = torch.full((64, 128), 10 * (1 + 2.0**-8))
    optimizers = [ProxAdamW([p], state_dtype=torch.bfloat16) for p in (param, single)]
    for optimizer in optimizers:
        optimizer.step()
    drawn = optimizers[0].state[param]["exp_avg"]
    if (name.startswith("rows") and name != "rows-of-rows") or name == "copies":
        assert_same_bits(whole(drawn), optimizers[1].state[single]["exp_avg"])
    index = [c for c, p in zip(grid.get_coordinate(), placements, strict=True) if p.is_shard()]
    every = said_by_all((index, (drawn._local_tensor > 1).flatten()))
    for i, (place_of_one, one) in enumerate(every):
        assert abs(one.float().mean() - 0.5) < 5 * math.sqrt(0.25 / len(one))
        for place_of_other, other in every[:i]:
            alike = (one == other).float().mean()
            if place_of_one == place_of_other:
                assert alike == 1
            else:
                assert abs(alike - 0.5) < 5 * math.sqrt(0.25 / len(one)), alike


@check(kernel=(PATHS["kernel"],), loop=(PATHS["loop"],))
def shards_that_are_no_rows_train(path):
    """Tensor parallelism, also below FSDP2, where shards are strided: 8 bits are 16 there."""
    engine = ENGINES["tensor_parallel" if dist.get_world_size() == 2 else "fsdp2_tensor_parallel"]
    made = quietly(engine, ProxAdamW, Net(*WIDE), lr=0.01, state_dtype="8bit", **path)
    fp32 = engine(ProxAdamW, Net(*WIDE), lr=0.01, **path)
    for model, optimizer in (made, fp32):
        for seed in range(3):
            set_gradients(model, seed)
            optimizer.step()
    model, optimizer = made
    small = optimizer.state[model[3].weight]
    assert small["exp_avg"].dtype == torch.bfloat16
    for mine, other in zip(gathered(model)[0], gathered(fp32[0])[0], strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=2e-3)  # of a way of 0.03


@check()
def an_overflow_on_one_rank_spares_the_codes_of_all():
    optimizer = quietly(optimizer_of, CODED, rows)
    train(optimizer, rows)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))  # makes the scale
    before = whole_snapshot(optimizer)
    if dist.get_rank() == 1:
        params_of(optimizer)[0].grad._local_tensor[0, 0] = torch.inf
    scaler.step(optimizer)
    scaler.update(8.0)
    assert_same_bits(whole_snapshot(optimizer), before)
    train(optimizer, rows, 1)
    scaler.step(optimizer)
    assert not torch.equal(whole_snapshot(optimizer)["exp_avg_code of 0"],
                           before["exp_avg_code of 0"])  # fmt: skip


# ---- reports ----------------------------------------------------------------------------------


@check(**{kept.name: (kept,) for kept in (*SMALL, NARROW[-2])})
def reports_and_exports_are_those_of_the_whole(kept):
    def looked_at(place):
        optimizer = optimizer_of(kept, place, [FIT], l1=0.3, lr=1e-3)
        train(optimizer, place)
        exported = to_adam_state_dict(optimizer)["state"]
        moments = {
            f"{name} of {i}": whole(t).clone() for i, own in exported.items()
            for name, t in own.items()
        }  # fmt: skip
        zeros, residual = sparsity(optimizer), stationarity(optimizer)
        numbers = [zeros.total, residual.total, residual.max, suggest_l1(optimizer, 0.6)]
        ramp = SparsityRamp(optimizer, 0.8, begin=0, end=1)
        train(optimizer, place, 1)
        ramp.step()
        train(optimizer, place, 1)
        ramp.step()
        return moments, numbers, whole_snapshot(optimizer), state_bytes(optimizer).groups[0]

    moments, numbers, after, nbytes = looked_at(rows)
    wanted, expected, then, every = looked_at(alone)
    assert_same_bits(moments, wanted)
    torch.testing.assert_close(*map(torch.tensor, (numbers, expected)), rtol=1e-5, atol=0)
    assert_same_bits(after, then)
    flat = torch.cat([after[str(i)].flatten() for i in range(len(FIT))])
    assert abs((flat == 0).float().mean() - 0.8) < 1e-3
    counts = 4 * len(FIT) * (dist.get_world_size() - 1)  # of steps, which each rank has
    assert sum(said_by_all(nbytes)) == every + counts
