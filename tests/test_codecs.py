"""Conversions of the CPU kernel's 16-bit formats, seen through steps that change no number.

With beta1 = 0 the first moment becomes the gradient, and under so small an l2 the prox keeps Adam's
result: what is stored is then a number that was loaded, rounded. Torch's own conversions judge it.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from conftest import ON_CPU, using
from proxadam import prox_adam

PLAIN = {"lr": 1.0, "eps": 1.0, "beta1": 0.0, "beta2": 0.5, "weight_decay": 0.0}
PROX = {**PLAIN, "l2": 1e-30}

each_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@pytest.fixture(autouse=True, params=[b for b in ON_CPU if b.is_kernel], ids=lambda b: b.name)
def kernel(request):
    with using(request.param):
        yield


@pytest.fixture(params=["in order", "shuffled"])
def arrange(request):
    """Neighbours of one kind and of any, and neither whole vectors nor an aligned first one."""

    def arranged(values: Tensor) -> Tensor:
        mixed = values[torch.randperm(values.numel())] if request.param == "shuffled" else values
        return torch.cat([mixed[:1], mixed, mixed[:20]])[1:]

    return arranged


def _every_pattern(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)


def _floats() -> Tensor:
    """Each sign and exponent with each mantissa of at most two bits, and its two neighbours.

    Those are the ties at every place where a mantissa can be cut, and what lies beside a tie.
    """
    bits = [0, *(1 << i for i in range(23))]
    mantissas = {a | b for a, b in itertools.product(bits, bits)}
    near = {(m + beside) % (1 << 23) for m in mantissas for beside in (-1, 0, 1)}
    exponents = torch.arange(-256, 256, dtype=torch.int32) << 23  # with the sign
    return (
        (exponents[:, None] | torch.tensor(sorted(near), dtype=torch.int32))
        .view(-1)
        .view(torch.float32)
    )


def _step(param: Tensor, grad: Tensor, state: torch.dtype, **options) -> tuple[Tensor, Tensor]:
    """The parameter and the first moment, a copy of each, after a step without moments."""
    param, exp_avg = param.clone(), torch.zeros_like(param, dtype=state)
    squares = torch.zeros_like(exp_avg)
    steps = [torch.zeros(())]
    prox_adam(
        [param], [grad], [exp_avg], [squares], [], steps,
        fused=True, amsgrad=False, maximize=False, **options,
    )  # fmt: skip
    return param, exp_avg


def _assert_same_bits(found: Tensor, expected: Tensor, source: Tensor) -> None:
    integer = {2: torch.int16, 4: torch.int32}[expected.itemsize]
    equal = found.view(integer) == expected.view(integer)
    equal |= found.isnan() & expected.isnan()
    worst = int(equal.int().argmin())
    assert equal.all(), (
        f"{(~equal).sum()} of {equal.numel()} differ, first {source[worst].item():.9g}: "
        f"{found[worst].item():.9g}, expected {expected[worst].item():.9g}"
    )


@each_dtype
def test_every_pattern_is_widened(dtype, arrange):
    grad = arrange(_every_pattern(dtype))
    _, exp_avg = _step(torch.zeros_like(grad), grad, torch.float32, **PLAIN)
    grad = torch.where(grad.isinf(), torch.nan, grad)  # 0 · inf is in the step
    _assert_same_bits(exp_avg, grad.float(), grad)


@each_dtype
@pytest.mark.parametrize("options", [PLAIN, PROX], ids=["plain", "prox"])
def test_every_pattern_comes_back(dtype, options, arrange):
    values = arrange(_every_pattern(dtype))
    param, _ = _step(values, torch.zeros_like(values), dtype, **options)
    expected = values if options is PLAIN else torch.where(values == 0, 0, values)
    _assert_same_bits(param, expected, values)


@each_dtype
def test_floats_are_rounded_to_the_nearest_and_ties_to_even(dtype, arrange):
    grad = arrange(_floats())
    zeros = torch.zeros_like(grad, dtype=dtype)
    _, exp_avg = _step(zeros, grad, dtype, **PLAIN)
    grad = torch.where(grad.isinf(), torch.nan, grad)
    _assert_same_bits(exp_avg, grad.to(dtype), grad)


@each_dtype
def test_no_zero_that_a_prox_rounds_to_has_a_sign(dtype, arrange):
    values = _floats()
    grad = arrange(values[values.abs() <= 2.0**-24])  # beside eps = 1 their moment is none
    zeros = torch.zeros_like(grad, dtype=dtype)
    param, _ = _step(zeros, grad, torch.float32, **PROX)
    expected = (-grad).to(dtype)
    assert (expected.view(torch.int16) == -(2**15)).any()
    _assert_same_bits(param, torch.where(expected == 0, 0, expected), grad)
