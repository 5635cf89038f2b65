"""prox_group: the argmin, by golden vectors, its conditions and bisection."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle import group_prox
from proxadam import prox_elastic_net, prox_group
from tools import assert_same_bits

F64 = torch.float64
strengths = st.sampled_from([0.0, 1e-3, 0.1])

GOLDEN_X = torch.tensor([[0.3, -0.4, 0.1, 0.05]], dtype=F64)
GOLDEN_METRIC = torch.tensor([1.0, 2.0, 0.5, 4.0], dtype=F64)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"step_size": 1 / GOLDEN_METRIC},
            [0.086036809272846, -0.178297628010983, 0.01673987764593, 0.030831464521863],
        ),
        ({}, [0.00722997811544, -0.009639970820587, 0.002409992705147, 0.001204996352573]),
        (
            {"step_size": 1 / GOLDEN_METRIC, "l1": 0.04},
            [0.065188467725924, -0.152352375279982, 0.002866614546908, 0.022894966921089],
        ),
    ],
    ids=["adaptive", "euclidean", "sparse-group"],
)
def test_golden_rows(options, expected):
    """λ = 0.5 = l21 · √4."""
    found = prox_group(GOLDEN_X, 0.25, **options)
    torch.testing.assert_close(found, torch.tensor([expected], dtype=F64), rtol=0, atol=1e-14)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    l1=strengths,
    l2=strengths,
    l21=st.sampled_from([1e-4, 0.03, 0.3, 1.0]),
    spread=st.sampled_from([0.0, 1.0, 4.0]),
    columns=st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, F64]),
    seed=st.integers(0, 2**31 - 1),
)
def test_prox_group_is_the_argmin(l1, l2, l21, spread, columns, dtype, seed):
    """By its optimality condition, and by bisection; dead rows are exactly the oracle's."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(6, 1, generator=generator, dtype=F64)
    x = (torch.randn(6, columns, generator=generator, dtype=F64) * scale).to(dtype)
    exponents = spread * (torch.rand(6, columns, generator=generator, dtype=F64) - 0.5)
    step_size = (10**exponents).to(dtype)
    y = prox_group(x, l21, step_size, l1=l1, l2=l2)
    assert y.dtype == dtype
    assert not y[y == 0].signbit().any()

    x, step_size, found = x.double(), step_size.double(), y.double()
    shrunk = prox_elastic_net(x, l1, l2, step_size)
    pull = step_size * l21 * math.sqrt(columns) / (1 + step_size * l2)
    expected = torch.from_numpy(group_prox(shrunk.numpy(), pull.numpy()))
    few_ulp = 8 * torch.finfo(dtype).eps
    assert ((found - expected).abs() <= few_ulp * shrunk.abs() + 1e-300).all()
    border = ((shrunk / pull).square().sum(1).sqrt() - 1).abs() < few_ulp
    assert torch.equal((found == 0).all(1)[~border], (expected == 0).all(1)[~border])

    # 0 ∈ l21 √n ∂‖y‖ + l1 ∂|y| + l2 y + (y − x) / step_size, in the metric of the step
    norm = found.norm(dim=1, keepdim=True)
    alive = norm.squeeze(1) > 0
    slope = l2 * found + (found - x) / step_size + l21 * math.sqrt(columns) * found / norm
    off = torch.where(found == 0, (slope.abs() - l1).clamp(min=0), slope + l1 * found.sign())
    assert (off[alive].abs() <= 4 * few_ulp * ((x.abs() / step_size)[alive] + l21 + l1)).all()


def test_a_row_of_many_scales():
    """Steps from 1e-8 to 1e8, and rows that hardly live: Newton's method comes to its end."""
    generator = torch.Generator().manual_seed(0)
    for columns in (4, 300, 4096):
        step_size = 10 ** (16 * torch.rand(20, columns, generator=generator, dtype=F64) - 8)
        x = torch.randn(20, columns, generator=generator, dtype=F64)
        border = (x / step_size).norm(dim=1) / math.sqrt(columns)
        for factor in (1 - 1e-6, 0.5, 1e-3, 1e-9):
            for row in range(20):
                l21 = factor * border[row].item()
                found = prox_group(x[row : row + 1], l21, step_size[row : row + 1])
                pull = step_size[row : row + 1] * l21 * math.sqrt(columns)
                expected = group_prox(x[row : row + 1].numpy(), pull.numpy())
                np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_rows_of_any_size_and_odd_numbers(dtype):
    huge, tiny = torch.finfo(dtype).max / 8, torch.finfo(dtype).tiny
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [math.nan, 1.0]], dtype=dtype)
    for scale in (1.0, 1e-25, 1e-36, 1e15):
        found = prox_group(x * scale, scale / math.sqrt(2))
        torch.testing.assert_close(found[0], x[0] * scale * 0.8, rtol=1e-6, atol=0)
        assert torch.equal(found[1], x[1])
        assert found[2].isnan().all(), "NaN stays in its row, and takes it whole"
    assert prox_group(x[:1], huge).count_nonzero() == 0
    torch.testing.assert_close(prox_group(x[:1], tiny), x[:1], rtol=0, atol=0)
    assert prox_group(x, 0.0)[:2].equal(x[:2])
    assert prox_group(torch.empty(0, 3, dtype=dtype), 1.0).shape == (0, 3)
    assert prox_group(torch.empty(3, 0, dtype=dtype), 1.0).shape == (3, 0)


def test_prox_group_takes_matrices_and_more():
    x = torch.randn(4, 3, 2, 2, dtype=F64)
    flat = prox_group(x.reshape(4, 12), 0.3, 0.5, l1=0.1)
    assert_same_bits(prox_group(x, 0.3, 0.5, l1=0.1), flat.reshape(x.shape))
    torch.testing.assert_close(
        prox_group(x.transpose(1, 3), 0.3, 0.5, l1=0.1).transpose(1, 3), flat.reshape(x.shape)
    )
    for bad in (torch.randn(5), torch.randn(2, 2, dtype=torch.complex64)):
        with pytest.raises(ValueError, match="expected a real tensor of at least two dimensions"):
            prox_group(bad, 1.0)
