"""The CPU kernel itself: the same bits however the work is cut, and the chunk plan behind that."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import select
import signal

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from proxadam import ProxAdam
from tools import error_of, forks, snapshot

OPTIONS = {"lr": 0.01, "l1": 0.1, "l2": 0.1, "weight_decay": 0.01, "amsgrad": True, "fused": True}
SIZES = [1, 3, 0, 64, 16_383, 16_384, 16_385, 40_001, 100_003, 7]


def _run(params, steps=3, seed=5, **options):
    generator = torch.Generator().manual_seed(seed)
    optimizer = ProxAdam(params, **{**OPTIONS, **options})
    for _ in range(steps):
        for param in params:
            grad = torch.randn(param.numel(), generator=generator).view(param.shape)
            param.grad = grad.to(param.grad_dtype)
        optimizer.step()
    return list(snapshot(optimizer).values())


def _params(storage, sizes=SIZES):
    generator = torch.Generator().manual_seed(2)
    return [storage.parameter(torch.randn(n, generator=generator)) for n in sizes]


def _equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_same_bits_for_every_thread_count(kernel_module, storage, threads):  # noqa: ARG001
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        results.append(_run(_params(storage), **storage.options))
    assert all(_equal(results[0], other) for other in results[1:])


def test_same_bits_for_every_instruction_set(kernel_module, storage):
    before = kernel_module.capability()
    results = []
    for capability in kernel_module.capabilities():
        kernel_module.use_capability(capability)
        results.append(_run(_params(storage), **storage.options))
    kernel_module.use_capability(before)
    assert all(_equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("amsgrad", [False, True], ids=["", "amsgrad"])
def test_same_bits_when_a_tensor_is_split_or_lies_elsewhere(kernel_module, storage, amsgrad):  # noqa: ARG001
    """One tensor, the same numbers in uneven pieces, and at every misalignment."""
    numel = 40_001
    values = torch.randn(numel).to(storage.param)
    grads = torch.randn(3, numel).to(storage.grad)

    def run(cuts, offset):
        buffer = torch.full((numel + 8,), 7.0, dtype=storage.param)
        buffer[offset : offset + numel] = values
        pieces = [
            storage.parameter(buffer[offset + a : offset + b]) for a, b in itertools.pairwise(cuts)
        ]
        optimizer = ProxAdam(pieces, **{**OPTIONS, "amsgrad": amsgrad}, **storage.options)
        for grad in grads:
            for piece, (a, b) in zip(pieces, itertools.pairwise(cuts), strict=True):
                piece.grad = grad[a:b]
            optimizer.step()
        assert (buffer[:offset] == 7).all(), "written before the tensor"
        assert (buffer[offset + numel :] == 7).all(), "written behind the tensor"
        return buffer[offset : offset + numel]

    whole = run([0, numel], 0)
    for offset in range(1, 8):
        assert torch.equal(run([0, numel], offset), whole)
    if not storage.by_chance:  # what a piece draws depends on its place among the parameters
        assert torch.equal(run([0, 1, 8, 9, 1000, 16_384, 33_333, numel], 3), whole)


def test_order_of_parameters_does_not_matter(kernel_module):  # noqa: ARG001
    values = [torch.randn(n) for n in SIZES]
    grads = [torch.randn(n) for n in SIZES]

    def run(order):
        params = {i: Parameter(values[i].clone()) for i in order}
        for i, param in params.items():
            param.grad = grads[i]
        ProxAdam(list(params.values()), **OPTIONS).step()
        return [params[i].detach() for i in range(len(values))]

    assert _equal(run(range(len(SIZES))), run(reversed(range(len(SIZES)))))


# ---- the chunk plan ---------------------------------------------------------------------------

BIG = 2**33 + 5


@pytest.mark.parametrize(
    "numels",
    [[], [0], [1], [0, 0, 5, 0], [16_384] * 3, SIZES, [1] * 1000 + [200_001], [BIG % 90_001, 3]],
    ids=["none", "empty", "one", "empties", "exact", "odd", "tiny-then-large", "uneven"],
)
@pytest.mark.parametrize("parts", [1, 2, 3, 7, 64])
def test_chunks_cover_every_element_once_for_every_split(kernel_module, numels, parts):
    work = kernel_module.work(numels)
    bounds = [work * i // parts for i in range(parts + 1)]
    visited = [c for a, b in itertools.pairwise(bounds) for c in kernel_module.chunks(numels, a, b)]
    assert visited == kernel_module.chunks(numels), "the split moved a chunk's boundary"
    for tensor, numel in enumerate(numels):
        spans = [(a, b) for t, a, b in visited if t == tensor]
        assert [a for a, _ in spans] == [0, *(b for _, b in spans[:-1])][: len(spans)]
        assert (spans[-1][1] if spans else 0) == numel


def test_chunks_beyond_every_32_bit_count(kernel_module):
    """Looks into plans of 2³³ and 2⁵³ elements, whose chunks are counted, not touched."""
    rng = random.Random(0)
    for numels in ([BIG], [3, BIG, 2**32, 1], [2**53 + 1, 2**31 + 7]):
        work = kernel_module.work(numels)
        assert work >= sum(numels)
        for _ in range(20):
            middle = rng.randrange(0, work - 200_000)
            window = kernel_module.chunks(numels, middle, middle + 100_000)
            assert 1 <= len(window) <= 9
            for tensor, begin, end in window:
                assert 0 <= begin < end <= numels[tensor]
                assert begin % 16_384 == 0
            pieces = kernel_module.chunks(numels, middle, middle + 50_000)
            pieces += kernel_module.chunks(numels, middle + 50_000, middle + 100_000)
            assert pieces == window
        last = kernel_module.chunks(numels, work - 100, work)
        assert all(end == numels[-1] for _, _, end in last)


def test_threads_share_the_work_evenly(kernel_module):
    """A thousand tiny tensors before a large one must not leave a thread with nothing to do."""
    numels = [1] * 1000 + [1_000_000]
    work = kernel_module.work(numels)
    halves = [kernel_module.chunks(numels, a, b) for a, b in ((0, work // 2), (work // 2, work))]
    done = [sum(end - begin for _, begin, end in half) for half in halves]
    assert min(done) > 0.4 * max(done)


# ---- processes --------------------------------------------------------------------------------


@forks
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_steps_in_a_forked_child(kernel_module):  # noqa: ARG001
    """The child has none of torch's threads: waiting for them would never end."""
    param = Parameter(torch.randn(200_001))
    param.grad = torch.randn_like(param)
    optimizer = ProxAdam([param], **OPTIONS)
    optimizer.step()  # makes the state, and wakes the pool in the parent
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # torch's own ops on tensors of this size hang here: only the step is ours
        optimizer.step()
        os.write(write, hashlib.sha256(param.detach().numpy().tobytes()).digest())
        os._exit(0)
    finished, _, _ = select.select([read], [], [], 30)
    digest = os.read(read, 32) if finished else b""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert digest, "the step did not return in a forked child"
    optimizer.step()
    assert digest == hashlib.sha256(param.detach().numpy().tobytes()).digest()


def test_no_memory_beyond_the_state(kernel_module):  # noqa: ARG001
    """A step over 16 Mi elements allocates no tensor on the way."""
    from torch.profiler import ProfilerActivity, profile

    param = Parameter(torch.randn(1 << 20))
    param.grad = torch.randn_like(param)
    optimizer = ProxAdam([param], **OPTIONS)
    optimizer.step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        optimizer.step()
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in seen.key_averages())
    assert allocated < 1024


# ---- scores -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"weights": torch.ones(4, dtype=torch.float64)}, "flat buffers in one stretch"),
        ({"weights": torch.ones(2, 2)}, "flat buffers in one stretch"),
        ({"weights": torch.ones(8)[::2]}, "flat buffers in one stretch"),
        ({"moments": torch.ones(3)}, "flat buffers in one stretch"),
        ({"weight_type": "int32"}, "no weights are stored in int32"),
        ({"moment_type": "float64"}, "weights and moments of one precision"),
    ],
    ids=str,
)
def test_scores_are_asked_of_fitting_buffers_alone(kernel_module, change, text):
    given = {"weights": torch.ones(4), "weight_type": "float32", "moments": torch.ones(4)}
    given |= {"moment_type": "float32", **change}
    arrays = [
        value.numpy() if isinstance(value, torch.Tensor) else value for value in given.values()
    ]
    for function, rest in (
        ("look_at_scores", (0.5, 2.0)),
        ("zero_below", (0.5,)),
        ("row_squares", (2,)),
    ):
        kind, said = error_of(getattr(kernel_module, function), *arrays, 1.0, 0.0, *rest)
        assert kind is ValueError
        assert text in said
    kind, said = error_of(
        kernel_module.row_squares, torch.ones(4).numpy(), "float32", None, "float32", 1.0, 0.0, 3
    )
    assert (kind, said) == (ValueError, "expected whole rows")


def test_scores_of_no_weights(kernel_module):
    empty = torch.empty(0).numpy()
    found = kernel_module.look_at_scores(empty, "float32", empty, "float32", 1.0, 0.0, 0.5, 2.0)
    assert found[:3] == (0, 0, 0)
    assert [len(array) for array in found[3:]] == [0, 0]


@pytest.mark.parametrize("threads", [1, 4])
def test_scores_do_not_depend_on_threads_or_instruction_set(kernel_module, threads):
    w, v = torch.randn(300_003), torch.rand(300_003)
    factor, offset = 3.0, 1e-3
    inner = np.sqrt(v.numpy()) * np.float32(factor) + np.float32(
        offset
    )  # torch's root is not IEEE's
    score = torch.from_numpy(np.sqrt(inner) * np.abs(w.numpy()))
    arguments = (w.numpy(), "float32", v.numpy(), "float32", factor, offset)
    before, chosen = torch.get_num_threads(), kernel_module.capability()
    try:
        torch.set_num_threads(threads)
        for capability in kernel_module.capabilities():
            kernel_module.use_capability(capability)
            found = kernel_module.look_at_scores(*arguments, 0.25, 0.5)
            between = (score >= 0.25) & (score <= 0.5)
            counts = (score < 0.25).sum(), (score <= 0.5).sum(), w.count_nonzero()
            assert found[:3] == tuple(map(int, counts))
            assert torch.equal(torch.from_numpy(found[3]), between.nonzero().flatten())
            assert torch.equal(torch.from_numpy(found[4]), score[between])
            rows = torch.from_numpy(kernel_module.row_squares(*arguments, 300_003 // 3))
            expected = score.double().square().view(3, -1).sum(1)
            torch.testing.assert_close(rows, expected, rtol=1e-12, atol=0)
    finally:
        torch.set_num_threads(before)
        kernel_module.use_capability(chosen)
