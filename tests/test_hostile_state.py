"""State that a broken file holds, or somebody who means harm: loaded or set, read and stepped.

Either there is one exception and nothing has changed, or the step is the oracle's where that knows
it, and writes nothing but its own tensors. Nothing crashes; ``.ci/sanitized`` runs these too, and
then no byte beside a tensor is read either. The same examples are drawn each time, unless
``PROXADAM_HOSTILE_SECONDS=600`` asks for new ones for as long as that, from the seed
``PROXADAM_HOSTILE_SEED`` on.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import os
import time
import warnings
from random import Random

import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

from formats import FORMATS, FP32, Kept
from hostile_draws import spoil, structures
from memory import (
    MOMENTS,
    Entry,
    Picture,
    compare,
    find_shared,
    is_plain,
    is_whole,
    key_of,
    simulate,
)  # fmt: skip
from proxadam import (
    ProxAdamW,
    SparsityRamp,
    backends,
    sparsity,
    state_bytes,
    stationarity,
    suggest_l1,
    to_adam_state_dict,
)
from proxadam._step.rounding_ops import BLOCK
from stateful_draws import NAMES, any_option, as_numbers, is_legal
from tools import params_of, saved_and_loaded

SECONDS = float(os.environ.get("PROXADAM_HOSTILE_SECONDS", "0"))
SEED = int(os.environ.get("PROXADAM_HOSTILE_SEED", "0"))
COUNTS: collections.Counter[str] = collections.Counter()
ERRORS = (RuntimeError, ValueError, TypeError)
PATHS = {
    "auto": {},
    "fused": {"fused": True},
    "loop": {"fused": False, "foreach": False},
    "foreach": {"foreach": True},
}
READERS = {
    "to_adam_state_dict": to_adam_state_dict,
    "state_bytes": lambda optimizer: int(state_bytes(optimizer)),
    "sparsity": lambda optimizer: float(sparsity(optimizer)),
    "stationarity": lambda optimizer: float(stationarity(optimizer)),
    "suggest_l1": lambda optimizer: float(suggest_l1(optimizer, 0.5)),
}
CODES = ("exp_avg_code", "exp_avg_sq_code")
EXPONENTS = ("exp_avg_exponent", "exp_avg_sq_exponent")
WRITTEN = {"param", "step", *MOMENTS, *CODES, *EXPONENTS}


class Victim:
    """An optimizer that has taken two steps, and what is done to it.

    Args:
        kept: the format of its parameters and state.
        path: a name of PATHS.
        amsgrad: where the format takes it.
        random: what everything is drawn from.
    """

    def __init__(self, kept: Kept, path: str, amsgrad: bool, random: Random) -> None:
        self.kept, self.random = kept, random
        torch.manual_seed(random.randrange(1 << 30))
        options = {**kept.options, **PATHS[path]}
        if amsgrad and kept.options.get("state_dtype") != "8bit":
            options["amsgrad"] = True
        self.optimizer = ProxAdamW(kept.weights(), lr=0.05, l1=0.01, l2=0.02, **options)
        for _ in range(2):
            self.optimizer.step()

    def spoil_state(self, count: int) -> None:
        """Change what the optimizer itself holds."""
        params = params_of(self.optimizer)
        of_all = [*params, *(p.grad for p in params), *self._tensors(self.optimizer.state)]
        for _ in range(count):
            spoil(self.optimizer.state[self.random.choice(params)], self.random, of_all)

    def load_spoilt(self, count: int, from_file: bool, options: list[tuple[str, str]]) -> bool:
        """Load a changed copy of the state; whether it was taken."""
        saved = copy.deepcopy(self.optimizer.state_dict())
        tensors = self._tensors(saved["state"])
        for _ in range(count):
            spoil(saved["state"][self.random.randrange(3)], self.random, tensors)
        for name, value in options:
            saved["param_groups"][0][name] = eval(value, NAMES)
        if self.random.random() < 0.2:
            saved = structures(saved, self.random)
        if from_file:
            try:
                saved = saved_and_loaded(saved)
            except Exception:  # there is no such file, or torch does not read it
                COUNTS["no file"] += 1
                return False
        before = Picture(self.optimizer)
        try:
            self.optimizer.load_state_dict(saved)
        except Exception as error:
            COUNTS["loads refused"] += 1
            assert isinstance(error, ValueError), f"{error!r}"
            assert str(error)
            assert not (changed := before.changes()), f"{error!r}, and changed: {changed}"
            return False
        COUNTS["loaded"] += 1
        return True

    @staticmethod
    def _tensors(state: dict) -> list[Tensor]:
        return [t for own in state.values() for t in own.values() if isinstance(t, Tensor)]

    def read(self, name: str) -> None:
        """Let one of the tools look at it."""
        before = Picture(self.optimizer)
        with contextlib.suppress(Exception):  # which, only a step promises
            READERS[name](self.optimizer)
            COUNTS["read"] += 1
        assert not (changed := before.changes()), f"{name} changed {changed}"

    def ramp(self) -> None:
        """An update of a ramp writes zeros into parameters, and nothing else."""
        before = Picture(self.optimizer)
        with contextlib.suppress(Exception):
            SparsityRamp(self.optimizer, 0.5, begin=0, end=1, every=1).step()
            COUNTS["ramps"] += 1
        self._assert_written(before, {"param"})

    def step(self) -> None:
        """The oracle's result, or an exception and nothing changed."""
        optimizer = self.optimizer
        before = Picture(optimizer)
        entries = [
            Entry(p, p.grad, dict(optimizer.state.get(p, {})), optimizer.param_groups[0], f"{i}")
            for i, p in enumerate(params_of(optimizer))
        ]
        find_shared(entries, writes_grads=False)
        try:
            optimizer.step()
        except Exception as error:
            COUNTS["refused"] += 1
            missing = isinstance(error, KeyError) and any(_lacks_something(e) for e in entries)
            assert isinstance(error, ERRORS) or missing, f"{error!r}"
            assert str(error)
            assert not (changed := before.changes()), f"{error!r}, and changed: {changed}"
            return
        COUNTS["stepped"] += 1
        for entry in entries:
            why = _unfit(entry, self.kept)
            assert not why, f"parameter {entry.place} was stepped, although {why}: {entry.state}"
        self._assert_written(before, WRITTEN)
        self._check_values(before, entries)

    def _check_values(self, before: Picture, entries: list[Entry]) -> None:
        twin = before.twin()
        for entry in entries:
            if self.kept is not FP32 or not is_legal(entry.options) or entry.may_be_refused():
                continue  # what the oracle knows nothing of
            if entry.shares or not set(entry.state) <= {"step", *MOMENTS}:
                continue
            wanted = simulate(entry, as_numbers(entry.options), twin, 1.0)
            now = {"param": entry.param, **self.optimizer.state[entry.param]}
            for name in wanted.values:
                compare(name, now[name], wanted, entry, 10.0)
            COUNTS["compared"] += 1

    def _assert_written(self, before: Picture, names: set[str]) -> None:
        """Every byte that is not of these tensors is what it was."""
        own = {key: torch.zeros(b.numel(), dtype=torch.bool) for key, b in before.bytes.items()}
        for param in params_of(self.optimizer):
            for name, tensor in {"param": param, **self.optimizer.state.get(param, {})}.items():
                if name in names and is_plain(tensor) and is_whole(tensor):
                    if key_of(tensor) in own:  # the step may have made it
                        _mark(own[key_of(tensor)], tensor)
        now = Picture(self.optimizer)
        for key, was in before.bytes.items():
            if key in now.bytes:
                stray = (was != now.bytes[key]) & ~own[key]
                assert not stray.any(), f"other bytes have changed: {before._names(key)}"


def _mark(of_bytes: Tensor, tensor: Tensor) -> None:
    """Mark the bytes of its storage that a tensor's elements take, each at its place."""
    where = (tensor.shape, tensor.stride(), tensor.storage_offset())
    elements = torch.arange(of_bytes.numel() // tensor.itemsize).as_strided(*where).reshape(-1, 1)
    of_bytes[elements * tensor.itemsize + torch.arange(tensor.itemsize)] = True


def _is_coded(entry: Entry) -> bool:
    return CODES[0] in entry.state and not set(MOMENTS[:2]) <= entry.state.keys()


def _lacks_something(entry: Entry) -> bool:
    kept = (*CODES, *EXPONENTS) if _is_coded(entry) else MOMENTS[:2]
    return not {"step", *kept} <= entry.state.keys()


def _unfit(entry: Entry, kept: Kept) -> str:
    """Why no step could be taken; empty where one can, or nobody knows."""
    if not entry.state:
        return ""  # the step made it
    coded = _is_coded(entry)
    if kept is FP32 and not coded:
        return entry.must_be_refused(writes_grads=False)
    blocks = -(-entry.param.numel() // BLOCK)
    for name in (*CODES, *EXPONENTS) if coded else MOMENTS[:2]:
        tensor = entry.state.get(name)
        if not isinstance(tensor, Tensor):
            return f"{name} is no tensor"
        if is_plain(tensor) and not is_whole(tensor):
            return f"{name} is cut"
        if name in EXPONENTS and tensor.numel() != blocks:
            return f"{name} has not a byte for each block"
        if name not in EXPONENTS and tensor.shape != entry.param.shape:
            return f"{name} has another shape"
        if coded and tensor.dtype != torch.uint8:
            return f"{name} is no code"
    return ""


# ---- the test ---------------------------------------------------------------------------------

no_options = st.just([])


@settings(
    max_examples=200,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    kept=st.sampled_from(FORMATS),
    path=st.sampled_from(sorted(PATHS)),
    amsgrad=st.booleans(),
    way=st.sampled_from(["set", "loaded", "from a file"]),
    count=st.integers(1, 3),
    options=st.one_of(no_options, no_options, st.lists(any_option, max_size=1)),
    tool=st.sampled_from([None, None, "ramp", *READERS]),
    number=st.integers(0, 1 << 32),
)
def program(kept, path, amsgrad, way, count, options, tool, number):
    module = backends.kernel("cpu")
    random = Random(number)
    COUNTS["programs"] += 1
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # torch's, of prototypes, and ours of formats
        if module:
            stack.callback(module.use_capability, module.capability())
            module.use_capability(random.choice(module.capabilities()))
        victim = Victim(kept, path if module else "auto", amsgrad, random)
        if way == "set":
            victim.spoil_state(count)
        elif not victim.load_spoilt(count, way == "from a file", options):
            return
        if tool == "ramp":
            victim.ramp()
        elif tool:
            victim.read(tool)
        victim.step()
        victim.step()


def test_hostile_state_is_refused_or_stepped(capsys):
    start = time.monotonic()
    last = SEED
    seed(last)(program)()
    while time.monotonic() - start < SECONDS:
        last += 1
        seed(last)(program)()
    if SECONDS:
        counted = ", ".join(f"{count:,} {what}" for what, count in COUNTS.items())
        with capsys.disabled():
            print(f"\nseeds {SEED} to {last}: {counted}, in {time.monotonic() - start:.0f} s")
    for what in ("loads refused", "loaded", "refused", "stepped", "compared", "read", "ramps"):
        assert COUNTS[what], f"never seen: {what}"
