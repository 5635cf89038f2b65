"""Rows that l21 takes as one in the CUDA kernels: the bits of the CPU kernel.

Runs on a GPU; and without one, as csrc/cuda compiled for the host, from test_cuda_on_host.py.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from proxadam import backends
from proxadam._step.options import Options
from test_cuda_kernel import DEVICE, GPU, HOST, Kernel
from test_small_state_on_cuda import (
    BF16,
    BLOCK,
    CODES,
    F16,
    F32,
    NAMES,
    STRETCH,
    ToNearest,
    assert_same,
    group_of,
    on_cpu,
    options_of,
    step_both,
)
from tools import assert_same_bits

pytestmark = pytest.mark.skipif(
    not (HOST or GPU),
    reason=f"{backends.reason_for_fallback('cuda')} (its source runs in test_cuda_on_host.py)",
)

F64 = torch.float64
PLACES = ("shifts", "seed", "offset", "step")
# Every (param, grad, state) that there are kernels for.
TYPES = [(F64, F64, F64), (F32, F32, F32), (F32, F32, BF16), (F32, F32, CODES)]
TYPES += [
    (param, grad, state)
    for param in (BF16, F16)
    for grad in (param, F32)
    for state in dict.fromkeys((param, BF16, F32, CODES))
]
PLAIN = [types for types in TYPES if types[2] != CODES]
FEW = [(F64, F64, F64), (F32, F32, F32), (BF16, BF16, BF16), (F16, F32, F32), (F32, F32, CODES)]


def each(name, types=TYPES):
    ids = ["-".join({F64: "fp64", **NAMES}[of] for of in each) for each in types]
    return pytest.mark.parametrize(name, types, ids=ids)


@pytest.fixture(params=[True, False], ids=["host-step", "device-step"])
def kernel(request):
    return Kernel(request.param)


# (rows, elements of one): around the lanes of a warp, vectors, segments of a sum, and what a warp
# and a block take.
SHORT = [(5, 1), (5, 2), (5, 9), (3, 27), (2, 31), (2, 32), (2, 33), (6, 40), (3, 255), (2, 256)]
LONG = [(3, 1000), (2, 1024), (2, 1025), (1, 4096), (2, 5000), (1, 8192)]
CODED = [(5, 256), (2, 512), (2, 1024), (1, 1280), (1, 8192)]
FEW_SHAPES = [(5, 1), (10, 27), (5, 40), (2, 1025)]
SCALES = [1.0, 0.01, 10.0, 0.0, 0.3]  # of rows, in turn

UPDATES = {
    "rows alone": {"l1": 0.0, "l2": 0.0},
    "adaptive": {},
    "L1": {"l2": 0.0, "maximize": True},
    "euclidean": {"metric": "euclidean", "max_shrink": 20.0},
    "knee": {"l1_knee": 0.5, "keep_zeros": True},
    "euclidean knee": {"metric": "euclidean", "l1_knee": 0.5},
    "bounded": {"max_shrink": 1.0},
    "Adam": {"l1": 0.0, "decoupled_weight_decay": False, "max_shrink": math.inf},
    "frozen": {"lr": 0.0},
}


def longest(types):
    return 4096 if types[0] == F64 else 8192


def shapes_of(types, shapes=FEW_SHAPES):
    """Those of the shapes that the kernel takes in these types; for codes others."""
    if types[2] == CODES:
        return CODED if shapes is not FEW_SHAPES else CODED[:3]
    return [shape for shape in shapes if shape[1] <= longest(types)]


def rows_of(types, shapes=None, *, by_chance=None, cls=Options, **given):
    """A group of matrices with rows that are small, large or 0."""
    placed = {name: given.pop(name) for name in PLACES if name in given}
    shapes = shapes_of(types) if shapes is None else shapes
    if by_chance is None:  # where nothing else is legal
        by_chance = types[2] == CODES or (types[2] == BF16 and types[0] != BF16)
    defaults = {"l1": 0.03, "l21": 2.0}
    if types[2] == CODES:
        placed["exponents"] = [127]
    if not by_chance:
        defaults |= {"state_dtype": F32 if types[2] == F32 else None, "stochastic_rounding": False}
    options = options_of(types, cls=cls, **{**defaults, **given})
    group = group_of(types, [rows * row for rows, row in shapes], options, **placed)
    for name in ("params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"):
        tensors = getattr(group, name)
        tensors[:] = [t.view(shape) for t, shape in zip(tensors, shapes, strict=False)]
    if types[2] == CODES:
        for codes in group.exp_avg_sqs:  # of four binades
            codes.copy_(codes % 32 + 192)
    for param in group.params:
        scales = torch.tensor([SCALES[i % len(SCALES)] for i in range(len(param))])
        param.mul_(scales.to(param.device, param.dtype)[:, None])
    return group


def assert_as_cpu(kernel, groups, scale=None):
    """The kernel takes every row, to the bits of the CPU kernel."""
    assert_same(groups, step_both(kernel, groups, scale))


def dead_rows(group):
    return [bool((row == 0).all()) for param in group.params for row in param]


# ---- the bits of the CPU kernel ---------------------------------------------------------------


@each("types", FEW)
@pytest.mark.parametrize("update", UPDATES)
def test_every_update(types, update):
    group = rows_of(types, **UPDATES[update])
    before = dead_rows(group)
    assert_as_cpu(Kernel(True), [group])
    after = dead_rows(group)
    if update == "frozen":
        assert after == before
    elif update != "bounded":
        assert 0 < sum(after) < len(after)


@each("types")
def test_rows_of_every_length(types):
    """Of two steps, the second of what the first has written."""
    group = rows_of(types, shapes_of(types, SHORT + LONG))
    for _ in range(2):
        assert_as_cpu(Kernel(True), [group])


@each("types")
def test_rows_that_are_a_step_on_the_device(types):
    assert_as_cpu(Kernel(False), [rows_of(types)])


@each("types", PLAIN)
def test_amsgrad(types):
    assert_as_cpu(Kernel(True), [rows_of(types, amsgrad=True)])


@each("types", [t for t in PLAIN if t[0] in (BF16, F16)])
@pytest.mark.parametrize("rounds", [{}, {"stochastic_rounding": False}, {"state_dtype": None}])
def test_rounding_by_chance(types, rounds):
    """Of moments and parameters, or of either alone."""
    if types[2] == BF16 and types[0] == F16 and "state_dtype" in rounds:
        pytest.skip("bfloat16 beside float16 is rounded by chance alone")
    group = rows_of(types, by_chance=True, amsgrad=True, **rounds)
    assert_as_cpu(Kernel(True), [group])


def test_codes_to_the_nearest():
    assert_as_cpu(Kernel(True), [rows_of((F32, F32, CODES), cls=ToNearest)])


# ---- where they lie ---------------------------------------------------------------------------


SHIFTS = [(1, 1, 1, 1, 1), (4, 4, 4, 4, 4), (1, 0, 0, 0, 0), (0, 2, 0, 0, 0), (0, 0, 1, 0, 0)]
SHIFTS += [(0, 0, 0, 3, 0), (0, 0, 0, 0, 1)]


@each("types", FEW)
def test_every_alignment(types):
    """Beside neighbours that stay."""
    amsgrad = types[2] != CODES
    groups = [rows_of(types, amsgrad=amsgrad, shifts=shifts) for shifts in SHIFTS]
    lists = [tensors for group in groups for tensors in group.lists().values()]
    views = [view for tensors in lists for view in tensors if view._base is not None]
    before = [view._base.clone() for view in views]
    assert_as_cpu(Kernel(True), groups)
    for view, old in zip(views, before, strict=True):
        start, end = view.storage_offset(), view.storage_offset() + view.numel()
        assert_same_bits(view._base[:start], old[:start], "what lies before a tensor")
        assert_same_bits(view._base[end:], old[end:], "what lies behind a tensor")


@each("types", [(BF16, F32, BF16), (F32, F32, BF16), (F16, F16, CODES)])
def test_shards_that_cross_a_multiple_of_2_to_the_32(kernel, types):
    """Between rows, within one, and within a vector of elements."""
    places = [256, 512, 1024] if types[2] == CODES else [4, 27, 81, 139, 1100]
    groups = [rows_of(types, by_chance=True, offset=STRETCH - place) for place in places]
    assert_as_cpu(kernel, groups)


def test_what_is_drawn_depends_on_the_place_of_an_element_alone():
    """And on nothing that l21 adds: moments have the bits that they have without it."""
    types = (BF16, BF16, BF16)
    rows, elements = (rows_of(types, by_chance=True, l21=l21, l1=0.0, l2=0.0) for l21 in (2.0, 0.0))
    step_both(Kernel(True), [rows, elements])
    for name in ("exp_avgs", "exp_avg_sqs"):
        for a, b in zip(getattr(rows, name), getattr(elements, name), strict=True):
            assert_same_bits(a, b, name)


def test_columns_of_a_batch_and_channels_that_lie_last():
    """A row is what its first index tells apart, in whichever order its elements lie."""
    group = rows_of((F32, F32, F32), [(6, 2 * 3 * 5)])
    lists = (group.params, group.grads, group.exp_avgs, group.exp_avg_sqs)
    for tensors in lists:
        tensors[0] = tensors[0].view(6, 3, 5, 2).permute(0, 3, 1, 2)
    assert_as_cpu(Kernel(True), [group])


# ---- tables and launches ----------------------------------------------------------------------


def test_more_matrices_and_groups_than_a_table_holds(kernel):
    """At steps of their own, beside groups whose elements go by themselves."""
    types = (F32, F32, F32)
    groups = [rows_of(types, [(1, 1 + 7 * i % 41) for i in range(200)] + [(7, 3), (1, 1030)])]
    for i in range(50):
        options = {"lr": 0.01 + i / 1000, "l21": i % 3 * 1.5}
        groups.append(rows_of(types, [(1, 9)], seed=i, step=i % 2 + 1.0, **options))
    assert_as_cpu(kernel, groups)


def test_more_rows_than_a_block_takes(kernel):
    """Matrices of many blocks, with rows that a warp takes and rows that a block takes."""
    types = (F32, F32, F32)
    assert_as_cpu(kernel, [rows_of(types, [(41, 33), (5, 1025), (1, 2)])])


def test_vectors_and_scalars_go_by_their_elements(kernel):
    group = rows_of((F32, F32, F32), [(4, 9), (1, 40), (1, 1)])
    for tensors in (group.params, group.grads, group.exp_avgs, group.exp_avg_sqs):
        tensors[1:] = [tensors[1].view(40), tensors[2].view(())]
    assert_as_cpu(kernel, [group])


def test_every_format_in_one_step(kernel):
    assert_as_cpu(kernel, [rows_of(types, seed=i) for i, types in enumerate(FEW)])


@each("types", [*FEW, (BF16, F32, CODES)])
def test_rows_that_are_too_long_are_handed_back(kernel, types):
    """For torch ops to step; and codes whose rows are not of whole blocks are."""
    within, beyond = (2, longest(types)), (2, longest(types) + 1)
    if types[2] == CODES:
        beyond = (1, longest(types) + BLOCK)
    shapes = [within, beyond, *([(2, 384)] if types[2] == CODES else [])]
    group = rows_of(types, shapes)
    before = on_cpu(group)
    group.state_steps = [kernel.step_at(step.item()) for step in group.state_steps]
    plan = kernel([group])
    assert plan.rejected == [(0, i, "rows", "params") for i in range(1, len(shapes))]
    assert_same([group], [before])


# ---- numbers ----------------------------------------------------------------------------------


@each("types", FEW)
@pytest.mark.parametrize("edge", [math.nan, math.inf, -math.inf, 3e38, 1e30, 1e-30, 1e-38, 1e-45])
def test_a_number_that_is_not_an_ordinary_one_stays_in_its_row(types, edge):
    """As a gradient, a parameter and a second moment; zeros beside it."""
    names = ["grads", "params"] + (["exp_avg_sqs"] if types[2] != CODES else [])
    groups = []
    for name in names:
        for update in ("adaptive", "knee", "Adam"):
            group = rows_of(types, shapes_of(types)[1:3], **UPDATES[update])
            for tensor in getattr(group, name):
                value = abs(edge) if name == "exp_avg_sqs" else edge
                tensor[1::3, 3::11] = value
                tensor[2::3, ::2] = 0.0
            groups.append(group)
    assert_as_cpu(Kernel(True), groups)
    for group in groups:
        for param in group.params:
            assert not param[0].isnan().any()


@each("types", [(F32, F32, F32), (F64, F64, F64), (BF16, F32, F32)])
@pytest.mark.parametrize("eps", [0.0, 1e-20, 1e20])
def test_metrics_of_every_size(types, eps):
    """Pulls that differ by 10^8 within a row, and those that are beyond what is stored."""
    groups = []
    for update in ("rows alone", "adaptive", "euclidean knee"):
        group = rows_of(types, [(6, 40), (3, 300)], eps=eps, **UPDATES[update])
        for second, grad in zip(group.exp_avg_sqs, group.grads, strict=True):
            sizes = 10.0 ** torch.linspace(-16, 6, second.shape[1])
            second.copy_(second.float().cpu() * sizes)
            grad.copy_(grad.float().cpu() * sizes.sqrt())
        groups.append(group)
    for _ in range(2):
        assert_as_cpu(Kernel(True), groups)


@each("types", FEW)
def test_rows_that_are_all_dead(types):
    group = rows_of(types, l21=1e6, max_shrink=math.inf)
    for _ in range(2):
        assert_as_cpu(Kernel(True), [group])
        assert all(dead_rows(group))


# ---- what is read on the device ---------------------------------------------------------------


@each("types", [*FEW, (BF16, F32, BF16)])
def test_gradients_are_unscaled_and_written_back(types):
    groups = [rows_of(types, shifts=(n,) * 5) for n in (0, 2)]
    assert_as_cpu(Kernel(False), groups, scale=3.0)


@each("types", FEW)
def test_found_inf_leaves_everything_as_it_is(types):
    kernel = Kernel(False)
    group = rows_of(types)
    before = on_cpu(group)
    group.state_steps = [kernel.step_at(step.item()) for step in group.state_steps]
    scale, found_inf = (torch.tensor(x, device=DEVICE) for x in (1024.0, 1.0))
    assert kernel([group], scale, found_inf) is None
    assert_same([group], [before])


@each("types", FEW)
def test_options_and_steps_on_the_device(kernel, types):
    """A row's pull is computed there, and with lr = 0 nothing of it moves but its moments."""
    group = rows_of(types)
    values = {"lr": 0.05, "l21": 2.0, "max_shrink": 10.0}
    on_device = {name: torch.tensor(value, device=DEVICE) for name, value in values.items()}
    base = group.options
    for change in ({}, {"lr": 0.0}, {"lr": 0.1, "l21": 1.25}, {"max_shrink": 2.0}):
        values |= change
        for name, tensor in on_device.items():
            tensor.fill_(values[name])
        expected = on_cpu(group)
        expected.options = replace(base, **{n: float(t.double()) for n, t in on_device.items()})
        group.options = replace(base, **on_device)
        group.state_steps = [kernel.step_at(step.item()) for step in expected.state_steps]
        assert kernel([group]) is None
        assert backends.kernel("cpu").admit([expected]) is None
        if GPU and types[0] == F64:  # a GPU's power may differ in its last place
            for name, tensors in group.lists().items():
                torch.testing.assert_close(
                    [t.cpu() for t in tensors], expected.lists()[name], rtol=1e-13, atol=1e-15
                )
        else:
            assert_same([group], [expected])
