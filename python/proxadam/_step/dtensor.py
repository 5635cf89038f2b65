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

from .group import EXPONENT_LISTS, LISTS, Group, RowCut
from .rounding_ops import BLOCK


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
    numbers = list(group.numbers)
    offsets = group.offsets or [0] * len(numbers)
    row_cuts = [row_cut(param) for param in group.params] if group.options.has_rows else []
    for i, row in enumerate(zip(*columns, strict=True)):
        if type(row[0]) is not dtensor:
            continue  # a DTensor among its gradient and state is found by the checks
        spec = row[0]._spec
        for placement in spec.placements:
            if placement.is_partial():
                raise RuntimeError(_PARTIAL.format(what=group.name(i), is_=_described(row[0])))
        if group.numbers:
            numbers[i], offsets[i] = _place(row[0], numbers[i])
        for name, column, tensor in zip(local, columns, row, strict=True):
            distributed = type(tensor) is dtensor
            blocks = name in EXPONENT_LISTS
            if distributed and (
                tensor._spec is spec or _placement(tensor._spec, blocks) == _placement(spec, blocks)
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
    placed: dict[str, Any] = {"numbers": numbers, "offsets": offsets, "row_cuts": row_cuts}
    return replace(group, **local, **placed)  # type: ignore[arg-type]


def increment_versions(group: Group, local: Group, *, writes_grads: bool = False) -> None:
    """Tell autograd that the DTensors of ``group`` were written, through the tensors in them."""
    if local is not group:
        increment_version(group.params)
        if writes_grads:
            increment_version(group.grads)


def has_whole_blocks(tensor: Any) -> bool:
    """Whether each rank has whole blocks of codes of a tensor, those that torch would deal to it.

    The same on every rank. It is so for what is no DTensor, or replicated; and under one Shard(0)
    if each shard begins with a block, and the blocks cut into as many chunks go with the shards.
    """
    if not is_dtensor(tensor):
        return True
    spec = tensor._spec
    sharded = _sharded_dims(spec)
    if not sharded:
        return True
    if not _is_cut_in_rows(spec):
        return False
    ranks = spec.mesh.shape[sharded[0]]
    rows, numel = tensor.shape[0], tensor.numel()
    blocks = -(-numel // BLOCK)
    for rank in range(ranks):
        begin, end = (i * (numel // rows) for i in _chunk(rows, ranks, rank))
        first, last = _chunk(blocks, ranks, rank)
        if first < last and (begin != first * BLOCK or -(-end // BLOCK) != last):
            return False
        if first == last and begin != end:
            return False
    return True


def row_cut(tensor: Any) -> RowCut | None:
    """Who else has parts of the rows of which this rank has some; None where its rows are whole.

    A row is what has one index in the first dimension. All ranks answer alike but for the process
    groups, in each of which all ranks have parts of the same rows, if only empty ones.
    """
    cuts = _dims_across_rows(tensor)
    if not cuts or tensor._spec.mesh.get_coordinate() is None:
        return None
    ranks = tuple(tensor._spec.mesh.get_group(i) for i in cuts)
    return RowCut(tensor.numel() // tensor.shape[0], ranks)


def has_even_rows(tensor: Any) -> bool:
    """Whether a tensor's rows are whole, or cut into pieces of one shape."""
    pieces = [1] * tensor.ndim
    for i in _dims_across_rows(tensor):
        pieces[tensor._spec.placements[i].dim] *= tensor._spec.mesh.shape[i]
    return all(size % n == 0 for size, n in zip(tensor.shape, pieces, strict=True))


def zero_exponents(param: Any) -> Tensor:
    """Exponents for the blocks of a parameter that has not been stepped yet, placed as it is."""
    local = shard(param)
    blocks = local.new_zeros(-(-local.numel() // BLOCK), dtype=torch.uint8)
    if not is_dtensor(param):
        return blocks
    return like(blocks, param, -(-param.numel() // BLOCK))


def like(local: Tensor, other: Any, numel: int | None = None) -> Tensor:
    """A rank's tensor as the shard of a DTensor placed as another; itself where that is none.

    Args:
        local: this rank's shard.
        other: what has the placement, and the shape unless there is a ``numel``.
        numel: elements of the whole, if it is of one dimension.
    """
    if not is_dtensor(other):
        return local
    shape, stride = (other.shape, other.stride()) if numel is None else ((numel,), (1,))
    made: Tensor = _dtensor_type().from_local(
        local,
        other.device_mesh,
        other.placements,
        run_check=False,
        shape=torch.Size(shape),
        stride=stride,
    )
    return made


def are_alike(one: Any, other: Any) -> bool:
    """Whether two tensors are placed alike, or both are no DTensors."""
    if not (is_dtensor(one) and is_dtensor(other)):
        return not (is_dtensor(one) or is_dtensor(other))
    return _placement(one._spec) == _placement(other._spec)


def shard(tensor: Any) -> Tensor:
    """This rank's part of a DTensor; any other tensor as it is."""
    return _shard(tensor) if is_dtensor(tensor) else tensor


def is_dtensor(tensor: object) -> bool:
    """Whether this is a DTensor."""
    return type(tensor) is _dtensor_type()


_PARTIAL = (
    "{what} is {is_}, whose shards are summands of it and cannot be stepped by themselves;"
    " redistribute() it before it is made a parameter."
)


def _dtensor_type() -> Any:
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)


def _placement(spec: Any, of_blocks: bool = False) -> tuple[object, ...]:
    return (spec.mesh, spec.placements, None if of_blocks else spec.tensor_meta.shape)


def _sharded_dims(spec: Any) -> list[int]:
    """The mesh dimensions along which a tensor is cut."""
    return [i for i, own in enumerate(spec.placements) if not own.is_replicate()]


def _dims_across_rows(tensor: Any) -> list[int]:
    """The mesh dimensions along which the rows of a tensor are cut."""
    if not is_dtensor(tensor) or tensor.ndim < 2 or not tensor.numel():
        return []
    spec = tensor._spec
    return [i for i in _sharded_dims(spec) if spec.placements[i].dim and spec.mesh.shape[i] > 1]


def _is_cut_in_rows(spec: Any) -> bool:
    """Whether a DTensor is cut once, along its first dimension, and each shard is one stretch."""
    cuts = [spec.placements[i] for i in _sharded_dims(spec)]
    meta = spec.tensor_meta
    contiguous = torch.empty(meta.shape, device="meta").stride() == tuple(meta.stride)
    plain = len(cuts) == 1 and type(cuts[0]).__name__ == "Shard"  # _StridedShard is one too
    return plain and cuts[0].is_shard(0) and contiguous


def _chunk(size: int, chunks: int, index: int) -> tuple[int, int]:
    """Where a chunk begins and ends, as torch.chunk deals them."""
    each = -(-size // chunks)
    return min(index * each, size), min((index + 1) * each, size)


def _place(param: Any, number: int) -> tuple[int, int]:
    """The number and the offset of a rank's shard, from which its random bits follow.

    A shard that is one stretch of the whole draws what the whole would there. Any other one has a
    number of its own: its place on the mesh, from 1, in the upper half.
    """
    spec = param._spec
    sharded = _sharded_dims(spec)
    coordinate = spec.mesh.get_coordinate()
    if not sharded or coordinate is None:
        return number, 0
    if _is_cut_in_rows(spec):
        rows = param.shape[0]
        begin, _ = _chunk(rows, spec.mesh.shape[sharded[0]], coordinate[sharded[0]])
        return number, begin * (param.numel() // max(rows, 1))
    place = 0
    for i in sharded:
        place = place * spec.mesh.shape[i] + coordinate[i]
    return number + ((place + 1) << 32), 0


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
