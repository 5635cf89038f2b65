"""The step on torch ops: one tensor at a time, or a list at a time with ``torch._foreach_*``.

Both do, in this order: decay, moments, Adam step, prox, bound. With l1 = l2 = 0 they run the very
operations of ``torch.optim.Adam``'s same path, so float32 and float64 agree with it bit for bit.
16-bit tensors are computed in float32 and rounded once. What comes here has been checked.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.optim.optimizer import (
    _default_to_fused_or_foreach,
    _get_capturable_supported_devices,
)

from ._group import Group, on_device
from .prox import prox_elastic_net

# Elements of CPU tensors taken at a time: what a dozen elementwise passes touch stays in cache.
# Measured; with twice as many, the allocator gives temporaries back and pays for them again.
_BLOCK_NUMEL = 1 << 16

_Scalar = float | Tensor
_Tensors = list[Tensor] | tuple[Tensor, ...]
_Row = list[Tensor]  # param, grad, exp_avg, exp_avg_sq and, with amsgrad, max_exp_avg_sq


def step(group: Group, grad_scale: _Scalar | None = None) -> None:
    """Update the parameters and the state of ``group`` in place.

    Args:
        group: checked parameters, gradients, state and options.
        grad_scale: what the gradients were multiplied by; they are divided by it in place.

    Raises:
        AssertionError: ``capturable=True`` on a device that cannot capture, as torch.optim does.
    """
    if grad_scale is not None:
        group = replace(group, grads=_unscale(group.grads, _to_scalar(grad_scale)))
    rows = [list(row) for row in zip(*filter(None, group.tensor_lists()), strict=True)]
    for indices in _same_kind(group):
        kind = [rows[i] for i in indices]
        state_steps = [group.state_steps[i] for i in indices]
        if _uses_foreach(group, kind):
            _multi_tensor(group, kind, _advance(group, state_steps))
        else:
            for row, step_t in zip(kind, state_steps, strict=True):
                _single_tensor(group, row, *_advance(group, [step_t]))


def check_capturable(group: Group) -> None:
    """Raise torch.optim's AssertionError where ``capturable`` meets a device that is not."""
    devices = _get_capturable_supported_devices(supports_xla=not group.foreach)
    if group.capturable and not torch.compiler.is_compiling():
        for param, step_t in zip(group.params, group.state_steps, strict=True):
            if not param.device.type == step_t.device.type or param.device.type not in devices:
                raise AssertionError(
                    "If capturable=True, params and state_steps must be on supported devices: "
                    f"{devices}."
                )


# ---- one tensor at a time ---------------------------------------------------------------------


def _single_tensor(group: Group, row: _Row, step: _Scalar) -> None:
    for ((tensors, _),) in _blocks([row], [step], whole=isinstance(step, Tensor)):
        working = _upcast(tensors)
        _update(group, *working, step=step)
        _round_back(group, [tensors], [working])


def _update(
    group: Group,
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None = None,
    *,
    step: _Scalar,
) -> None:
    lr, beta1, beta2 = _to_scalar(group.lr), _to_scalar(group.beta1), _to_scalar(group.beta2)
    weight_decay, differentiable = group.weight_decay, group.differentiable
    moves_param = differentiable or not _is_zero(lr)
    weight = param

    if group.maximize:
        grad = -grad
    if weight_decay != 0:
        if group.decoupled_weight_decay:
            if moves_param:
                param.mul_(1 - lr * weight_decay)
        elif _needs_grad(weight_decay):
            grad = grad.addcmul(param.clone(), weight_decay)
        else:
            grad = grad.add(param, alpha=weight_decay)

    if param.is_complex():
        param, grad, exp_avg, exp_avg_sq = map(_as_real, (param, grad, exp_avg, exp_avg_sq))
        max_exp_avg_sq = None if max_exp_avg_sq is None else _as_real(max_exp_avg_sq)
    exp_avg.lerp_(grad, 1 - _like(beta1, param))
    if _needs_grad(beta2):  # addcmul_ takes no tensor value; the lerp is the same mean
        exp_avg_sq.lerp_(torch.square(grad), weight=1 - beta2)
    else:
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    if max_exp_avg_sq is not None:
        both: tuple[Tensor, ...] = (max_exp_avg_sq, exp_avg_sq)
        if differentiable:  # the backward pass needs them as they are; the next step overwrites
            both = tuple(tensor.clone() for tensor in both)
        exp_avg_sq = max_exp_avg_sq.copy_(torch.maximum(*both))
    if not moves_param:
        return

    numerator = exp_avg.clone() if differentiable else exp_avg
    count = step.clone() if isinstance(step, Tensor) and _needs_grad(beta1) else step
    bias_correction1 = 1 - beta1**count
    count = step.clone() if isinstance(step, Tensor) and _needs_grad(beta2) else step
    bias_correction2 = 1 - beta2**count
    step_size = lr / bias_correction1
    if not isinstance(step, Tensor):
        denom = (exp_avg_sq.sqrt() / bias_correction2**0.5).add_(group.eps)
        param.addcdiv_(numerator, denom, value=-step_size)
    elif group.has_prox or torch.compiler.is_compiling():
        # Also in a graph, which cannot ask whether lr is 0: the other form is 0 / 0 then.
        denom = (exp_avg_sq.sqrt() / bias_correction2.sqrt()).add_(group.eps)
        param.sub_(step_size * numerator / denom)
    else:
        # addcdiv_ takes no tensor value either: torch folds −step_size into the denominator.
        negated = step_size.neg()
        denom = (exp_avg_sq.sqrt() / (bias_correction2.sqrt() * negated)).add_(group.eps / negated)
        param.addcdiv_(numerator, denom)
    if group.has_prox:
        _prox_(group, weight, denom, lr)


def _prox_(group: Group, param: Tensor, denom: Tensor, lr: _Scalar) -> None:
    """Replace Adam's result by its elastic-net prox in the group's metric, bounded."""
    z = param.clone() if group.differentiable else param
    step_size = lr / denom if group.metric == "adaptive" else lr
    shrunk = prox_elastic_net(z, _to_scalar(group.l1), _to_scalar(group.l2), step_size)
    if group.max_shrink < math.inf:
        bound = group.max_shrink * lr
        if z.is_complex():
            pull = shrunk - z
            shrunk = torch.where(pull.abs() > bound, z + pull * (bound / pull.abs()), shrunk)
        else:
            shrunk = shrunk.clamp(z - bound, z + bound)
    param.copy_(shrunk.add_(0.0))  # −0.0 + 0.0 = +0.0: under the prox no zero has a sign


# ---- a list of tensors at a time --------------------------------------------------------------


def _multi_tensor(group: Group, rows: list[_Row], steps: list[_Scalar]) -> None:
    if rows[0][0].is_complex():
        rows = [[_as_real(tensor) for tensor in row] for row in rows]
    whole = not rows[0][0].is_cpu or isinstance(steps[0], Tensor)
    for block in _blocks(rows, steps, whole=whole):
        tensors = [row for row, _ in block]
        working = [_upcast(row) for row in tensors]
        _multi_update(group, *map(list, zip(*working, strict=True)), steps=[s for _, s in block])
        _round_back(group, tensors, working)


def _multi_update(
    group: Group,
    params: list[Tensor],
    grads: _Tensors,
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor] | None = None,
    *,
    steps: list[Any],
) -> None:
    lr, beta1, beta2 = _to_scalar(group.lr), _to_scalar(group.beta1), _to_scalar(group.beta2)
    weight_decay = group.weight_decay
    moves_params = not _is_zero(lr)

    if group.maximize:
        grads = torch._foreach_neg(grads)
    if weight_decay != 0:
        if not group.decoupled_weight_decay:
            grads = torch._foreach_add(grads, params, alpha=weight_decay)
        elif moves_params:
            torch._foreach_mul_(params, 1 - lr * weight_decay)

    torch._foreach_lerp_(exp_avgs, grads, 1 - _like(beta1, params[0], dtype=False))
    torch._foreach_mul_(exp_avg_sqs, beta2)
    if isinstance(beta2, Tensor):  # the value of _foreach_addcmul_ is a number or nothing
        torch._foreach_addcmul_(exp_avg_sqs, torch._foreach_mul(grads, 1 - beta2), grads, 1.0)
    else:
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
    if max_exp_avg_sqs is not None:
        torch._foreach_maximum_(max_exp_avg_sqs, exp_avg_sqs)
        exp_avg_sqs = max_exp_avg_sqs
    if not moves_params:
        return

    denoms = torch._foreach_sqrt(exp_avg_sqs)
    if isinstance(steps[0], Tensor):
        step_sizes = torch._foreach_pow(beta1, steps)
        torch._foreach_sub_(step_sizes, 1)
        torch._foreach_div_(step_sizes, lr)
        torch._foreach_reciprocal_(step_sizes)  # −lr / (1 − beta1^t)
        bias_correction2_sqrts = torch._foreach_pow(beta2, steps)
        torch._foreach_sub_(bias_correction2_sqrts, 1)
        torch._foreach_neg_(bias_correction2_sqrts)
        torch._foreach_sqrt_(bias_correction2_sqrts)
        torch._foreach_div_(denoms, bias_correction2_sqrts)
        torch._foreach_add_(denoms, group.eps)
        torch._foreach_addcdiv_(params, exp_avgs, torch._foreach_div(denoms, step_sizes))
    else:
        torch._foreach_div_(denoms, [(1 - beta2**t) ** 0.5 for t in steps])
        torch._foreach_add_(denoms, group.eps)
        negated = [(lr / (1 - beta1**t)) * -1 for t in steps]
        torch._foreach_addcdiv_(params, exp_avgs, denoms, negated)
    if group.has_prox:
        _multi_prox_(group, params, denoms, lr)


def _multi_prox_(group: Group, zs: list[Tensor], denoms: _Tensors, lr: Any) -> None:
    """:func:`_prox_` on lists: S(z, step_size · l1) / (1 + step_size · l2), bounded."""
    l1, l2 = _to_scalar(group.l1), _to_scalar(group.l2)
    if group.metric == "adaptive":
        torch._foreach_reciprocal_(denoms)
        torch._foreach_mul_(denoms, lr)  # they are the step sizes from here on
        thresholds = torch._foreach_mul(denoms, l1)
        clamped = torch._foreach_minimum(zs, thresholds)
        torch._foreach_neg_(thresholds)
        torch._foreach_maximum_(clamped, thresholds)
        torch._foreach_mul_(denoms, l2)
        torch._foreach_add_(denoms, 1)
        divisors: Any = denoms
    else:
        divisors = 1 + lr * l2
        clamped = torch._foreach_clamp_min(torch._foreach_clamp_max(zs, lr * l1), -lr * l1)
    shrunk = torch._foreach_sub(zs, clamped)
    torch._foreach_div_(shrunk, divisors)
    if group.max_shrink < math.inf:
        bound = group.max_shrink * lr
        torch._foreach_maximum_(shrunk, torch._foreach_add(zs, -bound))
        torch._foreach_add_(zs, bound)
        torch._foreach_minimum_(shrunk, zs)
    torch._foreach_add_(shrunk, 0.0)  # as in _prox_
    torch._foreach_copy_(zs, shrunk)


# ---- what both share --------------------------------------------------------------------------


def _same_kind(group: Group) -> list[list[int]]:
    """Indices of the parameters that may go through one list: same device and dtypes."""
    kinds = defaultdict(list)
    for i, (param, exp_avg) in enumerate(zip(group.params, group.exp_avgs, strict=True)):
        kinds[param.device, param.dtype, exp_avg.dtype].append(i)
    return list(kinds.values())


def _uses_foreach(group: Group, rows: list[_Row]) -> bool:
    params = [row[0] for row in rows]
    if group.has_prox and params[0].is_complex():
        return False
    foreach = group.foreach
    if foreach is None:
        _, foreach = _default_to_fused_or_foreach(params, group.differentiable, use_fused=False)
        foreach = foreach and not (isinstance(group.lr, Tensor) and not group.capturable)
    if torch.compiler.is_compiling():  # the question below would break the graph
        return foreach
    # torch writes no list that has a lazily negated view in it.
    return foreach and not any(tensor.is_neg() for row in rows for tensor in row)


def _advance(group: Group, state_steps: list[Tensor]) -> list[_Scalar]:
    """Add one to each ``step``; return them as numbers where the host may read them."""
    if state_steps[0].is_cpu and not torch.compiler.is_compiling():
        # An int would be wrapped into a tensor once for each of them.
        torch._foreach_add_(state_steps, torch.tensor(1.0, device="cpu"), alpha=1.0)
    else:
        torch._foreach_add_(state_steps, 1)
    if group.capturable or group.differentiable or torch.compiler.is_compiling():
        return list(state_steps)
    return [step_t.item() for step_t in state_steps]


def _blocks(
    rows: list[_Row], steps: list[_Scalar], *, whole: bool
) -> Iterator[list[tuple[_Row, _Scalar]]]:
    """Cut contiguous rows into slices and hand them out, about ``_BLOCK_NUMEL`` at a time."""
    if whole:
        yield list(zip(rows, steps, strict=True))
        return
    block: list[tuple[_Row, _Scalar]] = []
    numel = 0
    for row, step_t in zip(rows, steps, strict=True):
        slices = [row]
        if row[0].numel() > _BLOCK_NUMEL and all(t.is_contiguous() for t in row):
            flat = [t.view(-1).split(_BLOCK_NUMEL) for t in row]
            slices = [list(tensors) for tensors in zip(*flat, strict=True)]
        for tensors in slices:
            if block and numel + tensors[0].numel() > _BLOCK_NUMEL:
                yield block
                block, numel = [], 0
            block.append((tensors, step_t))
            numel += tensors[0].numel()
    if block:
        yield block


def _as_real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj())


def _unscale(grads: list[Tensor], grad_scale: _Scalar) -> list[Tensor]:
    """Divide the gradients in place; return them as they were before that was rounded."""
    unscaled = [grad / _like(grad_scale, grad, dtype=False) for grad in _upcast(grads)]
    for grad, value in zip(grads, unscaled, strict=True):
        grad.copy_(value)
    return unscaled


def _upcast(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors as they are computed with: themselves, or float32 copies of 16-bit ones."""
    return [t.to(torch.float32) if t.dtype.itemsize == 2 else t for t in tensors]


def _round_back(group: Group, rows: list[_Row], working: list[_Row]) -> None:
    for row, computed in zip(rows, working, strict=True):
        if computed[0] is row[0]:
            continue
        param, _, *state = row
        for tensor, value in zip([param, *state], [computed[0], *computed[2:]], strict=True):
            tensor.copy_(value)
        if group.has_prox and not _is_zero(group.lr):
            param.add_(0.0)  # float16 may have rounded a tiny negative value to −0.0


# Any: the stubs of torch's functions take numbers where the functions take such tensors too.
def _to_scalar(value: _Scalar) -> Any:
    return value.squeeze() if isinstance(value, Tensor) else value


def _like(value: _Scalar, tensor: Tensor, *, dtype: bool = True) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(tensor.device, tensor.dtype if dtype else value.dtype, non_blocking=True)


def _needs_grad(value: _Scalar) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.requires_grad


def _is_zero(value: _Scalar) -> bool | Tensor:
    return not on_device(value) and value == 0
