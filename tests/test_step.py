"""Every backend and instruction set against the golden vectors and the float64 oracle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cuda_on_host
from oracle import oracle_step
from proxadam import ProxAdam
from storages import assert_close

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())


def _golden_options(case: dict) -> dict:
    options = dict(case["kwargs"])
    options["decoupled_weight_decay"] = options.pop("decoupled", False)
    options["max_shrink"] = float(options.get("max_shrink", 10.0))
    return options


class Trajectory:
    """Runs a backend, and before each of its steps the oracle from the very same state."""

    def __init__(self, param, backend, storage, **options):
        self.param = storage.parameter(param.to(backend.device))
        self.storage = storage
        self.options = options
        self.optimizer = ProxAdam([self.param], **options, **storage.options, **backend.options)

    def step(self, grad):
        storage = self.storage
        self.param.grad = storage.gradient(grad).to(self.param.device)
        state = self.optimizer.state.get(self.param) or {}
        zeros = torch.zeros_like(self.param)
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        before = [self.param.detach(), self.param.grad, *(state.get(n, zeros) for n in names)]
        before = [t.double().cpu().numpy() for t in before]
        step = state["step"].item() + 1 if state else 1
        new, m, v, largest, scale = oracle_step(*before, step, **self.options)
        self.optimizer.step()
        state = self.optimizer.state[self.param]
        assert state["step"].item() == step
        assert_close(self.param, new, scale, storage, f"param after step {step}")
        _, grad, old_m, old_v, _ = before
        grad = np.abs(grad) + self.options.get("weight_decay", 0) * np.abs(before[0])
        assert_close(state["exp_avg"], m, np.abs(old_m) + grad, storage, f"exp_avg {step}")
        assert_close(state["exp_avg_sq"], v, np.abs(old_v) + grad**2, storage, f"exp_avg_sq {step}")
        if largest is not None:
            assert_close(state["max_exp_avg_sq"], largest, np.abs(old_v) + grad**2, storage, "max")
        zero = self.param == 0
        if self.options.get("keep_zeros"):
            assert not self.param.flatten()[torch.from_numpy(before[0] == 0).flatten()].any()
        if self.options.get("l1"):
            assert not self.param[zero].signbit().any(), "a zero under the prox is -0.0"
        return self.param.detach()


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_golden(backend, storage, case):
    """Three steps of hand-checked numbers; in 16 bits, of the same numbers rounded."""
    options = _golden_options(case)
    start = torch.tensor(GOLDEN["param"], dtype=torch.float64)
    run = Trajectory(start, backend, storage, **options)
    w, (m, v, largest) = np.array(GOLDEN["param"]), np.zeros((3, len(start)))
    for step, (grad, expected) in enumerate(zip(GOLDEN["grads"], case["expected"], strict=True), 1):
        actual = run.step(torch.tensor(grad, dtype=torch.float64))
        w, m, v, maximum, scale = oracle_step(w, grad, m, v, largest, step, **options)
        largest = largest if maximum is None else maximum
        np.testing.assert_allclose(w, expected, rtol=0, atol=1e-12 * scale.max())
        if storage.is_exact:
            assert_close(actual, expected, scale, storage, f"golden {step}")
            assert (actual[torch.tensor(expected) == 0] == 0).all()


options_strategy = st.fixed_dictionaries(
    {
        "lr": st.sampled_from([1e-4, 1e-2, 0.3]),
        "betas": st.sampled_from([(0.9, 0.999), (0.5, 0.9), (0.0, 0.99), (0.95, 0.95)]),
        "eps": st.sampled_from([1e-8, 1e-3]),
        "weight_decay": st.sampled_from([0.0, 1e-2, 0.5]),
        "decoupled_weight_decay": st.booleans(),
        "l1": st.sampled_from([0.0, 1e-5, 0.05, 1.0]),
        "l2": st.sampled_from([0.0, 1e-4, 0.5]),
        "l21": st.sampled_from([0.0, 0.0, 0.05, 0.5]),
        "l1_knee": st.sampled_from([float("inf"), 0.02, 1.0]),
        "keep_zeros": st.booleans(),
        "metric": st.sampled_from(["adaptive", "euclidean"]),
        "max_shrink": st.sampled_from([1.0, 10.0, float("inf")]),
        "amsgrad": st.booleans(),
        "maximize": st.booleans(),
    }
)


@settings(
    max_examples=8 if cuda_on_host.directory() else 25,  # a sanitized step takes its time
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    options=options_strategy,
    shape=st.one_of(
        st.tuples(st.integers(0, 70)),
        st.tuples(st.integers(0, 7), st.integers(0, 40)),
        st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)),
    ),
    scale=st.sampled_from([1e-3, 1, 30.0]),
)
def test_random_options_against_the_oracle(backend, storage, options, shape, scale):
    run = Trajectory(torch.randn(shape), backend, storage, **options)
    for _ in range(4):
        run.step(torch.randn(shape).mul(scale))


@pytest.mark.parametrize(
    "shape",
    [(), (1,), (17, 23), (3, 0), (5, 1, 7), (70_001,)],
    ids=lambda s: "x".join(map(str, s)),
)
def test_long_history_against_the_oracle(backend, storage, shape):
    """60 steps with gaps, bursts and zeros in the gradients."""
    options = {"lr": 0.01, "l1": 0.3, "l2": 0.1, "weight_decay": 0.01, "amsgrad": True}
    run = Trajectory(torch.randn(shape), backend, storage, **options)
    for step in range(60):
        grad = torch.randn(shape) * (0 if step % 7 == 3 else 10.0 ** -(step % 4))
        run.step(grad)
    if run.param.numel() > 1000:
        assert 0.05 < (run.param == 0).double().mean() < 0.95, "the options should make some zeros"
