"""Checkpoints of moments in 8 and 16 bits, saved and loaded by many ranks."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist

from formats import BF16, CODED, FP32, LIVELY, NARROW, SMALL, block_maxima
from proxadam import ProxAdamW
from proxadam._step import state as state_module
from tools import assert_same_bits, error_of, params_of, snapshot

from .checks import check
from .engines import ENGINES, Net, assert_all_same, gathered, set_gradients, whole
from .small_state import WIDE, quietly, rows, said_by_all, whole_snapshot

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
