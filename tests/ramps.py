"""What the tests of a ramp share: an optimizer that has stepped, an update, and ways to look."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from proxadam import ProxAdamW, SparsityRamp, backends
from proxadam._sparsity import reading
from proxadam._sparsity.pruning import score_pass
from proxadam._sparsity.pruning import weights as pruning_weights
from tools import params_of

each_pass = pytest.mark.usefixtures("passes")
each_border = pytest.mark.usefixtures("border")
SHAPES = [(40, 25), (33,), (7, 3, 5)]


@pytest.fixture(params=["native", "torch ops"])
def passes(request, monkeypatch):
    """Both ways to look at the scores."""
    if request.param == "torch ops":
        monkeypatch.setattr(score_pass, "_native", lambda *_: None)
        monkeypatch.setattr(reading, "_CPU_CHUNK", 64)
    elif backends.kernel("cpu") is None:
        pytest.skip(str(backends.reason_for_fallback("cpu")))


@pytest.fixture(params=["all", "sampled", "missed"])
def border(request, monkeypatch):
    """How the border between zeros and others is found; "missed" guesses wrong at first."""
    if request.param != "all":
        monkeypatch.setattr(pruning_weights, "_SAMPLE", 128)
        monkeypatch.setattr(pruning_weights, "_FEW", 0.0)
    if request.param == "missed":
        monkeypatch.setattr(pruning_weights, "_SPREAD", -0.5)


def running(dtype=torch.float32, lrs=(0.01, 0.03), state_dtype=None, shapes=SHAPES, **options):
    """Two groups that have taken steps, with gradients of very different sizes."""
    groups = []
    for lr in lrs:
        params = [Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
        params.append(Parameter(torch.randn(12, 9).to(dtype).t()))
        groups.append({"params": params, "lr": lr})
    if state_dtype:
        options["state_dtype"] = state_dtype
    optimizer = ProxAdamW(groups, weight_decay=0.01, **options)
    for _ in range(3):
        for param in params_of(optimizer):
            param.grad = torch.randn_like(param) * (torch.rand_like(param) * 8 - 6).exp2()
        optimizer.step()
    return optimizer


def costs_of(optimizer, score="metric"):
    """d w² / lr of all weights in float64, from the state and the equations."""
    costs = []
    for group in optimizer.param_groups:
        for param in group["params"]:
            state, w = optimizer.state[param], param.detach().double()
            v = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"].double()
            d = (v / (1 - group["betas"][1] ** state["step"].item())).sqrt() + group["eps"]
            d = torch.ones_like(d) if group["metric"] == "euclidean" else d
            costs.append(w.square() if score == "magnitude" else d * w.square() / group["lr"])
    return costs


def flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def zeros(optimizer):
    return flat(params_of(optimizer)) == 0


def update(optimizer, share, **options):
    """One update to the share."""
    scheduler = SparsityRamp(optimizer, share, begin=0, end=1, **options)
    scheduler.step()
    return scheduler


def projection(costs, zero, share):
    """The zeros of the projection: the lowest costs, and in order where these are equal."""
    order = torch.where(zero, -1.0, costs).sort(stable=True).indices
    expected = zero.clone()
    expected[order[: round(share * len(zero))]] = True
    return expected
