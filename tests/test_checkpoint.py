"""Saving and loading: what was learned comes back to the bit; how to step stays one's own."""

from __future__ import annotations

import copy
import pickle
import signal
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn import Parameter

from formats import (
    BF16,
    CODED,
    EIGHT,
    FP32,
    LIVELY,
    NARROW,
    SHAPES,
    SMALL,
    block_maxima,
    each_format,
)
from proxadam import ProxAdam, ProxAdamW, to_adam_state_dict
from proxadam._step.state import CODES, EXPONENTS, MOMENTS, moment
from tools import (
    BUSY,
    TWINS,
    assert_same_bits,
    each_twin,
    error_of,
    params_of,
    saved_and_loaded,
    snapshot,
    weights,
)

PROX = {"l1": 0.01, "l2": 0.02, "metric": "euclidean", "max_shrink": 3.0}
PATHS = {
    "loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"fused": True, "capturable": True},
    "default": {},
}


def train(optimizer, steps, seed=0):
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for _ in range(steps):
        for param in params_of(optimizer):
            grad = torch.randn(param.shape, generator=generator, device="cpu")
            param.grad = grad.to(param)
        optimizer.step()


def fresh(params, dtype=None):
    return [Parameter(param.detach().to(dtype or param.dtype, copy=True)) for param in params]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", [None, torch.float32], ids=["own", "wide"])
def test_a_resumed_run_is_the_uninterrupted_one(any_backend, dtype, state_dtype):
    options = {**BUSY, **any_backend.options, "state_dtype": state_dtype}
    whole = ProxAdam(weights((5, 3), (7,), dtype=dtype), **options)
    train(whole, 3)
    resumed = ProxAdam(fresh(params_of(whole)), **options)
    resumed.load_state_dict(saved_and_loaded(whole.state_dict()))
    assert_same_bits(snapshot(resumed), snapshot(whole))
    for optimizer in (whole, resumed):
        train(optimizer, 3, seed=1)
    assert_same_bits(snapshot(resumed), snapshot(whole))


@pytest.mark.parametrize("to", PATHS)
@pytest.mark.parametrize("of", PATHS)
def test_every_path_takes_up_every_other(of, to):
    """The loader keeps its own way to step, and goes on within rounding of the saver."""
    saver = ProxAdam(weights((5, 3), (7,)), **BUSY, **PATHS[of])
    train(saver, 3)
    loader = ProxAdam(fresh(params_of(saver)), **BUSY, **PATHS[to])
    loader.load_state_dict(saved_and_loaded(saver.state_dict()))
    chosen = {"foreach": None, "fused": None, **PATHS[to]}
    assert {name: loader.param_groups[0][name] for name in chosen} == chosen
    for optimizer in (saver, loader):
        train(optimizer, 3, seed=1)
    if of == to:
        assert_same_bits(snapshot(loader), snapshot(saver))
    torch.testing.assert_close(snapshot(loader), snapshot(saver), rtol=1e-5, atol=1e-7)


@each_twin
@pytest.mark.parametrize("path", ["loop", "foreach"])
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_a_run_may_change_over_between_torchs_class_and_ours(ours, theirs, path, first):
    """Without l1 and l2 the weights are to the bit those of a run that never did."""
    options = {"lr": 0.05, "weight_decay": 0.1, "foreach": path == "foreach"}
    whole = theirs(weights((5, 3), (7,)), **options)
    classes = (ours, theirs) if first == "ours" else (theirs, ours)
    before = classes[0](fresh(params_of(whole)), **options)
    for optimizer in (whole, before):
        train(optimizer, 3)
    after = classes[1](fresh(params_of(before)), foreach=options["foreach"])
    after.load_state_dict(saved_and_loaded(before.state_dict()))
    for optimizer in (whole, after):
        train(optimizer, 3, seed=1)
    assert_same_bits(snapshot(after), snapshot(whole))


@each_twin
@pytest.mark.parametrize("to", PATHS)
@pytest.mark.parametrize("of", ["loop", "foreach", "fused", "capturable"])
def test_every_path_takes_up_torchs_and_torchs_take_up_every_path(ours, theirs, of, to):
    """Ours keeps its own way to step; torch's takes that of the checkpoint."""
    torchs = theirs(weights((5, 3)), **PATHS[of])
    train(torchs, 2)
    mine = ours(fresh(params_of(torchs)), l1=0.5, **PATHS[to])
    mine.load_state_dict(saved_and_loaded(torchs.state_dict()))
    chosen = {"foreach": None, "fused": None, "capturable": False, **PATHS[to]}
    assert {name: mine.param_groups[0][name] for name in chosen} == chosen
    back = theirs(fresh(params_of(mine)))
    back.load_state_dict(saved_and_loaded(mine.state_dict()))
    for optimizer in (mine, back):
        train(optimizer, 1, seed=1)
        assert [state["step"].item() for state in optimizer.state.values()] == [3]
    assert mine.param_groups[0]["l1"] == back.param_groups[0]["l1"] == 0.5


@each_twin
def test_torchs_checkpoints_load_and_ours_load_there(ours, theirs):
    """What the saved groups do not know keeps the value that each group has."""
    common = {"lr": 0.02, "weight_decay": 0.1, "amsgrad": True}
    torchs = theirs(weights((4,), (2, 2)), lr=0.5, amsgrad=True)
    torchs.param_groups[0].update(common)
    train(torchs, 2)
    mine = ours(fresh(params_of(torchs)), **PROX)
    mine.load_state_dict(saved_and_loaded(torchs.state_dict()))
    assert {name: mine.param_groups[0][name] for name in {**common, **PROX}} == {**common, **PROX}
    train(mine, 2, seed=1)
    assert all(state["step"] == 4 for state in mine.state.values())

    back = theirs(fresh(params_of(mine)))
    back.load_state_dict(saved_and_loaded(mine.state_dict()))
    before = snapshot(back)
    assert_same_bits(before, snapshot(mine))
    train(back, 1)
    assert all(state["step"] == 5 for state in back.state.values())


def test_each_group_keeps_its_own_options():
    """L1 for the weights and none for the biases, resumed from a run of torch.optim.AdamW."""
    params = weights((4, 4), (4,))
    old = torch.optim.AdamW([{"params": params[:1], "lr": 0.1}, {"params": params[1:], "lr": 0.2}])
    train(old, 1)
    new = ProxAdamW([{"params": [params[0]], "l1": 0.5}, {"params": [params[1]], "l1": 0.0}])
    new.load_state_dict(old.state_dict())
    assert [(g["l1"], g["lr"]) for g in new.param_groups] == [(0.5, 0.1), (0.0, 0.2)]


def test_a_saved_option_is_loaded():
    saver, loader = ProxAdam(weights((3,)), **PROX), ProxAdam(weights((3,)))
    loader.load_state_dict(saved_and_loaded(saver.state_dict()))
    for name, value in PROX.items():
        assert loader.param_groups[0][name] == value


def test_a_saved_format_is_not():
    """The optimizer's own stays, as fused and foreach do."""
    formats = {"state_dtype": torch.float32, "stochastic_rounding": True, "seed": 3}
    saver, loader = ProxAdam(weights((3,)), **formats), ProxAdam(weights((3,)))
    own = {name: loader.param_groups[0][name] for name in formats}
    loader.load_state_dict(saved_and_loaded(saver.state_dict()))
    assert {name: loader.param_groups[0][name] for name in formats} == own


def test_a_beta_saved_in_the_middle_of_a_cycle_is_loaded():
    """load_state_dict takes what a step takes."""
    saver, loader = (ProxAdam(weights((3,))) for _ in range(2))
    train(saver, 1)
    saver.param_groups[0]["betas"] = (4.0, 0.999)
    loader.load_state_dict(saved_and_loaded(saver.state_dict()))
    assert loader.param_groups[0]["betas"] == (4.0, 0.999)
    train(loader, 1)


def test_wide_moments_are_not_narrowed_by_loading():
    """torch casts the state of a bfloat16 parameter to bfloat16, whatever it was saved as."""
    saver = ProxAdam(weights((100,), dtype=torch.bfloat16), state_dtype=torch.float32)
    train(saver, 3)
    (state,) = saver.state.values()
    assert not torch.equal(state["exp_avg"], state["exp_avg"].bfloat16().float())
    loader = ProxAdam(weights((100,), dtype=torch.bfloat16), state_dtype=torch.float32)
    loader.load_state_dict(saved_and_loaded(saver.state_dict()))
    (loaded,) = loader.state.values()
    assert_same_bits(loaded, state)


def test_hooks_see_and_change_what_is_loaded():
    saver = ProxAdam(weights((3,)), l1=0.1)
    train(saver, 1)
    loader = ProxAdam(weights((3,)))
    seen = []

    def double_l1(_, state_dict):
        groups = [{**group, "l1": 2 * group["l1"]} for group in state_dict["param_groups"]]
        return {**state_dict, "param_groups": groups}

    loader.register_load_state_dict_pre_hook(double_l1)
    loader.register_load_state_dict_post_hook(lambda o: seen.append(o.param_groups[0]["l1"]))
    for _ in range(2):
        loader.load_state_dict(saver.state_dict())
    assert seen == [0.2, 0.2]
    assert len(loader._optimizer_load_state_dict_pre_hooks) == 1


def lacking(name):
    return lambda state: state.pop(name)


def with_value(name, value):
    return lambda state: state.update({name: value})


def of_shape(name, *shape):
    return lambda state: state.update({name: torch.zeros(shape)})


SPOILED = {
    "no exp_avg": (lacking("exp_avg"), "the loaded state of parameter 1 has no 'exp_avg'"),
    "no step": (lacking("step"), "the loaded state of parameter 1 has no 'step'"),
    "truncated": (of_shape("exp_avg", 3), "the loaded exp_avg of parameter 1 has shape (3,)"),
    "transposed": (of_shape("exp_avg_sq", 2, 4), "exp_avg_sq of parameter 1 has shape (2, 4)"),
    "a number": (with_value("exp_avg", 1.0), "the loaded exp_avg of parameter 1 is float"),
    "nothing": (with_value("exp_avg_sq", None), "exp_avg_sq of parameter 1 is NoneType"),
    "sparse": (
        with_value("exp_avg", torch.eye(4, 2).to_sparse()),
        "exp_avg of parameter 1 is torch.sparse_coo, expected a dense tensor",
    ),
    "complex": (
        with_value("exp_avg", torch.ones(4, 2, dtype=torch.complex64)),
        "exp_avg of parameter 1 has dtype torch.complex64 and the parameter torch.float32",
    ),
    **{
        f"step {name}": (with_value("step", value), "the loaded step of parameter 1 is ")
        for name, value in {
            "of two": torch.ones(2),
            "of none": torch.ones(0),
            "negative": torch.tensor(-1.0),
            "nan": float("nan"),
            "missing": None,
        }.items()
    },
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_state_that_does_not_fit_is_refused_whole(how):
    spoil, text = SPOILED[how]
    saver, loader = (ProxAdam(weights((3,), (4, 2)), lr=lr) for lr in (0.1, 0.2))
    for optimizer in (saver, loader):
        train(optimizer, 1, seed=int(optimizer is saver))
    state_dict = copy.deepcopy(saver.state_dict())
    spoil(state_dict["state"][1])
    assert_refused_whole(loader, state_dict, text)


def assert_refused_whole(loader, state_dict, text):
    before, groups = snapshot(loader), [dict(group) for group in loader.param_groups]
    error = error_of(loader.load_state_dict, state_dict)
    assert error is not None
    kind, said = error
    assert kind is ValueError, said
    assert text in said
    assert "\n" not in said
    assert_same_bits(snapshot(loader), before)
    assert loader.param_groups == groups
    assert not loader._optimizer_load_state_dict_pre_hooks


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda saved: saved.pop("state"), "got 'state' of the type NoneType"),
        (lambda saved: saved.pop("param_groups"), "got 'param_groups' of the type NoneType"),
        (lambda saved: saved.update(state=[]), "got 'state' of the type list"),
        (lambda saved: saved["param_groups"][0].update(l1=-1.0), "Invalid l1 value: -1.0"),
        (lambda saved: saved["param_groups"][0].update(metric="own"), "Invalid metric: 'own'"),
        (lambda saved: saved["param_groups"][0].update(max_shrink=0.5), "Invalid max_shrink"),
    ],
    ids=["no state", "no groups", "a list", "l1", "metric", "max_shrink"],
)
def test_what_is_no_state_dict_is_refused_whole(spoil, text):
    saver, loader = (ProxAdam(weights((3,), (4, 2)), lr=lr) for lr in (0.1, 0.2))
    for optimizer in (saver, loader):
        train(optimizer, 1)
    state_dict = copy.deepcopy(saver.state_dict())
    spoil(state_dict)
    assert_refused_whole(loader, state_dict, text)


def test_a_parameter_without_a_saved_state_begins_anew_as_in_torch():
    saver, loader = (ProxAdam(weights((3,), (4, 2))) for _ in range(2))
    for optimizer in (saver, loader):
        train(optimizer, 2)
    state_dict = copy.deepcopy(saver.state_dict())
    del state_dict["state"][0]
    loader.load_state_dict(state_dict)
    train(loader, 1)
    assert [loader.state[p]["step"].item() for p in params_of(loader)] == [1, 3]


SAVER = """
import os, sys, torch
from proxadam import ProxAdamW

path, state_dtype = sys.argv[1:]
model = torch.nn.Linear(64, 64)
state_dtype = {"fp32": None, "bf16": torch.bfloat16, "8bit": "8bit"}[state_dtype]
optimizer = ProxAdamW(model.parameters(), l1=0.01, state_dtype=state_dtype)

class Stalls:  # a file that never gets further than some bytes
    def __init__(self, file):
        self.file = file

    def write(self, data):
        self.file.write(bytes(data)[:10])
        self.file.flush()
        print("in the middle", flush=True)
        sys.stdin.read()

    def flush(self):
        pass

def step_and_save(wrap=lambda file: file):
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with open(f"{path}.new", "wb") as file:
        torch.save(state, wrap(file))
    os.replace(f"{path}.new", path)

step_and_save()
step_and_save()
step_and_save(Stalls)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this platform has no SIGKILL")
@each_format([FP32, *SMALL])
def test_a_process_killed_while_it_saves_loses_nothing_saved_before(tmp_path, kept):
    """By the README's way to save: under another name first, which is then put in place."""
    path = tmp_path / "checkpoint.pt"
    command = [sys.executable, "-c", SAVER, str(path), kept.name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as saver:
        assert saver.stdout.readline().strip() == b"in the middle"
        saver.kill()
    assert saver.returncode == -signal.SIGKILL
    assert 0 < (tmp_path / "checkpoint.pt.new").stat().st_size <= 10
    saved = torch.load(path, weights_only=True)
    model = torch.nn.Linear(64, 64)
    optimizer = ProxAdamW(model.parameters(), **kept.options)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    assert {state["step"].item() for state in optimizer.state.values()} == {2.0}
    assert optimizer.param_groups[0]["l1"] == 0.01
    train(optimizer, 1)


def test_a_state_dict_refers_to_the_live_tensors_as_torchs_does():
    """So it is to be saved, or copied, before the next step."""
    optimizer = ProxAdam(weights((3,)))
    train(optimizer, 1)
    state_dict = optimizer.state_dict()
    copied = copy.deepcopy(state_dict)
    train(optimizer, 1)
    assert (state_dict["state"][0]["step"], copied["state"][0]["step"]) == (2, 1)


@pytest.mark.parametrize("groups", [[1], [1, 1]], ids=["fewer", "other sizes"])
def test_groups_that_do_not_fit_are_torchs_errors(groups):
    ours, torchs = (
        [cls([{"params": weights(*[(2,)] * n)} for n in sizes]) for sizes in (groups, [1, 2])]
        for cls in TWINS["Adam"]
    )
    errors = [error_of(a.load_state_dict, b.state_dict()) for a, b in (ours, torchs)]
    assert errors[0] == errors[1]
    assert errors[0][0] is ValueError


@pytest.mark.parametrize("state_dtype", [torch.float64, torch.float16, "float32", 8])
def test_other_state_dtypes_are_refused(state_dtype):
    kind, text = error_of(ProxAdam, weights((2,)), state_dtype=state_dtype)
    assert kind is ValueError
    expected = "(None, torch.float32, torch.bfloat16, '8bit')"
    assert text == f"Invalid state_dtype: {state_dtype!r}, expected one of {expected}"
    optimizer = ProxAdam(weights((2,)))
    group = {"params": weights((2,)), "state_dtype": state_dtype}
    assert error_of(optimizer.add_param_group, group) == (kind, text)
    assert len(optimizer.param_groups) == 1


# ---- formats of the state ---------------------------------------------------------------------


def from_a_file(optimizer):
    (group,) = optimizer.param_groups
    options = {name: group[name] for name in ("state_dtype", "stochastic_rounding", "seed")}
    paths = {name: group[name] for name in ("foreach", "fused", "capturable")}
    other = ProxAdam(fresh(group["params"]), **options, **paths)
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    return other


AGAIN = {
    "file": from_a_file,
    "deepcopy": copy.deepcopy,
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
}


@each_format()
@pytest.mark.parametrize("again", AGAIN.values(), ids=AGAIN.keys())
def test_a_resumed_run_draws_what_the_uninterrupted_one_does(any_backend, kept, again):
    options = {**LIVELY, **kept.options, **any_backend.options}
    whole = ProxAdam(kept.weights(), **options, seed=2**40 + 1)
    train(whole, 3)
    resumed = again(whole)
    assert_same_bits(snapshot(resumed), snapshot(whole))
    for optimizer in (whole, resumed):
        train(optimizer, 3, seed=1)
    assert_same_bits(snapshot(resumed), snapshot(whole))
    state = whole.state[params_of(whole)[0]]
    assert (CODES[0] in state) == (kept.moments is torch.uint8)
    assert ("number" in state) == (kept is not FP32)


def assert_loaded(loader, saver, of, to):
    """The moments are the saver's but for the loader's rounding, and kept in its format."""
    for i, (mine, other) in enumerate(zip(*map(params_of, (loader, saver)), strict=True)):
        own, saved = loader.state[mine], saver.state[other]
        assert own["step"] == saved["step"]
        large = mine.numel() >= 4096
        expected = torch.float32 if to.moments is torch.uint8 and not large else to.moments
        for name, code in zip(MOMENTS, CODES, strict=True):
            kept = own[code] if to.moments is torch.uint8 and large else own[name]
            assert kept.dtype == (expected or mine.dtype)
            actual, values = moment(own, name).float(), moment(saved, name).float()
            exact = large and of.moments is torch.uint8
            allowed = 0 * values if exact else to.allowed(values, block_maxima(values))
            worst = ((actual - values).abs() - allowed).max()
            assert worst <= 0, f"{name} of {i} is wrong by {worst} too much"


@each_format(name="to")
@each_format(name="of")
def test_a_file_of_every_format_loads_into_every_other(of, to):
    """How the loader keeps its state stays its own, and so do its seed and its rounding."""
    saver = ProxAdamW(of.weights(), **LIVELY, **of.options, seed=3)
    train(saver, 3)
    loader = ProxAdamW(fresh(params_of(saver), to.dtype), **to.options, seed=4)
    chosen = {"state_dtype": None, "stochastic_rounding": None, **to.options, "seed": 4}
    loader.load_state_dict(saved_and_loaded(saver.state_dict()))
    (group,) = loader.param_groups
    assert {name: group[name] for name in {**LIVELY, **chosen}} == {**LIVELY, **chosen}
    assert_loaded(loader, saver, of, to)
    for mine, other in zip(*map(params_of, (loader, saver)), strict=True):
        numbers = [optimizer.state[p].get("number") for optimizer, p in
                   ((loader, mine), (saver, other))]  # fmt: skip
        assert numbers[0] == numbers[1]
    before = snapshot(loader)
    train(loader, 1, seed=1)
    after = snapshot(loader)
    assert all(after[f"step of {i}"] == 4 and after[str(i)].isfinite().all() for i in range(3))
    assert not any(torch.equal(after[str(i)], before[str(i)]) for i in range(3))


@each_twin
@each_format()
def test_torchs_moments_load_into_every_format(ours, theirs, kept):
    torchs = theirs(FP32.weights())
    train(torchs, 3)
    mine = ours(fresh(params_of(torchs), kept.dtype), **kept.options)
    mine.load_state_dict(saved_and_loaded(torchs.state_dict()))
    assert_loaded(mine, torchs, FP32, kept)
    train(mine, 2, seed=1)


@each_twin
@each_format()
def test_an_export_is_what_torch_goes_on_from(ours, theirs, kept):
    """As our own loop does with the same moments in float32, to the bit."""
    plain = {"lr": 0.05, "weight_decay": 0.1, "fused": False, "foreach": False}
    saver = ours(kept.weights(), **plain, **kept.options)
    train(saver, 3)
    exported = saved_and_loaded(to_adam_state_dict(saver))
    assert {*exported["state"][0]} == {"step", *MOMENTS}
    assert exported["param_groups"][0].keys() <= theirs(weights((1,))).param_groups[0].keys()
    torchs, mine = (
        cls(fresh(params_of(saver), torch.float32), foreach=False) for cls in (theirs, ours)
    )
    torchs.load_state_dict(exported)
    mine.load_state_dict(saved_and_loaded(saver.state_dict()))
    for optimizer in (torchs, mine):
        optimizer.param_groups[0]["fused"] = False
        for param in params_of(optimizer):
            own = optimizer.state[param]
            optimizer.state[param] = {name: own[name] for name in ("step", *MOMENTS)}
    assert_same_bits(snapshot(mine), snapshot(torchs))
    for optimizer in (torchs, mine):
        train(optimizer, 2, seed=1)
    assert_same_bits(snapshot(mine), snapshot(torchs))


@each_format([BF16, CODED])
def test_the_options_are_saved_as_numbers_and_names(kept):
    """torch.distributed.checkpoint collects no others into a full state dict."""
    optimizer = ProxAdamW(kept.weights(), **kept.options)
    (saved,) = optimizer.state_dict()["param_groups"]
    del saved["betas"], saved["params"]
    assert {*map(type, saved.values())} <= {float, int, bool, str, type(None)}
    assert saved["state_dtype"] == str(kept.options["state_dtype"])
    assert optimizer.param_groups[0]["state_dtype"] == kept.options["state_dtype"]


def convolution(memory_format):
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 64, 3).to(memory_format=memory_format)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        optimizer = ProxAdamW(layer.parameters(), **EIGHT)
    texts = [str(warning.message) for warning in said]
    assert texts == ([] if memory_format is torch.contiguous_format else [
        "state_dtype='8bit' is torch.bfloat16 for 1 of 2 parameters, such as 0 of shape"
        " (64, 16, 3, 3), not in the order of its dimensions in memory, which no file of codes"
        " would tell."
    ])  # fmt: skip
    return layer, optimizer


def by_checkpoint(saver, loader, folder):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    dcp.save(get_optimizer_state_dict(*saver), checkpoint_id=folder, no_dist=True)
    wanted = get_optimizer_state_dict(*loader)
    dcp.load(wanted, checkpoint_id=folder, no_dist=True)
    set_optimizer_state_dict(*loader, wanted)


def by_contiguous_copies(saver, loader, _):
    saved = copy.deepcopy(saver[1].state_dict())
    for own in saved["state"].values():
        own.update({k: t.contiguous() for k, t in own.items() if isinstance(t, torch.Tensor)})
    loader[1].load_state_dict(saved)


MEMORY_FORMATS = {"rows": torch.contiguous_format, "channels-last": torch.channels_last}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
@pytest.mark.parametrize("carried", [by_checkpoint, by_contiguous_copies], ids=lambda f: f.__name__)
@pytest.mark.parametrize("to", MEMORY_FORMATS)
@pytest.mark.parametrize("of", MEMORY_FORMATS)
def test_files_that_forget_strides_do_not_part_codes_from_exponents(of, to, carried, tmp_path):
    """The moments come out right, or the loader's keys are not in the file."""
    from torch.distributed.checkpoint.api import CheckpointException

    saver, loader = (convolution(MEMORY_FORMATS[name]) for name in (of, to))
    weight = saver[0].weight
    weight.grad = torch.randn_like(weight) * torch.logspace(-6, 0, 3)  # a scale for each column
    saver[0].bias.grad = torch.ones(64)
    saver[1].step()
    try:
        carried(saver, loader, tmp_path)
    except CheckpointException as error:
        assert (of != to) and carried is by_checkpoint
        assert "Missing key in checkpoint state_dict: state.weight.exp_avg" in str(error)
        return
    for name in MOMENTS:
        actual, expected = (moment(o.state[m.weight], name).float() for m, o in (loader, saver))
        allowed = 0 * expected
        if of == "channels-last" and to == "rows":  # encoded
            allowed = CODED.allowed(expected, block_maxima(expected.contiguous()))
        assert ((actual - expected).abs() <= allowed).all()


@each_twin
def test_torch_does_not_train_on_codes(ours, theirs):
    saver = ours(CODED.weights(), **EIGHT)
    train(saver, 1)
    torchs = theirs(fresh(params_of(saver)))
    torchs.load_state_dict(saved_and_loaded(saver.state_dict()))
    before = snapshot(torchs)
    kind, text = error_of(train, torchs, 1)
    assert (kind, text) == (KeyError, "'exp_avg'")
    assert_same_bits(snapshot(torchs), before)


def test_loading_makes_no_floats_of_codes():
    """Torch would cast them all to the parameter's dtype, and codes are a fifth of that."""

    class Casts(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            found = op(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor) and found.is_floating_point():
                largest.append(found.numel())
            return found

    largest = [0]
    saver, loader = (ProxAdamW(CODED.weights(), **EIGHT) for _ in range(2))
    for optimizer in (saver, loader):
        train(optimizer, 1)
    saved = saver.state_dict()
    with Casts():
        loader.load_state_dict(saved)
    assert max(largest) < 4096


@each_format([*SMALL, *NARROW])
def test_a_number_stays_when_parameters_are_added_behind_a_load(kept):
    saver = ProxAdamW(kept.weights(), **kept.options)
    train(saver, 1)
    loader = ProxAdamW(fresh(params_of(saver)), **kept.options)
    loader.load_state_dict(saved_and_loaded(saver.state_dict()))
    loader.add_param_group({"params": kept.weights(SHAPES[0])})
    train(loader, 1)
    assert [loader.state[param]["number"] for param in params_of(loader)] == [0, 1, 2, 3]


@each_format([*SMALL, *NARROW])
def test_parameters_in_another_order_draw_what_they_did(kept):
    """Their states are told apart by the parameters' names, as torch.distributed.checkpoint does.

    The two are alike, and only their numbers tell their draws apart.
    """
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    model = nn.ModuleList([nn.Linear(70, 61, bias=False, dtype=kept.dtype) for _ in range(2)])
    model[1].load_state_dict(model[0].state_dict())
    twin = copy.deepcopy(model)

    def in_order(model, *order):
        groups = [{"params": [model[i].weight], "lr": 0.05} for i in order]
        return ProxAdamW(groups, l1=0.01, **kept.options)

    def step(optimizer, model):
        for layer in model:
            layer.weight.grad = torch.linspace(-1, 1, 70 * 61).view(61, 70).to(kept.dtype)
        optimizer.step()

    saver, loader = in_order(model, 0, 1), in_order(twin, 1, 0)
    step(saver, model)
    twin.load_state_dict(model.state_dict())
    saved = saved_and_loaded(get_optimizer_state_dict(model, saver))
    set_optimizer_state_dict(twin, loader, saved)
    assert [loader.state[layer.weight]["number"] for layer in twin] == [0, 1]
    for _ in range(2):
        step(saver, model)
        step(loader, twin)
    for mine, other in zip(twin, model, strict=True):
        assert_same_bits(mine.weight, other.weight)
        for name in MOMENTS:
            actual, expected = (
                moment(optimizer.state[layer.weight], name)
                for optimizer, layer in ((loader, mine), (saver, other))
            )
            assert_same_bits(actual, expected)
    assert not torch.equal(*(layer.weight for layer in model))


def of_codes(name, *shape, dtype=torch.uint8):
    return lambda state: state.update({name: torch.zeros(shape, dtype=dtype)})


NUMBER = "the loaded number of parameter 0 is "
SPOILED_CODES = {
    **{f"no {name}": (lacking(name), f"has no {name!r}, expected step, exp_avg_code, ")
       for name in (*CODES, *EXPONENTS)},
    **{f"{name} a block short": (of_codes(name, 16), f"{name} of parameter 0 is of torch.uint8 and"
                                 " shape (16,), expected torch.uint8 and (17,)")
       for name in EXPONENTS},
    "exponents of two dimensions": (of_codes(EXPONENTS[0], 17, 1), "and shape (17, 1), expected"),
    "exponents in int8": (of_codes(EXPONENTS[0], 17, dtype=torch.int8), "is of torch.int8 and"),
    "codes in float32": (of_codes(CODES[0], *SHAPES[0], dtype=torch.float32), "is of torch.float3"),
    "codes in int8": (of_codes(CODES[1], *SHAPES[0], dtype=torch.int8), "is of torch.int8 and"),
    "codes transposed": (of_codes(CODES[1], 61, 70), "and shape (61, 70), expected torch.uint8"),
    "codes of nothing": (with_value(CODES[0], None), "exp_avg_code of parameter 0 is NoneType"),
    "codes without data": (
        with_value(CODES[0], torch.zeros(SHAPES[0], dtype=torch.uint8, device="meta")),
        "exp_avg_code of parameter 0 is a tensor without data, expected a dense tensor",
    ),
    "sparse codes": (
        with_value(CODES[0], torch.zeros(SHAPES[0], dtype=torch.uint8).to_sparse()),
        "exp_avg_code of parameter 0 is torch.sparse_coo, expected a dense tensor",
    ),
    "codes and moments": (of_shape("exp_avg", *SHAPES[0]), "has moments and codes, so two formats"),
    **{f"number {value!r}": (with_value("number", value), NUMBER)
       for value in (-1, 2**31, 1.0, "1", None, True, torch.tensor(0.5), torch.ones(2).long())},
}  # fmt: skip


@each_format([FP32, *SMALL])
@pytest.mark.parametrize("how", SPOILED_CODES)
def test_codes_that_do_not_fit_are_refused_whole(kept, how):
    spoil, text = SPOILED_CODES[how]
    saver = ProxAdamW(CODED.weights(), **EIGHT)
    loader = ProxAdamW(kept.weights(), lr=0.2, **kept.options)
    for optimizer in (saver, loader):
        train(optimizer, 1, seed=int(optimizer is saver))
    state_dict = copy.deepcopy(saver.state_dict())
    spoil(state_dict["state"][0])
    assert_refused_whole(loader, state_dict, text)


@pytest.mark.parametrize(
    ("dtype", "state_dtype", "text"),
    [
        (torch.complex64, None, "has dtype torch.float32 and the parameter torch.complex64"),
        (torch.complex64, "8bit", "takes parameters in float32, bfloat16 and float16, got one in"),
        (torch.float64, "8bit", "takes parameters in float32, bfloat16 and float16, got one in"),
    ],
)
def test_codes_are_refused_for_parameters_that_have_none(dtype, state_dtype, text):
    saver = ProxAdamW(CODED.weights(), **EIGHT)
    loader = ProxAdamW(weights(*SHAPES, dtype=dtype))
    for optimizer in (saver, loader):
        train(optimizer, 1)
    loader.param_groups[0]["state_dtype"] = state_dtype
    assert_refused_whole(loader, saver.state_dict(), text)


def test_a_negative_second_moment_has_no_code():
    saver = ProxAdamW(FP32.weights())
    loader = ProxAdamW(CODED.weights(), **EIGHT)
    for optimizer in (saver, loader):
        train(optimizer, 1)
    state_dict = copy.deepcopy(saver.state_dict())
    state_dict["state"][0]["exp_avg_sq"][3, 4] = -1e-30
    assert_refused_whole(loader, state_dict, "exp_avg_sq of parameter 0 is negative somewhere")
    state_dict["state"][0]["exp_avg_sq"][3, 4] = -0.0
    loader.load_state_dict(state_dict)
