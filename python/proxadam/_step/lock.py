"""One update of an optimizer at a time: two threads may step one, and each step counts."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import MutableMapping
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.optim import Optimizer

# Beside the optimizers and not in them, so that no copy, pickle or state dict has to leave it out.
_locks: MutableMapping[Optimizer, Any] = WeakKeyDictionary()
_making = threading.Lock()


def held(optimizer: Optimizer) -> AbstractContextManager[Any]:
    """The optimizer's reentrant lock, for a ``with``; while torch.compile traces, nothing."""
    if torch.compiler.is_compiling():
        return contextlib.nullcontext()
    lock = _locks.get(optimizer)
    if lock is None:
        with _making:
            lock = _locks.setdefault(optimizer, threading.RLock())
    return lock  # type: ignore[no-any-return]


def _forget() -> None:
    """In a forked child no thread is left that would let a lock go."""
    global _locks, _making
    _locks, _making = WeakKeyDictionary(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
