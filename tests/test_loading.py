"""What load_state_dict takes up and what it refuses, case by case, beside torch.optim.

Whatever torch resumes from, and a step can run with, resumes. Everything else is a ValueError, and
nothing has changed. Where the two classes part, the row says why.
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from proxadam import ProxAdam
from tools import LOOP, assert_same_bits, each_twin, error_of, params_of, snapshot, weights

SHAPE = (4, 2)


@dataclass(frozen=True)
class Case:
    """A state dict of two parameters after one step, changed, and whether a run goes on from it."""

    name: str
    change: Callable[[dict[str, Any]], Any]
    resumes: bool
    unlike_torch: str = ""  # why, where torch does the opposite


def fresh(value):
    """A copy, for steps write what they have loaded; of a zero tensor it would be another kind."""
    zero = isinstance(value, torch.Tensor) and value._is_zerotensor()
    return value if zero else copy.deepcopy(value)


def state(key, values):
    """Cases that replace one entry of the first parameter's state."""
    for resumes, of_kind in values.items():
        for name, value in of_kind.items():
            yield Case(
                f"{key} {name}", lambda d, v=value: d["state"][0].update({key: fresh(v)}), resumes
            )


def group(key, values):
    """Cases that replace one entry of the group."""
    for resumes, of_kind in values.items():
        for name, value in of_kind.items():
            yield Case(
                f"{key} {name}",
                lambda d, v=value: d["param_groups"][0].update({key: fresh(v)}),
                resumes,
            )


def named(*values):
    return {str(value): value for value in values}


def of_dtypes(value, *dtypes):
    return {str(dtype).removeprefix("torch."): torch.tensor(value).to(dtype) for dtype in dtypes}


def zero_tensor(*shape):
    return torch._efficientzerotensor(shape, dtype=torch.float32)


ONES = torch.ones(SHAPE)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
AMSGRAD = {"amsgrad": True}


def with_amsgrad(**entries):
    def change(saved):
        saved["param_groups"][0].update(AMSGRAD)
        for own in saved["state"].values():
            own["max_exp_avg_sq"] = own["exp_avg_sq"].clone()
            own.update(entries)

    return change


STEPS = {
    True: {
        **of_dtypes(7, *INTEGERS, *FLOATS),
        **named(7, 7.5, True, float("inf"), Fraction(7), np.float32(7)),
        "numpy int": np.int64(7),
        "of shape (1, 1)": torch.tensor([[7.0]]),
        "negated": torch._neg_view(torch.tensor(-7.0)),
        "parameter": Parameter(torch.tensor(7.0)),
    },
    False: {
        **of_dtypes(7, *UNSIGNED, torch.bool, torch.complex64),
        **named("7", None, 7j, -1, float("nan"), [7], {}),
        "10**400": 10**400,
        "numpy array": np.array(7),
        "of two": torch.ones(2),
        "of none": torch.ones(0),
        "of two integers": torch.ones(2, dtype=torch.int64),
        "negative": torch.tensor(-1.0),
        "negative integer": torch.tensor(-1),
        "on meta": torch.tensor(7.0, device="meta"),
        "sparse": torch.tensor(7.0).to_sparse(),
        "zero tensor": zero_tensor(),
    },
}
MOMENTS = {
    True: {
        **of_dtypes(ONES.tolist(), torch.int64, torch.bool, *FLOATS),
        "expanded, of another dtype": torch.ones(1, dtype=torch.float64).expand(SHAPE),
        "with gaps": torch.ones(4, 4)[:, ::2],
        "transposed strides": torch.ones(2, 4).T,
        "negated": torch._neg_view(-ONES),
        "parameter": Parameter(ONES),
    },
    False: {
        "expanded": torch.ones(1).expand(SHAPE),
        "of one element": torch.ones(1, 1),
        "with a dimension more": torch.ones(1, *SHAPE),
        "transposed": torch.ones(2, 4),
        "truncated": torch.ones(3, 2),
        "number": 1.0,
        "None": None,
        "list": ONES.tolist(),
        "text": "ones",
        "on meta": torch.ones(SHAPE, device="meta"),
        "sparse": ONES.to_sparse(),
        "zero tensor": zero_tensor(*SHAPE),
    },
}
BETAS = {
    True: {
        **named((0.5, 0.9), [0.5, 0.9], (0, 0), (4.0, 0.999), (0.9, -0.5)),
        "tensors": (torch.tensor(0.5), torch.tensor([0.9])),
    },
    False: {
        **named((1.0, 0.9), (1, 0.9), (0.9, 1.5), (-1.0, 0.999), (1e300, 0.9)),
        **named((0.9,), (0.9, 0.9, 0.9), 0.9, None, ("0.9", "0.9"), (None, None)),
        **named((float("nan"), 0.9), (float("inf"), 0.9)),
        "1 in a tensor": (torch.tensor(1.0), torch.tensor(0.9)),
    },
}
NUMBERS = {
    True: {
        **named(0.5, 0, 1, np.float64(0.5)),
        "tensor": torch.tensor(0.5),
    },
    False: {
        **named(None, "0.1", 1j, float("nan"), [0.1]),
        "10**400": 10**400,
        "of two": torch.ones(2),
    },
}
RANGE = "the constructor refuses it"
CASES = [
    Case("as saved", lambda _: None, True),
    *state("step", STEPS),
    *state("exp_avg", MOMENTS),
    *state("exp_avg_sq", {False: MOMENTS[False]}),
    *state("momentum", {True: {"unknown": ONES, "number": 1},
                        False: {"array": np.ones(3), "range": range(3)}}),
    *state("max_exp_avg_sq", {True: {"None": None, "of other shape": torch.ones(3)}}),
    *group("betas", BETAS),
    *group("lr", NUMBERS),
    *group("eps", {True: named(0.5, 1), False: {k: NUMBERS[False][k] for k in ("None", "nan")}}),
    *group("weight_decay", {False: NUMBERS[False]}),
    *group("maximize", {True: named(True, False)}),
    *group("params", {False: {**named(None, 7, [0], [0, 1, 2], [[0], [1]])}}),
    Case("step below 0 by half", lambda d: d["state"][0].update(step=-0.5), False,
         "no step counts from below 0"),
    Case("exp_avg complex", lambda d: d["state"][0].update(exp_avg=ONES + 0j), False,
         "it would lose its imaginary part"),
    Case("lr -1", lambda d: d["param_groups"][0].update(lr=-1.0), False, RANGE),
    Case("weight_decay -1", lambda d: d["param_groups"][0].update(weight_decay=-1.0), False, RANGE),
    Case("eps -0.5", lambda d: d["param_groups"][0].update(eps=-0.5), False, RANGE),
    Case("beta2 1", lambda d: d["param_groups"][0].update(betas=(0.9, 1.0)), False,
         "1 − beta2ᵗ is 0, and torch divides by it"),
    Case("beta1 -1, odd step", lambda d: [d["param_groups"][0].update(betas=(-1.0, 0.999)),
         *(own.update(step=2) for own in d["state"].values())], True),
    Case("amsgrad", with_amsgrad(), True),
    Case("amsgrad, number for its maximum", with_amsgrad(max_exp_avg_sq=1.0), False),
    Case("amsgrad, maximum of other shape", with_amsgrad(max_exp_avg_sq=torch.ones(3)), False),
    Case("amsgrad, no maximum", lambda d: d["param_groups"][0].update(AMSGRAD), True,
         "it begins with the next step"),
    Case("group without weight_decay", lambda d: d["param_groups"][0].pop("weight_decay"), True,
         "it stays as the group has it"),
    Case("group without params", lambda d: d["param_groups"][0].pop("params"), False),
    Case("group that is none", lambda d: d.update(param_groups=[None]), False),
    Case("tuple of groups", lambda d: d.update(param_groups=tuple(d["param_groups"])), True),
    Case("no groups", lambda d: d.update(param_groups=[]), False),
    Case("more groups", lambda d: d["param_groups"].append({"params": []}), False),
    Case("one index twice", lambda d: d["param_groups"][0].update(params=[0, 0]), True),
    Case("no state yet", lambda d: d.update(state={}), True),
    Case("state of the first alone", lambda d: d["state"].pop(1), True),
    Case("state of one more", lambda d: d["state"].update({7: {"step": "any"}}), True),
    Case("state empty", lambda d: d["state"].update({0: {}}), True),
    Case("state ordered", lambda d: d["state"].update({0: OrderedDict(d["state"][0])}), True),
    *(Case(f"state {value!r}", lambda d, v=value: d["state"].update({0: v}), False)
      for value in (None, [], "", 0, 1.5)),
    *(Case(f"no {name}", lambda d, name=name: d["state"][0].pop(name), False)
      for name in ("step", "exp_avg", "exp_avg_sq")),
    *(Case(f"no {name} at all", lambda d, name=name: d.pop(name), False)
      for name in ("state", "param_groups")),
    Case("list for state", lambda d: d.update(state=[]), False),
]  # fmt: skip


def stepped(cls, **options):
    """An optimizer that has taken a step, and has a gradient for the next."""
    torch.manual_seed(0)
    optimizer = cls(weights(SHAPE, SHAPE), lr=0.1, **options)
    optimizer.step()
    return optimizer


def loaded_and_stepped(optimizer, state_dict):
    """Whether a run goes on, with weights that are numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.load_state_dict(state_dict)
        optimizer.step()
    assert all(param.isfinite().all() for param in params_of(optimizer))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@each_twin
def test_what_torch_resumes_from_resumes_and_else_nothing_changes(ours, theirs, case):
    torchs, loop, default = stepped(theirs, **LOOP), stepped(ours, **LOOP), stepped(ours)
    saved = copy.deepcopy(torchs.state_dict())
    case.change(saved)
    error = error_of(loaded_and_stepped, torchs, saved)
    assert (error is None) == (case.resumes != bool(case.unlike_torch)), error

    for mine in (loop, default):
        saved = copy.deepcopy(stepped(theirs).state_dict())
        case.change(saved)
        before, groups, own = snapshot(mine), copy.deepcopy(mine.param_groups), mine.state
        error = error_of(mine.load_state_dict, saved)
        if case.resumes:
            assert error is None
            mine.step()
            continue
        assert error is not None
        assert error[0] is ValueError
        assert "\n" not in error[1]
        assert mine.state is own
        assert_same_bits(snapshot(mine), before)
        for actual, expected in zip(mine.param_groups, groups, strict=True):
            assert actual.keys() == expected.keys()
            assert all(actual[key] == expected[key] for key in actual if key != "params")
    if not case.resumes:
        return
    for one, other, twin in zip(*map(params_of, (loop, default, torchs)), strict=True):
        for param, state in ((one, loop.state[one]), (other, default.state[other])):
            assert param.isfinite().all()
            assert state["step"].is_floating_point()
            if case.unlike_torch:
                continue
            assert state["step"].item() == torchs.state[twin]["step"].item()
            for name in ("exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(state[name], torchs.state[twin][name].detach())
            torch.testing.assert_close(param, twin)
        if not case.unlike_torch:
            assert_same_bits(one, twin)


@pytest.mark.parametrize("loaded", [None, [], 7, "a path"])
def test_what_is_no_dict_is_refused(loaded):
    optimizer = stepped(ProxAdam)
    assert error_of(optimizer.load_state_dict, loaded)[0] is ValueError


FREED = """
import copy, torch
from proxadam import ProxAdam

def freed(numel, dtype, kept=0):
    tensor = torch.ones(numel, dtype=dtype)
    tensor.untyped_storage().resize_(kept)
    return tensor

NUMEL = 1 << 22  # so many that what is behind the storage is no memory
param = torch.nn.Parameter(torch.ones(NUMEL))
param.grad = torch.ones(NUMEL)
optimizer = ProxAdam([param])
optimizer.step()
saved = optimizer.state_dict()
cases = [("state", "step", freed(1, dtype)) for dtype in (torch.float32, torch.int64)]
for name in ("exp_avg", "exp_avg_sq"):
    for dtype in (torch.float32, torch.float64, torch.int64):
        cases += [("state", name, freed(NUMEL, dtype, kept)) for kept in (0, 64)]
cases += [("param_groups", name, freed(1, torch.float32)) for name in ("lr", "l1", "eps")]
for where, name, value in cases:
    state, group = dict(saved["state"][0]), dict(saved["param_groups"][0])
    broken = {"state": {0: state}, "param_groups": [group]}
    broken[where][0][name] = value
    try:
        optimizer.load_state_dict(broken)
    except ValueError as error:
        assert "not allocated" in str(error), error
    else:
        raise AssertionError((where, name))
optimizer.step()
assert optimizer.state[param]["step"] == 2
"""


def test_a_tensor_whose_storage_is_freed_or_cut_is_refused_and_not_read():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:] or done.returncode


@pytest.mark.parametrize("again", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("step", [7, torch.tensor(7)], ids=["number", "integer tensor"])
def test_a_count_that_is_no_float_is_made_one_when_it_is_copied_or_unpickled(step, again):
    optimizer = stepped(ProxAdam)
    for own in optimizer.state.values():
        own["step"] = step
    copied = again(optimizer)
    for param in params_of(copied):
        param.grad = torch.ones_like(param)
    copied.step()
    assert [own["step"] for own in copied.state.values()] == [8.0, 8.0]
