# What the native modules offer to proxadam.backends; their docstrings are in csrc/.

from collections.abc import Mapping

from numpy import ndarray
from torch import Tensor

from proxadam._step.group import Group

class Plan:
    @property
    def rejected(self) -> list[tuple[int, int, str, str]]: ...

def bind(exchange: object, tensor: type, parameter: type, functions: Mapping[str, int]) -> None: ...
def admit(
    groups: list[Group],
    grad_scales: list[Tensor] = ...,
    found_infs: list[Tensor] = ...,
    launch: bool = True,
) -> Plan | None: ...
def launch(plans: list[Plan]) -> None: ...
def capabilities() -> list[str]: ...
def capability() -> str: ...
def use_capability(name: str) -> None: ...
def chunks(
    numels: list[int], begin: int | None = None, end: int | None = None
) -> list[tuple[int, int, int]]: ...
def work(numels: list[int]) -> int: ...

# Weights and second moments: flat arrays over the memory of tensors, and the names of their dtypes.
def look_at_scores(
    weights: ndarray,
    weight_type: str,
    moments: ndarray | None,
    moment_type: str,
    factor: float,
    offset: float,
    low: float,
    high: float,
) -> tuple[int, int, int, ndarray, ndarray]: ...
def zero_below(
    weights: ndarray,
    weight_type: str,
    moments: ndarray | None,
    moment_type: str,
    factor: float,
    offset: float,
    low: float,
) -> None: ...
def row_squares(
    weights: ndarray,
    weight_type: str,
    moments: ndarray | None,
    moment_type: str,
    factor: float,
    offset: float,
    width: int,
) -> ndarray: ...
