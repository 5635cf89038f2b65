"""How close is close: relative errors, with their reasons.

An error of a parameter is measured on the oracle's scale (see ``oracle_step``), an error of a
moment against the moment and the gradient that went into it.
"""

from __future__ import annotations

import torch

# The step has about ten roundings; in float64 the goal is looser than that by choice.
OPMATH = {torch.float64: 1e-12, torch.float32: 8 * 2.0**-23}

# 16-bit tensors are computed in float32 and rounded once: half a unit in the last place more.
ROUNDING = {
    torch.float64: 0.0,
    torch.float32: 0.0,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}

# Below its smallest normal number a format has absolute, not relative, precision.
SMALLEST = {
    torch.float64: 0.0,
    torch.float32: 2.0**-149,
    torch.bfloat16: 2.0**-133,
    torch.float16: 2.0**-25,
}


def opmath(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def assert_close(actual: torch.Tensor, expected, scale, dtype: torch.dtype, what: str = "") -> None:
    """``actual`` is ``expected`` but for the arithmetic of ``dtype``, on ``scale``."""
    like = {"dtype": torch.float64, "device": actual.device}
    expected = torch.as_tensor(expected, **like)
    allowed = torch.as_tensor(scale, **like) * OPMATH[opmath(dtype)]
    allowed = allowed + ROUNDING[dtype] * expected.abs() + SMALLEST[dtype]
    excess = (actual.detach().double() - expected).abs() - allowed
    worst = excess.argmax() if excess.numel() else None
    assert worst is None or excess.flatten()[worst] <= 0, (
        f"{what}[{worst}]: {actual.flatten()[worst].item():.9g}, expected"
        f" {expected.flatten()[worst].item():.9g} ± {allowed.flatten()[worst].item():.2g}"
    )
