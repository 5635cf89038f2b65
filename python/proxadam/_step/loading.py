"""What is loaded: made into state as the optimizer keeps it, and held to the checks of a step."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import dtensor
from .allocated import check_allocated
from .checks import (
    check_apart,
    check_betas,
    check_exponents,
    check_state,
    check_step,
)
from .group import EXPONENT_LISTS, LISTS, Group
from .options import EIGHT_BITS, FORMAT, IMPLEMENTATION, NUMBERS, Options
from .rounding_ops import BLOCK
from .state import (
    CODES,
    EXPONENTS,
    FORMATS,
    MAX_EXP_AVG_SQ,
    MOMENTS,
    NUMBER,
    Format,
    as_step,
    check_number,
    encoded,
    max_exp_avg_sq,
    moment,
)


def prepared(
    optimizer: Optimizer, loaded: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[Tensor, dict[str, Any]]]:
    """A state dict for this optimizer, made from one that another may have saved.

    Args:
        optimizer: what it is to be loaded into.
        loaded: a state dict of ProxAdam, or of torch.optim.Adam or AdamW.

    Returns:
        The same with, in each group, the options that the saved one has not heard of and the
        implementation and the format that the group has chosen; and the state of each parameter,
        to be put in behind torch, which would cast moments and codes to the parameter's dtype.

    Raises:
        ValueError: what was loaded is no state dict, or no step could be taken from it. The message
            names what is wrong, and nothing has been loaded then.
    """
    saved_groups = _groups_of(loaded)
    # torch reports groups of another number or length itself
    pairs = list(zip(optimizer.param_groups, saved_groups, strict=False))
    groups: list[dict[str, Any]] = []
    states: dict[Tensor, dict[str, Any]] = {}
    given, entries = loaded["state"], dict(loaded["state"])
    for i, (own, saved) in enumerate(pairs):
        chosen = {name: own[name] for name in (*IMPLEMENTATION, *FORMAT)}
        group = {name: own[name] for name in optimizer.defaults} | saved | chosen
        params = dict(zip(saved["params"], own["params"], strict=False))
        try:
            made = {
                index: _state_of(param, group, given[index], index)
                for index, param in params.items()
                if given.get(index, {}) != {}
            }
            _check_steps(group, {index: (params[index], state) for index, state in made.items()})
            # Torch is not shown what it would cast to the parameter's dtype, a copy of it all.
            others = {
                index: {k: v for k, v in given[index].items() if k not in (*state, *FORMATS)}
                for index, state in made.items()
            }
            for index, unknown in others.items():
                _try_cast(params[index], unknown)
        except Exception as error:  # whatever a step would raise
            raise ValueError(f"nothing was loaded, because of group {i}: {error}") from error
        groups.append(group)
        for index, state in made.items():
            states[params[index]] = state
            entries[index] = {"step": state["step"], **others[index]}
    rest = saved_groups[len(pairs) :]
    return {**loaded, "state": entries, "param_groups": groups + rest}, states


def _groups_of(loaded: Mapping[str, Any]) -> list[Any]:
    for name, kind in (("state", Mapping), ("param_groups", (list, tuple))):
        if not isinstance(loaded.get(name), kind):
            raise ValueError(
                f"expected a state dict with 'state' and 'param_groups', got {name!r} of the type"
                f" {type(loaded.get(name)).__name__}; was the file written to its end?"
            )
    groups = list(loaded["param_groups"])
    for i, group in enumerate(groups):
        params = group.get("params") if isinstance(group, dict) else None
        listed = isinstance(params, (list, tuple)) and all(isinstance(p, Hashable) for p in params)
        if not listed:
            raise ValueError(f"nothing was loaded, because group {i} has no list of 'params'.")
    return groups


def _state_of(
    param: Tensor, group: Mapping[str, Any], loaded: Any, index: object
) -> dict[str, Any]:
    """The loaded state of a parameter in the formats and on the devices where it is kept."""
    names = loaded.keys() if isinstance(loaded, dict) else set()
    coded = not names.isdisjoint(CODES + EXPONENTS)
    if coded and not names.isdisjoint(MOMENTS):
        # As full_state_dict=True of torch.distributed.checkpoint leaves it: one of the two is what
        # this optimizer began with, on some ranks without the other.
        raise ValueError(
            f"the loaded state of parameter {index} has moments and codes, so two formats were"
            " merged; load into an optimizer with the state_dtype of the file, and its"
            " state_dict() into one with another."
        )
    for name in ("step", *(CODES + EXPONENTS if coded else MOMENTS)):
        if name not in names:
            expected = ", ".join(CODES + EXPONENTS) if coded else "exp_avg"
            raise ValueError(
                f"the loaded state of parameter {index} has no {name!r}, expected step, {expected}"
                f"{'' if coded else ' and exp_avg_sq'}; was it saved by another kind of optimizer?"
            )
    kept = Format.of(param, group["state_dtype"])
    state: dict[str, Any] = {"step": _step_of(param, group, loaded["step"], index)}
    if NUMBER in loaded:
        number = loaded[NUMBER]
        number = number.item() if isinstance(number, Tensor) and number.numel() == 1 else number
        state[NUMBER] = check_number(number, f"the loaded {NUMBER} of parameter {index}")
    if coded and kept.coded:
        return state | _codes_of(param, loaded, index)
    moments = {**loaded, **_decoded(param, loaded, index)} if coded else loaded
    for name in (*MOMENTS, MAX_EXP_AVG_SQ):
        if name not in moments or (kept.coded and name == MAX_EXP_AVG_SQ):
            continue
        what = f"the loaded {name} of parameter {index}"
        looked_at = name != MAX_EXP_AVG_SQ or group["amsgrad"]
        with contextlib.nullcontext() if looked_at else contextlib.suppress(Exception):
            found = _readable(moments[name], param, what)
            if found.is_complex() != param.is_complex():
                raise ValueError(f"{what} has dtype {found.dtype} and the parameter {param.dtype}")
            if kept.coded:
                state |= _encoded(param, found.to(param.device), name, what)
            else:
                state[name] = found.to(param.device, kept.dtype)
    if group["amsgrad"]:
        max_exp_avg_sq(state, None)
    return state


def _codes_of(param: Tensor, loaded: Mapping[str, Any], index: object) -> dict[str, Tensor]:
    """The loaded codes and exponents of a parameter, where it is."""
    blocks = -(-param.numel() // BLOCK)
    codes = {}
    for name in CODES + EXPONENTS:
        what = f"the loaded {name} of parameter {index}"
        tensor = _readable(loaded[name], param, what)
        shape = param.shape if name in CODES else torch.Size([blocks])
        if tensor.dtype != torch.uint8 or tensor.shape != shape:
            raise ValueError(
                f"{what} is of {tensor.dtype} and shape {tuple(tensor.shape)}, expected torch.uint8"
                f" and {tuple(shape)}"
            )
        codes[name] = tensor.to(param.device)
    return codes


def _decoded(param: Tensor, loaded: Mapping[str, Any], index: object) -> dict[str, Tensor]:
    codes = _codes_of(param, loaded, index)
    return {name: moment(codes, name) for name in MOMENTS}


def _encoded(param: Tensor, values: Tensor, name: str, what: str) -> dict[str, Tensor]:
    if values.shape != param.shape or not dtensor.are_alike(values, param):
        raise ValueError(
            f"{what} has shape {tuple(values.shape)}, expected {tuple(param.shape)} and the"
            " parameter's shards"
        )
    place = MOMENTS.index(name)
    if place and (dtensor.shard(values) < 0).any():
        raise ValueError(f"{what} is negative somewhere, and its code has no sign")
    like, exponents = Format.of(param, EIGHT_BITS).zeros(param), dtensor.zero_exponents(param)
    found = encoded(values, name, like, exponents)
    return dict(zip((CODES[place], EXPONENTS[place]), found, strict=True))


def _try_cast(param: Tensor, value: Any) -> Any:
    """What torch makes of state that is not ours; behind this it does so half-way through."""
    if isinstance(value, Tensor):
        return value.to(param.device, param.dtype if param.is_floating_point() else None)
    if isinstance(value, dict):
        return {name: _try_cast(param, each) for name, each in value.items()}
    if isinstance(value, Iterable):
        return type(value)(_try_cast(param, each) for each in value)  # type: ignore[call-arg]
    return value


def _step_of(param: Tensor, group: Mapping[str, Any], step: Any, index: object) -> Tensor:
    what = f"the loaded step of parameter {index}"
    if isinstance(step, Tensor):
        step = _readable(step, param, what)
    single = step.numel() == 1 if isinstance(step, Tensor) else not isinstance(step, Iterable)
    try:
        step_t = as_step(param, group, step if single else None)
    except (OverflowError, TypeError):
        raise ValueError(f"{what} is {type(step)}, expected one number that is a float") from None
    if group["capturable"] or group["fused"]:
        return step_t.to(param.device, torch.float32)
    return step_t.cpu()


def _readable(tensor: Any, param: Tensor, what: str) -> Tensor:
    """The tensor without lazy views, if it is one with data that may be read."""
    found = ""
    if not isinstance(tensor, Tensor):
        found = type(tensor).__name__
    elif tensor.layout is not torch.strided or tensor.is_nested:
        found = "nested" if tensor.is_nested else str(tensor.layout)
    elif tensor._is_zerotensor() or (tensor.is_meta and not param.is_meta):
        found = "a tensor without data"
    if found:
        raise ValueError(f"{what} is {found}, expected a dense tensor")
    check_allocated(tensor, what)
    return tensor.resolve_conj().resolve_neg()  # type: ignore[no-any-return]


def _check_steps(
    group: Mapping[str, Any], rows: Mapping[Any, tuple[Tensor, dict[str, Tensor]]]
) -> None:
    """Raise what a step of a group, of parameters and state by their indices, would raise."""
    options = Options.of(group)
    for name in NUMBERS:
        if isinstance(getattr(options, name), Tensor):
            check_allocated(getattr(options, name), name)
    options.check()
    if group["params"]:
        options.check_listwise()
    for name in ("lr", "eps", "weight_decay"):
        if not float(getattr(options, name)) >= 0:
            raise ValueError(f"Invalid {name} value: {getattr(options, name)}, expected ≥ 0")
    for coded in (False, True):
        alike = {i: row for i, row in rows.items() if (CODES[0] in row[1]) == coded}
        _check_step_of(options, alike, CODES + EXPONENTS if coded else MOMENTS)


def _check_step_of(
    options: Options,
    rows: Mapping[Any, tuple[Tensor, dict[str, Tensor]]],
    names: tuple[str, ...],
) -> None:
    params = [param for param, _ in rows.values()]
    whole = Group(params, params, [], [], [], [], options)  # no gradients yet
    for name, tensors in zip(("step", MAX_EXP_AVG_SQ, *names), whole.state_lists(), strict=False):
        tensors.extend(state[name] for _, state in rows.values() if name in state)
    # With a beta of 1 there is no first step either.
    check_betas(replace(whole, state_steps=[*whole.state_steps, torch.zeros(())]))
    local = dtensor.to_local(whole)
    for i, index in enumerate(rows):
        for name, tensor in local.of(i).items():
            what = f"the loaded {LISTS[name]} of parameter {index}"
            if name == "state_steps":
                check_step(local, local.params[i], tensor, what)
            elif name in EXPONENT_LISTS:
                check_exponents(local.params[i], tensor, what)
            elif name not in ("params", "grads"):
                check_state(local, local.params[i], tensor, what)
        check_apart(local, i, writes_grads=False)
