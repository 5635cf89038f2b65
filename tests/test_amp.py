"""The gradient scaler's protocol: grad_scale and found_inf are honoured on every path."""

from __future__ import annotations

import copy
import functools
import io
import math

import pytest
import torch

from formats import FORMATS, LIVELY, each_format
from proxadam import ProxAdam, is_built
from tools import (
    BUSY,
    assert_same_bits,
    each_class,
    error_of,
    params_of,
    snapshot,
    twin_of,
    weights,
)

# Only the kernel's promise makes a scaler leave the unscaling to the step.
needs_kernel = pytest.mark.skipif(not is_built("cpu"), reason="fused=True needs the kernel")


def scaled(optimizer, scale, found_inf=0.0):
    """The optimizer as a scaler leaves it before it calls step()."""
    optimizer.grad_scale = None if scale is None else torch.as_tensor(scale)
    optimizer.found_inf = torch.tensor(found_inf)
    return optimizer


@pytest.mark.parametrize("scale", [8.0, [8.0], 1.0, None], ids=["0-d", "1-d", "one", "none"])
def test_gradients_are_unscaled_and_written_back(backend, storage, scale):
    params = storage.weights((37,), (), (2, 3))
    plain = ProxAdam(params, **BUSY, **storage.options, **backend.options)
    amp = twin_of(plain)
    for param in params_of(amp):
        param.grad *= 8.0 if scale in (8.0, [8.0]) else 1.0  # exact in every dtype
    for _ in range(2):
        plain.step()
        scaled(amp, scale).step()
        for param, twin in zip(params_of(plain), params_of(amp), strict=True):
            assert_same_bits(twin.grad, param.grad)
            twin.grad *= 8.0 if scale in (8.0, [8.0]) else 1.0
    assert_same_bits(snapshot(amp), snapshot(plain))


def test_unscaling_is_not_rounded_before_the_step(backend):
    """What a float16 gradient cannot hold once it is unscaled still moves the weight."""
    (param,) = weights((8,), dtype=torch.float16)
    param.data.fill_(0.0)
    param.grad.fill_(2.0**-10)
    scaled(ProxAdam([param], lr=1.0, eps=1e-12, **backend.options), 65536.0).step()
    assert (param.grad == 0).all(), "2⁻²⁶ is zero in float16"
    assert param.tolist() == pytest.approx([-1.0] * 8, rel=1e-3)


@each_format()
@pytest.mark.parametrize("steps_before", [0, 2])
def test_found_inf_spares_every_format(any_backend, kept, steps_before):
    """Codes, exponents, and of what is made by the skipped step the count; then all go on."""
    optimizer = ProxAdam(kept.weights(), **LIVELY, **kept.options, **any_backend.options)
    for _ in range(steps_before):
        optimizer.step()
    other, before = twin_of(optimizer), snapshot(optimizer)
    grads = [param.grad.clone() for param in params_of(optimizer)]
    for param in params_of(optimizer):
        param.grad[0] = math.inf
    scaled(optimizer, 8.0, 1.0).step()
    after = snapshot(optimizer)
    assert_same_bits({name: after[name] for name in before}, before)
    assert not any(
        t.any() for name, t in after.items() if name not in before and name[:6] != "number"
    )
    for param, grad in zip(params_of(optimizer), grads, strict=True):
        param.grad = 8 * grad
    scaled(optimizer, 8.0).step()
    other.step()
    assert_same_bits(snapshot(optimizer), snapshot(other))


@each_format(FORMATS[:-1])  # a scaler takes no gradients in float16
def test_a_scaler_and_a_closure_train_in_every_format(any_backend, kept):
    """The step that overflows draws nothing, and a closure is run before anything is drawn."""
    plain = ProxAdam(kept.weights(), **LIVELY, **kept.options, **any_backend.options)
    if any_backend.device == "cuda" and params_of(plain)[0].dtype == torch.bfloat16:
        pytest.skip("torch's scaler takes no bfloat16 gradients on CUDA")
    amp = twin_of(plain)
    scaler = torch.amp.GradScaler(any_backend.device, init_scale=8.0, growth_interval=2)

    def losses(optimizer, scale=lambda loss: loss, infinite=False):
        optimizer.zero_grad()
        loss = sum(overflowing(param, infinite) for param in params_of(optimizer))
        scale(loss).backward()
        return loss

    for i in range(5):
        losses(amp, scaler.scale, i == 2)
        scaler.step(amp)
        scaler.update()
        if i != 2:
            plain.step(functools.partial(losses, plain))
    assert_same_bits(snapshot(amp), snapshot(plain))


@pytest.mark.parametrize("found_inf", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_found_inf_skips_the_step_altogether(backend, storage, found_inf, steps_before):
    """It is a sum over devices: anything but zero counts."""
    params = storage.weights((37,), (2, 3))
    optimizer = ProxAdam(params, **BUSY, **storage.options, **backend.options)
    for _ in range(steps_before):
        optimizer.step()
    before = snapshot(optimizer)
    for param in params_of(optimizer):
        param.grad[0] = math.inf
    scaled(optimizer, 8.0, found_inf).step()
    after = snapshot(optimizer)
    assert_same_bits({name: after[name] for name in before}, before)
    assert all(optimizer.state[p]["step"] == steps_before for p in params_of(optimizer))


def test_a_mixed_step_honours_both_on_each_path(storage):
    """Parameters for the kernel and for torch ops in one group, and a group that forbids it."""
    base, gradient = torch.randn(2, 4, 6, dtype=storage.param)

    def optimizer(scale):
        params = [storage.parameter(base.clone()[view]) for view in (0, (..., slice(2, 4)), 3)]
        for param in params:
            values = scale * gradient.flatten()[: param.numel()].view(param.shape)
            param.grad = storage.gradient(values)
        groups = [{"params": params[:2]}, {"params": params[2:], "foreach": True}]
        return ProxAdam(groups, **BUSY, **storage.options)

    plain, amp = optimizer(1.0), optimizer(4.0)
    before = snapshot(amp)
    scaled(amp, 4.0, found_inf=2.0).step()
    assert_same_bits({name: snapshot(amp)[name] for name in before}, before)
    scaled(amp, 4.0).step()
    plain.step()
    assert_same_bits(snapshot(amp), snapshot(plain))


def test_one_gradient_for_two_parameters_is_unscaled_once_at_most(backend):
    first, second = weights((4,), (4,))
    first.grad = second.grad = torch.full((4,), 8.0)
    optimizer = scaled(ProxAdam([first, second], **backend.options), 4.0)
    if backend.is_kernel:  # threads must not both write it
        kind, text = error_of(optimizer.step)
        assert kind is RuntimeError
        assert "shares memory with another parameter" in text
        assert first.grad.tolist() == [8.0] * 4
        return
    optimizer.step()
    assert first.grad.tolist() == [2.0] * 4


def test_a_gradient_that_cannot_be_written_back_is_refused(backend):
    params = weights((3,), (4,))
    optimizer = scaled(ProxAdam(params, **backend.options), 2.0)
    params[1].grad = torch.tensor(2.0).expand(4)
    before = [t.detach().clone() for p in params for t in (p, p.grad)]
    kind, text = error_of(optimizer.step)
    assert kind is RuntimeError
    assert "the gradient of parameter 1 of shape (4,)" in text
    for tensor, same in zip([t for p in params for t in (p, p.grad)], before, strict=True):
        assert_same_bits(tensor, same)
    assert not optimizer.state


# ---- the flag that scalers ask for ------------------------------------------------------------


@needs_kernel
@each_class
def test_the_flag_is_up_where_every_group_has_fused(cls):
    params = weights((2,), (3,), (4,))

    def flag(*fused):
        groups = [{"params": [p], "fused": f} for p, f in zip(params, fused, strict=False)]
        return cls(groups)._step_supports_amp_scaling

    assert flag(True) is flag(True, True) is True
    assert not any([flag(None), flag(False), flag(True, None), flag(True, False), flag(None, True)])


@needs_kernel
@each_class
def test_the_flag_follows_the_groups(cls):
    """Copies keep it, and a checkpoint neither takes the promise away nor gives one."""
    optimizer = cls(weights((2,)), fused=True)
    saved = io.BytesIO()
    torch.save(optimizer, saved)
    saved.seek(0)
    assert copy.deepcopy(optimizer)._step_supports_amp_scaling
    assert torch.load(saved, weights_only=False)._step_supports_amp_scaling
    optimizer.load_state_dict(cls(weights((2,)), foreach=True).state_dict())
    assert optimizer._step_supports_amp_scaling
    listwise = cls(weights((2,)), foreach=True)
    listwise.load_state_dict(optimizer.state_dict())
    assert not listwise._step_supports_amp_scaling
    optimizer.add_param_group({"params": weights((3,)), "fused": None})
    assert not optimizer._step_supports_amp_scaling


def test_a_scaler_trains_as_without_one_and_skips_what_overflowed(backend):
    """torch.amp.GradScaler takes one of its two roads, whichever the flag says."""
    plain = ProxAdam(weights((37,)), **BUSY, **backend.options)
    amp = twin_of(plain)
    scaler = torch.amp.GradScaler(backend.device, init_scale=1024.0, growth_interval=2)
    for i in range(6):
        for optimizer in (plain, amp):
            (param,) = params_of(optimizer)
            optimizer.zero_grad()
            loss = (param**3).sum() * (math.inf if optimizer is amp and i == 3 else 1.0)
            (scaler.scale(loss) if optimizer is amp else loss).backward()
        scaler.step(amp)
        scaler.update()
        if i != 3:
            plain.step()
    assert_same_bits(snapshot(amp), snapshot(plain))
    assert not hasattr(amp, "grad_scale")


def test_an_unscaled_gradient_may_be_clipped_first(backend):
    plain = ProxAdam(weights((37,)), **BUSY, **backend.options)
    amp = twin_of(plain)
    scaler = torch.amp.GradScaler(backend.device, init_scale=1024.0)
    for optimizer in (plain, amp):
        (param,) = params_of(optimizer)
        optimizer.zero_grad()
        loss = (param**3).sum()
        (scaler.scale(loss) if optimizer is amp else loss).backward()
        if optimizer is amp:
            scaler.unscale_(amp)
        torch.nn.utils.clip_grad_norm_([param], 0.5)
    scaler.step(amp)
    plain.step()
    assert_same_bits(snapshot(amp), snapshot(plain))


def overflowing(param, infinite):
    return (param**3).sum() * (math.inf if infinite else 1.0)


each_protocol = pytest.mark.parametrize("unscale", [True, False], ids=["unscaled before", "plain"])


@each_protocol
def test_an_overflow_skips_the_whole_step_by_either_protocol(any_backend, unscale):
    """One bad element of one parameter: no parameter, moment or count moves, nor is any decayed."""
    params = weights((37,), (4, 3))
    optimizer = ProxAdam(params, **BUSY, **any_backend.options)
    optimizer.step()
    before = snapshot(optimizer)
    scaler = torch.amp.GradScaler(any_backend.device, init_scale=1024.0)
    optimizer.zero_grad()
    scaler.scale((params[0] ** 3).sum() + (params[1] ** 3).sum()).backward()
    params[1].grad[2, 1] = math.inf
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert_same_bits(snapshot(optimizer), before)
    assert scaler.get_scale() == 512.0


@each_protocol
def test_two_optimizers_on_one_scaler(any_backend, unscale):
    """Only the one whose gradients overflow is held back, and the scale falls for both."""
    plain = [ProxAdam(weights((9,)), **BUSY, **any_backend.options) for _ in range(2)]
    amp = [twin_of(optimizer) for optimizer in plain]
    scaler = torch.amp.GradScaler(any_backend.device, init_scale=1024.0)
    for i in range(4):
        infinite = [False, i in (1, 2)]
        for optimizers, scale in ((plain, lambda loss: loss), (amp, scaler.scale)):
            for optimizer, bad in zip(optimizers, infinite, strict=True):
                optimizer.zero_grad()
                scale(overflowing(params_of(optimizer)[0], bad and optimizers is amp)).backward()
        for optimizer in amp:
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
        scaler.update()
        for optimizer, bad in zip(plain, infinite, strict=True):
            if not bad:
                optimizer.step()
    for mine, expected in zip(amp, plain, strict=True):
        assert_same_bits(snapshot(mine), snapshot(expected))
    counts = [optimizer.state[params_of(optimizer)[0]]["step"].item() for optimizer in amp]
    assert counts == [4, 2]
    assert scaler.get_scale() == 256.0


@each_protocol
def test_scaled_gradients_may_be_accumulated(any_backend, unscale):
    """Two backward passes a step; an overflow in the first spoils the whole."""
    plain = ProxAdam(weights((37,)), **BUSY, **any_backend.options)
    amp = twin_of(plain)
    scaler = torch.amp.GradScaler(any_backend.device, init_scale=1024.0)
    for i in range(3):
        for optimizer in (plain, amp):
            optimizer.zero_grad()
            for part in range(2):
                bad = optimizer is amp and (i, part) == (1, 0)
                loss = overflowing(params_of(optimizer)[0] + part, bad) / 2
                (scaler.scale(loss) if optimizer is amp else loss).backward()
        if unscale:
            scaler.unscale_(amp)
        scaler.step(amp)
        scaler.update()
        if i != 1:
            plain.step()
    assert_same_bits(snapshot(amp), snapshot(plain))


@pytest.mark.parametrize("shape", [(), (1,)], ids=["0-d", "1-d"])
@pytest.mark.parametrize("of", ["grad_scale", "found_inf"])
def test_the_scalers_tensors_may_be_of_either_shape(any_backend, shape, of):
    plain = ProxAdam(weights((9,)), **BUSY, **any_backend.options)
    amp = twin_of(plain)
    params_of(amp)[0].grad *= 4.0
    values = {"grad_scale": torch.tensor(4.0), "found_inf": torch.tensor(0.0)}
    for name, value in values.items():
        setattr(amp, name, value.reshape(shape) if name == of else value)
    amp.step()
    plain.step()
    assert_same_bits(snapshot(amp), snapshot(plain))
    before = snapshot(amp)
    amp.found_inf = torch.full(shape, 2.0)
    amp.step()
    assert_same_bits(snapshot(amp), before)


def test_a_scaler_that_is_switched_off_is_not_there(any_backend):
    plain = ProxAdam(weights((9,)), **BUSY, **any_backend.options)
    amp = twin_of(plain)
    scaler = torch.amp.GradScaler(any_backend.device, enabled=False)
    scaler.step(amp)
    scaler.update()
    plain.step()
    assert_same_bits(snapshot(amp), snapshot(plain))


class Wrapped:
    """An optimizer around another, that hands on what it does not know."""

    def __init__(self, base) -> None:
        self.base = base

    def __getattr__(self, name):
        return getattr(self.base, name)


def test_a_wrapper_that_hands_on_the_flag_is_scaled_right_by_default():
    """With fused=True it would not be, as with torch's: the scaler tells only the wrapper."""
    plain = ProxAdam(weights((9,)), **BUSY)
    amp = twin_of(plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for i in range(3):
        for optimizer in (plain, amp):
            (param,) = params_of(optimizer)
            optimizer.zero_grad()
            loss = overflowing(param, optimizer is amp and i == 1)
            (scaler.scale(loss) if optimizer is amp else loss).backward()
        scaler.step(Wrapped(amp))
        scaler.update()
        if i != 1:
            plain.step()
    assert_same_bits(snapshot(amp), snapshot(plain))
