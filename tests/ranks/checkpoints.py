"""State dicts of many ranks: collected, saved by four and loaded by two, consolidated."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist

from proxadam import ProxAdamW
from tools import BUSY

from .checks import check, check_each
from .engines import ENGINES, Net, assert_all_same, gathered, set_gradients

NESTED_AND_FLAT = {"nested": (False,), "flat": (True,)}


@check_each({name: engine for name, engine in ENGINES.items() if engine.zero is None})
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


@check((4,), **NESTED_AND_FLAT)
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
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=f"saved-{flatten}")
    set_gradients(model, 2)
    optimizer.step()
    params, _ = gathered(model)
    if dist.get_rank() == 0:
        torch.save(params, f"expected-{flatten}.pt")


@check((2,), **NESTED_AND_FLAT)
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
    dcp.load(whole_state, checkpoint_id=f"saved-{flatten}")
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
    assert_all_same(gathered(model)[0], torch.load(f"expected-{flatten}.pt"))


@check()
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
