"""Which kernels are there. This is the one place that imports a native module.

Built and available are two questions: a kernel is built if its module imports, and available if
it can also run on this machine with this torch.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
from pathlib import Path
from types import ModuleType

import torch

__all__ = ["available_backends", "is_built"]

_KERNELS = ("cpu", "cuda")
_PROCESS = os.getpid()  # one forked from it has none of the threads that torch may have started
# What the native modules ask libtorch_cpu, by their names for it and its names: torch's stable C
# functions, and two of at::native. What they say of tensors is checked before it is believed.
FUNCTIONS = {
    "parallel_for": "torch_parallel_for",
    "device_type_cuda": "aoti_torch_device_type_cuda",
    "layout": "aoti_torch_get_layout",
    "dtype": "aoti_torch_get_dtype",
    "device_type": "aoti_torch_get_device_type",
    "device_index": "aoti_torch_get_device_index",
    "dim": "aoti_torch_get_dim",
    "sizes": "aoti_torch_get_sizes",
    "strides": "aoti_torch_get_strides",
    "const_data_ptr": "torch_get_const_data_ptr",
    "mutable_data_ptr": "torch_get_mutable_data_ptr",
    "storage_size": "aoti_torch_get_storage_size",
    "storage_offset": "aoti_torch_get_storage_offset",
    "is_neg": "_ZN2at6native6is_negERKNS_6TensorE",
    "is_inference": "_ZN2at6native12is_inferenceERKNS_6TensorE",
}
_NEEDED = {
    "cpu": "a C++17 compiler and PROXADAM_REQUIRE_NATIVE=1",
    "cuda": "nvcc and PROXADAM_CUDA=ON",
}
# Without its cache, for pip hands out a wheel that it has built, whatever it was built with.
_ADVICE = "`pip install --no-deps --no-cache-dir --force-reinstall` with"


def is_built(device_type: str) -> bool:
    """Whether the native kernel was built and imports; see also :func:`available_backends`.

    Args:
        device_type: "cpu" or "cuda", whose kernel is asked for.

    Returns:
        True or False. A kernel that is built may still lack a GPU to run on.

    Raises:
        ValueError: any other ``device_type``.
    """
    return _import(device_type)[0] is not None


def available_backends() -> list[str]:
    """Tell what can take the step here.

    Returns:
        The names of the kernels that can run, fastest first: "cpu", "cuda"; and "torch", for
        torch ops, which always can.

    Example:
        >>> available_backends()[-1]
        'torch'
    """
    return [device_type for device_type in _KERNELS if kernel(device_type)] + ["torch"]


@functools.cache
def kernel(device_type: str) -> ModuleType | None:
    """The native module for ``device_type``, ready to step, or None."""
    return None if reason_for_fallback(device_type) else _import(device_type)[0]


@functools.cache
def reason_for_fallback(device_type: str) -> str | None:
    """Why torch ops take the step on ``device_type``, in words; None where the kernel does."""
    if device_type not in _KERNELS:
        return f"there is no ProxAdam kernel for {device_type} tensors"
    module, error = _import(device_type)
    if module is None:
        advice = f"{_ADVICE} {_NEEDED[device_type]} says why"
        return f"the {device_type} kernel is not built here ({error}); {advice}"
    exchange = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    if exchange is None:
        return f"torch {torch.__version__} has no DLPack exchange table; torch ≥ 2.10 has"
    if device_type == "cuda" and not torch.cuda.is_available():
        return f"the cuda kernel is built, and torch {torch.__version__} sees no CUDA device here"
    try:
        # It looks at examples, which are to be tensors as they are outside of any mode.
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            module.bind(exchange, torch.Tensor, torch.nn.Parameter, addresses())
    except (RuntimeError, ImportError) as refused:
        return str(refused)
    return None


def load(device: torch.device) -> str | None:
    """Bring a device's kernels to it: while a graph is captured it would be too late.

    What went wrong, in words, if something did: torch ops then take the step there.
    """
    module = kernel(device.type) if device.type == "cuda" else None
    if module is not None:
        try:
            module.load(device.index)
        except RuntimeError as error:
            return str(error)
    return None


@functools.cache
def _import(device_type: str) -> tuple[ModuleType | None, str]:
    if device_type not in _KERNELS:
        raise ValueError(f"Invalid device_type: {device_type!r}, expected one of {_KERNELS}")
    try:
        return importlib.import_module(f"proxadam._{device_type}"), ""
    except ImportError as error:
        return None, str(error)


@functools.cache
def addresses() -> dict[str, int]:
    """Where :data:`FUNCTIONS` are, by our names for them; without those that are not to be had."""
    library = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll"):
        if (library / name).exists():
            loaded = ctypes.CDLL(str(library / name))
            found = {ours: getattr(loaded, theirs, None) for ours, theirs in FUNCTIONS.items()}
            cast = {ours: ctypes.cast(f, ctypes.c_void_p).value for ours, f in found.items() if f}
            here = {ours: address for ours, address in cast.items() if address}
            if os.getpid() != _PROCESS:
                here.pop("parallel_for", None)
            return here
    return {}
