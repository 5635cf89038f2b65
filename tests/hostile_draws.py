"""What test_hostile_state.py puts into state dicts and into an optimizer's state.

Each value is made from what stood in its place, and from a random.Random: of another type, shape,
dtype, layout or device, in memory that is too short, is freed, or is another's.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict, UserDict
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from memory import is_plain, is_whole
from stateful_draws import SPOILS, Sub, cut, free
from tools import quantised

# ---- in the place of a tensor -----------------------------------------------------------------

DTYPES = [
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.int8,
    torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64, torch.bool,
    torch.complex32, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


class Raises(Tensor):
    """A subclass of which nothing can be asked."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError("this tensor answers nothing")


class Pretends:
    """No tensor, with what a careless reader asks tensors for."""

    def __init__(self, like):
        self.dtype, self.device, self.shape = like.dtype, like.device, (70, 61)

    def numel(self):
        return 1 << 40

    def data_ptr(self):
        return 8

    def is_floating_point(self):
        return True

    def __float__(self):
        raise OverflowError("no float")


def of_another_dtype(tensor, random):
    dtype = random.choice(DTYPES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # complex32 is experimental, and casts lose parts
        return tensor.detach().to(dtype)


def of_another_shape(tensor, random):
    numel = random.choice([0, 1, 2, tensor.numel() - 1, tensor.numel() + 1, 2 * tensor.numel()])
    return torch.ones(max(numel, 0), dtype=tensor.dtype)


def reshaped(tensor, random):
    of = random.choice([(-1,), (1, -1), (-1, 1), (*tensor.shape, 1), tensor.shape[::-1]])
    return tensor.detach().reshape(of)


def into_a_buffer(tensor, random):
    """A view of the same shape anywhere in a buffer, with strides that may overlap or be 0."""
    strides = [random.choice([0, 1, 2, 3, *tensor.stride()]) for _ in tensor.shape]
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, strides, strict=True) if n)
    offset = random.choice([0, 1, 7])
    buffer = torch.ones(max(reach, 0) + 1 + offset + random.choice([0, 5]), dtype=tensor.dtype)
    return buffer.as_strided(tensor.shape, strides, offset)


def in_short_memory(tensor, random):
    """A view whose storage ends before it does, by a little or by nearly all."""
    whole = tensor.detach().clone()
    storage = whole.untyped_storage()
    storage.resize_(random.choice([0, 1, storage.nbytes() // 2, max(storage.nbytes() - 1, 0)]))
    return whole


def of_random_bytes(tensor, random):
    raw = torch.tensor(bytearray(random.randbytes(tensor.numel() * tensor.itemsize)))
    if not tensor.numel():
        return tensor.detach().clone()
    return raw.to(torch.uint8).view(tensor.dtype).reshape(tensor.shape)


def filled(tensor, random):
    value = random.choice([float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 255, 1, 3e38])
    made = torch.empty(tensor.shape, dtype=tensor.dtype)
    try:
        return made.fill_(value)
    except RuntimeError:  # which an integer cannot be
        return made.fill_(random.choice([0, 1, 127, 128, 254, 255]))


def nested(tensor, random):  # noqa: ARG001
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the strided layout is a prototype
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


def no_tensor(tensor, random):
    return random.choice([
        None, 0, -1, 1.5, True, "3", b"\0", 10**400, -(10**30), 2**31, 2**63, 2**64, 1j, [], {},
        float("nan"), float("inf"), np.float32(2), np.int64(-3), np.ones(3), np.ones((70, 61)),
        Fraction(1, 3), object(), type, [1.0] * 7, (tensor,), {"a": tensor}, Pretends(tensor),
        torch.float32, torch.Size([3]), slice(3), memoryview(b"1234"),
    ])  # fmt: skip


def _spoilt(name):
    return lambda tensor, _: SPOILS[name](tensor)


MADE = {
    "of another dtype": of_another_dtype,
    "of another shape": of_another_shape,
    "reshaped": reshaped,
    "into a buffer": into_a_buffer,
    "in short memory": in_short_memory,
    "of random bytes": of_random_bytes,
    "filled": filled,
    "no tensor": no_tensor,
    "nested": nested,
    "quantised": lambda *_: quantised(),
    "mkldnn": lambda t, _: torch.ones(t.shape).to_mkldnn(),
    "csr": lambda *_: torch.eye(3).to_sparse_csr(),
    "a parameter": lambda t, _: Parameter(t.detach().clone(), requires_grad=False),
    "that answers nothing": lambda t, _: t.detach().clone().as_subclass(Raises),
    "freed, of a subclass": lambda t, _: free(t.detach().clone()).as_subclass(Sub),
    "cut, of a transpose": lambda t, _: cut(t.detach().clone()).t() if t.ndim == 2 else None,
} | {name: _spoilt(name) for name in SPOILS}

# ---- names, and what is around the tensors ----------------------------------------------------

NAMES = [
    "step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_avg_code", "exp_avg_sq_code",
    "exp_avg_exponent", "exp_avg_sq_exponent", "number",
]  # fmt: skip
STRANGE_NAMES = ["offset", "momentum_buffer", "", 3, None, ("exp_avg",), 1 << 70]


def structures(saved, random):
    """Change the dicts of a state dict, and not their tensors; what is to be loaded then."""
    groups, state = saved["param_groups"], saved["state"]
    strange = random.choice([None, 3, "state", [], {}, b"", {0: None}, [[]], float("nan"), 1 << 90])
    params = groups[0]["params"]
    change = random.randrange(14)
    if change == 0:
        return strange
    if change == 1:
        saved[random.choice(["state", "param_groups"])] = strange
    elif change == 2:
        del saved[random.choice(["state", "param_groups"])]
    elif change == 3:
        groups[0] = strange
    elif change == 4:
        groups.append(random.choice([strange, dict(groups[0])]))
    elif change == 5:
        groups[0]["params"] = random.choice([strange, params[:-1], params * 2, params[::-1], ["x"]])
    elif change == 6:
        params[random.randrange(len(params))] = random.choice([-1, 99, 1 << 90, "0", None, 0, []])
    elif change == 7:
        state[random.choice([0, 1, 99, -1, "0", 1 << 90, None])] = strange
    elif change == 8:
        state[0] = OrderedDict(state[0]) if random.random() < 0.5 else UserDict(state[0])
    elif change == 9:
        state[0], state[1] = state[1], state[0]
    elif change == 10:
        state[1] = state[0]
    elif change == 11:
        groups[0].pop(random.choice(sorted(groups[0])))
    elif change == 12:
        groups[0][random.choice([*STRANGE_NAMES, "param_names", "initial_lr"])] = strange
    else:
        saved[random.choice(STRANGE_NAMES)] = strange
    return saved


def spoil(own, random, others):
    """Change one entry of a parameter's state; ``others`` are tensors that it may be made to be."""
    name = random.choice([*own, *own, *NAMES, *STRANGE_NAMES])
    was = own.get(name)
    like = was if is_plain(was) and is_whole(was) else torch.ones(70, 61)
    change = random.random()
    if change < 0.08:
        own.pop(name, None)
    elif change < 0.2:
        own[name] = random.choice(others)
    elif change < 0.3:  # of the memory of another tensor of the parameter
        plain = [t for t in own.values() if is_plain(t) and is_whole(t)]
        other = random.choice(plain) if plain else like
        own[name] = other if random.random() < 0.5 else other.detach().reshape(-1)[: like.numel()]
    else:
        kind = random.choice(sorted(MADE))
        try:
            own[name] = MADE[kind](like, random)
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
            own[name] = no_tensor(like, random)  # there is no such tensor of this dtype or shape
