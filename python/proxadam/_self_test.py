"""``python -m proxadam --self-test``: a small problem with a known solution, on each backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from . import backends
from .optimizer import ProxAdam
from .prox import soft_threshold

_COUNT = 40_009  # several threads' worth, and no whole number of registers
_STEPS = 80
_LR, _BETAS, _L1 = 0.1, (0.8, 0.95), 0.5
_NEAR = {torch.float32: 0.01, torch.bfloat16: 0.05}  # bfloat16 weights lose the last small steps


def run(say: Callable[[str], None]) -> bool:
    """Step on each backend that is there, and tell ``say`` of each; whether all of them passed.

    Minimises ½ Σ (w − target)² + l1 · Σ|w|, of which soft_threshold(target, l1) is the solution.
    """
    passed = True
    for name, device, fused in _ways():
        for dtype in _NEAR:
            try:
                wrong = _solve(device, dtype, fused)
            except Exception as error:  # it is what the report is for
                wrong = f"{type(error).__name__}: {error}"
            passed &= not wrong
            what = f"self-test {name}, {str(dtype).removeprefix('torch.')}: "
            say(what + (f"FAILED, {wrong}" if wrong else "passed, the zeros are exact"))
    return passed


def _ways() -> Iterator[tuple[str, str, bool]]:
    """A name, the device and ``fused`` of each way to step; the CPU kernel in each of its sets."""
    module = backends.kernel("cpu")
    if module is not None:
        chosen = module.capability()
        try:
            for name in module.capabilities():
                module.use_capability(name)
                yield f"cpu kernel, {name}", "cpu", True
        finally:
            module.use_capability(chosen)
    yield "torch ops", "cpu", False
    if backends.kernel("cuda") is not None:
        yield "cuda kernel", "cuda", True
    if torch.cuda.is_available():
        yield "torch ops on cuda", "cuda", False


def _solve(device: str, dtype: torch.dtype, fused: bool) -> str:
    """What is wrong with the weights that came out; empty where nothing is."""
    target = torch.arange(_COUNT, device=device).remainder(7).sub(3).mul(0.4).to(dtype)
    # from −1.2 to 1.2 in steps of 0.4: three of seven are at most l1 away from zero
    param = Parameter(torch.ones_like(target))
    options: dict[str, Any] = {"fused": True} if fused else {"fused": False}
    options |= {"betas": _BETAS, "l1": _L1, "state_dtype": torch.float32}
    optimizer = ProxAdam([param], lr=_LR, **options)
    for step in range(_STEPS):
        optimizer.param_groups[0]["lr"] = _LR * (1 - step / _STEPS)
        param.grad = param.detach() - target
        optimizer.step()
    return _difference(param.detach(), soft_threshold(target, _L1))


def _difference(weights: Tensor, solution: Tensor) -> str:
    zeros = weights == 0
    if not torch.equal(zeros, solution == 0):
        expected = int((solution == 0).sum())
        return f"{int(zeros.sum())} of {_COUNT} weights are zero, expected {expected}"
    furthest = float((weights - solution).abs().max())
    if not furthest < _NEAR[weights.dtype]:
        return f"a weight is {furthest:.3g} from the solution, expected < {_NEAR[weights.dtype]}"
    return ""
