"""Read an Adam optimizer's weights and moments, whole or in shards, without waiting for a device.

A DTensor is read by its local shard, and what is counted there is combined over its mesh.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

# Elements looked at together. On the CPU they stay in the cache; on a device launches cost more.
_CPU_CHUNK = 1 << 17
_CHUNK = 1 << 24

# The mesh and the placements of a DTensor; None for any other tensor.
Sharding = tuple[Any, Any] | None


def named_params(optimizer: Optimizer) -> list[tuple[int, str, Tensor]]:
    """(index of the group, name, parameter) of all; "group.position" names the nameless."""
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


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that is in this process, detached."""
    if sharding_of(tensor) is not None:
        tensor = tensor.to_local()  # type: ignore[attr-defined]
    return tensor.detach()


def over_shards(value: Tensor, sharding: Sharding, op: str = "sum") -> Tensor:
    """Combine over its mesh what was computed from a tensor's local part; a collective."""
    if sharding is None:
        return value
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh, placements = sharding
    parts = [Replicate() if placement.is_replicate() else Partial(op) for placement in placements]
    whole: Tensor = DTensor.from_local(value, mesh, parts, run_check=False).full_tensor()
    return whole


def combine(
    params: Sequence[Tensor], values: Sequence[Tensor], op: str = "sum"
) -> list[tuple[Tensor, int]]:
    """Combine one 0-dim value a parameter over shards, in one collective for each sharding.

    Args:
        params: parameters.
        values: what was computed from the local part of each, of shape ().
        op: "sum" or "max".

    Returns:
        For each parameter a tensor on its device, and the position of its value there.
    """
    together: dict[tuple[Sharding, torch.device], list[int]] = {}
    for i, (param, value) in enumerate(zip(params, values, strict=True)):
        together.setdefault((sharding_of(param), value.device), []).append(i)
    places: dict[int, tuple[Tensor, int]] = {}
    for (sharding, _), indices in together.items():
        whole = over_shards(torch.stack([values[i] for i in indices]), sharding, op)
        places |= {i: (whole, j) for j, i in enumerate(indices)}
    return [places[i] for i in range(len(params))]


@torch.no_grad()
def count_nonzeros(params: Sequence[Tensor]) -> list[tuple[Tensor, int]]:
    """How many elements of each parameter are not zero, over all shards; see :func:`combine`."""
    return combine(params, [local(param).count_nonzero() for param in params])


def read(places: Sequence[tuple[Tensor, int]]) -> list[float]:
    """Bring the results of :func:`combine` to the host: one wait for each tensor."""
    wholes = {id(whole): whole for whole, _ in places}
    lists = {key: whole.tolist() for key, whole in wholes.items()}
    return [lists[id(whole)][j] for whole, j in places]


def on_host(value: float | Tensor) -> Any:
    """The number in a tensor on the CPU; what is on a device stays there."""
    return value.item() if isinstance(value, Tensor) and value.is_cpu else value


def has_stepped(state: dict[str, Any]) -> bool:
    """Whether a parameter's state holds moments; asks no device."""
    if "exp_avg" not in state:
        return False
    step = on_host(state["step"])
    return isinstance(step, Tensor) or bool(step > 0)


def chunks(tensor: Tensor) -> Sequence[Tensor]:
    """The local part of a tensor, flat, in pieces whose temporaries are small."""
    size = _CPU_CHUNK if tensor.device.type == "cpu" else _CHUNK
    pieces: Sequence[Tensor] = local(tensor).reshape(-1).split(size)
    return pieces


def corrected(group: dict[str, Any], state: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield m̂ and d = √v̂ + eps, as the step has them, for each of :func:`chunks`.

    Args:
        group: the parameter's group.
        state: the parameter's state, that has stepped.

    Yields:
        Two flat tensors in float32, or float64 for float64 state.

    Raises:
        ValueError: a complex parameter.
    """
    exp_avg = state["exp_avg"]
    if exp_avg.is_complex():
        shape = tuple(exp_avg.shape)
        raise ValueError(f"expected real parameters, got a complex one of shape {shape}")
    exp_avg_sq = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    beta1, beta2, step = map(on_host, (*group["betas"], state["step"]))
    dtype = torch.promote_types(exp_avg.dtype, torch.float32)
    for m, v in zip(chunks(exp_avg), chunks(exp_avg_sq), strict=True):
        d = v.to(dtype).sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
        yield m.to(dtype) / (1 - beta1**step), d
