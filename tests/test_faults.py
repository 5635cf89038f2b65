"""What goes on around a step in a training: threads, frozen weights, swapped data, casts, forks."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import signal
import threading

import pytest
import torch
from torch import nn
from torch.nn import Parameter
from torch.utils.data import DataLoader, TensorDataset

from formats import CODED, LIVELY, SMALL, each_format
from proxadam import ProxAdam
from proxadam._step import lock
from tools import (
    BUSY,
    LOOP,
    assert_same_bits,
    each_twin,
    error_of,
    forks,
    params_of,
    quantised,
    snapshot,
    threads,
    twin_of,
    weights,
)

# ---- threads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5])
def test_threads_that_share_nothing_do_not_disturb_each_other(any_backend, count):
    """Each has an optimizer of its own, options too; large tensors keep torch's threads busy."""
    shapes = [(40_001,), (3, 5), ()]
    options = [{**BUSY, "lr": 0.01 * (i + 1)} for i in range(count)]
    optimizers = [ProxAdam(weights(*shapes), **o, **any_backend.options) for o in options]
    expected = [twin_of(optimizer) for optimizer in optimizers]
    start = threading.Barrier(count)
    errors = []

    def train(optimizer, wait=lambda: None):
        wait()
        for i in range(5):
            for param in params_of(optimizer):
                param.grad = (param.detach() + i).cos()
            optimizer.step()

    def train_at_once(optimizer):
        with torch.no_grad():
            errors.append(error_of(train, optimizer, start.wait))

    with threads(2):
        running = [threading.Thread(target=train_at_once, args=(o,)) for o in optimizers]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join(60)
        assert not any(thread.is_alive() for thread in running)
        assert errors == [None] * count
        for optimizer in expected:
            train(optimizer)
    for optimizer, alone in zip(optimizers, expected, strict=True):
        assert_same_bits(snapshot(optimizer), snapshot(alone))


@pytest.mark.parametrize("hooked", [False, True], ids=["plain", "reentrant"])
def test_threads_that_step_one_optimizer_lose_no_step(any_backend, hooked):
    """Updates take turns; closures and hooks do not, and may step themselves."""
    optimizer = ProxAdam(weights((4_001,), (3,)), **BUSY, **any_backend.options)
    optimizer.step()
    start, count = threading.Barrier(4), 50

    def train():
        start.wait()
        for _ in range(count):
            optimizer.step(optimizer.step if hooked else None)

    running = [threading.Thread(target=train) for _ in range(4)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(120)
    steps = 1 + 4 * count * (2 if hooked else 1)
    assert {state["step"].item() for state in optimizer.state.values()} == {steps}


def test_the_lock_is_in_no_copy_and_new_in_a_child():
    optimizer = ProxAdam(weights((3,)))
    optimizer.step()
    mine = lock.held(optimizer)
    assert lock.held(optimizer) is mine
    assert lock.held(copy.deepcopy(optimizer)) is not mine
    assert lock.held(pickle.loads(pickle.dumps(optimizer))) is not mine
    assert not any(isinstance(value, type(mine)) for value in vars(optimizer).values())


@forks
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_that_is_forked_in_the_middle_of_a_step_may_step():
    optimizer = ProxAdam(weights((3,)))
    inside, go_on = threading.Event(), threading.Event()

    def hold():
        with lock.held(optimizer):
            inside.set()
            go_on.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait(60)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        optimizer.step()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    go_on.set()
    holder.join(60)
    assert os.waitstatus_to_exitcode(status) == 0


# ---- what happens to a parameter in the middle of a run ---------------------------------------


@each_twin
def test_frozen_and_thawed_as_in_torch(ours, theirs, backend):
    """Neither weight nor state nor count moves while it is frozen, and then they go on."""

    def run(cls, **options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
        inputs = torch.randn(8, 5, 6)
        optimizer = cls(model.parameters(), lr=0.05, **options)
        for i, batch in enumerate(inputs):
            if i in (3, 6):
                model[0].requires_grad_(i == 6)
                frozen = snapshot(optimizer)
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
            if 3 <= i < 6:
                now = snapshot(optimizer)
                of_first = [name for name in frozen if name.split()[-1] in ("0", "1")]
                assert len(of_first) == 8
                assert_same_bits({n: now[n] for n in of_first}, {n: frozen[n] for n in of_first})
        return snapshot(optimizer)

    if backend.is_kernel:
        actual, expected = run(ours, **backend.options), run(theirs, **LOOP)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
    else:
        assert_same_bits(run(ours, **backend.options), run(theirs, **backend.options))


def test_data_swapped_under_the_optimizer(any_backend):
    """The new storage is stepped, the old one is not written any more."""
    (param,) = weights((4, 6))
    optimizer = ProxAdam([param], **BUSY, **any_backend.options)
    optimizer.step()
    expected = twin_of(optimizer)
    old, kept = param.data, param.detach().clone()
    param.data = torch.full((4, 6), 0.5)
    params_of(expected)[0].data.copy_(param.data)
    for _ in range(2):
        optimizer.step()
        expected.step()
    assert_same_bits(snapshot(optimizer), snapshot(expected))
    assert_same_bits(old, kept)


def train_once(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(3, 6).to(model.weight)).square().sum().backward()
    optimizer.step()


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("after", DTYPES)
@pytest.mark.parametrize("before", DTYPES)
def test_a_model_moved_to_another_dtype(any_backend, before, after):
    """Right where the state is wider, else refused; a reload of the state mends it."""
    torch.manual_seed(0)
    model = nn.Linear(6, 4).to(before)
    optimizer = ProxAdam(model.parameters(), **BUSY, **any_backend.options)

    step = functools.partial(train_once, model, optimizer)
    step()
    model.to(after)
    kept = snapshot(optimizer)
    error = error_of(step)
    narrowed = before == torch.float32 and after.itemsize == 2
    if before != after and not narrowed:
        kind, text = error
        assert kind is RuntimeError
        assert "was the parameter cast" in text
        assert "\n" not in text
        assert_same_bits(snapshot(optimizer), kept)
        optimizer.load_state_dict(optimizer.state_dict())  # casts the state
        step()
    else:
        assert error is None
    assert {state["step"].item() for state in optimizer.state.values()} == {2.0}
    for i, param in enumerate(model.parameters()):
        assert param.dtype == after
        assert param.isfinite().all()
        assert not torch.equal(param, kept[str(i)].to(after))


@each_format(SMALL)
@pytest.mark.parametrize("after", DTYPES)
def test_a_model_with_small_state_moved_to_another_dtype(any_backend, kept, after):
    """Small moments go with any narrower weight; with float64 none do, nor are there codes."""
    model = nn.Linear(6, 700)
    optimizer = ProxAdam(model.parameters(), **LIVELY, **kept.options, **any_backend.options)
    step = functools.partial(train_once, model, optimizer)
    step()
    model.to(after)
    kept_before = snapshot(optimizer)
    error = error_of(step)
    if after != torch.float64:
        assert error is None
    else:
        kind, text = error
        assert kind is RuntimeError
        assert "was the parameter cast" in text
        assert "\n" not in text
        assert_same_bits(snapshot(optimizer), kept_before)
        reloaded = error_of(optimizer.load_state_dict, optimizer.state_dict())
        if kept is CODED:
            assert reloaded[0] is ValueError
            assert "takes parameters in float32, bfloat16 and float16, got one in" in reloaded[1]
            return
        assert reloaded is None  # the moments are float64 now
        step()
    assert {state["step"].item() for state in optimizer.state.values()} == {2.0}
    assert all(p.dtype == after and p.isfinite().all() for p in model.parameters())


@each_twin
@pytest.mark.parametrize("path", [{}, LOOP, {"foreach": True}], ids=["default", "loop", "foreach"])
def test_parameters_without_data_are_counted_as_in_torch(ours, theirs, path):
    """On the meta device, beside one that has data."""

    def run(cls):
        torch.manual_seed(0)
        (param,) = weights((3,))
        hollow = Parameter(torch.ones(3, device="meta"))
        hollow.grad = torch.ones(3, device="meta")
        optimizer = cls([hollow, param], **LOOP if cls is theirs else path)
        for _ in range(2):
            optimizer.step()
        state = optimizer.state[hollow]
        assert state["exp_avg"].is_meta
        return param.detach(), state["step"]

    torch.testing.assert_close(run(ours), run(theirs))


@pytest.fixture
def swapped_on_conversion():
    """Module.to() keeps the Parameter, with other contents, and so the optimizer's state."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(before)


@pytest.mark.usefixtures("swapped_on_conversion")
@pytest.mark.parametrize("device", ["meta", *["cuda"] * torch.cuda.is_available()])
def test_a_model_moved_to_another_device(any_backend, device):
    """Refused while the state is elsewhere; a reload of the state brings it along."""
    if any_backend.device != "cpu":
        device = "cpu" if device == "cuda" else device
    model = nn.Linear(6, 4)
    optimizer = ProxAdam(model.parameters(), **BUSY, **any_backend.options)

    step = functools.partial(train_once, model, optimizer)
    step()
    weight, state = model.weight, dict(optimizer.state[model.weight])
    model.to(device)
    assert model.weight is weight
    kind, text = error_of(step)
    assert kind is RuntimeError
    assert "exp_avg of parameter 0 of shape (4, 6) is on " in text
    assert f"expected {device}" in text
    assert "\n" not in text
    assert optimizer.state[weight]["step"] == 1
    assert all(optimizer.state[weight][name] is tensor for name, tensor in state.items())
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state[weight]["exp_avg"].device.type == device
    if not any_backend.is_kernel:
        step()
        assert optimizer.state[weight]["step"] == 2


@each_twin
def test_tensors_that_have_no_gradient_may_be_of_any_kind(ours, theirs, any_backend):
    """Quantised, sparse, complex, without data: they wait in the list, as in torch."""
    others = [
        quantised(),
        torch.eye(3).to_sparse(),
        torch.ones(3, dtype=torch.complex64),
        torch.ones(3, device="meta"),
        torch.ones(3, dtype=torch.int8),
    ]
    if any_backend.is_kernel:
        del others[3]  # fused=True is for devices that have a kernel
    for cls, options in ((ours, any_backend.options), (theirs, LOOP)):
        (param,) = weights((3,))
        optimizer = cls([*others, param], **options)
        optimizer.step()
        assert list(optimizer.state) == [param]


# ---- processes --------------------------------------------------------------------------------


@forks
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_of_a_data_loader_after_a_step(any_backend):
    """They are forked from a process whose threads have stepped, and step optimizers themselves."""

    class Stepped(TensorDataset):
        """Whose items are made by a step in the worker."""

        def __getitem__(self, index):
            param = Parameter(torch.ones(5_000))
            param.grad = torch.full_like(param, float(index + 1))
            ProxAdam([param], **BUSY, **any_backend.options).step()
            return super().__getitem__(index)[0], param.detach()[:3]

    def run(workers):
        (param,) = weights((40_001,))
        optimizer = ProxAdam([param], **BUSY, **any_backend.options)
        optimizer.step()
        made = []
        options = {"multiprocessing_context": "fork", "timeout": 60} if workers else {}
        loader = DataLoader(Stepped(torch.arange(8.0)), 2, num_workers=workers, **options)
        for _ in range(2):
            for values, stepped in loader:
                param.grad = param.detach() * values.sum()
                optimizer.step()
                made.append(stepped)
        return {**snapshot(optimizer), "made": torch.cat(made)}

    torch.manual_seed(0)
    alone = run(0)
    torch.manual_seed(0)
    assert_same_bits(run(2), alone)
