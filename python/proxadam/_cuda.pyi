"""The proximal Adam step on CUDA devices. :mod:`proxadam.backends` is its only user."""

from torch import Tensor

from proxadam._step.group import Group

class Plan:
    """Tensors looked at and not yet written."""

    @property
    def rejected(self) -> list[tuple[int, list[int]]]:
        """(group, parameters) that the kernel cannot take."""
    def launch(self) -> None:
        """Step the others, in place."""

def bind(
    exchange: object,
    tensor: type,
    parameter: type,
    storage_bytes: int = 0,
    storage_offset: int = 0,
) -> None:
    """Tell the module about this process's torch."""

def load(device: int) -> None:
    """Load every kernel to a device, once."""

def step(
    groups: list[Group], grad_scales: list[Tensor] = ..., found_infs: list[Tensor] = ...
) -> Plan | None:
    """Queue the step of every parameter, or, where one does not fit, nothing: a Plan."""

def chunk_for(numel: int, multiprocessors: int) -> int:
    """Elements of a chunk, for a launch over so many elements on such a device."""
