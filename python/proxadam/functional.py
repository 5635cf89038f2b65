"""The functional twin of the optimizer, in the shape of ``torch.optim.adam.adam``."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _compile, _dispatch
from ._group import Group

__all__ = ["prox_adam"]


def prox_adam(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    foreach: bool | None = None,
    capturable: bool = False,
    differentiable: bool = False,
    fused: bool | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    has_complex: bool = False,  # noqa: ARG001 (torch's functional Adam takes it)
    decoupled_weight_decay: bool = False,
    *,
    amsgrad: bool,
    beta1: float | Tensor,
    beta2: float | Tensor,
    lr: float | Tensor,
    weight_decay: float,
    eps: float,
    maximize: bool,
    l1: float | Tensor = 0.0,
    l2: float | Tensor = 0.0,
    metric: str = "adaptive",
    max_shrink: float = 10.0,
) -> None:
    """Take one proximal Adam step, in place. See :class:`proxadam.ProxAdam` for the maths.

    Args:
        params: tensors of any shape and strides; float32, float64, bfloat16, float16 or complex.
        grads: one for each parameter, of its shape, dtype and device.
        exp_avgs: first moments, of the parameters' shapes.
        exp_avg_sqs: second moments, of the parameters' shapes.
        max_exp_avg_sqs: running maxima of the second moments; empty unless ``amsgrad``.
        state_steps: floating point tensors of one element: the steps taken so far.
        foreach: torch ops on lists (True) or tensor by tensor (False); None chooses.
        capturable: read the step on the device, for CUDA graphs.
        differentiable: let autograd through the step; torch ops.
        fused: demand the kernel (True), forbid it (False), or take it where it fits (None).
        grad_scale: one element that the gradients are divided by, and written back divided.
        found_inf: one element; anything but zero skips the step.
        has_complex: accepted as torch's function does; complex parameters are seen by themselves.
        decoupled_weight_decay: AdamW's decay in place of Adam's.
        amsgrad: use the running maximum of the second moment.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        lr: learning rate.
        weight_decay: decay coefficient.
        eps: term added to the denominator.
        maximize: ascend the objective; the prox still shrinks.
        l1: weight of Σ|w|.
        l2: weight of ½ Σw².
        metric: "adaptive" or "euclidean".
        max_shrink: how far the prox may pull a weight in one step, in units of lr.

    Raises:
        RuntimeError, ValueError, AssertionError: see :class:`proxadam.ProxAdam`.
    """
    group = Group(
        params=params,
        grads=grads,
        exp_avgs=exp_avgs,
        exp_avg_sqs=exp_avg_sqs,
        max_exp_avg_sqs=max_exp_avg_sqs if amsgrad else [],
        state_steps=state_steps,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        l1=l1,
        l2=l2,
        metric=metric,
        max_shrink=max_shrink,
        amsgrad=amsgrad,
        maximize=maximize,
        decoupled_weight_decay=decoupled_weight_decay,
        foreach=foreach,
        capturable=capturable,
        differentiable=differentiable,
        fused=fused,
    )
    take_step = _compile.step if torch.compiler.is_compiling() else _dispatch.step
    take_step([group], grad_scale, found_inf)
