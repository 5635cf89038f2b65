"""Plain training loops: every scheduler of torch, clipping, averaged weights, and a resumed run."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import lr_scheduler, swa_utils
from torch.optim.lr_scheduler import LambdaLR, LinearLR, ReduceLROnPlateau, StepLR

from conftest import BACKENDS, Backend, using
from proxadam import ProxAdamW
from tools import BUSY, assert_same_bits, each_twin, snapshot, threads

STEPS = 12
SCHEDULES = {
    "LambdaLR": lambda o: LambdaLR(o, lambda i: 0.9**i),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.8),
    "StepLR": lambda o: StepLR(o, 3, gamma=0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 7]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=4),
    "LinearLR": lambda o: LinearLR(o, total_iters=STEPS, end_factor=0.0),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.7),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=5, power=2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=5),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 0.1, step_size_up=3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=STEPS + 1),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(o, [LinearLR(o), StepLR(o, 2)], [5]),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler([LinearLR(o), StepLR(o, 5)]),
    "ReduceLROnPlateau": lambda o: ReduceLROnPlateau(o, patience=0, threshold=0.5),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=0.2, anneal_epochs=5),
}
MOVING_BETAS = ("CyclicLR", "OneCycleLR")
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


@pytest.fixture(params=[*BACKENDS[:2], Backend("kernel", {"fused": True})], ids=lambda b: b.name)
def backend(request):
    """Each implementation once: a loop does not know the processor's instruction set."""
    with using(request.param), threads(1):  # nothing here is large enough for two
        yield request.param


class Training:
    """A small network, its data, an optimizer and a scheduler; counts what the scheduler did."""

    def __init__(self, cls, schedule, **options) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(9, 17), nn.Tanh(), nn.Linear(17, 3))
        self.inputs, self.targets = torch.randn(STEPS, 16, 9), torch.randn(STEPS, 16, 3)
        self.optimizer = cls(self.model.parameters(), **{"lr": 0.05, **options})
        self.scheduler = SCHEDULES[schedule](self.optimizer)
        self.done = 0
        self.seen = []

    def run(self, steps=STEPS, clip=None):
        for _ in range(steps):
            self.optimizer.zero_grad()
            outputs = self.model(self.inputs[self.done])
            loss = (outputs - self.targets[self.done]).square().mean()
            loss.backward()
            if clip:
                clip(self.model.parameters())
            self.optimizer.step()
            by_loss = isinstance(self.scheduler, ReduceLROnPlateau)
            self.scheduler.step(*[loss.detach()] * by_loss)
            group = self.optimizer.param_groups[0]
            self.seen.append((float(group["lr"]), group["betas"]))
            self.done += 1
        return self

    def share_of_zeros(self):
        return (flat(self.model) == 0).float().mean().item()


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def assert_same_training(ours, theirs, backend):
    assert ours.seen == theirs.seen
    if backend.is_kernel:
        close = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(ours.model.state_dict(), theirs.model.state_dict(), **close)
    else:
        assert_same_bits(ours.model.state_dict(), theirs.model.state_dict())


def test_no_scheduler_is_missing():
    assert set(lr_scheduler.__all__) - {"LRScheduler"} <= set(SCHEDULES)


@each_twin
@each_schedule
def test_schedules_as_torch(ours, theirs, schedule, backend):
    options = {"foreach": False} if backend.is_kernel else backend.options
    mine = Training(ours, schedule, **backend.options).run()
    assert_same_training(mine, Training(theirs, schedule, **options).run(), backend)
    lrs, betas = (set(values) for values in zip(*mine.seen, strict=True))
    assert len(lrs) > 1
    assert (len(betas) > 1) == (schedule in MOVING_BETAS)


@each_schedule
def test_schedules_of_a_tensor_lr(schedule, backend):
    """The scheduler fills the tensor; nothing may have kept its value."""
    if backend.options.get("foreach"):
        pytest.skip("foreach takes no tensor lr, as in torch.optim")
    options = {"foreach": False} if backend.is_kernel else backend.options
    mine = Training(ProxAdamW, schedule, lr=torch.tensor(0.05), **backend.options).run()
    theirs = Training(torch.optim.AdamW, schedule, lr=torch.tensor(0.05), **options).run()
    assert_same_training(mine, theirs, backend)


@each_schedule
def test_schedules_make_exact_zeros(schedule, backend):
    training = Training(ProxAdamW, schedule, l1=0.03, **backend.options).run()
    assert 0.01 < training.share_of_zeros() < 0.99
    assert Training(ProxAdamW, schedule, **backend.options).run().share_of_zeros() == 0


@each_schedule
def test_a_resumed_schedule_goes_on(schedule, backend):
    whole = Training(ProxAdamW, schedule, **BUSY, **backend.options).run()
    first = Training(ProxAdamW, schedule, **BUSY, **backend.options).run(5)
    second = Training(ProxAdamW, schedule, **BUSY, **backend.options)
    saved = (first.model, first.optimizer, first.scheduler)
    for part, state in zip((second.model, second.optimizer, second.scheduler), saved, strict=True):
        part.load_state_dict(copy.deepcopy(state.state_dict()))
    second.done = first.done
    second.run(STEPS - 5)
    assert_same_bits(snapshot(second.optimizer), snapshot(whole.optimizer))


CLIPS = {
    "norm": lambda params: clip_grad_norm_(params, 0.1),
    "norm, foreach": lambda params: clip_grad_norm_(params, 0.1, foreach=True),
    "largest": lambda params: clip_grad_norm_(params, 0.01, norm_type=float("inf")),
    "value": lambda params: clip_grad_value_(params, 0.01),
}


@pytest.mark.parametrize("clip", CLIPS)
@each_twin
def test_clipped_gradients_step_as_torch(ours, theirs, clip, backend):
    """eps is large, or Adam would not see the size of the gradient."""
    options = {"foreach": False} if backend.is_kernel else backend.options
    mine = Training(ours, "StepLR", eps=0.1, **backend.options).run(clip=CLIPS[clip])
    theirs = Training(theirs, "StepLR", eps=0.1, **options).run(clip=CLIPS[clip])
    assert_same_training(mine, theirs, backend)
    unclipped = Training(ours, "StepLR", eps=0.1, **backend.options).run()
    assert not torch.equal(mine.model[0].weight, unclipped.model[0].weight)


AVERAGES = {
    "SWA": (None, lambda means, new, count: means + (new - means) / (count + 1)),
    "EMA": (swa_utils.get_ema_multi_avg_fn(0.9), lambda means, new, _: means.lerp(new, 1 - 0.9)),
}


@pytest.mark.parametrize("kind", AVERAGES)
def test_averaged_weights(kind, backend):
    """The average is of the weights after each step, and the training goes on as without it."""
    multi_avg_fn, by_hand = AVERAGES[kind]
    training = Training(ProxAdamW, "SWALR", **BUSY, **backend.options)
    averaged = swa_utils.AveragedModel(training.model, multi_avg_fn=multi_avg_fn)
    means = None
    for count in range(STEPS):
        training.run(1)
        averaged.update_parameters(training.model)
        weights = flat(training.model)
        means = weights if means is None else by_hand(means, weights, count)
    found = flat(averaged.module)
    torch.testing.assert_close(found, means)
    alone = Training(ProxAdamW, "SWALR", **BUSY, **backend.options).run()
    assert_same_bits(training.model.state_dict(), alone.model.state_dict())


def test_weights_may_be_put_aside_for_their_average(backend):
    """As for an evaluation: averaged weights in, and the trained ones back, by copy or by swap."""
    training = Training(ProxAdamW, "StepLR", **BUSY, **backend.options)
    for swap in (False, True):
        training.run(2)
        kept = [p.data if swap else p.detach().clone() for p in training.model.parameters()]
        for param, own in zip(training.model.parameters(), kept, strict=True):
            if swap:
                param.data = torch.zeros_like(own)
            else:
                param.data.zero_()
        for param, own in zip(training.model.parameters(), kept, strict=True):
            if swap:
                param.data = own
            else:
                param.data.copy_(own)
    training.run(STEPS - 4)
    alone = Training(ProxAdamW, "StepLR", **BUSY, **backend.options).run()
    assert_same_bits(snapshot(training.optimizer), snapshot(alone.optimizer))
