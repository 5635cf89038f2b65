"""compact: what it leaves alone with a reason, and what it refuses in one sentence."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torch.nn.utils.prune as prune
from torch import nn

from cuttable import forget, kill, mlp, scaled_error
from proxadam import compact, compact_report

pytest.importorskip("torch_pruning")


def _kept(model, x):
    """What stays, where nothing goes: each layer's rows, and the one reason for them."""
    report = compact_report(model, x)
    assert not any(one.cut for one in report.layers)
    assert report.parameters[0] == report.parameters[1]
    assert len({one.reason for one in report.kept}) == 1
    return {one.name: one.rows for one in report.kept}, report.kept[0].reason


class _Between(nn.Module):
    """Two layers with a function between them."""

    def __init__(self, between, first=None, second=None):
        super().__init__()
        self.first, self.second = first or nn.Linear(6, 8), second or nn.Linear(8, 4)
        self.between = between

    def forward(self, x):
        return self.second(self.between(self.first(x)))


def _normalised(x):
    return x / x.square().mean(-1, keepdim=True).add(1e-3).sqrt()


@pytest.mark.parametrize(
    "between",
    {
        "softmax": lambda x: x.softmax(-1),
        "mean": _normalised,
        "sorted": lambda x: x.sort(-1).values,
        "cumulative": lambda x: x.cumsum(-1),
        "rolled": lambda x: x.roll(1, -1),
        "largest": lambda x: torch.where(x == x.amax(-1, keepdim=True), x, 0.0),
        "chosen": lambda x: x.gather(-1, x.argsort(-1)),
        "counted": lambda x: x * (x > 0).sum(-1, keepdim=True),
        "filled": lambda x: x.masked_fill(x.sum(-1, keepdim=True) > 0, 0.0),
        "repeated": lambda x: x[:, :4].repeat(1, 2),
        "chunked": lambda x: torch.cat(x.chunk(2, 1), 1),
        "hidden": lambda x: x + x.sum(-1, keepdim=True).sub(x).log().nan_to_num(0.0),
    }.items(),
    ids=lambda case: case[0],
)
def test_units_that_meet_others_on_their_way_stay(between):
    """Whatever torch-pruning's graph says, which takes most of these for elementwise."""
    model = _Between(between[1])
    kill(model.first, [1, 2], bias=0.5)
    forget(model.second, [5])
    report = compact_report(model, torch.randn(5, 6))
    assert not any(one.cut for one in report.layers)
    assert {row for one in report.kept for row in one.rows} >= {1, 2}


@pytest.mark.parametrize(
    "between",
    {
        "masked": lambda x: torch.where(x > 0, x, 0.1 * x),
        "squared": lambda x: F.relu(x).square(),
        "in-place": lambda x: x.clone().mul_(2.0).relu_().add_(1.0),
        "normed": nn.BatchNorm1d(8).eval(),
        "prelu": nn.PReLU(8),
        "dropout": nn.Dropout(0.5),
    }.items(),
    ids=lambda case: case[0],
)
def test_units_go_through_what_works_on_each_alone(between):
    model = _Between(between[1])
    kill(model.first, [1, 2], bias=0.5)
    forget(model.second, [5])
    x = torch.randn(5, 6)
    smaller = compact(model, x)
    assert len(smaller.first.weight) == 5
    assert scaled_error(model, smaller, x) <= 1e-5


def test_what_is_added_by_position_is_no_constant():
    model = _Between(lambda x: x + torch.arange(5.0)[:, None])
    kill(model.first, [1], bias=0.5)
    kept, reason = _kept(model, torch.randn(5, 6))
    assert (kept, reason) == ({"first": (1,)}, "what arrives for it at `second` is no constant")


def test_a_model_that_draws_in_eval_mode_is_refused():
    model = _Between(F.dropout)
    with pytest.raises(ValueError, match="differ from call to call"):
        compact(model, torch.randn(5, 6))


def test_what_is_drawn_is_no_constant():
    """Also where the same numbers are drawn each time."""

    def drawn(x):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return x + 0 * torch.rand(8)

    model = _Between(drawn)
    kill(model.first, [1], bias=0.5)
    model.second.weight.data.fill_(1.0)
    kept, reason = _kept(model, torch.randn(5, 6))
    assert (kept, reason) == ({"first": (1,)}, "what arrives for it at `second` is no constant")


def test_one_layer_alone_is_all_output():
    kept, reason = _kept(kill(nn.Linear(6, 4), [2]), torch.randn(5, 6))
    assert (kept, reason) == ({"": (2,)}, "it reaches the model's output")


class _AddsInput(_Between):
    def forward(self, x):
        return x + super().forward(x)


def test_a_residual_with_the_input_stays():
    """The input, which is in no graph of layers, keeps its width."""
    model = nn.Sequential(_AddsInput(nn.ReLU(), second=nn.Linear(8, 6)), nn.Linear(6, 3))
    forget(model[1], [2])
    kept, reason = _kept(model, torch.randn(5, 6))
    assert kept == {"0.second": (2,)}
    assert reason.startswith("the model cannot do without it (RuntimeError: The size of tensor a")


def test_shared_parameters_stay():
    model = mlp(6, 6, 6, 3)
    model[2].weight = model[0].weight
    kill(model[0], [1])
    report = compact_report(model, torch.randn(5, 6))
    assert [(one.name, one.rows, one.reason) for one in report.kept] == [
        ("0", (1,), "`0` shares a parameter with `2`"),
        ("2", (1,), "`2` shares a parameter with `0`"),
    ]


def test_grouped_convolutions_stay():
    model = nn.Sequential(nn.Conv2d(4, 8, 1, groups=2), nn.ReLU(), nn.Conv2d(8, 2, 1))
    kill(model[0], [1, 2])
    kept, reason = _kept(model, torch.randn(2, 4, 5, 5))
    assert kept == {"0": (1, 2)}
    assert reason == "`0` convolves in 2 groups, which must stay of one size"


@pytest.mark.parametrize("how", ["parametrization", "subclass"])
def test_layers_that_are_more_than_a_weight_stay(how):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    first = kill(Doubled(6, 8), [1, 2])
    if how == "parametrization":
        first = kill(nn.Linear(6, 8), [1, 2])
        nn.utils.parametrizations.weight_norm(first)
        with torch.no_grad():  # whose directions are 0 / 0 now
            first.parametrizations.weight.original1.fill_(1.0)
    kept, reason = _kept(nn.Sequential(first, nn.ReLU(), nn.Linear(8, 3)), torch.randn(5, 6))
    assert kept == {"0": (1, 2)}
    assert ("Doubled" if how == "subclass" else "computed from others") in reason


def test_pruning_masks_are_to_be_made_permanent():
    model = mlp(6, 8, 3)
    prune.ln_structured(model[0], "weight", 2, n=2, dim=0)
    x = torch.randn(5, 6)
    with pytest.raises(ValueError, match=r"torch\.nn\.utils\.prune\.remove"):
        compact(model, x)
    prune.remove(model[0], "weight")
    assert len(compact(model, x)[0].weight) == 6


def test_a_layer_that_is_not_called_stays():
    model = nn.Sequential(nn.Linear(6, 4))
    model[0].unused = kill(nn.Linear(3, 3), [0])
    kept, reason = _kept(model, torch.randn(5, 6))
    assert kept == {"0.unused": (0,)}
    assert "does not reach it" in reason


def test_a_layer_that_is_also_the_models_output_stays():
    class Both(_Between):
        def forward(self, x):
            y = self.first(x)
            return self.second(y), y

    model = Both(None)
    kill(model.first, [1])
    kept, reason = _kept(model, torch.randn(5, 6))
    assert kept == {"first": (1,)}
    assert reason == "it reaches the model's output"


def test_outputs_that_depend_on_a_width_are_an_error():
    model = _Between(lambda x: x / x.shape[-1])
    kill(model.first, [1, 2])
    x = torch.randn(5, 6)
    for function in (compact, compact_report):
        with pytest.raises(ValueError, match=r"a difference of 0\.\d+ of their scale"):
            function(model, x)


@pytest.mark.parametrize(
    "choice",
    [
        lambda x: F.relu(x) if x.mean() > 0 else F.gelu(x),
        lambda x: x[x > 0],
        lambda x: x * x.max().item(),
    ],
    ids=["if", "mask", "item"],
)
def test_models_that_choose_by_values_are_refused(choice):
    model = _Between(choice, second=nn.Identity())
    with pytest.raises(ValueError, match="chooses by values that depend on the inputs"):
        compact(model, torch.randn(5, 6))


def test_models_that_torch_pruning_cannot_trace_are_refused():
    model = _Between(lambda x: x.detach(), second=nn.Identity())
    with pytest.raises(ValueError, match=r"torch-pruning cannot trace this model.*autograd"):
        compact(model, torch.randn(5, 6))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # of torch 2.15
def test_models_that_are_wrapped_or_sharded_are_refused():
    model, x = mlp(6, 8, 4), torch.randn(5, 6)
    with pytest.raises(ValueError, match="TorchScript"):
        compact(torch.jit.script(model), x)
    with pytest.raises(ValueError, match="pass the module inside DataParallel"):
        compact(nn.DataParallel(model), x)
    with pytest.raises(ValueError, match=r"torch\.compile"):
        compact(torch.compile(model), x)
    with pytest.raises(ValueError, match="no values yet"):
        compact(mlp(6, 8, 4).to("meta"), x)
    with pytest.raises(ValueError, match="no values yet"):
        compact(nn.LazyLinear(3), x)


def test_dtensors_are_refused():
    from torch.distributed.tensor import distribute_module, init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = distribute_module(mlp(6, 8, 4), init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match="DTensors, gather them into a whole module first"):
            compact(model, torch.randn(5, 6))
    finally:
        dist.destroy_process_group()


def test_bad_arguments():
    x = torch.randn(5, 6)
    with pytest.raises(TypeError, match=r"expected an nn\.Module, got function"):
        compact(lambda y: y, x)
    for wrong in (8.0, True, "8"):
        with pytest.raises(TypeError, match="Invalid multiple_of"):
            compact(mlp(6, 8, 4), x, multiple_of=wrong)
    with pytest.raises(ValueError, match="Invalid multiple_of: 0, expected ≥ 1"):
        compact(mlp(6, 8, 4), x, multiple_of=0)


def test_without_torch_pruning_the_package_works_and_compact_says_what_to_install():
    code = """if True:
        import sys
        sys.modules["torch_pruning"] = None
        import torch, proxadam
        try:
            proxadam.compact(torch.nn.Linear(2, 2), torch.ones(1, 2))
        except ImportError as error:
            print(error)
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == (
        "compact traces and cuts with torch-pruning, which is not installed:"
        " pip install 'proxadam[compact]'\n"
    )


def test_importing_the_package_does_not_import_torch_pruning():
    code = "import sys, proxadam; assert 'torch_pruning' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
