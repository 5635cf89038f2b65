"""The axes of the test matrix: backend × dtype × layout, each with a readable id."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from proxadam import backends


@dataclass(frozen=True)
class Backend:
    """One way to take the step: the optimizer's keywords, and the device its tensors live on."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    capability: str | None = None  # instruction set of the CPU kernel

    @property
    def is_kernel(self) -> bool:
        return self.options.get("fused") is True


BACKENDS = [
    Backend("loop", {"fused": False, "foreach": False}),
    Backend("foreach", {"fused": False, "foreach": True}),
    *(Backend(f"cpu-{c}", {"fused": True}, capability=c) for c in ("baseline", "avx2", "avx512")),
]


def _id(value: Any) -> str | None:
    return value.name if isinstance(value, Backend) else None


def pytest_make_parametrize_id(config: pytest.Config, val: Any, argname: str) -> str | None:  # noqa: ARG001
    if isinstance(val, torch.dtype):
        return {
            torch.float32: "fp32",
            torch.float64: "fp64",
            torch.bfloat16: "bf16",
            torch.float16: "fp16",
        }.get(val, str(val).removeprefix("torch."))
    if isinstance(val, dict):
        return ",".join(f"{k}={v}" for k, v in val.items()) or "plain"
    return None


@pytest.fixture(params=BACKENDS, ids=_id)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each implementation of the step in turn; a kernel that cannot run here is skipped."""
    chosen: Backend = request.param
    with using(chosen):
        yield chosen


@pytest.fixture(params=[*BACKENDS, Backend("auto")], ids=_id)
def any_backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend, and what users get by default: the choice tensor by tensor."""
    with using(request.param):
        yield request.param


@pytest.fixture
def kernel_module():
    """The native CPU module, bound to this torch."""
    module = backends.kernel("cpu")
    if module is None:
        pytest.skip(str(backends.reason_for_fallback("cpu")))
    return module


class using:
    """Run the CPU kernel with a backend's instruction set; skip where it cannot be had."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def __enter__(self) -> Backend:
        if self.backend.is_kernel:
            module = backends.kernel(self.backend.device)
            if module is None:
                pytest.skip(str(backends.reason_for_fallback(self.backend.device)))
            if self.backend.capability:
                if self.backend.capability not in module.capabilities():
                    pytest.skip(f"this processor or build has no {self.backend.capability}")
                self.before = module.capability()
                module.use_capability(self.backend.capability)
        return self.backend

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "before"):
            backends.kernel("cpu").use_capability(self.before)


@pytest.fixture(params=[torch.float32, torch.float64, torch.bfloat16, torch.float16])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
