"""ProxAdam: Adam and AdamW that make weights exactly zero, at no cost in speed."""

from __future__ import annotations

from importlib.metadata import version as _version

from .backends import available_backends, is_built
from .functional import prox_adam
from .grouping import param_groups
from .l1_scheduler import CubicL1, L1Scheduler, LinearL1, TargetSparsityL1, WarmupL1
from .optimizer import ProxAdam, ProxAdamW
from .prox import prox_elastic_net, soft_threshold
from .suggest import suggest_l1
from .watch import sparsity, stationarity

__version__ = _version("proxadam")

__all__ = [
    "CubicL1",
    "L1Scheduler",
    "LinearL1",
    "ProxAdam",
    "ProxAdamW",
    "TargetSparsityL1",
    "WarmupL1",
    "available_backends",
    "is_built",
    "param_groups",
    "prox_adam",
    "prox_elastic_net",
    "soft_threshold",
    "sparsity",
    "stationarity",
    "suggest_l1",
]
