"""DTensors on their way through a step, which is elementwise: each rank steps the shard it has.

Nothing here imports torch.distributed.tensor, which is large: who has a DTensor has done so.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .group import LISTS, Group


def to_local(group: Group, *, writes_grads: bool = False) -> Group:
    """The same group with this rank's tensors in the place of DTensors.

    A gradient that is placed otherwise than its parameter, as sequence parallelism leaves it, is
    brought to the parameter's placement, as torch's own ops do; every rank must then have one.

    Args:
        group: parameters, gradients, state and options; returned as it is where there is nothing
            to unwrap, or where autograd is to see the DTensors.
        writes_grads: whether the gradients are to be divided in place.

    Raises:
        RuntimeError: a parameter whose shards are summands; a gradient that is no DTensor or
            cannot be divided where it is; state that is not placed as its parameter.
    """
    if group.options.differentiable:
        return group
    dtensor = _dtensor_type()
    if dtensor is None or dtensor not in map(type, group.params):
        return group
    lists = group.lists().items()
    local: dict[str, list[Any]] = {k: list(v) for k, v in lists if k != "state_steps"}
    columns = list(local.values())
    elsewhere = []
    for i, row in enumerate(zip(*columns, strict=True)):
        if type(row[0]) is not dtensor:
            continue  # a DTensor among its gradient and state is found by the checks
        spec = row[0]._spec
        for placement in spec.placements:
            if placement.is_partial():
                raise RuntimeError(_PARTIAL.format(what=group.name(i), is_=_described(row[0])))
        for name, column, tensor in zip(local, columns, row, strict=True):
            distributed = type(tensor) is dtensor
            if distributed and (
                tensor._spec is spec or _placement(tensor._spec) == _placement(spec)
            ):
                column[i] = _shard(tensor)
            elif distributed and name == "grads" and tensor.shape == row[0].shape:
                elsewhere.append(i)
            else:
                raise RuntimeError(
                    f"the {LISTS[name]} of {group.name(i)} is {_described(tensor)}, expected one"
                    f" like the parameter, {_described(row[0])}; distribute it as that is."
                )
    for i in elsewhere:
        if writes_grads:
            raise RuntimeError(
                f"the gradient of {group.name(i)} is {_described(group.grads[i])} and the"
                f" parameter {_described(group.params[i])}, so grad_scale cannot be divided out"
                " of it in place; call scaler.unscale_(optimizer) before the step."
            )
        local["grads"][i] = _redistributed(group.grads[i], group.params[i])
    return replace(group, **local)  # type: ignore[arg-type]


def increment_versions(group: Group, local: Group, *, writes_grads: bool = False) -> None:
    """Tell autograd that the DTensors of ``group`` were written, through the tensors in them."""
    if local is not group:
        increment_version(group.params)
        if writes_grads:
            increment_version(group.grads)


def is_dtensor(tensor: object) -> bool:
    """Whether this is a DTensor."""
    return type(tensor) is _dtensor_type()


_PARTIAL = (
    "{what} is {is_}, whose shards are summands of it and cannot be stepped by themselves;"
    " redistribute() it before it is made a parameter."
)


def _dtensor_type() -> Any:
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)


def _placement(spec: Any) -> tuple[object, ...]:
    return (spec.mesh, spec.placements, spec.tensor_meta.shape)


def _shard(tensor: Any) -> Tensor:
    # Not to_local(): of a parameter that makes a new tensor at each call.
    local: Tensor = tensor._local_tensor
    if type(local) is not Tensor and hasattr(local, "trigger_wait"):
        local = local.trigger_wait()  # its collective may still be on the way
    return local


def _redistributed(grad: Any, param: Any) -> Tensor:
    with torch.no_grad():
        return _shard(grad.redistribute(param.device_mesh, param.placements))


def _described(tensor: Any) -> str:
    if not is_dtensor(tensor):
        return "no DTensor"
    return f"a DTensor of shape {tuple(tensor.shape)} placed as {tensor.placements}"
