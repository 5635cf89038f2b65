"""The proximal Adam step on the CPU. :mod:`proxadam.backends` is its only user."""

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
    parallel_for: int,
    storage_bytes: int = 0,
    storage_offset: int = 0,
) -> None:
    """Tell the module about this process's torch."""

def step(groups: list[Group], grad_scale: float | None = None) -> Plan | None:
    """Step every parameter in place, or, where one does not fit, write nothing: a Plan."""

def capabilities() -> list[str]:
    """Instruction sets compiled in that this processor has, the widest last."""

def capability() -> str:
    """The instruction set in use."""

def use_capability(name: str) -> None:
    """Change the instruction set in use; for tests and benchmarks."""

def chunks(
    numels: list[int], begin: int | None = None, end: int | None = None
) -> list[tuple[int, int, int]]:
    """(tensor, begin, end) of the chunks that a thread with work [begin, end) takes."""

def work(numels: list[int]) -> int:
    """Length of the range that is shared out among threads."""
