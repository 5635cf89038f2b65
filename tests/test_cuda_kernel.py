"""The CUDA kernel itself: tables, chunks and alignments, and what it reads on the device.

Runs on a GPU; and without one, as csrc/cuda compiled for the host, from test_cuda_on_host.py.
"""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cuda_on_host
from proxadam import backends
from proxadam._step.group import Group
from proxadam._step.options import Options
from storages import OWN, WIDE, each_dtype
from tools import assert_same_bits, error_of

HOST = cuda_on_host.directory() is not None
GPU = torch.cuda.is_available() and backends.kernel("cuda") is not None
DEVICE = "cpu" if HOST else "cuda"

pytestmark = pytest.mark.skipif(
    not (HOST or GPU),
    reason=f"{backends.reason_for_fallback('cuda')} (its source runs in test_cuda_on_host.py)",
)

# Around the width of a vector, the chunk of a small list, and several chunks of a large one.
SIZES = [1, 3, 0, 7, 8, 9, 255, 256, 257, 2048, 2049, 5000, 16_384, 16_387, 70_001]
NAMES = ("params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs")


class Kernel:
    """One step of the CUDA kernel on lists of tensors; its counters on the host or the device."""

    def __init__(self, steps_on_host):
        self.steps_on_host = steps_on_host
        if HOST:
            self.module, self.fake = cuda_on_host.modules()
        else:
            self.module, self.fake = backends.kernel("cuda"), None

    def __call__(self, groups, grad_scale=None, found_inf=None):
        if self.fake:
            steps = [s for g in groups for s in g.state_steps] if self.steps_on_host else []
            self.fake.keep_on_host({t.data_ptr() for t in steps})
        given = [[] if t is None else [t] for t in (grad_scale, found_inf)]
        return self.module.admit(groups, *given)

    def step_at(self, value, dtype=torch.float32):
        device = "cpu" if self.steps_on_host else DEVICE
        return torch.tensor(value, dtype=dtype, device=device)


@pytest.fixture(params=[True, False], ids=["host-step", "device-step"])
def kernel(request):
    return Kernel(request.param)


def lists(sizes, dtype, offset=0, seed=0, grad_dtype=None, state_dtype=None):
    """Random tensors of these sizes, each at an offset of so many elements in its own buffer."""
    generator = torch.Generator().manual_seed(seed)
    dtypes = (dtype, grad_dtype or dtype, *(state_dtype or dtype,) * 3)
    named = {}
    for i, (name, of) in enumerate(zip(NAMES, dtypes, strict=True)):
        shift = offset if isinstance(offset, int) else offset[i]
        named[name] = []
        for numel in sizes:
            values = torch.randn(numel + shift + 3, generator=generator)
            values = values.square() + 0.01 if "sq" in name else values
            if name == "params":
                values[::5] = 0.0
            named[name].append(values.to(of).to(DEVICE)[shift : shift + numel])
    return named


OPTIONS = {
    "lr": 0.05, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "l1": 0.3, "l2": 0.2,
    "l1_knee": math.inf, "metric": "adaptive", "max_shrink": 10.0, "keep_zeros": False,
    "amsgrad": True, "maximize": False, "decoupled_weight_decay": True, "foreach": None,
    "capturable": False, "differentiable": False, "fused": True,
}  # fmt: skip


def group_of(tensors, steps, **options):
    options = {**OPTIONS, **options}
    if not options["amsgrad"]:
        tensors = {**tensors, "max_exp_avg_sqs": []}
    return Group(**tensors, state_steps=steps, options=Options(**options))


def copied(tensors, device="cpu"):
    """Clones at the start of buffers of their own, on the CPU."""
    return {name: [t.detach().to(device, copy=True) for t in ts] for name, ts in tensors.items()}


def cpu_step(tensors, steps, **options):
    """The CPU kernel's step on the same numbers."""
    steps = [torch.tensor(float(s)) for s in steps]
    module = backends.kernel("cpu")
    assert module.admit([group_of(tensors, steps, **options)]) is None


def assert_as_cpu(actual, expected):
    """To the bit."""
    for name, tensors in expected.items():
        for a, b in zip(actual[name], tensors, strict=True):
            assert_same_bits(a.cpu(), b, name)


# ---- indexing ---------------------------------------------------------------------------------


UPDATES = {
    "adaptive": {"metric": "adaptive", "amsgrad": True},
    "euclidean": {"metric": "euclidean", "amsgrad": False},
    "knee": {"l1_knee": 0.5, "keep_zeros": True, "amsgrad": False},
    "euclidean knee": {"metric": "euclidean", "l1_knee": 0.5, "keep_zeros": True, "amsgrad": False},
    "adam": {"l1": 0.0, "l2": 0.0, "amsgrad": False, "decoupled_weight_decay": False},
}


@each_dtype
@pytest.mark.parametrize("options", UPDATES.values(), ids=UPDATES)
@pytest.mark.parametrize("offset", range(9))
def test_the_bits_of_the_cpu_kernel_at_every_alignment(kernel, dtype, offset, options):
    """Heads and tails of every length, in every type, beside neighbours that stay."""
    tensors = lists(SIZES, dtype, offset)
    whole = [t._base for ts in tensors.values() for t in ts]
    beside = [b.clone() for b in whole]
    expected = copied(tensors)
    steps = [kernel.step_at(4.0) for _ in SIZES]
    assert kernel([group_of(tensors, steps, **options)]) is None
    cpu_step(expected, [4.0] * len(SIZES), **options)
    assert_as_cpu(tensors, expected)
    assert all(step == 5 for step in steps)
    for base, before, numel in zip(whole, beside, itertools.cycle(SIZES), strict=False):
        outside = [base[:offset], base[offset + numel :]]
        for a, b in zip(outside, [before[:offset], before[offset + numel :]], strict=True):
            assert_same_bits(a, b, "what lies beside a tensor")


@each_dtype
@pytest.mark.parametrize("offsets", [(1, 0, 0, 0, 0), (0, 3, 0, 0, 0), (2, 2, 1, 0, 5)])
def test_buffers_that_are_aligned_differently(kernel, dtype, offsets):
    tensors = lists(SIZES, dtype, offsets)
    expected = copied(tensors)
    assert kernel([group_of(tensors, [kernel.step_at(0.0) for _ in SIZES])]) is None
    cpu_step(expected, [0.0] * len(SIZES))
    assert_as_cpu(tensors, expected)


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wide", ["grad", "state", "both"])
@pytest.mark.parametrize("offset", [0, 1, 4])
def test_float32_beside_16_bits(kernel, narrow, wide, offset):
    wide_grad = torch.float32 if wide != "state" else None
    wide_state = torch.float32 if wide != "grad" else None
    tensors = lists(SIZES, narrow, offset, grad_dtype=wide_grad, state_dtype=wide_state)
    expected = copied(tensors)
    assert kernel([group_of(tensors, [kernel.step_at(1.0) for _ in SIZES])]) is None
    cpu_step(expected, [1.0] * len(SIZES))
    assert_as_cpu(tensors, expected)


def test_more_tensors_and_groups_than_a_table_holds(kernel):
    """1100 tensors in 120 groups, at steps of their own: the room for constants runs out."""
    groups, expected = [], []
    for g in range(120):
        sizes = [(7 * g + i) % 23 for i in range(9)] + ([5000] if g % 50 == 0 else [])
        tensors = lists(sizes, torch.float32, seed=g)
        counts = [float((g + i) % 3) for i in range(len(sizes))]
        options = {"lr": 0.01 + g / 1000, "l1": g / 100}
        groups.append(group_of(tensors, [kernel.step_at(c) for c in counts], **options))
        expected.append(copied(tensors))
        cpu_step(expected[-1], counts, **options)
    assert kernel(groups) is None
    for group, tensors in zip(groups, expected, strict=True):
        actual = {name: getattr(group, name) for name in NAMES}
        assert_as_cpu(actual, tensors)
    assert [s.item() for s in groups[1].state_steps] == [(1 + i) % 3 + 1 for i in range(9)]


def test_more_tensors_than_a_table_has_rows(kernel):
    """One group, one step: what runs out is the room for addresses."""
    sizes = [i % 7 + (3000 if i % 400 == 399 else 0) for i in range(1000)]
    tensors = lists(sizes, torch.float32)
    expected = copied(tensors)
    steps = [kernel.step_at(1.0) for _ in sizes]
    assert kernel([group_of(tensors, steps)]) is None
    cpu_step(expected, [1.0] * len(sizes))
    assert_as_cpu(tensors, expected)
    assert all(step == 2 for step in steps)


def test_every_dtype_in_one_step(kernel):
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
    groups, expected = [], []
    for dtype in dtypes:
        tensors = lists(SIZES, dtype)
        groups.append(group_of(tensors, [kernel.step_at(2.0) for _ in SIZES]))
        expected.append(copied(tensors))
        cpu_step(expected[-1], [2.0] * len(SIZES))
    assert kernel(groups) is None
    for group, tensors in zip(groups, expected, strict=True):
        assert_as_cpu({name: getattr(group, name) for name in NAMES}, tensors)


@pytest.mark.parametrize("strides", [1, 4, 8])
@pytest.mark.parametrize("blocks_at_once", [1, 6, 312, 528])
def test_chunks_fit_the_device(kernel, blocks_at_once, strides):
    """Small lists are one round of blocks, large ones get the longest chunk."""
    chunk_for = kernel.module.chunk_for
    shortest = chunk_for(0, blocks_at_once, 1 << 30)
    longest = strides * shortest
    assert chunk_for(1 << 40, blocks_at_once, longest) == longest
    assert shortest % 8 == 0
    for numel in (1, 100_000, 1_000_000, 8_000_000, 1 << 33):
        chunk = chunk_for(numel, blocks_at_once, longest)
        assert shortest <= chunk <= longest
        assert chunk % shortest == 0
        if chunk < longest:
            assert numel / chunk <= blocks_at_once
        if chunk > shortest:
            assert numel / (chunk - shortest) > blocks_at_once


# ---- roots and divisions ----------------------------------------------------------------------


def test_roots_and_divisions_without_a_branch_round_as_ieee():
    """Every float on a GPU; on the host, whose approximations are other ones, a few."""
    stride = 99_991 if HOST else 1
    counts = Kernel(True).module.count_roundings(0, stride)
    inputs = 2**32 // stride
    # Positive numbers, less those that are too small or too large.
    assert counts["square_root"][0] > 0.4 * inputs
    assert counts["reciprocal"][0] > 0.9 * inputs
    assert counts["quotient"][0] > 0.3 * inputs
    assert {name: wrong for name, (_, wrong) in counts.items()} == dict.fromkeys(counts, 0)


EDGES = [0.0, -0.0, 1e-45, 1e-38, 2.0**-102, 2.0**-101, 1e-30, 1.0, 1e30, 2.0**125, 2.0**126]
EDGES += [3e38, math.inf, math.nan]


@pytest.mark.parametrize("options", [*UPDATES.values(), {"l2": 0.0, "amsgrad": False}], ids=str)
@pytest.mark.parametrize("eps", [0.0, 1e-8, 1e38])
def test_numbers_that_the_short_sequences_are_not_for(kernel, eps, options):
    """One in a vector sends the whole vector the other way; the rest of the tensor is as ever."""
    edges = torch.tensor([*EDGES, *(-x for x in EDGES)])
    few = lists([len(edges) ** 2], torch.float32)
    few["exp_avg_sqs"][0].copy_(edges.abs().repeat(len(edges)))
    few["grads"][0].copy_(edges.repeat_interleave(len(edges)))
    many = lists([40_000], torch.float32)
    many["exp_avg_sqs"][0][::997] = 1e-40
    many["grads"][0][::997] = 0.0
    tensors = {name: few[name] + many[name] for name in few}
    expected = copied(tensors)
    numbers = {"eps": eps, **options}
    assert kernel([group_of(tensors, [kernel.step_at(4.0) for _ in range(2)], **numbers)]) is None
    cpu_step(expected, [4.0, 4.0], **numbers)
    for name, ts in expected.items():
        for a, b in zip(tensors[name], ts, strict=True):
            a = a.cpu()
            assert torch.equal(a.isnan(), b.isnan()), name
            assert_same_bits(
                a.nan_to_num(nan=7.0, posinf=math.inf, neginf=-math.inf),
                b.nan_to_num(nan=7.0, posinf=math.inf, neginf=-math.inf),
                name,
            )


# ---- what the kernel reads on the device ------------------------------------------------------


@pytest.mark.parametrize("storage", OWN + WIDE, ids=lambda storage: storage.name)
@pytest.mark.parametrize("shape", [(), (1,)], ids=["scalar", "vector"])
def test_gradients_are_unscaled_and_written_back(storage, shape):
    kernel = Kernel(False)
    tensors = lists(SIZES, storage.param, 1, grad_dtype=storage.grad, state_dtype=storage.state)
    for grad in tensors["grads"]:
        grad.mul_(64).round_().div_(64)  # a 1024th of it is exact in every dtype
    expected = copied(tensors)
    expected["grads"] = [t / 1024 for t in expected["grads"]]
    steps = [kernel.step_at(0.0) for _ in SIZES]
    scale = torch.full(shape, 1024.0, device=DEVICE)
    found_inf = torch.zeros(shape, device=DEVICE)
    assert kernel([group_of(tensors, steps)], scale, found_inf) is None
    cpu_step(expected, [0.0] * len(SIZES))
    assert_as_cpu(tensors, expected)
    assert all(step == 1 for step in steps)


@pytest.mark.parametrize("found", [1.0, 2.0, math.inf], ids=str)
def test_found_inf_leaves_everything_as_it_is(found):
    """torch asks for == 1, and a sum over two devices is 2."""
    kernel = Kernel(False)
    tensors = lists(SIZES, torch.float32)
    before = copied(tensors)
    steps = [kernel.step_at(3.0) for _ in SIZES]
    scale, found_inf = (torch.tensor(x, device=DEVICE) for x in (1024.0, found))
    assert kernel([group_of(tensors, steps)], scale, found_inf) is None
    assert_as_cpu(tensors, before)
    assert all(step == 3 for step in steps)


@pytest.mark.parametrize("scalar", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_options_may_be_tensors_on_the_device(kernel, scalar):
    """Read when the kernel runs, so that they may change under a captured graph."""
    values = {"lr": 0.25, "beta1": 0.5, "beta2": 0.75, "l1": 0.125, "l2": 0.5}
    on_device = {k: torch.tensor(v, dtype=scalar, device=DEVICE) for k, v in values.items()}
    tensors = lists(SIZES, torch.float32)
    expected = copied(tensors)
    steps = [kernel.step_at(0.0) for _ in SIZES]
    for count, change in enumerate([{}, {"l1": 0.0, "l2": 0.0}, {"lr": 0.0}, {"lr": 0.5}]):
        for name, value in change.items():
            on_device[name].fill_(value)
        values |= change
        assert kernel([group_of(tensors, steps, **on_device)]) is None
        cpu_step(expected, [float(count)] * len(SIZES), **values)
        assert_as_cpu(tensors, expected)
    assert all(step == 4 for step in steps)


def test_counters_in_float64(kernel):
    tensors = lists([5, 6], torch.float32)
    steps = [kernel.step_at(2.0**40, torch.float64), kernel.step_at(2.0**20)]
    assert kernel([group_of(tensors, steps)]) is None
    assert [s.item() for s in steps] == [2.0**40 + 1, 2.0**20 + 1]


# ---- refusals ---------------------------------------------------------------------------------


def test_what_does_not_fit_is_handed_back_and_nothing_is_written(kernel):
    tensors = lists([40, 50, 60], torch.float32)
    tensors["grads"][1] = tensors["grads"][1].double()
    before = copied(tensors)
    steps = [kernel.step_at(0.0) for _ in range(3)]
    plan = kernel([group_of(tensors, steps)])
    assert plan.rejected == [(0, 1, "dtype", "grads")]
    assert_as_cpu(tensors, before)
    kernel.module.launch([plan])
    cpu_step({name: [ts[0], ts[2]] for name, ts in before.items()}, [0.0, 0.0])
    assert_as_cpu(tensors, before)
    assert [s.item() for s in steps] == [1, 0, 1]


def test_a_scale_elsewhere_is_an_error(kernel):
    tensors = lists([4], torch.float32)
    scale = torch.ones(2, device=DEVICE)
    kind, text = error_of(kernel, [group_of(tensors, [kernel.step_at(0.0)])], scale)
    assert kind is ValueError
    assert "grad_scale and found_inf must be float32 or float64, of one element" in text


@pytest.mark.skipif(not HOST, reason="needs a runtime that fails on demand")
def test_a_failed_launch_is_one_sentence(kernel):
    kernel.fake.set_stream(0x58)
    try:
        tensors = lists([4], torch.float32)
        kind, text = error_of(kernel, [group_of(tensors, [kernel.step_at(0.0)])])
    finally:
        kernel.fake.set_stream(0x57)
    assert kind is RuntimeError
    assert text.startswith("CUDA could not launch the ProxAdam kernel: not the current stream")


NOT_LOADED = """
import os, torch, test_cuda_kernel as t
tensors = t.lists([4], torch.float32)
group = t.group_of(tensors, [torch.tensor(0.0)])
before = t.copied(tensors)
cuda, fake = t.cuda_on_host.modules()
fake.keep_on_host(set())
for _ in range(2):
    kind, text = t.error_of(cuda.load, 0)
    assert kind is RuntimeError, kind
    assert text.startswith("CUDA could not load the ProxAdam kernels: no kernel image"), text
    plan = cuda.admit([group])
    assert plan.rejected == [(0, 0, "device", "params")], plan.rejected
    t.assert_as_cpu(tensors, before)
del os.environ["CUDA_ON_HOST_NO_IMAGE"]
cuda.load(0)
assert cuda.admit([group]) is None
"""


@pytest.mark.skipif(not HOST, reason="needs a device that can be spoilt")
def test_kernels_that_do_not_load_take_no_step():
    """They are asked for again by the next step, for what was wrong may have gone."""
    env = {**os.environ, "CUDA_ON_HOST_NO_IMAGE": "1"}
    command = [sys.executable, "-c", NOT_LOADED]
    done = subprocess.run(
        command, env=env, cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not HOST, reason="needs a driver of any age")
def test_an_old_driver_is_one_sentence(monkeypatch):
    monkeypatch.setenv("CUDA_ON_HOST_DRIVER", "12000")
    kind, text = error_of(cuda_on_host.bind, *cuda_on_host.modules())
    assert kind is RuntimeError
    assert "needs a driver for CUDA 12.1 or newer, and the one here is for 12.0" in text
