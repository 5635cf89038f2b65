"""The list of checks, each registered beside its function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

# name → (function, world sizes); what has "kernel" in its name cannot run without one
CHECKS: dict[str, tuple[Callable[[], None], tuple[int, ...]]] = {}

PATHS = {
    "auto": {},
    "kernel": {"fused": True},
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
}
EACH_PATH = {name: (options,) for name, options in PATHS.items()}


def check(ranks: tuple[int, ...] = (2, 4), **cases: tuple[Any, ...]) -> Callable:
    """Register a function to run on so many ranks, once for the arguments of each case."""

    def register(function: Callable) -> Callable:
        for name, arguments in (cases or {"": ()}).items():
            title = f"{function.__name__}-{name}" if name else function.__name__
            CHECKS[title] = functools.partial(function, *arguments), ranks
        return function

    return register


def check_each(engines: dict[str, Any], *paths: str) -> Callable:
    """Register a function of an engine and, where paths are named, of the way to step."""

    def register(function: Callable) -> Callable:
        for name, engine in engines.items():
            cases = {f"{name}-{path}": (engine, PATHS[path]) for path in paths}
            check(engine.ranks, **(cases or {name: (engine,)}))(function)
        return function

    return register
