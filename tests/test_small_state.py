"""Moments in bfloat16 and 8 bits, and rounding by chance: the bits, the step, what takes what."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import Parameter

import small_oracle as small
from oracle import oracle_step
from proxadam import ProxAdam, ProxAdamW, state_bytes
from proxadam._step.group import Group
from proxadam._step.options import Options
from storages import OPMATH
from tools import assert_same_bits, error_of, params_of, snapshot, threads

FORMATS = [torch.bfloat16, "8bit"]
each_format = pytest.mark.parametrize("state_dtype", FORMATS, ids=str)
each_param = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
MOVING = {"lr": 0.01, "l1": 0.01, "l2": 0.02, "weight_decay": 0.1}
# Whole and cut blocks, more than one of the kernel's tiles and chunks, one row and many.
SHAPES = [(64, 64), (1, 4097), (67, 255), (3, 5461), (2, 9000)]


def optimizer_over(shapes, dtype, backend=None, cls=ProxAdamW, **options):
    torch.manual_seed(1)
    params = [Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    how = backend.options if backend else {}
    return cls(params, **{**MOVING, **how, **options})


def step(optimizer, count=1, scale=1.0):
    """Steps whose gradients follow from how many there have been."""
    for _ in range(count):
        taken = max((int(s["step"]) for s in optimizer.state.values()), default=0)
        generator = torch.Generator().manual_seed(taken)
        for param in params_of(optimizer):
            grad = torch.randn(param.shape, generator=generator, device="cpu").mul_(scale)
            param.grad = grad.to(param.device, param.dtype)
        optimizer.step()


def codes_of(state):
    return {k: v for k, v in state.items() if k.endswith(("_code", "_exponent"))}


def moments_of(state):
    """Both moments in float64, flat."""
    if "exp_avg" in state:
        return [
            state[k].detach().double().cpu().reshape(-1).numpy() for k in ("exp_avg", "exp_avg_sq")
        ]
    found = []
    for name, second in (("exp_avg", False), ("exp_avg_sq", True)):
        codes, exponents = (state[f"{name}_{k}"].cpu() for k in ("code", "exponent"))
        found.append(small.decode(codes.reshape(-1).numpy(), exponents.numpy(), second))
    return found


# ---- the bits ---------------------------------------------------------------------------------


def awkward(numel, seed=0):
    """Gradients over many binades, with zeros, subnormals, infinities and NaN among them."""
    random = np.random.default_rng(seed)
    values = np.ldexp(random.uniform(-2, 2, numel), random.integers(-20, 20, numel))
    values = values.astype(np.float32)
    specials = np.float32([0, -0.0, 1e-45, -1e-40, np.inf, -np.inf, np.nan, 3e38, 1e-30])
    chosen = random.integers(0, 24, numel)
    special = chosen < len(specials)
    values[special] = specials[chosen[special]]
    return values


@pytest.mark.parametrize("shape", [(16, 256), (5, 1000), (2, 8192 + 3)], ids=str)
@pytest.mark.parametrize(("seed", "number"), [(0, 0), (2**62 + 12345, 7)])
def test_codes_are_those_of_the_definition(backend, shape, seed, number):
    """With beta1 = 0 and beta2 = ½ the moments of a first step are g and (g / 2) g, in float32."""
    numel = math.prod(shape)
    grad = awkward(numel)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        expected_moments = grad + np.float32(0) * grad, np.float32(0.5) * grad * grad
    params = [Parameter(torch.zeros(1)) for _ in range(number)] + [Parameter(torch.zeros(shape))]
    options = {**backend.options, "lr": 0.0, "betas": (0.0, 0.5), "seed": seed}
    optimizer = ProxAdam(params, state_dtype="8bit", **options)
    params[-1].grad = torch.from_numpy(grad).view(shape).to(params[-1].device)
    optimizer.step()
    state = optimizer.state[params[-1]]
    drawn = small.draws(seed, number, 1, numel)
    chances = drawn & np.uint32(0xFFFF), drawn >> np.uint32(16)
    for name, values, second in zip(
        ("exp_avg", "exp_avg_sq"), expected_moments, (0, 1), strict=True
    ):
        codes, exponents = small.encode(values, second, chances[second])
        found = state[f"{name}_code"].cpu().reshape(-1).numpy()
        np.testing.assert_array_equal(state[f"{name}_exponent"].cpu().numpy(), exponents)
        np.testing.assert_array_equal(found, codes, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_those_of_the_definition(backend, dtype):
    """A first step of lr = eps, with betas of 0 and ½, takes a weight from 0 to −g."""
    numel = 16 * 1024 + 77
    grad = np.clip(awkward(numel, seed=1), -(2.0**17), 2.0**17)
    grad[::3] = np.ldexp(grad[::3], -22)  # where float16 has subnormals
    large = 2.0**100
    if backend.device != "cpu" and not backend.is_kernel:  # torch divides by eps first there
        large, grad = 2.0**60, np.where(abs(grad) < 2.0**-60, np.float32(0), grad)
    options = {**backend.options, "lr": large, "eps": large, "betas": (0.0, 0.5)}
    param = Parameter(torch.zeros(numel, dtype=dtype))
    param.grad_dtype = torch.float32
    param.grad = torch.from_numpy(grad).to(param.device)
    ProxAdam([param], state_dtype=torch.float32, stochastic_rounding=True, **options).step()
    drawn = small.draws(0, 0, 1, numel, param=True)
    rounded = {torch.bfloat16: small.to_bfloat16, torch.float16: small.to_float16}[dtype]
    found = param.detach().cpu().view(torch.int16).numpy().view(np.uint16)
    usual = np.isfinite(grad)
    np.testing.assert_array_equal(found[usual], rounded(np.float32(0) - grad, drawn)[usual])
    assert np.isnan(param.detach().float().cpu().numpy()[np.isnan(grad)]).all()


def test_indices_go_on_beyond_32_bits(kernel_module):
    """A shard may begin anywhere; around 2^32 elements of one tile have two keys."""
    numel = 3000
    for first in (2**32 - 1300, 2**32 - 256, 2**32 - 1, 2**33 - 512, 5):
        param, grad = (torch.zeros(numel, dtype=torch.bfloat16) for _ in range(2))
        grad.copy_(torch.from_numpy(awkward(numel)).nan_to_num().clamp(-1e4, 1e4))
        group = Group(
            [param], [grad], [torch.zeros(numel)], [torch.zeros(numel)], [], [torch.zeros(())],
            Options(
                lr=2.0**100, beta1=0.0, beta2=0.5, eps=2.0**100, stochastic_rounding=True, seed=9
            ),
            numbers=[3], offsets=[first],
        )  # fmt: skip
        before = param.float().numpy() - grad.float().numpy()
        assert kernel_module.admit([group]) is None
        drawn = small.draws(9, 3, 1, numel, first, param=True)
        found = param.view(torch.int16).numpy().view(np.uint16)
        np.testing.assert_array_equal(found, small.to_bfloat16(before, drawn))


@pytest.mark.parametrize("bits", [torch.bfloat16, torch.float16, "first", "second"], ids=str)
def test_rounding_is_right_in_the_mean(bits):
    """Of 2^20 draws for one number the mean is that number, within five standard errors."""
    count = 1 << 20
    drawn = small.draws(5, 1, 77, count)
    for x in np.float32([1.2345, 0.9999, 3e-3, 2.0**-14 * 1.37, 2.0**-20 * 1.1, 1.0]):
        values = np.full(count, x, np.float32)
        if isinstance(bits, torch.dtype):
            rounded = small.to_float16 if bits == torch.float16 else small.to_bfloat16
            integers = torch.from_numpy(rounded(values, drawn).view(np.int16))
            found = integers.view(bits).double().numpy()
        else:
            second = bits == "second"
            values[::256] = 1.5  # the largest of each block
            chances = drawn >> np.uint32(16) if second else drawn & np.uint32(0xFFFF)
            found = small.decode(*small.encode(values, second, chances), second)
            found = np.delete(found, slice(None, None, 256))
            if not second and x < 2.0**-14 * 1.5:
                continue  # it is coded 0
        error = abs(found.mean() - float(x))
        assert error <= 5 * found.std() / np.sqrt(found.size) + 2.0**-16 * (
            found.max() - found.min()
        )


def test_draws_are_unlike_for_neighbours_steps_numbers_and_seeds():
    """No bit of 32 is set more often than chance has it, nor do two streams agree in one."""
    count = 1 << 16
    base = small.draws(0, 0, 1, count)
    others = {
        "neighbour": small.draws(0, 0, 1, count, first=1),
        "step": small.draws(0, 0, 2, count),
        "number": small.draws(0, 1, 1, count),
        "shard": small.draws(0, 1 << 32, 1, count),
        "seed": small.draws(1, 0, 1, count),
        "param": small.draws(0, 0, 1, count, param=True),
        "later": small.draws(0, 0, 1, count, first=1 << 32),
    }
    spread = 5 * 0.5 / np.sqrt(count)

    def shares(words):
        return np.unpackbits(words.view(np.uint8)).reshape(count, 32).mean(0)

    assert abs(shares(base) - 0.5).max() < spread
    for name, other in others.items():
        assert abs(shares(base ^ other) - 0.5).max() < spread, name


# ---- the step ---------------------------------------------------------------------------------


@each_format
@each_param
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_step_is_the_oracles_from_what_is_kept(backend, state_dtype, dtype, shape):
    """Each step is judged from the moments as they were stored, and these against their rounding.

    A code is within an eighth of its number, or of the least that its block can tell from 0.
    """
    optimizer = optimizer_over([shape], dtype, backend, state_dtype=state_dtype)
    (param,) = params_of(optimizer)
    m, v = np.zeros((2, param.numel()))
    for taken in range(1, 6):
        before = param.detach().double().cpu().reshape(-1).numpy()
        step(optimizer)
        grad = param.grad.double().cpu().reshape(-1).numpy()
        expected = oracle_step(
            before, grad, m, v, None, taken, decoupled_weight_decay=True, **MOVING
        )
        w, *moments, _, scale = expected
        found = param.detach().double().cpu().reshape(-1).numpy()
        unit = {torch.float32: 0, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}[dtype]
        allowed = OPMATH[torch.float32] * scale + unit * abs(w) + (unit and 2.0**-24)
        assert (abs(found - w) <= allowed).all()
        m, v = moments_of(optimizer.state[param])
        for kept, value, floor in zip((m, v), moments, (2.0**-14, 2.0**-30), strict=True):
            unit = 2.0**-7 if state_dtype == torch.bfloat16 else 2.0**-3
            blocks = np.pad(abs(value), (0, -value.size % 256)).reshape(-1, 256).max(1)
            least = np.repeat(blocks, 256)[: value.size] * floor * 2
            assert (abs(kept - value) <= unit * abs(value) + least).all()


@each_format
@each_param
def test_bits_depend_on_neither_threads_nor_instruction_set(state_dtype, dtype, kernel_module):
    runs = []
    for capability, count in itertools.product(kernel_module.capabilities(), (1, 3)):
        used = kernel_module.capability()
        kernel_module.use_capability(capability)
        with threads(count):
            optimizer = optimizer_over(SHAPES, dtype, fused=True, state_dtype=state_dtype)
            step(optimizer, 4)
        kernel_module.use_capability(used)
        runs.append(snapshot(optimizer))
    for other in runs[1:]:
        assert_same_bits(other, runs[0])


@each_format
@each_param
def test_torch_ops_and_the_kernel_draw_the_same(state_dtype, dtype, kernel_module):
    """Their numbers differ in last places, so that a code may be the next one, here and there."""
    del kernel_module
    runs = []
    for how in ({"fused": True}, {"foreach": False}, {"foreach": True}):
        optimizer = optimizer_over(SHAPES, dtype, state_dtype=state_dtype, **how)
        step(optimizer, 2)
        runs.append(snapshot(optimizer))
    for name, expected in runs[0].items():
        for other in runs[1:]:
            if expected.is_floating_point() or "exponent" in name:
                same = (other[name] == expected).double().mean()
                assert same > (0.99 if "16" in str(expected.dtype) else 0.3) or "step" in name
            else:
                apart = (other[name].int() - expected.int()).abs()
                assert apart.max() <= 1
                assert (apart > 0).double().mean() < 0.01


@each_format
def test_elements_are_numbered_as_they_lie_in_memory(state_dtype, kernel_module):
    """Of channels last tensors too; torch ops and the kernel agree."""
    del kernel_module
    runs = []
    for how in ({"fused": True}, {"foreach": False}):
        optimizer = optimizer_over([(8, 16, 8, 8)], torch.bfloat16, state_dtype=state_dtype, **how)
        (param,) = params_of(optimizer)
        param.data = param.data.contiguous(memory_format=torch.channels_last)
        step_in_memory(optimizer)
        runs.append(snapshot(optimizer))
    flat = optimizer_over([(8 * 8 * 8, 16)], torch.bfloat16, state_dtype=state_dtype, fused=True)
    (twin,) = params_of(flat)
    twin.data = runs_start(8, 16, 8, 8).permute(0, 2, 3, 1).reshape(twin.shape).to(twin.dtype)
    twin.grad = channels_last_gradient().permute(0, 2, 3, 1).reshape(twin.shape).to(twin.dtype)
    flat.step()
    assert_same_bits(runs[0]["0"].permute(0, 2, 3, 1).reshape(twin.shape), twin.detach())
    assert (runs[0]["0"] == runs[1]["0"]).double().mean() > 0.99


def runs_start(*shape):
    torch.manual_seed(1)
    return torch.randn(shape).to(torch.bfloat16)


def channels_last_gradient():
    return torch.randn(8, 16, 8, 8, generator=torch.Generator().manual_seed(3))


def step_in_memory(optimizer):
    (param,) = params_of(optimizer)
    grad = channels_last_gradient().to(param.dtype)
    param.grad = grad.contiguous(memory_format=torch.channels_last)
    optimizer.step()


@each_format
def test_what_lies_with_gaps_is_stepped_on_torch_ops(state_dtype):
    optimizer = optimizer_over([(64, 128)], torch.float32, state_dtype=state_dtype)
    twin = optimizer_over([(64, 64)], torch.float32, state_dtype=state_dtype, foreach=False)
    (param,), (other,) = map(params_of, (optimizer, twin))
    param.data = torch.randn(64, 128)[:, ::2]
    other.data = param.data.clone()
    step(optimizer, 3)
    step(twin, 3)
    assert_same_bits(param.detach(), other.detach())
    assert_same_bits(codes_of(optimizer.state[param]), codes_of(twin.state[other]))


@each_format
@each_param
def test_rounding_wakes_no_zero(any_backend, state_dtype, dtype):
    """Zeros that a prox has made stay +0.0 while their gradients are within l1."""
    options = {"l1": 10.0, "lr": 0.1, "weight_decay": 0.0}
    optimizer = optimizer_over([(64, 65)], dtype, any_backend, state_dtype=state_dtype, **options)
    (param,) = params_of(optimizer)
    step(optimizer, 30)
    resting = param == 0
    assert resting.double().mean() > 0.9
    for _ in range(20):
        step(optimizer)
        assert not param[resting].any()
        assert not param[resting].signbit().any()


@each_format
@each_param
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_no_number_hurts_no_neighbour(any_backend, state_dtype, dtype, value):
    spoilt, healthy = (
        optimizer_over([(64, 65)], dtype, any_backend, state_dtype=state_dtype) for _ in range(2)
    )
    for optimizer in (spoilt, healthy):
        step(optimizer, 2)
    for param, optimizer in ((params_of(o)[0], o) for o in (spoilt, healthy)):
        param.grad = torch.ones_like(param)
        if optimizer is spoilt:
            param.grad.view(-1)[300] = value
        optimizer.step()
        step(optimizer, 3)
    others = torch.arange(64 * 65, device="cpu") != 300
    found, expected = (params_of(o)[0].detach().cpu().view(-1) for o in (spoilt, healthy))
    assert found[300].isnan()
    assert_same_bits(found[others], expected[others])


@pytest.mark.parametrize("state_dtype", [None, torch.float32, *FORMATS], ids=str)
@pytest.mark.parametrize("stochastic_rounding", [None, True, False])
def test_when_weights_are_rounded_by_chance(any_backend, state_dtype, stochastic_rounding):
    """Updates of an eighth of a unit: to the nearest they are lost, by chance they count."""
    param = Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    optimizer = ProxAdam(
        [param], 2.0**-10, state_dtype=state_dtype, stochastic_rounding=stochastic_rounding,
        **any_backend.options,
    )  # fmt: skip
    for _ in range(40):
        param.grad = torch.ones_like(param)
        optimizer.step()
    by_chance = stochastic_rounding or (stochastic_rounding is None and state_dtype in FORMATS)
    moved = (1 - param.detach().double()).mean().item()
    assert abs(moved - (40 * 2.0**-10 if by_chance else 0.0)) < 2e-3


# ---- problems with a known answer -------------------------------------------------------------


def _problem(l2):
    """64 targets of a lasso, or an elastic net, and their solutions, in float64.

    The solutions are chosen, and then the targets, so that the KKT conditions hold to 1e-12; the
    gradients of the weights at zero are within 0.4 · l1.
    """
    on_host = {"device": "cpu", "generator": torch.Generator().manual_seed(4)}
    x = torch.randn(200, 64, dtype=torch.float64, **on_host)
    gram, l1 = x.T @ x / 200, 0.1
    signs, sizes, pulls = (torch.rand(64, 64, **on_host).double() for _ in range(3))
    w = torch.where(signs < 0.8, 0.0, (signs - 0.9).sign() * (0.3 + sizes))
    slope = gram @ w + l2 * w + l1 * torch.where(w == 0, 0.8 * pulls - 0.4, w.sign())
    off = gram @ w - slope + l2 * w
    residual = torch.where(w == 0, (off.abs() - l1).clamp(min=0), off + l1 * w.sign())
    assert residual.abs().max() <= 1e-12
    return gram, slope, l1, w


def _value(w, gram, slope, l1, l2):
    return (w * (gram @ w) / 2 - w * slope + l2 / 2 * w * w + l1 * w.abs()).sum().item()


@pytest.mark.parametrize("l2", [0.0, 0.1], ids=["lasso", "elastic net"])
@pytest.mark.parametrize("state_dtype", [torch.float32, *FORMATS], ids=str)
def test_solved_with_the_exact_support(backend, state_dtype, l2):
    """4096 weights in float32, so that the format applies; no zero is revived towards the end."""
    gram, slope, l1, solution = _problem(l2)
    on_device = gram.float().to(backend.device), slope.float().to(backend.device)
    w = Parameter(torch.zeros(64, 64))
    optimizer = ProxAdam([w], 0.02, l1=l1, l2=l2, state_dtype=state_dtype, **backend.options)
    steps = 1000
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, 1e-5)
    resting = None
    for taken in range(steps):
        w.grad = on_device[0] @ w.detach() - on_device[1]
        optimizer.step()
        schedule.step()
        if taken >= steps * 3 // 4:
            zeros = w.detach() == 0
            assert resting is None or not (resting & ~zeros).any(), "a zero is revived"
            resting = zeros
    kept = optimizer.state[w]
    assert kept.get("exp_avg", kept.get("exp_avg_code")).dtype == {"8bit": torch.uint8}.get(
        state_dtype, state_dtype
    )
    found = w.detach().double().cpu()
    assert torch.equal(found == 0, solution == 0)
    best = _value(solution, gram, slope, l1, l2)
    assert abs(_value(found, gram, slope, l1, l2) - best) <= 1e-5 * abs(best)


# ---- which tensors, and what is refused -------------------------------------------------------

KEPT = {
    ((64, 64), torch.float32): torch.uint8,
    ((2, 2, 1024), torch.bfloat16): torch.uint8,
    ((1, 4096), torch.float16): torch.uint8,
    ((63, 65), torch.float32): torch.float32,
    ((5000,), torch.float32): torch.float32,
    ((5000,), torch.bfloat16): torch.float32,
    ((), torch.float32): torch.float32,
}


@pytest.mark.parametrize(("shape", "dtype"), KEPT, ids=str)
def test_large_tensors_of_two_dimensions_take_codes(any_backend, shape, dtype):
    optimizer = optimizer_over([shape], dtype, any_backend, state_dtype="8bit")
    step(optimizer)
    (state,) = optimizer.state.values()
    names = {"exp_avg_code", "exp_avg_sq_code", "exp_avg_exponent", "exp_avg_sq_exponent"}
    if KEPT[shape, dtype] == torch.uint8:
        assert state.keys() == {"step", "number", *names}
        assert {state[name].dtype for name in names} == {torch.uint8}
        blocks = (-(-math.prod(shape) // 256),)
        assert {state[name].shape for name in names if "code" in name} == {shape}
        assert {state[name].shape for name in names if "exponent" in name} == {blocks}
    else:
        assert state.keys() == {"step", "number", "exp_avg", "exp_avg_sq"}
        assert state["exp_avg"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_every_parameter_takes_bfloat16(any_backend, dtype, amsgrad):
    """But float64, which keeps its own."""
    options = {"state_dtype": torch.bfloat16, "amsgrad": amsgrad}
    optimizer = optimizer_over([(3,), (70, 70)], dtype, any_backend, **options)
    step(optimizer, 2)
    kept = torch.float64 if dtype == torch.float64 else torch.bfloat16
    for state in optimizer.state.values():
        moments = [t for name, t in state.items() if name.endswith(("avg", "avg_sq"))]
        assert len(moments) == 2 + amsgrad
        assert {t.dtype for t in moments} == {kept}


def test_bytes_of_state():
    """A byte for each moment and a byte for each 256 of them."""
    large, small_ = [(1024, 1024)], [(100,)]
    ratios = {None: 1.0, torch.float32: 1.0, torch.bfloat16: 0.5, "8bit": 0.251}
    for state_dtype, ratio in ratios.items():
        optimizer = optimizer_over(large, torch.float32, state_dtype=state_dtype)
        assert state_bytes(optimizer).ratio == 1.0, "before the first step there is none"
        step(optimizer)
        found = state_bytes(optimizer)
        assert found.ratio == pytest.approx(ratio, rel=1e-4)
        assert found.total == int(found) == sum(found.groups)
        assert found.of_fp32_adam == 8 * 1024 * 1024 + 4
    optimizer = optimizer_over(large + small_, torch.float32, state_dtype="8bit")
    step(optimizer)
    assert state_bytes(optimizer).total == 2 * (2**20 + 2**12) + 4 + 800 + 4
    theirs = torch.optim.Adam(params_of(optimizer))
    theirs.step()
    assert state_bytes(theirs).ratio == 1.0


DIFFERENTIABLE = {"differentiable": True}
REFUSED = {
    "8bit with amsgrad": ({"state_dtype": "8bit", "amsgrad": True}, torch.float32, ValueError),
    "8bit of float64": ({"state_dtype": "8bit"}, torch.float64, ValueError),
    "8bit of complex": ({"state_dtype": "8bit"}, torch.complex64, ValueError),
    "8bit, differentiable": ({"state_dtype": "8bit", **DIFFERENTIABLE}, torch.float32, ValueError),
    "bf16, differentiable": (
        {"state_dtype": torch.bfloat16, **DIFFERENTIABLE}, torch.float32, ValueError,
    ),
    "stochastic_rounding": ({"stochastic_rounding": "yes"}, torch.float32, ValueError),
    "negative seed": ({"seed": -1}, torch.float32, ValueError),
    "large seed": ({"seed": 2**63}, torch.float32, ValueError),
    "fractional seed": ({"seed": 0.5}, torch.float32, ValueError),
}  # fmt: skip


@pytest.mark.parametrize(("options", "dtype", "kind"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_in_one_sentence(options, dtype, kind):
    param = Parameter(torch.zeros(64, 64, dtype=dtype))
    found, text = error_of(ProxAdam, [param], **options)
    assert found is kind
    assert "\n" not in text
    optimizer = ProxAdam([Parameter(torch.zeros(3))])
    group = {"params": [param], **options}
    assert error_of(optimizer.add_param_group, group) == (found, text)
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("name", "value"), [("amsgrad", True), ("state_dtype", "4bit"), ("seed", -3)], ids=str
)
def test_what_cannot_be_is_refused_in_the_middle_of_a_run(any_backend, name, value):
    optimizer = optimizer_over([(64, 64), (7,)], torch.float32, any_backend, state_dtype="8bit")
    step(optimizer, 2)
    before = snapshot(optimizer)
    optimizer.param_groups[0][name] = value
    assert error_of(step, optimizer)[0] is ValueError
    assert_same_bits(snapshot(optimizer), before)


def _spoil_length(state):
    state["exp_avg_exponent"] = state["exp_avg_exponent"][:-1].clone()


def _spoil_dtype(state):
    state["exp_avg_sq_exponent"] = state["exp_avg_sq_exponent"].int()


def _spoil_codes(state):
    state["exp_avg_code"] = state["exp_avg_code"].float()


def _spoil_type(state):
    state["exp_avg_code"] = None


def _spoil_names(state):
    """Codes whose second moment is in floats too: the lists were of different lengths."""
    state["exp_avg"] = torch.zeros(64, 65)
    state["exp_avg_sq_code"] = torch.zeros(3)


def _spoil_shape(state):
    state["exp_avg_sq_code"] = state["exp_avg_sq_code"].T


def _share(state):
    state["exp_avg_sq_exponent"] = state["exp_avg_exponent"]


@pytest.mark.parametrize(
    "spoil",
    [_spoil_length, _spoil_dtype, _spoil_codes, _spoil_type, _spoil_names, _spoil_shape, _share],
    ids=lambda f: f.__name__,
)
def test_state_that_does_not_fit_is_refused_and_nothing_written(any_backend, spoil):
    shapes = [(64, 65), (70, 70), (7,)]
    optimizer = optimizer_over(shapes, torch.float32, any_backend, state_dtype="8bit")
    step(optimizer, 2)
    spoil(optimizer.state[params_of(optimizer)[0]])
    before = snapshot(optimizer)
    kind, text = error_of(step, optimizer)
    assert kind in (RuntimeError, ValueError), text
    assert "\n" not in text
    assert_same_bits(snapshot(optimizer), before)


@pytest.mark.parametrize("number", [torch.ones(70, 61), 0.5, -1, 2**31, 10**400, True, None, "3"])
@pytest.mark.parametrize("kept", [torch.bfloat16, "8bit"], ids=str)
def test_a_number_that_is_no_place_is_refused_and_nothing_written(any_backend, kept, number):
    """It stopped torch ops in the middle of a step."""
    optimizer = optimizer_over([(70, 61), (7,)], torch.float32, any_backend, state_dtype=kept)
    step(optimizer, 2)
    optimizer.state[params_of(optimizer)[1]]["number"] = number
    before = snapshot(optimizer)
    kind, text = error_of(step, optimizer)
    assert kind is ValueError
    assert text.startswith("the number in a parameter's state is ")
    assert_same_bits(snapshot(optimizer), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_counts_in_other_dtypes_are_stepped(any_backend, dtype):
    """Of those in 16 bits _foreach_ ops made an error, behind the step of another format."""
    optimizer = optimizer_over(
        [(70, 61), (7,), (5,)], torch.float32, any_backend, state_dtype="8bit"
    )
    step(optimizer, 2)
    own = optimizer.state[params_of(optimizer)[1]]
    own["step"] = own["step"].to(dtype)
    if any_backend.is_kernel and dtype.itemsize == 2:
        assert error_of(step, optimizer)[0] is RuntimeError
        return
    step(optimizer)
    assert [float(own["step"]) for own in optimizer.state.values()] == [3, 3, 3]
