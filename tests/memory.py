"""The memory of a step: what it holds, what a step should make of it, and what else has changed.

A :class:`Picture` copies every byte that an optimizer can reach. From it follow whether anything
has changed, and a twin of the memory, with the same views and overlaps, on which the oracle steps
one entry after the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oracle import oracle_step
from storages import Storage, assert_close

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
WRITTEN = ("param", *MOMENTS, "step")
REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}
NARROW = (torch.bfloat16, torch.float16)
PARAM_DTYPES = (torch.float32, torch.float64, *NARROW, *REAL)
BYTES = torch.uint8


def is_plain(tensor: Any) -> bool:
    """Whether it is a dense tensor of the host, with memory of its own to look at."""
    return (
        isinstance(tensor, Tensor)
        and _answers(tensor)
        and not tensor.is_nested
        and tensor.layout is torch.strided
        and tensor.is_cpu
        and not torch._is_functional_tensor(tensor)
        and not tensor._is_zerotensor()
        and not hasattr(tensor, "get_mask")
        and _has_address(tensor.untyped_storage())
    )


def _answers(tensor: Tensor) -> bool:
    try:
        return tensor.ndim >= 0
    except RuntimeError:  # of a subclass that forbids everything
        return False


def _has_address(storage: torch.UntypedStorage) -> bool:
    try:
        return storage.nbytes() == 0 or storage.data_ptr() != 0
    except RuntimeError:  # of a lazy zero, once it is a parameter's data
        return False


def span(tensor: Tensor) -> tuple[int, int]:
    """The first byte of its storage that a plain tensor refers to, and the one behind the last."""
    if tensor.numel() == 0:
        return 0, 0
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    first = tensor.storage_offset()
    return first * tensor.itemsize, (first + last + 1) * tensor.itemsize


def is_whole(tensor: Tensor) -> bool:
    return span(tensor)[1] <= tensor.untyped_storage().nbytes()


def key_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=BYTES).set_(storage)


def inner(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that hold what a tensor says."""
    if is_plain(tensor):
        return [tensor]
    if not _answers(tensor):
        return []
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if hasattr(tensor, "get_mask"):
        return [tensor.get_data(), tensor.get_mask()]
    return []


def facts(tensor: Any) -> tuple[Any, ...]:
    """What a tensor is, apart from its bytes."""
    if not is_plain(tensor):
        return id(tensor), type(tensor)
    return (
        id(tensor), type(tensor), tensor.dtype, tensor.shape, tensor.stride(),
        tensor.storage_offset(), key_of(tensor), tensor.is_neg(), tensor.is_conj(),
    )  # fmt: skip


class Picture:
    """All that an optimizer holds at one moment."""

    def __init__(self, optimizer: torch.optim.Optimizer, *others: Any) -> None:
        self.optimizer, self.others = optimizer, others
        self.values: dict[str, Any] = {f"argument {i}": value for i, value in enumerate(others)}
        for g, group in enumerate(optimizer.param_groups):
            for name, value in group.items():
                if name == "params":
                    self._add_params(g, value)
                else:
                    self._add(f"{name} of group {g}", value)
        for name, value in optimizer.defaults.items():
            self._add(f"default {name}", value)
        strangers = [p for p in optimizer.state if f"{id(p)}" not in self.values]
        for param in strangers:
            self._add(f"a stranger's {id(param)}", param)
        self.facts = {name: facts(value) for name, value in self.values.items()}
        tensors = [t for v in self.values.values() if isinstance(v, Tensor) for t in inner(v)]
        self.storages = {key_of(t): t.untyped_storage() for t in tensors}
        self.bytes = {key: bytes_of(s).clone() for key, s in self.storages.items()}

    def _add(self, name: str, value: Any) -> None:
        self.values[name] = value
        if isinstance(value, tuple):
            self.values |= {f"{name}[{i}]": item for i, item in enumerate(value)}

    def _add_params(self, g: int, params: list[Tensor]) -> None:
        for i, param in enumerate(params):
            self.values[f"{id(param)}"] = param
            self.values[f"param {g}.{i}"] = param
            self.values[f"gradient of {g}.{i}"] = param.grad
            for name, value in self.optimizer.state.get(param, {}).items():
                self.values[f"{name} of {g}.{i}"] = value

    def changes(self, *, but_new_state: bool = False) -> list[str]:
        """What is not as it was; ``but_new_state`` leaves out state that was not there."""
        now = Picture(self.optimizer, *self.others)
        names = {**self.facts, **now.facts}
        changed = [name for name in names if self.facts.get(name) != now.facts.get(name)]
        if but_new_state:
            changed = [
                name for name in changed if name in self.facts or not name.startswith(WRITTEN)
            ]
        for key, before in self.bytes.items():
            if key in now.bytes and not torch.equal(before, now.bytes[key]):
                changed.append(f"bytes of {self._names(key)}")
        return changed

    def _names(self, key: int) -> list[str]:
        holders = {n: v for n, v in self.values.items() if isinstance(v, Tensor)}
        return [n for n, v in holders.items() if any(key_of(t) == key for t in inner(v))]

    def twin(self) -> Twin:
        return Twin({key: copy.clone().untyped_storage() for key, copy in self.bytes.items()})


@dataclass
class Twin:
    """Copies of storages, and the views into them that real tensors have into the real ones."""

    storages: dict[int, torch.UntypedStorage]

    def view(self, tensor: Tensor) -> Tensor:
        if not is_plain(tensor):  # it stands for zeros
            return torch.zeros(tensor.shape, dtype=tensor.dtype)
        there = torch.empty(0, dtype=tensor.dtype)
        where = (tensor.storage_offset(), tensor.shape, tensor.stride())
        there.set_(self.storages[key_of(tensor)], *where)
        there = torch._neg_view(there) if tensor.is_neg() else there
        return there.conj() if tensor.is_conj() else there


# ---- one entry of a step ----------------------------------------------------------------------


@dataclass
class Entry:
    """A parameter with its gradient, its state, and its group's options, as a step finds them."""

    param: Tensor
    grad: Tensor
    state: dict[str, Any]
    options: dict[str, Any]
    place: str
    shares: bool = False  # memory with another entry
    inward: bool = False  # memory between its own tensors, or within one that is written

    def tensors(self) -> dict[str, Any]:
        wanted = [n for n in MOMENTS if n in self.state]
        if not self.options["amsgrad"] and "max_exp_avg_sq" in wanted:
            wanted.remove("max_exp_avg_sq")
        own = {name: self.state[name] for name in wanted}
        step = {"step": self.state["step"]} if "step" in self.state else {}
        return {"param": self.param, "grad": self.grad, **own, **step}

    def must_be_refused(self, writes_grads: bool) -> str:
        """Why no step can be taken; empty where one can."""
        for name, tensor in self.tensors().items():
            if not isinstance(tensor, Tensor):
                return f"{name} is no tensor"
            lazy_zero = name == "grad" and not is_plain(tensor) and tensor._is_zerotensor()
            if not is_plain(tensor) and not lazy_zero and not hasattr(tensor, "get_mask"):
                return f"{name} is not dense and on the host"
            if is_plain(tensor) and not is_whole(tensor):
                return f"{name} is cut"
            if name == "step":
                if not is_plain(tensor):
                    return "step is masked"
                if tensor.numel() != 1 or not tensor.is_floating_point():
                    return "step is no single number"
                if not tensor.item() >= 0:
                    return "step is negative or nan"
                continue
            if tensor.shape != self.param.shape:
                return f"{name} has another shape"
            widened = self.param.dtype in NARROW and tensor.dtype == torch.float32
            if tensor.dtype != self.param.dtype and not widened:
                return f"{name} has another dtype"
            written = name != "grad" or writes_grads
            if written and not lazy_zero and _is_expanded(tensor):
                return f"{name} is expanded"
        if self.param.dtype not in PARAM_DTYPES:
            return "param has an unknown dtype"
        return ""

    def may_be_refused(self) -> bool:
        """Whether it is out of the ordinary: the step may be refused, or must be right."""
        return self.inward or any(
            type(t) not in (Tensor, torch.nn.Parameter)
            or not is_plain(t)
            or t.is_inference()
            or (name != "grad" and (t.is_neg() or t.is_conj()))
            or (name != "step" and t.requires_grad and t is not self.param)
            or (name == "step" and (t.requires_grad or t.itemsize == 2))
            for name, t in self.tensors().items()
        )


def _is_expanded(tensor: Tensor) -> bool:
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    return tensor.numel() > 0 and any(stride == 0 and n > 1 for stride, n in pairs)


def _may_overlap_itself(tensor: Tensor) -> bool:
    reach = 0
    for stride, n in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if n > 1 and stride <= reach:
            return True
        reach += (n - 1) * stride
    return False


def find_shared(entries: list[Entry], writes_grads: bool) -> None:
    """Mark the entries that share memory of which at least one writes."""
    pieces = []
    for index, entry in enumerate(entries):
        for name, tensor in entry.tensors().items():
            if is_plain(tensor) and tensor.numel():
                written = name != "grad" or writes_grads
                entry.inward |= written and _may_overlap_itself(tensor)
                pieces.append((index, written, key_of(tensor), *span(tensor)))
    for n, (i, i_written, i_key, i_first, i_end) in enumerate(pieces):
        for j, j_written, j_key, j_first, j_end in pieces[:n]:
            if not (i_written or j_written) or i_key != j_key:
                continue
            if i_first < j_end and j_first < i_end:
                if i == j:
                    entries[i].inward = True
                else:
                    entries[i].shares = entries[j].shares = True


# ---- what a step should make of it ------------------------------------------------------------


@dataclass
class Expected:
    """What the tensors of an entry should hold, in float64, and on which scale errors count."""

    values: dict[str, np.ndarray]
    scales: dict[str, Any]
    judged: np.ndarray | bool  # elements that float32 can follow
    storage: Storage
    options: dict[str, float] = field(default_factory=dict)


def real(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().resolve_conj().resolve_neg()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _double(tensor: Tensor) -> np.ndarray:
    return real(tensor).double().numpy().copy()


def simulate(entry: Entry, numbers: dict[str, Any], twin: Twin, grad_scale: float) -> Expected:
    """Step an entry on the twin of the memory, and say what came out before it was rounded."""
    views = {name: twin.view(tensor) for name, tensor in entry.tensors().items()}
    arrays = {name: _double(view) for name, view in views.items()}
    zeros = np.zeros_like(arrays["param"])
    w, m, v = arrays["param"], arrays.get("exp_avg", zeros), arrays.get("exp_avg_sq", zeros)
    largest = arrays.get("max_exp_avg_sq", zeros)
    count = float(arrays.get("step", np.zeros(())).reshape(())) + 1
    g = arrays["grad"] / grad_scale
    with np.errstate(all="ignore"):
        # No decay takes nothing of an infinite weight, where 0 · inf would.
        lost = ~np.isfinite(w) & (numbers["weight_decay"] == 0)
        start = np.where(lost, 0.0, w)
        result = oracle_step(start, g, m, v, largest, count, **numbers)
        new, m_new, v_new, largest_new, scale = result
        new = w if numbers["lr"] == 0 else np.where(lost, w + 0.0 * new, new)
        values = {"param": new, "exp_avg": m_new, "exp_avg_sq": v_new, "step": np.asarray(count)}
        if numbers["amsgrad"]:
            values["max_exp_avg_sq"] = largest_new
        if grad_scale != 1:
            values["grad"] = g
        wide, scale = _condition(numbers, start, g, m, v_new, largest_new, count, scale)
        judged = _judged([w, g, m, v, m_new, v_new, new], entry, numbers)
    moment_scales = {"exp_avg": np.abs(m) + wide, "exp_avg_sq": np.abs(v) + wide**2}
    moment_scales["max_exp_avg_sq"] = moment_scales["exp_avg_sq"] + np.abs(largest)
    for name, value in values.items():
        if name in views:
            target = torch.as_tensor(value)
            if views[name].is_complex():
                target = torch.complex(target[..., 0], target[..., 1])
            views[name].copy_(target.reshape(views[name].shape))
    dtype = REAL.get(entry.param.dtype, entry.param.dtype)
    storage = Storage(dtype, dtype, dtype)
    scales = {"param": scale, **moment_scales, "step": 0.0, "grad": np.abs(g)}
    return Expected(values, scales, judged, storage, numbers)


def _condition(o: dict[str, Any], w: Any, g: Any, m: Any, v: Any, largest: Any, t: Any, scale: Any):
    """|gradient| before the decay can cancel it, and the scale with what cancellation costs."""
    beta1, beta2 = o["betas"]
    wide, decayed = np.abs(g), np.abs(g)
    if not o["decoupled_weight_decay"]:
        wide = wide + np.abs(o["weight_decay"] * w)
        decayed = np.abs((-g if o["maximize"] else g) + o["weight_decay"] * w)
    seen = largest if o["amsgrad"] else v
    d = np.sqrt(seen / (1 - beta2**t)) + o["eps"]
    length = o["lr"] / (abs(1 - beta1**t) * d)
    of_m = length * (np.abs(beta1 * m) + np.abs(1 - beta1) * wide)
    m_new = np.abs(beta1 * m + (1 - beta1) * decayed)
    of_v = length * m_new * np.minimum(1e6, (1 - beta2) * decayed * wide / v)
    return wide, np.fmax(np.fmax(scale, of_m), np.nan_to_num(of_v, nan=0.0, posinf=0.0))


def _judged(arrays: list[np.ndarray], entry: Entry, numbers: dict[str, Any]) -> np.ndarray:
    judged = np.ones(arrays[0].shape, dtype=bool)
    for array in arrays:
        judged &= ~(np.isfinite(array) & (np.abs(array) >= 1e15))
    dtypes = {t.dtype for name, t in entry.tensors().items() if name != "step"}
    if torch.float16 in dtypes:
        for array in arrays:
            judged &= ~(np.isfinite(array) & (np.abs(array) >= 3e4))
    if numbers["eps"] < 1e-12:
        v_new = arrays[5]
        judged &= ~(v_new < 1e-28)
    return judged


def compare(name: str, actual: Tensor, expected: Expected, entry: Entry, loose: float) -> None:
    """``actual`` is what was expected, where float32 can follow."""
    value, scale = expected.values[name], expected.scales[name]
    if name == "step":
        wanted = torch.tensor(float(value)).to(actual.dtype)  # float32 stays where it is at 2^24
        assert actual == wanted, f"step of {entry.place} is {actual}, not {value}"
        return
    got = real(actual)
    assert tuple(got.shape) == value.shape, f"{name} of {entry.place} has shape {got.shape}"
    judged = torch.as_tensor(np.broadcast_to(expected.judged, value.shape).copy())
    want = torch.as_tensor(value)
    size = torch.as_tensor(np.broadcast_to(scale, value.shape).copy()) * loose
    # inf − inf may come in another order: m + w (g − m) is NaN where β m + (1 − β) g is inf
    same = (~got.isfinite() & ~want.isfinite()) | (got.double() == want)
    rest = judged & ~same
    what = f"{name} of {entry.place}"
    assert_close(got[rest], want[rest], size[rest], expected.storage, what)


def number(value: Any) -> float | None:
    """An option as a float; None where it is none, or too large for a comparison."""
    if isinstance(value, Tensor):
        if not is_plain(value) or value.numel() != 1 or value.is_complex() or not is_whole(value):
            return None
        value = value.item()
    if isinstance(value, (bool, str, complex)) or value is None:
        return None
    try:
        as_float = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return as_float if math.isinf(as_float) or abs(as_float) <= 1e6 else None
