"""Read an Adam optimizer's weights and moments, whole or in shards, without waiting for a device.

A DTensor is read by its local part, and what is computed of it is combined over its mesh.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from .._step.allocated import check_allocated
from .._step.state import moment

# Elements looked at together. On the CPU they stay in the cache; on a device launches cost more.
_CPU_CHUNK = 1 << 17
_CHUNK = 1 << 24

# The mesh and the placements of a DTensor; None for any other tensor.
Sharding = tuple[Any, Any] | None
# (index of its group, name, parameter)
Named = tuple[int, str, Tensor]
# How a tensor is looked at: flat pieces of its local part.
Pieces = Callable[[Tensor], Sequence[Tensor]]
# A number that is still on its device: a tensor, and the position in it.
Place = tuple[Tensor, int]


class Report:
    """A number for each parameter, each group and all together, on the host once it is read.

    Args:
        measured: the parameters.
        group_count: how many groups there are, from index 0.
        sums: for each parameter, what its weights sum up to.
        from_mean: makes the number out of a mean over weights.
        size: how many weights a parameter has; or what else the mean is to be over.
    """

    def __init__(
        self,
        measured: Sequence[Named],
        group_count: int,
        sums: Sequence[Place],
        from_mean: Callable[[float], float],
        size: Callable[[Tensor], int] = Tensor.numel,
    ) -> None:
        self._measured = [(group, name, size(param)) for group, name, param in measured]
        self._group_count = group_count
        self._places = sums
        self._from_mean = from_mean

    @cached_property
    def _sums(self) -> list[float]:
        return read_numbers(self._places)

    def _pool(self, group: int | None = None) -> float:
        pairs = zip(self._measured, self._sums, strict=True)
        chosen = [(numel, value) for (i, _, numel), value in pairs if group in (None, i)]
        numel = sum(numel for numel, _ in chosen)
        return self._from_mean(sum(value for _, value in chosen) / numel) if numel else math.nan

    @property
    def params(self) -> dict[str, float]:
        """By name of the parameter; "group.position" where the optimizer was given no names."""
        pairs = zip(self._measured, self._sums, strict=True)
        return {name: self._from_mean(value / n) for (_, name, n), value in pairs if n}

    @property
    def groups(self) -> list[float]:
        """By group of the optimizer; NaN for a group with nothing to measure."""
        return [self._pool(i) for i in range(self._group_count)]

    @property
    def total(self) -> float:
        """Over all parameters; NaN if there are none."""
        return self._pool()

    def __float__(self) -> float:
        return self.total

    def __repr__(self) -> str:  # reads nothing: a debugger must not make the host wait
        return f"<{type(self).__name__} of {len(self._measured)} parameters>"


def named_params(optimizer: Optimizer) -> list[Named]:
    """All parameters; "group.position" names the nameless."""
    return [
        (i, group["param_names"][j] if "param_names" in group else f"{i}.{j}", param)
        for i, group in enumerate(optimizer.param_groups)
        for j, param in enumerate(group["params"])
    ]


def sharding_of(tensor: Tensor) -> Sharding:
    """How a DTensor is spread over processes; None for a plain tensor."""
    if type(tensor) in (Tensor, Parameter):
        return None
    mesh = getattr(tensor, "device_mesh", None)
    return None if mesh is None else (mesh, tensor.placements)  # type: ignore[attr-defined]


def shard_index(sharding: Sharding) -> int:
    """Which part of a tensor this process holds, from 0; the same where the part is the same."""
    index = 0
    if sharding is not None:
        mesh, placements = sharding
        for size, i, placement in zip(mesh.shape, mesh.get_coordinate(), placements, strict=True):
            if not placement.is_replicate():
                index = index * size + i
    return index


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that is in this process, detached; RuntimeError where it is freed."""
    if sharding_of(tensor) is not None:
        tensor = tensor.to_local()  # type: ignore[attr-defined]
    check_allocated(tensor, "a parameter or a moment that is to be read")
    return tensor.detach()


def _whole(value: Tensor, sharding: Sharding, placement: Any) -> Tensor:
    """The whole of a value that has this placement wherever the tensor is not replicated."""
    if sharding is None:
        return value
    from torch.distributed.tensor import DTensor

    mesh, placements = sharding
    spread = [own if own.is_replicate() else placement for own in placements]
    whole: Tensor = DTensor.from_local(value, mesh, spread, run_check=False).full_tensor()
    return whole


def reduce_shards(value: Tensor, sharding: Sharding, op: str = "sum") -> Tensor:
    """Combine over its mesh what was computed from a tensor's local part; a collective."""
    if sharding is None:
        return value
    from torch.distributed.tensor import Partial

    return _whole(value, sharding, Partial(op))


def gather_shards(values: Tensor, sharding: Sharding) -> Tensor:
    """Join what was computed from the local parts of tensors; a collective.

    Args:
        values: flat, of any length in each process; no value is −1.
        sharding: of the tensors.

    Returns:
        The values of all parts on the host, each part once, the same in all processes.
    """
    if sharding is None:
        return values.cpu()
    from torch.distributed.tensor import Shard

    size = torch.tensor(values.numel(), device=values.device)
    missing = int(reduce_shards(size, sharding, "max")) - values.numel()
    padded = torch.cat([values, values.new_full((missing,), -1)])
    whole = _whole(padded, sharding, Shard(0)).cpu()
    return whole[whole != -1]


def reduce_each(params: Sequence[Tensor], values: Sequence[Tensor], op: str = "sum") -> list[Place]:
    """Combine one 0-dim value a parameter over shards, in one collective for each sharding.

    Args:
        params: parameters.
        values: what was computed from the local part of each, of shape ().
        op: "sum" or "max".

    Returns:
        The place of each parameter's value, on its device.
    """
    alike: dict[tuple[Sharding, torch.device], list[int]] = {}
    for i, (param, value) in enumerate(zip(params, values, strict=True)):
        alike.setdefault((sharding_of(param), value.device), []).append(i)
    places: dict[int, Place] = {}
    for (sharding, _), indices in alike.items():
        whole = reduce_shards(torch.stack([values[i] for i in indices]), sharding, op)
        places |= {i: (whole, j) for j, i in enumerate(indices)}
    return [places[i] for i in range(len(params))]


@torch.no_grad()
def count_nonzeros(params: Sequence[Tensor]) -> list[Place]:
    """How many elements of each parameter are not zero, over all shards."""
    return reduce_each(params, [local_part(param).count_nonzero() for param in params])


def read_numbers(places: Sequence[Place]) -> list[float]:
    """Bring numbers to the host: one wait for each tensor that they are in."""
    tensors = {id(tensor): tensor for tensor, _ in places}
    lists = {key: tensor.tolist() for key, tensor in tensors.items()}
    return [lists[id(tensor)][i] for tensor, i in places]


def number_if_on_cpu(value: float | Tensor) -> Any:
    """The number in a tensor on the CPU; what is on a device stays there."""
    return value.item() if isinstance(value, Tensor) and value.is_cpu else value


def has_stepped(state: dict[str, Any]) -> bool:
    """Whether a parameter's state holds moments; asks no device."""
    if "step" not in state:
        return False
    step = number_if_on_cpu(state["step"])
    return isinstance(step, Tensor) or bool(step > 0)


def chunk_numel(tensor: Tensor) -> int:
    """How many elements are looked at together."""
    return _CPU_CHUNK if tensor.device.type == "cpu" else _CHUNK


def chunks(tensor: Tensor, whole: int = 1) -> Sequence[Tensor]:
    """The local part of a tensor, flat, in pieces whose temporaries are small.

    Each is a multiple of ``whole`` elements.
    """
    size = chunk_numel(tensor)
    size = max(size // max(whole, 1), 1) * max(whole, 1)
    pieces: Sequence[Tensor] = local_part(tensor).reshape(-1).split(size)
    return pieces


def pieces_at(positions: Tensor) -> Pieces:
    """What stands for :func:`chunks` where only these are asked for, all in one piece.

    Args:
        positions: flat indices into the local part, int64, on the CPU or the tensor's device.
    """
    return lambda tensor: [local_part(tensor).reshape(-1)[positions]]


def sample(numel: int, stride: int, seed: int) -> Tensor:
    """Draw one position of each ``stride`` neighbours: each has a chance of 1 / stride."""
    first = torch.arange(0, numel, stride)
    generator = torch.Generator().manual_seed(seed)  # of its own: torch's goes on undisturbed
    drawn = first + torch.randint(stride, first.shape, generator=generator)
    return drawn[drawn < numel]


def corrected_moments(
    group: dict[str, Any], state: dict[str, Any], pieces: Pieces = chunks
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield m̂ and d = √v̂ + eps, as the step has them, for each of the pieces.

    Args:
        group: the parameter's group.
        state: the parameter's state, that has stepped.
        pieces: of a tensor; :func:`chunks`, or :func:`pieces_at`.

    Yields:
        Two flat tensors in float32, or float64 for float64 state.

    Raises:
        ValueError: a complex parameter.
    """
    exp_avg = moment(state, "exp_avg")
    if exp_avg.is_complex():
        shape = tuple(exp_avg.shape)
        raise ValueError(f"expected real parameters, got a complex one of shape {shape}")
    exp_avg_sq = moment(state, "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq")
    beta1, beta2, step = map(number_if_on_cpu, (*group["betas"], state["step"]))
    dtype = torch.promote_types(exp_avg.dtype, torch.float32)
    for m, v in zip(pieces(exp_avg), pieces(exp_avg_sq), strict=True):
        d = v.to(dtype).sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
        yield m.to(dtype) / (1 - beta1**step), d
