"""SparsityRamp: an exact projection at its updates, and nothing between them."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from proxadam import ProxAdam, ProxAdamW, SparsityRamp, backends, param_groups, sparsity
from proxadam._sparsity import ramp, reading
from proxadam._sparsity.pruning import score_pass
from proxadam._sparsity.pruning import weights as pruning_weights
from storages import each_storage
from tools import assert_same_bits, error_of, params_of, saved_and_loaded, snapshot

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


def _optimizer(dtype=torch.float32, lrs=(0.01, 0.03), state_dtype=None, shapes=SHAPES, **options):
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


def _costs(optimizer, score="metric"):
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


def _flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def _zeros(optimizer):
    return _flat(params_of(optimizer)) == 0


def _update(optimizer, share, **options):
    """One update to the share."""
    scheduler = SparsityRamp(optimizer, share, begin=0, end=1, **options)
    scheduler.step()
    return scheduler


def _expected(costs, zero, share):
    """The zeros of the projection: the lowest costs, and in order where these are equal."""
    order = torch.where(zero, -1.0, costs).sort(stable=True).indices
    expected = zero.clone()
    expected[order[: round(share * len(zero))]] = True
    return expected


# ---- the projection ---------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"metric": "euclidean"}], ids=str)
@pytest.mark.parametrize("score", ["metric", "magnitude"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_border
@each_pass
def test_the_lowest_costs_become_zero(dtype, score, options, share):
    optimizer = _optimizer(dtype, **options)
    for param in params_of(optimizer):
        param.data[::4] = -0.0
    costs, before = _flat(_costs(optimizer, score)), _flat(params_of(optimizer))
    scheduler = _update(optimizer, share, score=score)
    zero, expected = _zeros(optimizer), _expected(costs, before == 0, share)
    assert_same_bits(zero, expected)
    after = _flat(params_of(optimizer))
    assert_same_bits(after[~zero], before[~zero])
    assert not after[zero & (before != 0)].signbit().any()
    assert scheduler.last_sparsity == zero.double().mean().item()


@pytest.mark.parametrize("seed", range(20))
def test_against_all_supports_that_there_are(seed):
    """argmin_z Σ d (w − z)² / lr with at most k of nine z not zero, by trying all of them."""
    torch.manual_seed(seed)
    lrs = [0.01, 0.1] if seed % 2 else [0.01, 0.01]
    params = [Parameter(torch.randn(n, dtype=torch.float64)) for n in (5, 4)]
    optimizer = ProxAdam([{"params": [p], "lr": lr} for p, lr in zip(params, lrs, strict=True)])
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer.step()
    params[0].data[1] = 0.0
    params[1].data[:2] = params[1].data[2]  # ties
    optimizer.state[params[1]]["exp_avg_sq"][:2] = optimizer.state[params[1]]["exp_avg_sq"][2]
    costs, before = _flat(_costs(optimizer)), _flat(params)
    _update(optimizer, seed % 9 / 9, groups=[0, 1])
    after = _flat(params)
    assert (after == 0).sum() == max(1, seed % 9)
    kept = 9 - seed % 9
    best = min(
        sum(costs[i].item() for i in set(range(9)) - set(support))
        for support in itertools.combinations(range(9), kept)
    )
    dropped = ((after == 0) * costs).sum().item()
    assert dropped == pytest.approx(best, rel=1e-12, abs=1e-300)
    assert_same_bits(after[after != 0], before[after != 0])


@each_storage
@each_pass
def test_every_storage(storage):
    own = None if storage.state == storage.param else storage.state
    optimizer = _optimizer(storage.param, state_dtype=own)
    costs = _flat(_costs(optimizer))
    before = _zeros(optimizer)
    _update(optimizer, 0.8)
    zero = _zeros(optimizer)
    assert zero.sum() == max(before.sum().item(), round(0.8 * len(zero)))
    kept, dropped = costs[~zero].min(), costs[zero & ~before].max()
    assert dropped <= kept * (1 + 1e-6), "but for the rounding of a score"


@each_border
@each_pass
def test_ties_go_by_group_parameter_and_position():
    optimizer = _optimizer(lrs=(0.01, 0.01))
    for param in params_of(optimizer):
        param.data.fill_(1.0)
        optimizer.state[param]["exp_avg_sq"].fill_(0.25)
    _update(optimizer, 0.6)
    zero = _zeros(optimizer)
    count = round(0.6 * len(zero))
    assert zero[:count].all()
    assert not zero[count:].any()


@each_pass
def test_weights_too_small_to_be_squared():
    """And denominators of 0, with eps = 0 and no gradient."""
    param = Parameter(10.0 ** torch.linspace(-37, 3, 81)[torch.randperm(81)])
    optimizer = ProxAdamW([param])
    param.grad = torch.zeros_like(param)
    optimizer.step()
    optimizer.param_groups[0]["eps"] = 0.0
    order = param.detach().argsort()
    _update(optimizer, 40 / 81)
    assert (param[order[:40]] == 0).all()
    assert (param[order[40:]] != 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@each_border
@each_pass
def test_what_is_not_finite_goes_last(bad):
    optimizer = _optimizer()
    odd = params_of(optimizer)[0]
    odd.data[0] = bad
    _update(optimizer, 0.98)
    zero = _zeros(optimizer)
    assert zero.sum() == round(0.98 * len(zero))
    assert (odd[0] != 0).all()


@each_pass
def test_each_tensor_by_itself():
    optimizer = _optimizer()
    costs = _costs(optimizer)
    scheduler = _update(optimizer, 0.75, scope="tensor")
    for param, cost in zip(params_of(optimizer), costs, strict=True):
        flat = param.detach().reshape(-1)
        expected = _expected(cost.reshape(-1), torch.zeros_like(flat, dtype=torch.bool), 0.75)
        assert_same_bits(flat == 0, expected)
    assert scheduler.last_sparsity == float(sparsity(optimizer))


@each_pass
def test_as_many_zeros_as_there_were():
    optimizer = _optimizer()
    for param in params_of(optimizer):
        param.data[: len(param) // 2] = 0.0
    before = _flat(params_of(optimizer))
    scheduler = _update(optimizer, 0.2)
    assert_same_bits(_flat(params_of(optimizer)), before)
    assert scheduler.last_sparsity == (before == 0).double().mean().item()


@each_pass
def test_autograd_hears_of_it():
    optimizer = _optimizer()
    versions = [param._version for param in params_of(optimizer)]
    _update(optimizer, 0.5)
    assert all(p._version > v for p, v in zip(params_of(optimizer), versions, strict=True))


@each_pass
def test_millions_of_weights():
    """Sampled as by default, over several chunks."""
    param = Parameter(torch.randn(3_000_000))
    optimizer = ProxAdamW([param])
    param.grad = torch.randn_like(param)
    optimizer.step()
    optimizer.state[param]["exp_avg_sq"].copy_(torch.rand_like(param))
    for share in (0.02, 0.5, 0.95):
        _update(optimizer, share)
        assert (param == 0).sum() == round(share * param.numel())
    costs = _flat(_costs(optimizer))
    sure = (param.detach() != 0).logical_and(costs > 0)
    assert sure.sum() == param.numel() - round(0.95 * param.numel())


# ---- rows -------------------------------------------------------------------------------------


@each_pass
@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_rows(scope, share):
    optimizer = _optimizer()
    params = params_of(optimizer)
    params[0].data[3] = 0.0
    costs = [cost.reshape(len(cost), -1).sum(1) for cost in _costs(optimizer)]
    before = copy.deepcopy(params)
    scheduler = _update(optimizer, share, unit="row", scope=scope)
    dead = [(p == 0).reshape(len(p), -1).all(1) for p in params]
    was = [(p == 0).reshape(len(p), -1).all(1) for p in before]
    if scope == "global":
        costs, was, together = [torch.cat(costs)], [torch.cat(was)], [torch.cat(dead)]
    else:
        together = dead
    for cost, own, found in zip(costs, was, together, strict=True):
        assert_same_bits(found, _expected(cost, own, share))
    for param, old, rows in zip(params, before, dead, strict=True):
        assert_same_bits(param.detach()[~rows], old.detach()[~rows])
    assert scheduler.last_sparsity == torch.cat(dead).double().mean().item()


@each_pass
def test_rows_too_small_to_be_squared():
    param = Parameter(torch.ones(20, 3) * (10.0 ** torch.linspace(-37, 3, 20))[:, None])
    optimizer = ProxAdamW([param])
    param.grad = torch.zeros_like(param)
    optimizer.step()
    _update(optimizer, 0.5, unit="row")
    assert (param[:10] == 0).all()
    assert (param[10:] != 0).all()


# ---- the schedule -----------------------------------------------------------------------------


def test_the_share_at_every_step():
    optimizer = _optimizer()
    count = len(_zeros(optimizer))
    scheduler = SparsityRamp(optimizer, 0.9, begin=3, end=14, every=4)
    groups = optimizer.param_groups
    for step in range(1, 20):
        scheduler.step()
        assert scheduler.last_epoch == step
        x = min(max((step - 3) / 11, 0), 1)
        assert scheduler.share() == pytest.approx(0.9 * (1 - (1 - x) ** 3), abs=1e-12)
        updates = [s for s in (3, 7, 11, 14) if s <= step]
        x = (updates[-1] - 3) / 11 if updates else 0
        assert _zeros(optimizer).sum() == round(0.9 * (1 - (1 - x) ** 3) * count)
        assert all(group["keep_zeros"] == (step >= 3) for group in groups)
    assert scheduler.last_sparsity == round(0.9 * count) / count
    assert SparsityRamp(_optimizer(), 0.5, 0, 1).optimizer.param_groups[0]["keep_zeros"]


class _Counts(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.ops = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.ops += 1
        return function(*args, **(kwargs or {}))


def test_between_updates_there_is_nothing_to_do():
    scheduler = SparsityRamp(_optimizer(), 0.9, begin=0, end=100, every=10)
    with _Counts() as counts:
        for _ in range(9):
            scheduler.step()
    assert counts.ops == 0


@each_pass
def test_the_host_waits_once_an_update(monkeypatch):
    reads = []
    read = ramp._read
    monkeypatch.setattr(ramp, "_read", lambda tensors: reads.append(1) or read(tensors))
    scheduler = SparsityRamp(_optimizer(), 0.9, begin=0, end=3, scope="tensor")
    for _ in range(5):
        scheduler.step()
    assert len(reads) == 3


def test_training_goes_on_over_the_zeros(any_backend):
    weights = [Parameter(torch.randn(50, 20)) for _ in range(2)]
    optimizer = ProxAdamW(weights, lr=0.01, **any_backend.options)
    scheduler = SparsityRamp(optimizer, 0.8, begin=2, end=20, every=2)
    for _ in range(40):
        for param in weights:
            param.grad = torch.randn_like(param)
        optimizer.step()
        scheduler.step()
    assert float(sparsity(optimizer)) == scheduler.last_sparsity == 0.8


@pytest.mark.parametrize("first", ["optimizer", "scheduler"])
@pytest.mark.parametrize("unit", ["weight", "row"])
def test_resumes_to_the_bit(unit, first):
    def train(optimizer, scheduler, steps):
        for step in steps:
            torch.manual_seed(step)
            for param in params_of(optimizer):
                param.grad = torch.randn_like(param)
            optimizer.step()
            scheduler.step()

    def make():
        torch.manual_seed(1)
        optimizer = _optimizer()
        return optimizer, SparsityRamp(optimizer, 0.9, begin=2, end=15, every=3, unit=unit)

    whole, resumed = make(), make()
    train(*whole, range(20))
    begun = make()
    train(*begun, range(9))
    for old, new in zip(params_of(begun[0]), params_of(resumed[0]), strict=True):
        new.data.copy_(old)
    states = [saved_and_loaded(one.state_dict()) for one in begun]
    for i in (0, 1) if first == "optimizer" else (1, 0):
        resumed[i].load_state_dict(states[i])
    train(*resumed, range(9, 20))
    assert_same_bits(snapshot(resumed[0]), snapshot(whole[0]))
    assert resumed[1].state_dict() == whole[1].state_dict()


def test_the_groups_that_are_penalised():
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Linear(30, 5))
    optimizer = ProxAdamW(param_groups(model, l1=0.0), weight_decay=0.1)
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    optimizer.step()
    scheduler = _update(optimizer, 0.5)
    assert scheduler.groups == [0]
    assert all(layer.bias.count_nonzero() == layer.bias.numel() for layer in model)
    assert sum((layer.weight == 0).sum() for layer in model) == 375
    assert SparsityRamp(optimizer, 0.5, 0, 1, groups=[-1]).groups == [1]


def test_numbers_in_tensors():
    optimizer = _optimizer()
    twin = copy.deepcopy(optimizer)
    for group in twin.param_groups:
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
        group["eps"] = torch.tensor(group["eps"], dtype=torch.float64)
    for each in (optimizer, twin):
        _update(each, 0.7)
    assert_same_bits(_zeros(optimizer), _zeros(twin))


# ---- errors -----------------------------------------------------------------------------------

BAD = {
    "a share of 1": ({"sparsity": 1.0}, "Invalid sparsity: 1.0, expected ≥ 0 and below 1"),
    "a share below 0": ({"sparsity": -0.1}, "Invalid sparsity: -0.1, "),
    "no share": ({"sparsity": math.nan}, "Invalid sparsity: nan, "),
    "begin": ({"begin": -1}, "Invalid begin: -1, expected finite and ≥ 0"),
    "end": ({"begin": 5, "end": 5}, "Invalid end: 5, expected finite and above begin, 5"),
    "every": ({"every": 0}, "Invalid every: 0, expected finite and ≥ 1"),
    "score": ({"score": "d"}, "Invalid score: 'd', expected one of ('metric', 'magnitude')"),
    "scope": ({"scope": "row"}, "Invalid scope: 'row', expected one of "),
    "unit": ({"unit": "col"}, "Invalid unit: 'col', expected one of "),
    "no group": ({"groups": []}, "expected a group to prune, got none whose l1 or weight_decay"),
}


@pytest.mark.parametrize("case", BAD)
def test_arguments_out_of_range(case):
    options, text = BAD[case]
    optimizer = _optimizer()
    before = snapshot(optimizer)
    options = {"sparsity": 0.5, "begin": 0, "end": 9, **options}
    kind, said = error_of(SparsityRamp, optimizer, **options)
    assert kind is ValueError
    assert said.startswith(text)
    assert_same_bits(snapshot(optimizer), before)
    assert not any(group["keep_zeros"] for group in optimizer.param_groups)


def test_optimizers_that_are_none_of_ours():
    param = Parameter(torch.ones(2))
    kind, said = error_of(SparsityRamp, torch.optim.AdamW([param]), 0.5, 0, 1)
    assert (kind, said) == (
        ValueError,
        "expected groups with keep_zeros, as ProxAdam's are, got those of AdamW.",
    )
    assert error_of(SparsityRamp, [param], 0.5, 0, 1) == (TypeError, "list is not an Optimizer")
    assert error_of(SparsityRamp, ProxAdam([param]), 0.5, 0, 1)[0] is ValueError
    assert error_of(SparsityRamp, ProxAdamW([param]), 0.5, 0, 1, groups=[1])[0] is IndexError


def _without_steps(optimizer):
    optimizer.add_param_group({"params": [Parameter(torch.ones(3))]})
    return "expected groups that have taken a step, got group 2 without; "


def _without_lr(optimizer):
    optimizer.param_groups[1]["lr"] = 0.0
    return "expected a learning rate above 0 at an update, got 0.0; "


def _without_lr_in_a_tensor(optimizer):
    optimizer.param_groups[0]["lr"] = torch.tensor(0.0)
    return "expected a learning rate above 0 at an update, got 0.0; "


def _of_two_metrics(optimizer):
    optimizer.param_groups[1]["metric"] = "euclidean"
    return "expected groups of one metric, got adaptive and euclidean ones"


def _complex(optimizer):
    param = optimizer.param_groups[1]["params"][0]
    own = optimizer.state.pop(param)
    optimizer.param_groups[1]["params"][0] = new = Parameter(param.detach() + 1j)
    optimizer.state[new] = own
    return "expected real parameters, got a complex one of shape (40, 25) in group 1."


SPOILERS = [_without_steps, _without_lr, _without_lr_in_a_tensor, _of_two_metrics, _complex]


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("unit", ["weight", "row"])
def test_an_update_that_cannot_be_changes_nothing(spoil, unit):
    optimizer = _optimizer()
    text = spoil(optimizer)
    groups = range(len(optimizer.param_groups))
    if spoil is _of_two_metrics:
        kind, said = error_of(SparsityRamp, optimizer, 0.5, 0, 1, groups=groups)
        assert (kind, said.startswith(text)) == (ValueError, True)
        assert error_of(SparsityRamp, optimizer, 0.5, 0, 1, score="magnitude") is None
        optimizer.param_groups[1]["metric"] = "adaptive"
    scheduler = SparsityRamp(optimizer, 0.5, 0, 1, groups=groups, unit=unit)
    if spoil is _of_two_metrics:
        spoil(optimizer)
    before, state = copy.deepcopy(params_of(optimizer)), scheduler.state_dict()
    kind, said = error_of(scheduler.step)
    assert kind is ValueError
    assert said.startswith(text)
    assert scheduler.state_dict() == state
    for param, old in zip(params_of(optimizer), before, strict=True):
        assert_same_bits(param.detach(), old.detach())


def test_a_state_of_other_groups():
    state = SparsityRamp(_optimizer(), 0.5, 0, 1).state_dict()
    one = ProxAdamW([Parameter(torch.ones(3))])
    kind, said = error_of(SparsityRamp(one, 0.5, 0, 1).load_state_dict, state)
    assert kind is ValueError
    assert said.startswith("expected the state of 1 parameter groups, got one of groups [0, 1]; ")
