"""Moments in 8 and 16 bits, and weights rounded by chance, on many ranks."""

from __future__ import annotations

import copy
import math
import warnings
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.nn import Parameter

from formats import BF16, CODED, FP32, LIVELY, NARROW, SMALL, block_maxima
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
from tools import assert_same_bits, error_of, params_of, snapshot

from .checks import PATHS, check, check_each
from .engines import ENGINES, Net, assert_all_same, gathered, mesh, set_gradients, whole

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


# ---- checkpoints ------------------------------------------------------------------------------


IN_FORMATS = {kept.name: (kept, False) for kept in (*SMALL, NARROW[-2])} | {
    "8bit-flat": (CODED, True)
}


def _wide_fsdp2(kept, **options):
    return ENGINES["fsdp2"](ProxAdamW, Net(*WIDE).to(kept.dtype), **kept.options, **options)


def _saved_under(kept, flatten):
    return f"{kept.name}{'-flat' * flatten}"


@check((4,), **IN_FORMATS)
def saved_in_a_format(kept, flatten):
    """Four ranks train, save, and take two steps more."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    model, optimizer = _wide_fsdp2(kept, **LIVELY)
    for seed in range(2):
        set_gradients(model, seed)
        optimizer.step()
    weights, state = get_state_dict(model, optimizer, options=options)
    under = _saved_under(kept, flatten)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=under)
    for seed in (2, 3):
        set_gradients(model, seed)
        optimizer.step()
    expected = whole_snapshot(optimizer)
    if dist.get_rank() == 0:
        torch.save(expected, f"expected-{under}.pt")


@check((2,), **IN_FORMATS)
def loaded_in_a_format(kept, flatten):
    """Two ranks take them too, and one process without any group: the same bits."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_state_dict,
        set_state_dict,
    )

    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    under = _saved_under(kept, flatten)
    for no_dist in (False, True):
        if no_dist and dist.get_rank() > 0:
            continue
        if no_dist:
            model = Net(*WIDE).to(kept.dtype)
            optimizer = ProxAdamW(model.parameters(), **kept.options)
        else:
            model, optimizer = _wide_fsdp2(kept)
        weights, state = get_state_dict(model, optimizer, options=options)
        read = {"model": weights, "optimizer": state}
        dcp.load(read, checkpoint_id=under, no_dist=no_dist)
        set_state_dict(
            model,
            optimizer,
            model_state_dict=read["model"],
            optim_state_dict=read["optimizer"],
            options=options,
        )
        for seed in (2, 3):
            set_gradients(model, seed)
            optimizer.step()
        assert_same_bits(whole_snapshot(optimizer), torch.load(f"expected-{under}.pt"))


@check(
    **{
        f"{kept.name}{'-from-rank-0' * broadcast}": (kept, broadcast)
        for kept in (*SMALL, NARROW[-2])
        for broadcast in (False, True)
    }
)
def a_full_state_dict_goes_on(kept, broadcast):
    """Into as many ranks, and into one process."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    model, optimizer = _wide_fsdp2(kept, **LIVELY)
    for seed in range(2):
        set_gradients(model, seed)
        optimizer.step()
    full = StateDictOptions(full_state_dict=True, broadcast_from_rank0=broadcast)
    state = get_optimizer_state_dict(
        model, optimizer, options=StateDictOptions(full_state_dict=True)
    )
    assert all(not hasattr(t, "full_tensor") for own in state["state"].values()
               for t in own.values())  # fmt: skip
    others = [_wide_fsdp2(kept)]
    net = Net(*WIDE).to(kept.dtype)
    others.append((net, ProxAdamW(net.parameters(), **kept.options)))
    for i, (other, loader) in enumerate(others):
        for param, value in zip(other.parameters(), gathered(model)[0], strict=True):
            param.data.copy_(rows(value) if i == 0 else value)
        given = {} if broadcast and i == 0 and dist.get_rank() > 0 else copy.deepcopy(state)
        options = full if i == 0 else StateDictOptions()
        set_optimizer_state_dict(other, loader, given, options=options)
    assert_same_bits(whole_snapshot(others[0][1]), whole_snapshot(optimizer))
    for seed in (2, 3):
        for which, stepper in ((model, optimizer), *others):
            set_gradients(which, seed)
            stepper.step()
    for _, loader in others:
        assert_same_bits(whole_snapshot(loader), whole_snapshot(optimizer))


def copied(model, optimizer):
    """What get_optimizer_state_dict returns, with steps that are nobody else's."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    full = StateDictOptions(full_state_dict=True)
    return copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=full))


def said_by_planner(wanted, **where):
    """Why dcp.load does not load what is wanted: an error that is no Exception; None if it does."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        quietly(dcp.load, wanted, **where)
    except CheckpointException as error:
        return str(error)
    return None


def moments_of(optimizer):
    return {
        f"{name} of {i}": whole(state_module.moment(optimizer.state[param], name)).float()
        for i, param in enumerate(params_of(optimizer))
        for name in state_module.MOMENTS
    }


@check((2,), **{f"{of.name}-{to.name}": (of, to) for of in (FP32, *SMALL)
                for to in (FP32, *SMALL) if of is not to})  # fmt: skip
def another_format_is_loaded_or_refused(of, to):
    """Torch merges a file's codes with the moments that the optimizer begins with: those in part.

    The way that the message names is open to all: load in the file's format, and hand it over.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    model, saver = _wide_fsdp2(of)
    set_gradients(model, 0)
    saver.step()
    file = copied(model, saver)
    net = Net(*WIDE)
    single = ProxAdamW(net.parameters(), **to.options)
    set_optimizer_state_dict(net, single, copy.deepcopy(file))
    expected = moments_of(single)

    other, loader = _wide_fsdp2(to)
    set_gradients(other, 1)
    loader.step()
    before = whole_snapshot(loader)
    full = StateDictOptions(full_state_dict=True)
    error = error_of(set_optimizer_state_dict, other, loader, copy.deepcopy(file), options=full)
    if to is FP32:  # what torch makes of a state that is no tensor, and that the loader lacks
        assert error == (KeyError, "'state.0.weight.number'"), error
        assert_same_bits(whole_snapshot(loader), before)
    elif CODED in (of, to):
        assert error is not None
        assert error[0] is ValueError
        assert "has moments and codes, so two formats were merged; load into" in error[1], error
        assert "\n" not in error[1]
        assert_same_bits(whole_snapshot(loader), before)
    else:
        assert error is None, error
        assert_same_bits(moments_of(loader), expected)

    under = f"{of.name}-to-{to.name}"
    dcp.save(get_optimizer_state_dict(model, saver), checkpoint_id=under)
    wanted = get_optimizer_state_dict(other, loader)
    before = whole_snapshot(loader)
    text = said_by_planner(wanted, checkpoint_id=under)
    if to is FP32 and of is BF16:
        assert text is None
    else:
        key = "0.weight.number" if of is FP32 else "1.weight.exp_avg"
        assert f"Missing key in checkpoint state_dict: state.{key}" in text, text
        assert_same_bits(whole_snapshot(loader), before)

    again, middle = _wide_fsdp2(of)
    wanted = get_optimizer_state_dict(again, middle)
    dcp.load(wanted, checkpoint_id=under)
    set_optimizer_state_dict(again, middle, wanted)
    last = _wide_fsdp2(to)[1]
    last.load_state_dict(middle.state_dict())
    assert_same_bits(moments_of(last), expected)


@check((2,), **{"fp32-8bit": (FP32, CODED), "8bit-bf16": (CODED, BF16)})
def the_rank_with_the_file_refuses_what_torch_merges(of, to):
    """It alone is shown the file's moments; the others go on with what they have begun with."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    model, saver = _wide_fsdp2(of)
    set_gradients(model, 0)
    saver.step()
    file = copied(model, saver)
    other, loader = _wide_fsdp2(to)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    given = file if dist.get_rank() == 0 else {}
    error = error_of(set_optimizer_state_dict, other, loader, given, options=options)
    refused = error is not None and "two formats were merged" in error[1]
    assert said_by_all(refused) == [True, False], error


MISFIT_NET = 320, 20, 256, 16  # its first matrix, of 20 rows, takes codes on one process alone


@check((4,))
def saved_with_misfits():
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model, optimizer = quietly(ENGINES["fsdp2"], ProxAdamW, Net(*MISFIT_NET), **CODED.options)
    set_gradients(model, 0)
    optimizer.step()
    dcp.save(get_optimizer_state_dict(model, optimizer), checkpoint_id="misfits")
    assert "exp_avg" in optimizer.state[model[1].weight]
    assert "exp_avg_code" in optimizer.state[model[3].weight]
    moments = moments_of(optimizer)
    set_gradients(model, 1)
    optimizer.step()
    after = whole_snapshot(optimizer)
    if dist.get_rank() == 0:
        torch.save((moments, after), "expected-misfits.pt")


@check((2,))
def loaded_with_misfits():
    """Where the number of ranks changes a format, torch has no such key: one file is the way."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    moments, after = torch.load("expected-misfits.pt")
    model, optimizer = quietly(ENGINES["fsdp2"], ProxAdamW, Net(*MISFIT_NET), **CODED.options)
    wanted = get_optimizer_state_dict(model, optimizer)
    dcp.load(wanted, checkpoint_id="misfits")
    set_optimizer_state_dict(model, optimizer, wanted)
    assert_same_bits(moments_of(optimizer), moments)
    set_gradients(model, 1)
    optimizer.step()
    state = {name: t for name, t in whole_snapshot(optimizer).items() if " of " in name}
    assert_same_bits(state, {name: after[name] for name in state})

    if dist.get_rank() > 0:
        return
    net = Net(*MISFIT_NET)
    alone = ProxAdamW(net.parameters(), **CODED.options)
    wanted = get_optimizer_state_dict(net, alone)
    before = whole_snapshot(alone)
    text = said_by_planner(wanted, checkpoint_id="misfits", no_dist=True)
    assert "Missing key in checkpoint state_dict: state.1.weight.exp_avg_code" in text, text
    assert_same_bits(whole_snapshot(alone), before)
    dcp_to_torch_save("misfits", "misfits.pt")
    set_optimizer_state_dict(net, alone, torch.load("misfits.pt", weights_only=True))
    found = moments_of(alone)
    anew = [name for name in found if not torch.equal(found[name], moments[name])]
    assert anew == ["exp_avg of 2", "exp_avg_sq of 2"]
    for name in anew:
        error = (found[name] - moments[name]).abs()
        assert (error <= CODED.allowed(moments[name], block_maxima(moments[name]))).all()


@check((2,), **{kept.name: (kept,) for kept in SMALL})
def fsdp1_goes_on(kept):
    """Its shards have one dimension, and keep float32 where 8 bits are asked for."""
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    def step(model, optimizer, seed):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        model(torch.randn(4, WIDE[0])).square().mean().backward()
        optimizer.step()

    (model, optimizer), (other, loader) = (
        ENGINES["fsdp1"](ProxAdamW, Net(*WIDE), **kept.options) for _ in range(2)
    )
    for param, twin in zip(model.parameters(), other.parameters(), strict=True):
        twin.data.copy_(param.data)
    for seed in range(2):
        step(model, optimizer, seed)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    for param, twin in zip(model.parameters(), other.parameters(), strict=True):
        twin.data.copy_(param.data)
    set_optimizer_state_dict(other, loader, saved)
    for which, stepper in ((model, optimizer), (other, loader)):
        step(which, stepper, 2)
    assert_same_bits(snapshot(loader), snapshot(optimizer))
    dtypes = {own["exp_avg"].dtype for own in optimizer.state.values()}
    assert dtypes == {torch.bfloat16 if kept is BF16 else torch.float32}


@check((2,), **{kept.name: (kept,) for kept in (CODED, NARROW[-2])})
def zero_consolidates_formats(kept):
    """What it collects of all ranks goes on in one process, and in ZeRO."""
    made = [ENGINES["zero"](ProxAdamW, Net(*WIDE).to(kept.dtype), **kept.options)]
    model, optimizer = made[0]
    set_gradients(model, 0)
    optimizer.step()
    optimizer.consolidate_state_dict(to=0)
    saved = copy.deepcopy(optimizer.state_dict() if dist.get_rank() == 0 else None)
    saved = said_by_all(saved)[0]
    net = Net(*WIDE).to(kept.dtype)
    others = [
        (net, ProxAdamW(net.parameters(), **kept.options)),
        ENGINES["zero"](ProxAdamW, Net(*WIDE).to(kept.dtype), **kept.options),
    ]
    for other, loader in others:
        for param, twin in zip(model.parameters(), other.parameters(), strict=True):
            twin.data.copy_(param.data)
        loader.load_state_dict(copy.deepcopy(saved))
    for which, stepper in (*made, *others):
        for seed in (1, 2):
            set_gradients(which, seed)
            stepper.step()
    for other, _ in others:
        assert_all_same([*other.parameters()], [*model.parameters()])
