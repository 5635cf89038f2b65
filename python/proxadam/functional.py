"""The functional twin of the optimizer, in the shape of ``torch.optim.adam.adam``."""

from __future__ import annotations

import math

from torch import Tensor

from ._step import dispatch
from ._step.group import Group
from ._step.options import Options

__all__ = ["prox_adam"]


def prox_adam(  # noqa: D417 (the class describes the options)
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
    has_complex: bool = False,  # noqa: ARG001
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
    l21: float | Tensor = 0.0,
    l1_knee: float | Tensor = math.inf,
    metric: str = "adaptive",
    max_shrink: float = 10.0,
    keep_zeros: bool = False,
) -> None:
    """Take one proximal Adam step, in place.

    See :class:`proxadam.ProxAdam` for the maths and for the options, which are all others of the
    arguments; ``betas`` are ``beta1`` and ``beta2`` here.

    Args:
        params: tensors of any shape and strides; float32, float64, bfloat16, float16 or complex.
        grads: one for each parameter, of its shape, dtype and device.
        exp_avgs: first moments, of the parameters' shapes.
        exp_avg_sqs: second moments, of the parameters' shapes.
        max_exp_avg_sqs: running maxima of the second moments; empty unless ``amsgrad``.
        state_steps: floating point tensors of one element: the steps taken so far.
        grad_scale: one element that the gradients are divided by, and written back divided.
        found_inf: one element; anything but zero skips the step.
        has_complex: accepted as torch's function does; complex parameters are seen by themselves.

    Raises:
        RuntimeError, ValueError, AssertionError: see :class:`proxadam.ProxAdam`.
    """
    options = Options(
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        amsgrad=amsgrad,
        maximize=maximize,
        decoupled_weight_decay=decoupled_weight_decay,
        l1=l1,
        l2=l2,
        l21=l21,
        l1_knee=l1_knee,
        metric=metric,
        max_shrink=max_shrink,
        keep_zeros=keep_zeros,
        foreach=foreach,
        capturable=capturable,
        differentiable=differentiable,
        fused=fused,
    )  # each by its name: torch.compile of torch 2.10 does not trace locals()
    maxima = max_exp_avg_sqs if amsgrad else []
    group = Group(params, grads, exp_avgs, exp_avg_sqs, maxima, state_steps, options)
    dispatch.step([group], grad_scale, found_inf)
