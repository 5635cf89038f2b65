"""Where a tensor's bytes are in its storage, and whether they are there at all.

torch reads and writes beyond a storage that was freed or cut short by ``resize_``, as FSDP1 and
broken checkpoints leave some; so nothing here looks at a tensor's data.
"""

from __future__ import annotations

import torch
from torch import Tensor

UNALLOCATED = (
    "The tensor has a non-zero number of elements, but its data is not allocated yet."
    " ProxAdam found this in {what}; allocate its storage before the step."
)


def check_allocated(tensor: Tensor, what: str) -> None:
    """Raise RuntimeError where a tensor reaches beyond its storage, without reading it."""
    if has_memory(tensor) and tensor.untyped_storage().nbytes() < bounds(tensor)[1]:
        raise RuntimeError(UNALLOCATED.format(what=what))


def has_memory(tensor: Tensor) -> bool:
    """Whether the tensor has elements in a storage that can be asked for its address."""
    wraps = type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__
    if wraps or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return False
    elsewhere = tensor.is_meta or tensor.layout is not torch.strided or tensor._is_zerotensor()
    return not elsewhere and tensor.numel() > 0


def bounds(tensor: Tensor) -> tuple[int, int]:
    """The first byte of a tensor and the one behind its last, counted from its storage's first."""
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    begin = tensor.storage_offset()
    return int(begin) * tensor.itemsize, int(begin + last + 1) * tensor.itemsize
