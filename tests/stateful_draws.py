"""What test_stateful.py draws from: tensors, options, and changes to state dicts."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.masked import masked_tensor

from memory import MOMENTS, number

# What the options that are drawn as text may name.
NAMES = {"torch": torch, "np": np, "Fraction": Fraction}

# ---- tensors ----------------------------------------------------------------------------------

SHAPES = [(), (1,), (3,), (3, 4), (17, 5), (0,), (2, 0, 3), (2, 3, 4, 5), (600,), (3, 4), (5,)]
SHAPES += [(3,), (70_001,)]  # the last takes several chunks, blocks and threads
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]


def misaligned(shape, dtype):
    numel = torch.Size(shape).numel()
    if not numel:
        return torch.empty(shape, dtype=dtype)
    buffer = bytearray(numel * dtype.itemsize + 1)
    return torch.frombuffer(buffer, dtype=dtype, offset=1).view(shape)


def of_other_memory_format(shape, dtype):
    format = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, memory_format=format)


LAYOUTS = {
    "dense": lambda s, t: torch.empty(s, dtype=t),
    "transposed": lambda s, t: torch.empty(s[::-1], dtype=t).permute(tuple(range(len(s)))[::-1]),
    "channels last": of_other_memory_format,
    "gaps": lambda s, t: torch.empty(*s, 2, dtype=t)[..., 0],
    "rows apart": lambda s, t: (
        torch.empty(*s[:-1], s[-1] + 3, dtype=t)[..., : s[-1]] if s else torch.empty(s, dtype=t)
    ),
    "offset": lambda s, t: torch.empty(torch.Size(s).numel() + 1, dtype=t)[1:].view(s),
    "misaligned": misaligned,
}
VALUES = ["ordinary", "ordinary", "ordinary", "small", "large", "zero", "minus zero", "special"]


def fill(tensor, values, seed):
    """Random values, of an ordinary kind or another, in memory of any layout."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(tensor.shape, dtype=torch.float64, generator=generator)
    if tensor.is_complex():
        drawn = torch.complex(drawn, drawn.flip(0) if drawn.ndim else drawn)
    drawn *= {"small": 1e-3, "large": 30.0, "zero": 0.0, "minus zero": 0.0}.get(values, 1.0)
    if values == "minus zero":
        drawn = -drawn.abs() if not drawn.is_complex() else -drawn
    if values == "special" and not drawn.is_complex():
        flat = drawn.reshape(-1)
        for i, special in enumerate([float("nan"), float("inf"), -float("inf"), -0.0, 1e-40, 1e-6]):
            flat[i + seed % 5 :: 11] = special
        drawn = flat.view(tensor.shape)
    return tensor.copy_(drawn)


def make(shape, dtype, layout, values, seed):
    return fill(LAYOUTS[layout](shape, dtype), values, seed)


@dataclass
class Spec:
    """What a parameter and its first gradient are like."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str
    values: str
    seed: int


seeds = st.integers(0, 999)
layouts = st.sampled_from(["dense", *LAYOUTS])
values_of = st.sampled_from(VALUES)
specs = st.builds(
    Spec,
    shape=st.sampled_from(SHAPES),
    dtype=st.sampled_from([torch.float32, *DTYPES]),
    layout=layouts,
    values=st.sampled_from(["ordinary"] * 5 + ["zero", "special"]),
    seed=seeds,
)


class Sub(Tensor):
    """A subclass that does nothing of its own."""


def free(tensor):
    tensor.untyped_storage().resize_(0)
    return tensor


def cut(tensor):
    tensor.untyped_storage().resize_(tensor.untyped_storage().nbytes() // 2)
    return tensor


def in_inference_mode(tensor):
    with torch.inference_mode():
        return tensor.detach().clone()


def masked(tensor):
    return masked_tensor(tensor.detach().clone(), tensor.detach() > 0)


# From a tensor to one that may not do in its place.
SPOILS = {
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: torch.empty_like(t, device="meta"),
    "freed": free,
    "cut": cut,
    "negated": lambda t: torch._neg_view(-t),
    "conjugated": lambda t: t.conj().resolve_conj().conj(),
    "of inference": in_inference_mode,
    "longer": lambda t: torch.ones(64, dtype=t.dtype),
    "a scalar": lambda t: torch.ones((), dtype=t.dtype),
    "of two": lambda t: torch.ones(2, dtype=t.dtype),
    "of doubles": lambda t: t.double(),
    "of halves": lambda t: t.half(),
    "of floats": lambda t: t.float(),
    "of integers": lambda t: t.long(),
    "expanded": lambda t: torch.ones((), dtype=t.dtype).expand(t.shape),
    "overlapping itself": lambda t: torch.ones(t.numel() + 2, dtype=t.dtype).as_strided(
        t.shape, [1] * t.ndim
    ),
    "of a subclass": lambda t: t.detach().clone().as_subclass(Sub),
    "masked": masked,
    "a lazy zero": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
    "a number": lambda t: 3.0,  # noqa: ARG005
    "none": lambda t: None,  # noqa: ARG005
    "nan": lambda t: torch.full_like(t, float("nan")),
    "negative": lambda t: -torch.ones_like(t),
    "transposed": lambda t: t.permute(tuple(range(t.ndim))[::-1]),
    "with a graph": lambda t: t.detach().clone().requires_grad_(),
    "strided": lambda t: make(tuple(t.shape), t.dtype, "gaps", "ordinary", 1),
    "misaligned": lambda t: make(tuple(t.shape), t.dtype, "misaligned", "ordinary", 1).abs_(),
}
SLOTS = ["param", "grad", *MOMENTS, "step"]

# ---- options ----------------------------------------------------------------------------------

# As text, so that a program that fails can be read, and tensors are new in each.
LEGAL = {
    "lr": ["0.05", "1e-3", "0.0", "1", "np.float32(0.01)", "Fraction(1, 8)", "torch.tensor(0.01)",
           "torch.tensor([0.01], dtype=torch.float64)"],
    "betas": ["(0.9, 0.999)", "(0.0, 0.99)", "(0.5, 0.5)", "(0.95, 0.0)", "[0.9, 0.99]",
              "(torch.tensor(0.5), torch.tensor(0.75))"],
    "eps": ["1e-8", "1e-3", "1e-12"],
    "weight_decay": ["0.0", "0.1", "1", "np.float64(0.01)"],
    "l1": ["0.0", "0.0", "0.01", "1.0", "torch.tensor(0.125)", "torch.tensor([0.5])"],
    "l2": ["0.0", "0.0", "0.02", "1.0", "torch.tensor(0.125)"],
    "l21": ["0.0", "0.0", "0.02", "1.0", "torch.tensor(0.125)"],
    "l1_knee": ["float('inf')", "0.25", "torch.tensor(0.125)"],
    "max_shrink": ["10.0", "1", "float('inf')"],
    "keep_zeros": ["False", "True"],
    "metric": ["'adaptive'", "'euclidean'"],
    "state_dtype": ["None", "torch.float32"],
    "amsgrad": ["True", "False"],
    "maximize": ["True", "False"],
    "foreach": ["None", "None", "True", "False"],
    "fused": ["None", "None", "True", "False"],
    "capturable": ["False", "False", "True"],
    "differentiable": ["False", "False", "True"],
}  # fmt: skip
ANYTHING = [
    "-1.0", "1e39", "-1e39", "10**400", "1e308", "5e-324", "float('nan')", "float('inf')", "None",
    "'0.1'", "1j", "0", "True", "torch.tensor(1j)", "torch.tensor(0.1, device='meta')",
    "torch.tensor([0.1, 0.2])", "torch.empty(0)", "torch.tensor([[[0.5]]])", "torch.tensor(3)",
    "torch.tensor(True)", "torch.tensor(float('nan'))", "torch.tensor(1e300, dtype=torch.float64)",
    "torch.tensor(0.5, requires_grad=True)", "torch.tensor(0.5, dtype=torch.float16)",
    "torch.tensor(0.5).to_sparse()", "np.array([0.1])", "np.array([0.1, 0.2])", "np.float64('nan')",
    "object()", "[]", "Fraction(1, 3)",
]  # fmt: skip
ANY_BETAS = [
    "(1.0, 0.9)", "(0.9, 1.0)", "(-1.0, 0.9)", "(0.9, -1.0)", "(1.5, 0.9)", "(0.9, 1.5)", "(0.9,)",
    "(0.9, 0.9, 0.9)", "0.9", "(None, 0.9)", "('a', 0.9)", "(0.9, 10**400)", "(1e39, 0.9)",
    "(0.9, torch.tensor(0.99))", "(torch.tensor(0.9), 0.99)", "(1j, 0.9)", "(True, 0)",
    "(float('nan'), 0.9)", "(0.9, float('inf'))", "(torch.tensor(2.0), torch.tensor(2.0))",
]  # fmt: skip
NUMBERS = ["lr", "eps", "weight_decay", "l1", "l2", "l21", "l1_knee", "max_shrink"]
TENSORS_MAY = ("lr", "l1", "l2", "l21", "l1_knee")  # other options as tensors may be refused
legal_options = st.one_of(
    *(st.tuples(st.just(name), st.sampled_from(values)) for name, values in LEGAL.items())
)
any_option = st.one_of(
    *(st.tuples(st.just(name), st.sampled_from(ANYTHING)) for name in NUMBERS),
    st.tuples(st.just("betas"), st.sampled_from([*ANY_BETAS, *ANYTHING])),
    st.tuples(
        st.sampled_from([n for n in LEGAL if n not in (*NUMBERS, "betas")]),
        st.sampled_from(["None", "1", "'yes'", "torch.tensor(True)", "torch.float16", "object()"]),
    ),
)
PATHS_ONLY = ("foreach", "fused", "capturable", "differentiable")
PATHS = [{}, {}, {}, {"fused": True}, {"foreach": False}, {"foreach": True}, {"fused": False}]


def is_legal(group):
    """Whether the options are such that every step has to go through."""
    for name in NUMBERS:
        value = group[name]
        real = number(value)
        if real is None or real < 0 or isinstance(value, (bool, np.ndarray)):
            return False
        if isinstance(value, Tensor) and (
            name not in TENSORS_MAY
            or value.dtype not in (torch.float32, torch.float64)
            or value.requires_grad
        ):
            return False
        if real == float("inf") and name not in ("l1_knee", "max_shrink"):
            return False
    betas = group["betas"]
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        return False
    if isinstance(betas[0], Tensor) != isinstance(betas[1], Tensor):
        return False
    if any(number(beta) is None or not 0 <= number(beta) < 1 for beta in betas):
        return False
    if group["foreach"] and not group["capturable"]:  # lists take no such tensors
        if any(isinstance(value, Tensor) for value in (group["lr"], *betas)):
            return False
    if number(group["l1_knee"]) <= 0 or number(group["max_shrink"]) < 1:
        return False
    if 0 < number(group["eps"]) < 1e-30:
        return False
    if group["differentiable"] and number(group["l21"]) != 0:
        return False
    if group["metric"] not in ("adaptive", "euclidean"):
        return False
    flags = ("amsgrad", "maximize", "keep_zeros", *PATHS_ONLY)
    if group["state_dtype"] not in (None, torch.float32):
        return False
    return all(group[name] is None or isinstance(group[name], bool) for name in flags)


def as_numbers(group):
    """The options for the oracle; None where it has nothing to say about them."""
    betas = group["betas"]
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        return None
    numbers = {name: number(group[name]) for name in NUMBERS}
    numbers["betas"] = tuple(map(number, betas))
    if None in (*numbers.values(), *numbers["betas"]):
        return None
    if numbers["lr"] < 0 or numbers["eps"] < 0 or not all(-1 < b < 2 for b in numbers["betas"]):
        return None
    numbers["metric"] = group["metric"]
    try:
        flags = ("amsgrad", "maximize", "keep_zeros", "decoupled_weight_decay")
        return numbers | {name: bool(group[name]) for name in flags}
    except RuntimeError:
        return None


def looseness(group, dtype):
    """By how much more a step may err where torch takes 1 − βᵗ or an option in float32."""
    options = [group[name] for name in NUMBERS] + list(group["betas"])
    tensors = [value for value in options if isinstance(value, Tensor)]
    singles = any(tensor.dtype not in (torch.float32, torch.float64) for tensor in tensors)
    if singles or group["differentiable"] or any(isinstance(b, Tensor) for b in group["betas"]):
        return 1e9 if dtype == torch.float64 else 1e3
    return (1e6 if dtype == torch.float64 else 2.0) if tensors else 1.0


# ---- state dicts ------------------------------------------------------------------------------


def _each_moment(change):
    def mutate(saved, state):  # noqa: ARG001
        for name in MOMENTS:
            if name in state:
                state[name] = change(state[name])

    return mutate


def _state(**new):
    return lambda saved, state: state.update(new)  # noqa: ARG005


def _step(make_step):
    return lambda saved, state: state.update(step=make_step(state["step"]))  # noqa: ARG005


def _group(**new):
    return lambda saved, state: saved["param_groups"][0].update(new)  # noqa: ARG005


def _without(name):
    return lambda saved, state: saved["param_groups"][0].pop(name)  # noqa: ARG005


LOADS, REFUSED, EITHER = "loads", "is refused", "loads or is refused"
MUTATIONS = {
    "as saved": (lambda saved, state: None, LOADS),  # noqa: ARG005
    "step an int": (_step(lambda s: int(s.item())), LOADS),
    "step a float": (_step(lambda s: float(s.item())), LOADS),
    "step of int64": (_step(lambda s: s.long()), LOADS),
    "step of shape (1,)": (_step(lambda s: s.reshape(1)), LOADS),
    "step of float64": (_step(lambda s: s.double()), LOADS),
    "step 10**400": (_state(step=10**400), REFUSED),
    "step nan": (_state(step=torch.tensor(float("nan"))), REFUSED),
    "step −1": (_state(step=torch.tensor(-1.0)), REFUSED),
    "step of two": (_state(step=torch.ones(2)), REFUSED),
    "step complex": (_state(step=torch.tensor(1j)), REFUSED),
    "step on meta": (_state(step=torch.tensor(1.0, device="meta")), EITHER),
    "step None": (_state(step=None), REFUSED),
    "step a string": (_state(step="3"), REFUSED),
    "step inf": (_state(step=float("inf")), EITHER),
    "step True": (_state(step=True), EITHER),
    "step freed": (_step(lambda s: free(s.clone())), REFUSED),
    "moments of float64": (_each_moment(lambda m: m.double()), EITHER),
    "moments of float32": (_each_moment(lambda m: m.float()), EITHER),
    "moments of integers": (_each_moment(lambda m: m.real.nan_to_num().long()), EITHER),
    "moments expanded": (_each_moment(lambda m: m.new_ones(()).expand(m.shape)), EITHER),
    "moments with gaps": (
        _each_moment(lambda m: LAYOUTS["gaps"](tuple(m.shape), m.dtype).copy_(m)),
        LOADS,
    ),
    "moments longer": (_each_moment(lambda m: m.new_zeros(77)), REFUSED),
    "moments freed": (_each_moment(lambda m: free(m.clone())), EITHER),
    "moments cut": (_each_moment(lambda m: cut(m.clone())), EITHER),
    "moments sparse": (_each_moment(lambda m: m.to_sparse()), REFUSED),
    "moments on meta": (_each_moment(lambda m: torch.empty_like(m, device="meta")), EITHER),
    "moments of inference": (_each_moment(in_inference_mode), EITHER),
    "moments negated": (_each_moment(lambda m: torch._neg_view(-m)), EITHER),
    "moments numbers": (_each_moment(lambda m: 0.0), REFUSED),  # noqa: ARG005
    "moments with a graph": (_each_moment(lambda m: m.clone().requires_grad_()), EITHER),
    "exp_avg missing": (lambda saved, state: state.pop("exp_avg"), REFUSED),  # noqa: ARG005
    "step missing": (lambda saved, state: state.pop("step"), REFUSED),  # noqa: ARG005
    "state no dict": (lambda saved, state: saved["state"].update({0: [1]}), REFUSED),  # noqa: ARG005
    "of a stranger": (lambda saved, state: saved["state"].update({99: state}), EITHER),
    "lr None": (_group(lr=None), REFUSED),
    "lr −1": (_group(lr=-1.0), EITHER),
    "lr 10**400": (_group(lr=10**400), REFUSED),
    "lr a string": (_group(lr="0.1"), REFUSED),
    "lr of two": (_group(lr=torch.ones(2)), REFUSED),
    "lr 0.25": (_group(lr=0.25), LOADS),
    "lr nan": (_group(lr=float("nan")), EITHER),
    "eps −1": (_group(eps=-1.0), EITHER),
    "eps None": (_group(eps=None), REFUSED),
    "weight_decay complex": (_group(weight_decay=1j), REFUSED),
    "betas (1, 0.9)": (_group(betas=(1.0, 0.9)), REFUSED),
    "betas (0.9, 1)": (_group(betas=(0.9, 1.0)), REFUSED),
    "betas of one": (_group(betas=(0.9,)), REFUSED),
    "betas None": (_group(betas=None), REFUSED),
    "betas a list": (_group(betas=[0.8, 0.9]), LOADS),
    "l1 −1": (_group(l1=-1.0), REFUSED),
    "l1 10**400": (_group(l1=10**400), REFUSED),
    "metric unknown": (_group(metric="manhattan"), REFUSED),
    "state_dtype unknown": (_group(state_dtype=torch.int8), LOADS),  # the optimizer keeps its own
    "foreach and fused": (_group(foreach=True, fused=True), LOADS),
    "without l1": (_without("l1"), LOADS),
    "without lr": (_without("lr"), LOADS),
    "without params": (_without("params"), REFUSED),
    "params no list": (_group(params=None), REFUSED),
    "params fewer": (lambda saved, state: saved["param_groups"][0]["params"].pop(), REFUSED),  # noqa: ARG005
    "groups fewer": (lambda saved, state: saved["param_groups"].pop(), REFUSED),  # noqa: ARG005
    "groups no list": (lambda saved, state: saved.update(param_groups={}), REFUSED),  # noqa: ARG005
    "a group no dict": (lambda saved, state: saved["param_groups"].append(3), REFUSED),  # noqa: ARG005
    "no state": (lambda saved, state: saved.pop("state"), REFUSED),  # noqa: ARG005
}
