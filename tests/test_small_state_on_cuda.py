"""Small state and rounding by chance in the CUDA kernels: the bits of the CPU kernel.

Runs on a GPU; and without one, as csrc/cuda compiled for the host, from test_cuda_on_host.py.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from proxadam import backends
from proxadam._step.group import Group
from proxadam._step.options import EIGHT_BITS, Options
from test_cuda_kernel import DEVICE, GPU, HOST, Kernel
from tools import assert_same_bits

pytestmark = pytest.mark.skipif(
    not (HOST or GPU),
    reason=f"{backends.reason_for_fallback('cuda')} (its source runs in test_cuda_on_host.py)",
)

BLOCK = 256  # of codes, in csrc/codes.h
STRETCH = 2**32  # elements with one key, in csrc/rounding.h
F32, BF16, F16, CODES = torch.float32, torch.bfloat16, torch.float16, torch.uint8
NAMES = {F32: "fp32", BF16: "bf16", F16: "fp16", CODES: "codes"}

# Every (param, grad, state) of which something may be rounded by chance.
TYPES = [(F32, F32, BF16), (F32, F32, CODES)]
TYPES += [
    (param, grad, state)
    for param in (BF16, F16)
    for grad in (param, F32)
    for state in dict.fromkeys((param, BF16, F32, CODES))
]
each_types = pytest.mark.parametrize(
    "types", TYPES, ids=lambda types: "-".join(NAMES[of] for of in types)
)
# Blocks that are cut short, several of them, and chunks. The host's are of 256 to 2048 elements.
SIZES = [1, 0, 255, 256, 257, 2051]
LARGE = 9001 if HOST else 200_001
UPDATES = {
    "adaptive": {},
    "L1 alone": {"l2": 0.0},
    "euclidean": {"metric": "euclidean"},
    "knee": {"l1_knee": 0.5, "keep_zeros": True},
    "adam": {"l1": 0.0, "l2": 0.0, "decoupled_weight_decay": False, "maximize": True},
    "frozen": {"lr": 0.0},
}


@pytest.fixture(params=[True, False], ids=["host-step", "device-step"])
def kernel(request):
    return Kernel(request.param)


class ToNearest(Options):
    """Options that no user can have: nothing is rounded by chance, codes included."""

    stochastic_state = False
    stochastic_params = False


def options_of(types, cls=Options, **changed):
    state = {CODES: EIGHT_BITS, BF16: BF16}.get(types[2])
    defaults = {
        "lr": 0.05, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1, "l1": 0.3, "l2": 0.2,
        "decoupled_weight_decay": True, "state_dtype": state, "stochastic_rounding": True,
        "seed": 2**40 + 3,
    }  # fmt: skip
    return cls(**{**defaults, **changed})


def shifted(values, dtype, shift):
    """The values at an offset of so many elements in a buffer of their own."""
    whole = torch.zeros(len(values) + shift + 3, dtype=dtype)
    whole[shift : shift + len(values)] = values
    return whole.to(DEVICE)[shift : shift + len(values)]


def group_of(types, sizes, options, *, shifts=(0,) * 5, seed=0, offset=0, step=4.0, exponents=None):
    """Random tensors of these sizes; `shifts` are those of params, grads, moments and maxima."""
    generator = torch.Generator().manual_seed(seed)
    group = Group.empty(options)
    of = dict(zip(("param", "grad", "state"), types, strict=True))
    for number, numel in enumerate(sizes):
        param, grad, first, second, maximum = torch.randn(5, numel, generator=generator)
        param[::5] = 0.0
        blocks = -(-numel // BLOCK)
        if of["state"] == CODES:
            first, second = torch.randint(256, (2, numel), generator=generator)
            first[::7] = second[::7] = 0
            for name, low in (("exp_avg", 118), ("exp_avg_sq", 112)):
                drawn = torch.randint(low, low + 12, (blocks,), generator=generator)
                lowest = 31 if name == "exp_avg_sq" else 15
                if exponents is not None:
                    drawn = torch.tensor(exponents).clamp(lowest).repeat(blocks)
                lists = getattr(group, f"{name}_exponents")
                lists.append(shifted(drawn[:blocks], CODES, number % 3))
        else:
            second, maximum = second.square() + 0.01, maximum.square() + 0.01
        group.params.append(shifted(param, of["param"], shifts[0]))
        group.grads.append(shifted(grad, of["grad"], shifts[1]))
        group.exp_avgs.append(shifted(first, of["state"], shifts[2]))
        group.exp_avg_sqs.append(shifted(second, of["state"], shifts[3]))
        if options.amsgrad:
            group.max_exp_avg_sqs.append(shifted(maximum, of["state"], shifts[4]))
        group.numbers.append(7 * number + 2**33)
        group.offsets.append(offset)
        group.state_steps.append(torch.tensor(step + number % 2))
    return group


def on_cpu(group):
    """The same numbers in buffers of their own."""
    lists = {name: [t.to("cpu", copy=True) for t in ts] for name, ts in group.lists().items()}
    empty = {"max_exp_avg_sqs": []}
    return Group(**empty | lists, options=group.options, numbers=group.numbers,
                 offsets=group.offsets)  # fmt: skip


def step_both(kernel, groups, scale=None):
    """A step of the CUDA kernel and one of the CPU kernel; returns the CPU kernel's groups."""
    expected = [on_cpu(group) for group in groups]
    for group in groups:
        group.state_steps = [kernel.step_at(step.item()) for step in group.state_steps]
    given = None if scale is None else torch.tensor(scale, device=DEVICE)
    assert kernel(groups, given) is None
    scales = [] if scale is None else [torch.tensor(scale)]
    assert backends.kernel("cpu").admit(expected, scales) is None
    return expected


def assert_same(groups, expected):
    """To the bit, but for the bits of NaNs."""
    for group, other in zip(groups, expected, strict=True):
        for name, tensors in other.lists().items():
            for i, (actual, b) in enumerate(zip(getattr(group, name), tensors, strict=True)):
                a, what = actual.cpu(), f"{name}[{i}]"
                if a.is_floating_point():
                    assert torch.equal(a.isnan(), b.isnan()), what
                    a, b = (t.where(~t.isnan(), 7.0) for t in (a, b))
                assert_same_bits(a, b, what)


# ---- every kernel -----------------------------------------------------------------------------


def groups_of(types, sizes, settings, **changed):
    """A group for each dict of settings: options, or arguments of group_of."""
    groups = []
    for seed, setting in enumerate(settings):
        given = {name: setting[name] for name in ("shifts", "offset") if name in setting}
        options = {name: value for name, value in setting.items() if name not in given}
        options = options_of(types, **{**options, **changed})
        groups.append(group_of(types, sizes, options, seed=seed, **given))
    return groups


@each_types
def test_the_bits_of_the_cpu_kernel(kernel, types):
    """Of two steps, the second of what the first has written."""
    groups = groups_of(types, [*SIZES, LARGE], UPDATES.values())
    for _ in range(2):
        assert_same(groups, step_both(kernel, groups))


@each_types
def test_either_alone(types):
    """Chance for moments and not for parameters, and the other way round."""
    alone = [{"stochastic_rounding": False}]
    if types[2] != BF16 or types[0] == BF16:  # others are rounded by chance alone
        alone.append({"state_dtype": None})
    groups = groups_of(types, SIZES, alone)
    assert_same(groups, step_both(Kernel(True), groups))


@pytest.mark.parametrize("types", [t for t in TYPES if t[2] == CODES], ids=str)
def test_codes_to_the_nearest(types):
    groups = groups_of(types, SIZES, UPDATES.values(), cls=ToNearest)
    assert_same(groups, step_both(Kernel(True), groups))


@pytest.mark.parametrize("types", [t for t in TYPES if t[2] != CODES], ids=str)
def test_the_maximum_is_rounded_to_the_nearest(types):
    settings = [{**options, "shifts": (i % 4,) * 5} for i, options in enumerate(UPDATES.values())]
    groups = groups_of(types, SIZES, settings, amsgrad=True)
    assert_same(groups, step_both(Kernel(True), groups))


# ---- where they lie ---------------------------------------------------------------------------


SHIFTS = [(1, 1, 1, 1, 1), (4, 4, 4, 4, 4), (8, 8, 4, 12, 8), (1, 0, 0, 0, 0), (0, 2, 0, 0, 0)]
SHIFTS += [(0, 0, 1, 0, 0), (0, 0, 0, 3, 0), (3, 2, 1, 0, 1)]


@each_types
def test_the_bits_of_the_cpu_kernel_at_every_alignment(types):
    """Beside neighbours that stay."""
    groups = groups_of(types, SIZES, [{"shifts": shifts} for shifts in SHIFTS])
    lists = [tensors for group in groups for tensors in group.lists().values()]
    views = [view for tensors in lists for view in tensors if view._base is not None]
    before = [view._base.clone() for view in views]
    assert_same(groups, step_both(Kernel(True), groups))
    for view, old in zip(views, before, strict=True):
        start, end = view.storage_offset(), view.storage_offset() + view.numel()
        assert_same_bits(view._base[:start], old[:start], "what lies before a tensor")
        assert_same_bits(view._base[end:], old[end:], "what lies behind a tensor")


OFFSETS = [STRETCH - BLOCK, STRETCH - 2 * BLOCK, STRETCH, 3 * STRETCH - 2048, 2**40]


@each_types
def test_shards_that_cross_a_multiple_of_2_to_the_32(kernel, types):
    groups = groups_of(types, SIZES, [{"offset": offset} for offset in OFFSETS])
    assert_same(groups, step_both(kernel, groups))


@pytest.mark.parametrize("types", [t for t in TYPES if t[2] != CODES], ids=str)
@pytest.mark.parametrize("amsgrad", [False, True], ids=["", "amsgrad"])
def test_a_vector_of_elements_with_two_keys(types, amsgrad):
    places = itertools.product([1, 3, 258, 2049], [0, 1])
    settings = [{"offset": STRETCH - n, "shifts": (shift,) * 5} for n, shift in places]
    groups = groups_of(types, SIZES, settings, amsgrad=amsgrad)
    assert_same(groups, step_both(Kernel(True), groups))


def test_what_is_drawn_depends_on_seed_tensor_step_and_place(kernel):
    """One number in every element: what differs was drawn."""
    types = (BF16, BF16, BF16)

    def stepped(number=0, offset=0, step=1.0, **options):
        group = group_of(types, [4096], options_of(types, **options), offset=offset, step=step)
        for tensors, value in ((group.params, 1.0), (group.grads, 0.123), (group.exp_avgs, 0.0)):
            tensors[0].fill_(value)
        group.exp_avg_sqs[0].fill_(0.7)
        group.numbers = [number]
        step_both(kernel, [group])
        return group.params[0], group.exp_avgs[0], group.exp_avg_sqs[0]

    first = stepped()
    assert all(len(t.unique()) == 2 for t in first)
    assert all(torch.equal(a, b) for a, b in zip(first, stepped(), strict=True))
    others = [stepped(number=1), stepped(offset=STRETCH), stepped(offset=1), stepped(seed=5)]
    for a, b in itertools.combinations([first, *others], 2):
        assert not any(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert torch.equal(first[1][1:], others[2][1][:-1])  # the same elements of the tensor
    assert not torch.equal(first[1], stepped(step=2.0)[1])


# ---- numbers ----------------------------------------------------------------------------------


@each_types
@pytest.mark.parametrize("shift", [0, 1])
def test_numbers_that_the_short_sequences_are_not_for(types, shift):
    """Zeros, tiny and huge ones, NaN and infinity: their neighbours get what is theirs."""
    exponents = [15, 31, 40, 60, 77, 127, 200, 253]
    edges = torch.tensor([0.0, 1e-45, 1e-38, 1e-30, 1e30, 3e38, math.inf, math.nan])
    edges = torch.cat([edges, -edges])
    groups = [
        group_of(types, SIZES, options_of(types, **options), exponents=exponents,
                 shifts=(shift,) * 5)
        for options in UPDATES.values()
    ]  # fmt: skip
    for grad, start in zip((g for group in groups for g in group.grads), itertools.cycle(range(3))):
        few = grad[start::61]
        few.copy_(edges.repeat(len(few))[: len(few)])
    assert_same(groups, step_both(Kernel(True), groups))


@pytest.mark.parametrize("param", [F32, BF16, F16], ids=NAMES.get)
@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
def test_what_is_not_finite_stays_alone(kernel, param, bad):
    """255 neighbours keep their exponent, and get the bits that they get beside a zero gradient."""
    types = (param, param, CODES)
    groups = [group_of(types, [4 * BLOCK], options_of(types, l1=0.0, l2=0.0)) for _ in range(2)]
    at = [0, 300, 4 * BLOCK - 1]
    for group, value in zip(groups, (bad, 0.0), strict=True):
        group.grads[0][at] = value
        for codes in (group.exp_avgs[0], group.exp_avg_sqs[0]):
            codes[at] = 0
    assert_same(groups, step_both(kernel, groups))
    spoilt, sound = groups
    others = torch.ones(4 * BLOCK, dtype=torch.bool)
    others[at] = False
    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        a, b = (getattr(group, name)[0].cpu()[others] for group in groups)
        assert_same_bits(a, b, name)
    assert_same_bits(spoilt.exp_avg_exponents[0], sound.exp_avg_exponents[0])
    assert_same_bits(spoilt.exp_avg_sq_exponents[0], sound.exp_avg_sq_exponents[0])
    assert spoilt.params[0][at].isnan().all()
    assert (spoilt.exp_avg_sqs[0][at] == 255).all()


# ---- what is read on the device ---------------------------------------------------------------


@each_types
def test_gradients_are_unscaled_and_written_back(types):
    both = itertools.product(UPDATES.values(), [0, 2])
    groups = groups_of(types, SIZES, [{**options, "shifts": (n,) * 5} for options, n in both])
    assert_same(groups, step_both(Kernel(False), groups, scale=3.0))


@each_types
@pytest.mark.parametrize("shift", [0, 1])
def test_found_inf_leaves_everything_as_it_is(types, shift):
    kernel = Kernel(False)
    group = group_of(types, SIZES, options_of(types), shifts=(shift,) * 5)
    before = on_cpu(group)
    group.state_steps = [kernel.step_at(step.item()) for step in group.state_steps]
    scale, found_inf = (torch.tensor(x, device=DEVICE) for x in (1024.0, 1.0))
    assert kernel([group], scale, found_inf) is None
    assert_same([group], [before])


def test_options_and_steps_on_the_device(kernel):
    """What is drawn follows the step that is counted there."""
    types = (F32, F32, CODES)
    lr = torch.tensor(0.25, device=DEVICE)
    group = group_of(types, SIZES, options_of(types))
    for value in (0.25, 0.0, 0.5):
        lr.fill_(value)
        expected = on_cpu(group)
        expected.options = options_of(types, lr=value)
        group.options = options_of(types, lr=lr)
        if not kernel.steps_on_host or value == 0.25:
            group.state_steps = [kernel.step_at(s.item()) for s in group.state_steps]
        assert kernel([group]) is None
        assert backends.kernel("cpu").admit([expected]) is None
        assert_same([group], [expected])


# ---- tables -----------------------------------------------------------------------------------


def test_more_tensors_than_a_table_has_rows(kernel):
    """Of every pair of types at once: with their keys, exponents and offsets."""
    sizes = [i % 7 * 90 + (3000 if i % 200 == 199 else 0) for i in range(500)]
    groups = [
        group_of(types, sizes, options_of(types), seed=i) for i, types in enumerate(TYPES[:4])
    ]
    assert_same(groups, step_both(kernel, groups))


def test_more_groups_than_a_table_holds(kernel):
    groups = []
    for g in range(90):
        types = TYPES[g % 2]
        options = options_of(types, lr=0.01 + g / 1000, seed=g)
        groups.append(group_of(types, [g + 1, 300], options, seed=g, step=float(g % 3)))
    assert_same(groups, step_both(kernel, groups))


def test_chance_and_none_in_one_step(kernel):
    """The kernels that know of no chance take what is not rounded by it."""
    groups = [group_of(types, SIZES, options_of(types), seed=i) for i, types in enumerate(TYPES)]
    for own in (F32, BF16, F16):
        groups.append(group_of((own,) * 3, SIZES, options_of((own,) * 3, ToNearest)))
    for param in (BF16, F16):
        types = (param, F32, F32)
        groups.append(group_of(types, SIZES, options_of(types, ToNearest)))
    assert_same(groups, step_both(kernel, groups))
