"""The axes of the test matrix: backend × storage × layout, each with a readable id."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import cuda_on_host
from proxadam import backends
from storages import NAMES, OWN, STORAGES, Storage


@dataclass(frozen=True)
class Backend:
    """One way to take the step: the optimizer's keywords, and the device its tensors live on."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    capability: str | None = None  # instruction set of the CPU kernel
    step_on_device: bool = False  # the host never reads it

    @property
    def is_kernel(self) -> bool:
        return self.options.get("fused") is True


FUSED, LOOP, FOREACH = ({"fused": True}, {"fused": False, "foreach": False}, {"foreach": True})
CAPABILITIES = ("baseline", "avx2", "avx512", "avx512_bf16")
ON_CPU = [
    Backend("loop", LOOP),
    Backend("foreach", FOREACH),
    *(Backend(f"cpu-{c}", FUSED, capability=c) for c in CAPABILITIES),
]
ON_CUDA = [
    Backend("cuda", FUSED, device="cuda", step_on_device=True),
    Backend("cuda-capturable", {**FUSED, "capturable": True}, device="cuda", step_on_device=True),
    Backend("cuda-loop", LOOP, device="cuda"),
    Backend("cuda-foreach", FOREACH, device="cuda"),
]
# The CUDA kernels compiled for the host (test_cuda_on_host.py starts a process of its own).
CUDA_ON_HOST = [
    Backend("cuda-on-host", FUSED),
    Backend("cuda-on-host-device-step", FUSED, step_on_device=True),
]
if cuda_on_host.directory():
    BACKENDS = CUDA_ON_HOST
else:
    BACKENDS = ON_CPU + (ON_CUDA if torch.cuda.is_available() else [])


def _id(value: Any) -> str | None:
    return value.name if isinstance(value, Backend) else None


def pytest_make_parametrize_id(config: pytest.Config, val: Any, argname: str) -> str | None:  # noqa: ARG001
    if isinstance(val, torch.dtype):
        return NAMES.get(val, str(val).removeprefix("torch."))
    if isinstance(val, dict):
        return ",".join(f"{k}={v}" for k, v in val.items()) or "plain"
    return None


@pytest.fixture(params=BACKENDS, ids=_id)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each implementation of the step in turn; a kernel that cannot run here is skipped."""
    chosen: Backend = request.param
    with using(chosen):
        yield chosen


@pytest.fixture(
    params=BACKENDS if cuda_on_host.directory() else [*BACKENDS, Backend("auto")], ids=_id
)
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


@contextlib.contextmanager
def using(backend: Backend) -> Iterator[Backend]:
    """Make tensors on the backend's device and run its kernel; skip where it cannot be had."""
    with contextlib.ExitStack() as stack:
        if backend in CUDA_ON_HOST:
            stack.enter_context(cuda_on_host.as_cpu_kernel(not backend.step_on_device))
        elif backend.is_kernel:
            module = backends.kernel(backend.device)
            if module is None:
                pytest.skip(str(backends.reason_for_fallback(backend.device)))
            if backend.capability:
                if backend.capability not in module.capabilities():
                    pytest.skip(f"this processor or build has no {backend.capability}")
                stack.callback(module.use_capability, module.capability())
                module.use_capability(backend.capability)
        if backend.device != "cpu":
            stack.callback(torch.set_default_device, None)
            torch.set_default_device(backend.device)
        yield backend


# A sanitized step on the host takes its time: there test_cuda_kernel.py has all of them.
@pytest.fixture(
    params=OWN if cuda_on_host.directory() else STORAGES, ids=lambda storage: storage.name
)
def storage(request: pytest.FixtureRequest) -> Storage:
    """How parameters, gradients and moments are stored."""
    return request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
