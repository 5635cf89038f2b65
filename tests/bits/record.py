"""The bits of the CPU kernel: a digest for each way to take a step, over awkward numbers.

    python tests/bits/record.py COMMIT

writes ``digests.json`` beside this file with the installed package, and says in it that COMMIT is
what was installed. ``tests/test_bits.py`` computes the same digests again and compares.

A digest covers the parameters, the gradients and all state after three steps, for tensors of
several sizes and alignments, and the elements around each tensor, which nothing may write.

* The inputs are integers from SHAKE-128, whose output a standard fixes, turned into floating point
  by powers of two and by truncation. No random number generator of torch or numpy takes part.
* Every NaN counts as the same NaN. IEEE 754 lets an addition of two NaNs return either one, so
  the compiler decides: see ``test_bits.py``.
* 1 − β^t is the one thing that the kernel takes from the C library. ``check_powers`` makes sure
  that no power lies close to a tie: a ``pow`` good to 0.6 ulp rounds it as any other does.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from proxadam import backends, prox_adam

DIGESTS = Path(__file__).with_name("digests.json")
STEPS = 3


class Format(NamedTuple):
    """A floating point type, and the integers that its bits are looked at as."""

    dtype: torch.dtype
    integer: torch.dtype
    exponent_mask: int  # the bits of +inf
    smallest_normal: int


FORMATS = {
    "fp32": Format(torch.float32, torch.int32, 0x7F80_0000, 0x0080_0000),
    "fp64": Format(torch.float64, torch.int64, 0x7FF0_0000_0000_0000, 0x0010_0000_0000_0000),
    "bf16": Format(torch.bfloat16, torch.int16, 0x7F80, 0x0080),
    "fp16": Format(torch.float16, torch.int16, 0x7C00, 0x0400),
}
# Parameter, gradient, state.
TRIPLES = [
    ("fp32", "fp32", "fp32"),
    ("fp64", "fp64", "fp64"),
    *(
        (own, grad, state)
        for own in ("bf16", "fp16")
        for grad, state in itertools.product((own, "fp32"), repeat=2)
    ),
]
L1, L2 = {"l1": 0.1}, {"l2": 0.05}
UPDATES = {
    "frozen": {"lr": 0.0, **L1, **L2},
    "adam": {},
    "adaptive": {**L1, **L2},
    "adaptive l1": L1,
    "adaptive l2": L2,
    "adaptive unbounded": {**L1, **L2, "max_shrink": float("inf")},
    "euclidean": {**L1, **L2, "metric": "euclidean"},
    "euclidean l1": {**L1, "metric": "euclidean"},
    "euclidean l2": {**L2, "metric": "euclidean"},
    "euclidean unbounded": {**L1, **L2, "metric": "euclidean", "max_shrink": float("inf")},
}
DECAYS = {
    "no decay": {"weight_decay": 0.0},
    "coupled": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
}
# The second has 1 − beta1 ≥ ½, where the lerp takes its other branch.
BETAS = ((0.9, 0.999), (0.3, 0.97))
# Elements of each tensor, and those between it and the tensor before it, which lies in the same
# storage. The kernel's tiles are of 512 elements, its chunks of 16384.
SMALL = [(0, 0), (1, 3), (7, 1), (64, 5), (513, 8), (513, 3), (513, 4)]
LARGE = [(20_001, 7)]
FIRST_STEPS = (0, 24)  # in turns: parameters of one call need not have taken the same steps
GUARD = 8  # elements behind the last tensor


def cases() -> Iterator[tuple[tuple[str, str, str], str, str, dict]]:
    """Triple, update, flags and keywords of every case."""
    flags = itertools.product(DECAYS, (False, True), (False, True), (False, True))
    ways = []
    for decay, amsgrad, maximize, unscale in flags:
        on = {"amsgrad": amsgrad, "maximize": maximize, "unscale": unscale}
        name = ", ".join([decay, *(flag for flag, is_on in on.items() if is_on)])
        ways.append((name, {**DECAYS[decay], **on}))
    for triple, (update, options) in itertools.product(TRIPLES, UPDATES.items()):
        for name, way in ways:
            yield triple, update, name, {"lr": 0.01, **options, **way}


# ---- inputs -----------------------------------------------------------------------------------


def bits(key: str, name: str, numel: int, smallest: int, is_square: bool = False) -> np.ndarray:
    """Integers that are numbers of the format ``name``: magnitudes in [2^smallest, 4), specials.

    One in eight is a NaN, an infinity, a zero, a subnormal, or at the end of a range.
    """
    size = FORMATS[name]
    raw = np.frombuffer(hashlib.shake_128(key.encode()).digest(16 * numel), "<u8")
    mantissas, choices = (raw >> np.uint64(11)).astype(np.int64).reshape(2, numel)  # of 53 bits
    values = np.ldexp(1 + mantissas * 2.0**-53, smallest + (choices >> 24) % (2 - smallest))
    found = _truncated(values, name)
    inf, normal = size.exponent_mask, size.smallest_normal
    magnitudes = np.array(
        [inf + normal // 2, inf + normal // 2 + 1, inf, 0, 1, normal - 1, normal, inf - 1]
    ).astype(found.dtype)
    is_special = choices % 8 == 0
    found[is_special] = magnitudes[(choices >> 3) % 8][is_special]
    # A second moment is hardly ever negative: here one special in sixteen.
    is_negative = (choices >> 6) % 16 == 0 if is_square else (choices >> 6) % 2 == 0
    found[is_negative & is_special if is_square else is_negative] |= np.iinfo(found.dtype).min
    return found


def _truncated(values: np.ndarray, name: str) -> np.ndarray:
    """The bits of positive doubles in the format, rounded towards zero where it is bfloat16."""
    if name == "fp64":
        return values.view(np.int64).copy()
    if name == "bf16":
        return (values.astype(np.float32).view(np.int32) >> 16).astype(np.int16)
    return values.astype({"fp32": np.float32, "fp16": np.float16}[name]).view(
        {"fp32": np.int32, "fp16": np.int16}[name]
    )


class Inputs:
    """Tensors of one triple of types, kept twice: as they are stepped, and as they started."""

    def __init__(self, triple: tuple[str, str, str], layouts: list[tuple[int, int]]) -> None:
        param, grad, state = triple
        self._layouts = layouts
        self._storages: list[tuple[Format, np.ndarray, np.ndarray]] = []
        self.params = self._tensors("param", param, -8)
        self.grads = [self._tensors(f"grad {i}", grad, -12) for i in range(STEPS)]
        self.exp_avgs = self._tensors("exp_avg", state, -12)
        self.exp_avg_sqs = self._tensors("exp_avg_sq", state, -24, is_square=True)
        self.max_exp_avg_sqs = self._tensors("max_exp_avg_sq", state, -24, is_square=True)
        firsts = [FIRST_STEPS[i % len(FIRST_STEPS)] for i, _ in enumerate(layouts)]
        self.state_steps = list(self._store(np.array(firsts, np.float32), "fp32"))

    def _store(self, storage: np.ndarray, name: str) -> Tensor:
        size = FORMATS[name]
        tensor = torch.from_numpy(storage)
        self._storages.append((size, tensor.view(size.integer).numpy(), storage.copy()))
        return tensor.view(size.dtype)

    def _tensors(self, key: str, name: str, smallest: int, is_square: bool = False) -> list[Tensor]:
        ends = list(itertools.accumulate(numel + gap for numel, gap in self._layouts))
        whole = self._store(bits(key, name, ends[-1] + GUARD, smallest, is_square), name)
        return [
            whole[end - numel : end] for end, (numel, _) in zip(ends, self._layouts, strict=True)
        ]

    def step_and_digest(self, digest: hashlib._Hash, betas: tuple[float, float], way: dict) -> None:
        """Start afresh, take the steps, and add all that there is then to the digest."""
        for _, now, start in self._storages:
            now[:] = start.view(now.dtype)
        options = {k: v for k, v in way.items() if k != "unscale"}
        for grads in self.grads:
            prox_adam(
                self.params,
                grads,
                self.exp_avgs,
                self.exp_avg_sqs,
                self.max_exp_avg_sqs if way["amsgrad"] else [],
                self.state_steps,
                fused=True,
                grad_scale=torch.tensor(3.0) if way["unscale"] else None,
                beta1=betas[0],
                beta2=betas[1],
                eps=1e-8,
                **options,
            )
        for size, now, _ in self._storages:
            inf = size.exponent_mask
            now[(now & np.iinfo(now.dtype).max) > inf] = inf + 1
            digest.update(now.data)


# ---- digests ----------------------------------------------------------------------------------


def digests(triples: list[tuple[str, str, str]] = TRIPLES) -> Iterator[tuple[str, str, str, str]]:
    """Triple, update, flags and digest of every case, on the instruction set in use."""
    inputs: list[Inputs] = []
    of = None
    for triple, update, flags, way in cases():
        if triple not in triples:
            continue
        if triple != of:
            of, inputs = triple, [Inputs(triple, SMALL + LARGE), Inputs(triple, SMALL)]
        digest = hashlib.blake2b(digest_size=6)
        for tensors, betas in zip(inputs, BETAS, strict=True):
            tensors.step_and_digest(digest, betas, way)
        yield ", ".join(triple), update, flags, digest.hexdigest()


def check_powers() -> None:
    """Raise ValueError where a power of a beta lies within 0.1 ulp of a tie."""
    for beta, first, i in itertools.product(sum(BETAS, ()), FIRST_STEPS, range(STEPS)):
        exact = Fraction(beta) ** (first + i + 1)
        ulp = Fraction(float(np.spacing(float(exact))))
        if abs(abs(exact - Fraction(float(exact))) / ulp - Fraction(1, 2)) < Fraction(1, 10):
            raise ValueError(f"{beta} ** {first + i + 1} is close to a tie: take other steps.")


def main() -> None:
    """Record the digests of the installed package; see the module's docstring."""
    (commit,) = sys.argv[1:]
    check_powers()
    module = backends.kernel("cpu")
    by_capability = {}
    for capability in module.capabilities():
        module.use_capability(capability)
        by_capability[capability] = list(digests())
    first, *others = by_capability.values()
    for name, other in zip(list(by_capability)[1:], others, strict=True):
        differing = [a[:3] for a, b in zip(first, other, strict=True) if a != b]
        if differing:
            sys.exit(f"{name} differs from baseline in {len(differing)} cases: {differing[0]}, ...")
    recorded: dict[str, dict[str, dict[str, str]]] = {}
    for triple, update, flags, digest in first:
        recorded.setdefault(triple, {}).setdefault(update, {})[flags] = digest
    document = {"commit": commit, "capabilities": list(by_capability), "digests": recorded}
    DIGESTS.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
