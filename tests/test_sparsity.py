"""sparsity: exact zeros, counted by weight, by group and in all."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import Parameter

from proxadam import ProxAdam, ProxAdamW, param_groups, sparsity
from storages import each_dtype
from tools import error_of


def _with_zeros(shape, zeros, dtype=torch.float32):
    tensor = torch.ones(shape, dtype=dtype)
    tensor.view(-1)[:zeros] = 0
    return Parameter(tensor)


@each_dtype
def test_counts_by_parameter_group_and_in_all(dtype):
    a, b = _with_zeros((4, 5), 7, dtype), _with_zeros(10, 10, dtype)
    c = _with_zeros((), 0, dtype)
    report = sparsity(ProxAdam([{"params": [a, b]}, {"params": [c]}]))
    assert report.params == {"0.0": 0.35, "0.1": 1.0, "1.0": 0.0}
    assert report.groups == [pytest.approx(17 / 30), 0.0]
    assert report.total == float(report) == pytest.approx(17 / 31)


def test_of_a_model_by_name_each_weight_once():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    model[0].weight = model[1].weight
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0, 1.0], [-0.0, 1e-45]]))
    report = sparsity(model)
    assert report.params == {"0.weight": 0.5, "1.bias": 0.0}
    assert report.groups == []
    assert report.total == pytest.approx(2 / 6)


def test_of_an_optimizer_by_the_names_it_was_given():
    model = nn.Linear(3, 2)
    optimizer = ProxAdamW(param_groups(model, l1=1.0, named=True))
    assert list(sparsity(optimizer).params) == ["weight", "bias"]


def test_nan_is_no_zero():
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[math.nan, 0.0]]))
    assert float(sparsity(model)) == 0.5


def test_nothing_to_count_is_nan():
    report = sparsity(ProxAdam([{"params": [Parameter(torch.ones(0))]}]))
    assert report.params == {}
    assert math.isnan(report.groups[0]) and math.isnan(report.total)


def test_a_report_is_a_snapshot():
    param = _with_zeros(4, 1)
    report = sparsity(ProxAdam([param]))
    param.data.zero_()
    assert report.total == 0.25


def test_only_optimizers_and_models():
    raised, text = error_of(sparsity, [torch.ones(3)])
    assert (raised, text) == (TypeError, "expected an optimizer or a model, got list")
