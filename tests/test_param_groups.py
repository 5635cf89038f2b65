"""param_groups: who is penalised, who is left alone, and who appears at all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from proxadam import ProxAdam, ProxAdamW, param_groups
from tools import each_class, error_of


class Scaled(nn.Module):
    """A module of no known type: bare parameters, and a norm of its own making."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.scale = nn.Parameter(torch.ones(4))
        self.gate = nn.Parameter(torch.tensor(1.0))
        self.position_bias = nn.Parameter(torch.zeros(3, 3))


class Tied(nn.Module):
    """A language model whose head is its embedding, and which uses one layer twice."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.first = nn.Linear(4, 4)
        self.second = self.first
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


def _mlp():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def _head_of_tied_matched_by_pattern():
    model = Tied()
    model.embed = nn.Identity()  # the weight is now the head's alone
    return model


NORMS = {
    "LayerNorm": lambda: nn.LayerNorm((3, 4)),  # two dimensions: only its type tells
    "RMSNorm": lambda: nn.RMSNorm((3, 4)),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "BatchNorm1d": lambda: nn.BatchNorm1d(4),
    "BatchNorm3d": lambda: nn.BatchNorm3d(4),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(4),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(4, affine=True),
    "Embedding": lambda: nn.Embedding(5, 4),
    "EmbeddingBag": lambda: nn.EmbeddingBag(5, 4),
}

# Model, rules, and the names of the penalised; all other trainable parameters are left alone.
CASES = {
    "mlp": (_mlp, {}, ["0.weight", "2.weight"]),
    "conv": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), {}, ["0.weight"]),
    "lstm": (lambda: nn.LSTM(2, 3), {}, ["weight_ih_l0", "weight_hh_l0"]),
    "attention": (
        lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True),  # bias_k has three dimensions
        {},
        ["in_proj_weight", "out_proj.weight"],
    ),
    "bare": (Scaled, {}, ["weight"]),
    "tied": (Tied, {}, ["first.weight"]),
    "once-tied": (_head_of_tied_matched_by_pattern, {}, ["first.weight", "head.weight"]),
    "exclude-a-name": (_mlp, {"exclude": ["2.weight"]}, ["0.weight"]),
    "exclude-a-pattern": (_mlp, {"exclude": ["2.*"]}, ["0.weight"]),
    "exclude-a-module": (_mlp, {"exclude": "2"}, ["0.weight"]),
    "exclude-an-alias": (Tied, {"exclude": "second", "include": "head"}, ["embed.weight"]),
    "exclude-a-type": (
        lambda: nn.Sequential(nn.LSTM(2, 3), nn.Linear(3, 2)),
        {"exclude": nn.LSTM},
        ["1.weight"],
    ),
    "include-a-type": (Tied, {"include": nn.Embedding}, ["embed.weight", "first.weight"]),
    "include-a-bias": (_mlp, {"include": ["0.bias"]}, ["0.weight", "0.bias", "2.weight"]),
    "exclude-wins": (_mlp, {"include": "0", "exclude": "0.bias"}, ["0.weight", "2.weight"]),
    **{
        name: (lambda make=make: nn.Sequential(nn.Linear(3, 4), make()), {}, ["0.weight"])
        for name, make in NORMS.items()
    },
}


@pytest.mark.parametrize("case", CASES)
def test_who_is_penalised(case):
    make, rules, expected = CASES[case]
    model = make()
    groups = param_groups(model, l1=0.5, l2=0.25, weight_decay=0.125, named=True, **rules)
    assert [name for name, _ in groups[0]["params"]] == expected
    assert {k: v for k, v in groups[0].items() if k != "params"} == {
        "l1": 0.5,
        "l2": 0.25,
        "weight_decay": 0.125,
    }
    assert all(group["l1"] == group["l2"] == group["weight_decay"] == 0 for group in groups[1:])
    listed = [(name, id(param)) for group in groups for name, param in group["params"]]
    assert sorted(listed) == sorted((name, id(p)) for name, p in model.named_parameters())


def test_frozen_parameters_appear_in_no_group():
    model = _mlp()
    model[0].requires_grad_(False)
    groups = param_groups(model, l1=0.5, exclude="0")  # a rule may name what is frozen
    assert [group["params"] for group in groups] == [[model[2].weight], [model[2].bias]]


def test_no_empty_group():
    assert len(param_groups(nn.Linear(2, 2, bias=False), l1=0.5)) == 1


def test_what_is_not_given_is_left_to_the_optimizer():
    optimizer = ProxAdamW(param_groups(_mlp(), l1=0.5), l2=0.25)
    penalised, alone = optimizer.param_groups
    assert (penalised["l2"], penalised["weight_decay"]) == (0.25, 0.01)
    assert (alone["l1"], alone["l2"], alone["weight_decay"]) == (0, 0, 0)


@each_class
def test_only_the_penalised_reach_zero(cls):
    model = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6))
    optimizer = cls(param_groups(model, l1=1e3, named=True), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
    assert [group["param_names"] for group in optimizer.param_groups] == [
        ["0.weight"],
        ["0.bias", "1.weight", "1.bias"],
    ]
    assert not model[0].weight.count_nonzero()
    assert all(p.count_nonzero() == p.numel() for p in optimizer.param_groups[1]["params"])


def test_a_tensor_l1_is_the_one_given():
    l1 = torch.tensor(0.5)
    optimizer = ProxAdam(param_groups(_mlp(), l1=l1))
    assert optimizer.param_groups[0]["l1"] is l1


def _lazy():
    return nn.Sequential(nn.LazyLinear(3))


ERRORS = {
    "pattern-of-nothing": (_mlp, {"exclude": ["0", "lm_head*"]}, ValueError, "'lm_head*' fits no"),
    "letters-of-a-name": (_mlp, {"include": "norm"}, ValueError, "include rule 'norm' fits no"),
    "type-of-nothing": (_mlp, {"exclude": nn.Conv2d}, ValueError, "rule Conv2d fits no"),
    "not-a-rule": (_mlp, {"exclude": [3]}, TypeError, "got 3"),
    "type-of-no-module": (_mlp, {"exclude": [int]}, TypeError, "got <class 'int'>"),
    "nothing-left": (_mlp, {"exclude": "*"}, ValueError, "got 4 trainable ones"),
    "all-frozen": (lambda: _mlp().requires_grad_(False), {}, ValueError, "got 0 trainable ones"),
    "lazy": (_lazy, {}, ValueError, "0.weight has no shape yet"),
}


@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_refusals(case):
    make, rules, kind, words = ERRORS[case]
    raised, text = error_of(param_groups, make(), l1=0.5, **rules)
    assert raised is kind
    assert words in text


def test_the_optimizer_checks_the_values():
    raised, text = error_of(ProxAdam, param_groups(_mlp(), l1=-1.0))
    assert (raised, text) == (ValueError, "Invalid l1 value: -1.0, expected finite and ≥ 0")
