"""The options of a parameter group, each of them once.

From :class:`Options` follow the defaults of the groups, what an older checkpoint is completed with,
the checks wherever options come in, what a checkpoint may change, and the schema of the compiled
op. Only the public signatures name the options again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

METRICS = ("adaptive", "euclidean")
EIGHT_BITS = "8bit"
STATE_DTYPES = (None, torch.float32, torch.bfloat16, EIGHT_BITS)
SMALL = (torch.bfloat16, EIGHT_BITS)  # what is rounded by chance
TENSOR_LR = "lr as a Tensor is not supported for capturable=False and foreach=True"


def _strength(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"Invalid {name} value: {value}, expected finite and ≥ 0")


def _at_least_one(name: str, value: float) -> None:
    if not value >= 1:
        raise ValueError(f"Invalid {name} value: {value}, expected ≥ 1 (inf allowed)")


def _above_zero(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"Invalid {name} value: {value}, expected above 0 (inf allowed)")


def _metric(name: str, value: object) -> None:
    if value not in METRICS:
        raise ValueError(f"Invalid {name}: {value!r}, expected one of {METRICS}")


def _state_dtype(name: str, value: object) -> None:
    if value not in STATE_DTYPES:
        raise ValueError(f"Invalid {name}: {value!r}, expected one of {STATE_DTYPES}")


def _stochastic_rounding(name: str, value: object) -> None:
    if value not in (None, True, False):
        raise ValueError(f"Invalid {name}: {value!r}, expected True, False or None")


def _seed(name: str, value: object) -> None:
    if not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"Invalid {name}: {value!r}, expected an integer from 0 to 2**63 - 1")


_IMPLEMENTATION = {"implementation": True}  # how a step is taken: the instance's own choice
_FORMAT = {"format": True}  # how numbers are kept: the instance's own choice too


@dataclass(slots=True)
class Options:
    """The options of a group at one step; see :class:`proxadam.ProxAdam` for what they mean.

    One line is an option: its type, its default and its check. A ``float | Tensor`` is a number or
    a one-element tensor. The native modules read these attributes by name.
    """

    lr: float | Tensor = 1e-3
    beta1: float | Tensor = 0.9
    beta2: float | Tensor = 0.999
    eps: float | Tensor = 1e-8
    weight_decay: float | Tensor = 0.0
    amsgrad: bool = False
    l1: float | Tensor = field(default=0.0, metadata={"check": _strength})
    l2: float | Tensor = field(default=0.0, metadata={"check": _strength})
    l21: float | Tensor = field(default=0.0, metadata={"check": _strength})
    metric: str = field(default="adaptive", metadata={"check": _metric})
    l1_knee: float | Tensor = field(default=math.inf, metadata={"check": _above_zero})
    max_shrink: float | Tensor = field(default=10.0, metadata={"check": _at_least_one})
    state_dtype: torch.dtype | str | None = field(
        default=None, metadata={"check": _state_dtype, **_FORMAT}
    )
    stochastic_rounding: bool | None = field(
        default=None, metadata={"check": _stochastic_rounding, **_FORMAT}
    )
    seed: int = field(default=0, metadata={"check": _seed, **_FORMAT})
    keep_zeros: bool = False
    decoupled_weight_decay: bool = False
    maximize: bool = False
    foreach: bool | None = field(default=None, metadata=_IMPLEMENTATION)
    capturable: bool = field(default=False, metadata=_IMPLEMENTATION)
    differentiable: bool = field(default=False, metadata=_IMPLEMENTATION)
    fused: bool | None = field(default=None, metadata=_IMPLEMENTATION)

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> Options:
        """What an optimizer's group says now."""
        lr, *others = [group[name] for name in _OWN_KEYS]
        return cls(lr, *group["betas"], *others)

    @property
    def euclidean(self) -> bool:
        """The metric, as the native modules read it."""
        return self.metric == "euclidean"

    @property
    def stochastic_state(self) -> bool:
        """Whether moments in bfloat16 or 8 bits are rounded by chance."""
        return self.state_dtype in SMALL

    @property
    def stochastic_params(self) -> bool:
        """Whether 16-bit parameters are rounded by chance."""
        if self.stochastic_rounding is None:
            return self.stochastic_state
        return self.stochastic_rounding

    @property
    def has_prox(self) -> bool:
        """Whether there is anything to do after Adam; a strength off the host may be nonzero."""
        return any(unread(value) or value != 0 for value in (self.l1, self.l2, self.l21))

    @property
    def has_rows(self) -> bool:
        """Whether rows are taken as one; a strength off the host may be nonzero."""
        return unread(self.l21) or bool(self.l21 != 0)

    @property
    def has_knee(self) -> bool:
        """Whether the pull of l1 depends on the weight; a knee off the host may be finite."""
        return unread(self.l1_knee) or bool(self.l1_knee < math.inf)

    @property
    def allows_kernel(self) -> bool:
        """Whether the options leave the step to a kernel, or demand one."""
        if self.differentiable:
            return False
        return bool(self.fused) or (self.fused is None and self.foreach is None)

    def may_fail(self, device: torch.device) -> bool:
        """Whether a number may not fit float32 where torch ops take it, or is somewhere else."""
        values = [getattr(self, name) for name in NUMBERS]
        if any(isinstance(v, Tensor) and not v.is_cpu and v.device != device for v in values):
            return True
        # Any quotient of two numbers up to 1e18 and 1 − β1^t fits, and any product.
        return any(not unread(value) and 1e18 < abs(value) < math.inf for value in values)

    def check(self) -> None:
        """Raise where an option would lead the step astray.

        Numbers of other makers, numpy's or fractions, become floats, and tensors 0-dimensional.

        Raises:
            TypeError: an option that is no number.
            ValueError: one out of range, or a tensor of several elements.
        """
        for name in NUMBERS:
            value = getattr(self, name)
            if type(value) is not float:  # as nearly all are, in every step
                setattr(self, name, _number(name, value))
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if type(value) is float or not unread(value):
                check(name, value)
        if self.state_dtype is not None:
            check_small_state(self.state_dtype, self.amsgrad, self.differentiable)
        check_rows(self.l21, self.differentiable)

    def check_listwise(self) -> None:
        """Raise torch's errors for what it does not take where it takes lists."""
        if self.foreach and self.differentiable:
            raise AssertionError("_foreach ops don't support autograd")
        if not self.foreach or self.capturable:
            return
        if isinstance(self.lr, Tensor):
            raise RuntimeError(TENSOR_LR)
        for name in ("beta1", "beta2"):
            if isinstance(getattr(self, name), Tensor):
                raise ValueError(TENSOR_LR.replace("lr", name, 1))


TYPES: dict[str, str] = {option.name: str(option.type) for option in fields(Options)}
NUMBERS = tuple(name for name, kind in TYPES.items() if kind == "float | Tensor")
IMPLEMENTATION = tuple(o.name for o in fields(Options) if "implementation" in o.metadata)
FORMAT = tuple(o.name for o in fields(Options) if "format" in o.metadata)
_CHECKS = {o.name: o.metadata["check"] for o in fields(Options) if "check" in o.metadata}
_OWN_KEYS = tuple(name for name in TYPES if name not in ("beta1", "beta2"))  # lr is the first


def group_defaults() -> dict[str, Any]:
    """What a group has of each option where nobody says otherwise."""
    options = Options()
    own = {name: getattr(options, name) for name in _OWN_KEYS}
    return {**own, "betas": (options.beta1, options.beta2)}


def arguments_of(names: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a method out of its ``locals()``: everything but the method's own names.

    So a constructor hands on what its signature lists, without listing it again.
    """
    return {name: value for name, value in names.items() if name not in ("self", "__class__")}


def check_group(group: Mapping[str, Any]) -> None:
    """Raise where one of our own options in an optimizer's group is out of range.

    Torch's options are not looked at there, as in torch.

    Raises:
        TypeError, ValueError: as :meth:`Options.check`.
    """
    for name, check in _CHECKS.items():
        value = _number(name, group[name]) if name in NUMBERS else group[name]
        if not unread(value):
            check(name, value)
    check_small_state(*(group[name] for name in ("state_dtype", "amsgrad", "differentiable")))
    check_rows(group["l21"], group["differentiable"])


def check_small_state(state_dtype: object, amsgrad: bool, differentiable: bool) -> None:
    """Raise ValueError where an option does not go with moments in bfloat16 or 8 bits."""
    if state_dtype == EIGHT_BITS and amsgrad:
        raise ValueError(
            f"state_dtype={EIGHT_BITS!r} does not support amsgrad=True, whose maximum has no code;"
            " use state_dtype=torch.bfloat16."
        )
    if state_dtype in SMALL and differentiable:
        raise ValueError(
            f"state_dtype={state_dtype!r} does not support differentiable=True, for rounding by"
            " chance has no derivative; use state_dtype=None."
        )


def check_rows(l21: float | Tensor, differentiable: bool) -> None:
    """Raise ValueError where autograd would have to go through the search for a root."""
    if differentiable and (unread(l21) or l21 != 0):
        raise ValueError(
            "l21 does not support differentiable=True, for the norm of a row is searched for by"
            " iteration; use l21=0."
        )


def check_arguments(
    lr: float | Tensor,
    betas: tuple[float | Tensor, float | Tensor],
    eps: float,
    weight_decay: float,
    foreach: bool | None,
    capturable: bool,
    differentiable: bool,
    fused: bool | None,
    **own: Any,
) -> None:
    """Raise for the arguments of a constructor what torch.optim.Adam does, in its order and words.

    Raises:
        ValueError, TypeError: an argument out of range; ours come after torch's.
        RuntimeError: ``fused`` together with ``foreach`` or ``differentiable``.
    """
    listwise = foreach and not capturable
    if isinstance(lr, Tensor):
        if listwise:
            raise ValueError(TENSOR_LR)
        if lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
    if not lr >= 0.0:
        raise ValueError(f"Invalid learning rate: {lr}")
    if not eps >= 0.0:
        raise ValueError(f"Invalid epsilon value: {eps}")
    for i, beta in enumerate(betas):
        if isinstance(beta, Tensor) and beta.numel() != 1:
            raise ValueError(f"Tensor betas[{i}] must be 1-element")
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
    if not weight_decay >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {weight_decay}")
    kinds = [float if isinstance(b, float) else Tensor for b in betas]
    if kinds[0] is not kinds[1] or not all(map(isinstance, betas, kinds)):
        raise ValueError("betas must be either both floats or both Tensors")
    for i, beta in enumerate(betas):
        if isinstance(beta, Tensor) and listwise:
            raise ValueError(TENSOR_LR.replace("lr", f"betas[{i}]", 1))
    check_group({**own, "differentiable": differentiable})
    if fused and differentiable:
        raise RuntimeError("`fused` does not support `differentiable`")
    if fused and foreach:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")


def unread(value: object) -> bool:
    """Whether reading the value would make the host wait for a device, or break a graph."""
    return isinstance(value, Tensor) and (not value.is_cpu or torch.compiler.is_compiling())


def _number(name: str, value: Any) -> float | Tensor:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element, got shape {tuple(value.shape)}")
        if value.is_complex():
            raise TypeError(f"Tensor {name} has dtype {value.dtype}, expected a real one.")
        return value.squeeze() if value.ndim else value
    try:
        number = float(0.0 + value)  # float() alone would read a string
    except TypeError:
        raise TypeError(
            f"{name} is {value!r}, expected a number or a one-element tensor."
        ) from None
    except OverflowError:
        raise ValueError(f"Invalid {name} value: an integer that no float can hold") from None
    return value if isinstance(value, (float, int)) else number
