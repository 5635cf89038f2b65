"""Saving and loading moments of few bits: in their format, and into every other."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from checkpoints import assert_refused_whole, fresh, lacking, of_shape, train, with_value
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
    assert_same_bits,
    each_twin,
    error_of,
    params_of,
    saved_and_loaded,
    snapshot,
    weights,
)


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
# Of torch 2.10's own writer of checkpoints.
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
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
