"""The CUDA kernels on a machine without CUDA: their own source, compiled for the host.

``build.py`` compiles them; a process started with PROXADAM_CUDA_ON_HOST=DIRECTORY runs them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch

from proxadam import backends


def directory() -> Path | None:
    """Where the modules of this process are."""
    path = os.environ.get("PROXADAM_CUDA_ON_HOST")
    return Path(path) if path else None


@functools.cache
def modules() -> tuple[ModuleType, ModuleType]:
    """``_cuda``, bound to a fake device, and ``_fake_device``."""
    fake, cuda = _load("_fake_device"), _load("_cuda")
    bind(cuda, fake)
    return cuda, fake


def bind(cuda: ModuleType, fake: ModuleType) -> None:
    """Tell ``_cuda`` about this process's torch, and that its tensors are on a device.

    Torch's functions say that they are on the CPU; as the exchange table does not, it is asked.
    """
    exchange = fake.exchange(torch.Tensor.__dlpack_c_exchange_api__)
    cuda.bind(exchange, torch.Tensor, torch.nn.Parameter, backends.addresses())


def _load(name: str) -> ModuleType:
    path = directory() / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class CpuKernel:
    """The fake device's kernel with the CPU kernel's arguments."""

    def __init__(self, steps_on_host: bool) -> None:
        self.steps_on_host = steps_on_host

    def admit(self, groups: list, *amp: list, launch: bool = True) -> object:
        cuda, fake = modules()
        steps = [t for group in groups for t in group.state_steps] if self.steps_on_host else []
        fake.keep_on_host({t.data_ptr() for t in steps if isinstance(t, torch.Tensor)})
        return cuda.admit(groups, *amp[:1], launch=launch)

    def launch(self, plans: list) -> None:
        modules()[0].launch(plans)


@contextlib.contextmanager
def as_cpu_kernel(steps_on_host: bool) -> Iterator[None]:
    """Let the optimizer take the host's CUDA kernel for its CPU kernel."""
    kernel = CpuKernel(steps_on_host)
    before = backends.kernel, backends.reason_for_fallback
    backends.kernel = lambda device_type: kernel if device_type == "cpu" else None
    backends.reason_for_fallback = lambda device_type: None if device_type == "cpu" else "not here"
    try:
        yield
    finally:
        backends.kernel, backends.reason_for_fallback = before
