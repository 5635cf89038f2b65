"""ProxAdam: Adam and AdamW that make weights exactly zero.

    optimizer = ProxAdamW(param_groups(model, l1=1e-5), lr=1e-3)
    ...  # train as with torch.optim.AdamW
    print(float(sparsity(model)))

ProxAdam and ProxAdamW take the place of torch.optim's, prox_adam is their functional twin, and
param_groups chooses what is penalised. SparsityRamp reaches a share of zeros; RampL1, WarmupL1,
CubicL1 and TargetSparsityL1 steer l1, which suggest_l1 guesses; TargetRowSparsity steers l21,
which suggest_l21 guesses, as any PenaltyScheduler does an option. compact cuts dead rows out of
a model, and compact_report says which. sparsity, stationarity and state_bytes are there to be
logged, and to_adam_state_dict leads back to torch. soft_threshold, prox_elastic_net,
prox_log_elastic_net and prox_group are the operators on tensors. available_backends and
is_built tell which kernels are here, as ``python -m proxadam`` does.

The step: ``optimizer`` (ProxAdam, ProxAdamW), ``functional`` (prox_adam), ``prox`` (the proximal
operators on tensors), ``backends`` (which kernels are there) and, below them, ``_step``. The tools
around sparsity: ``_sparsity``; those around the state: ``_state``; and ``_compact`` cuts dead rows
out of a model. Each has a module for each of their names.
"""

from __future__ import annotations

from importlib.metadata import version as _version

from ._compact.compact import compact, compact_report
from ._sparsity.param_groups import param_groups
from ._sparsity.ramp import SparsityRamp
from ._sparsity.schedulers import (
    CubicL1,
    L1Scheduler,
    LinearL1,
    PenaltyScheduler,
    RampL1,
    WarmupL1,
)
from ._sparsity.sparsity import sparsity
from ._sparsity.stationarity import stationarity
from ._sparsity.suggest_l1 import suggest_l1
from ._sparsity.suggest_l21 import suggest_l21
from ._sparsity.targets import TargetRowSparsity, TargetSparsityL1
from ._state.state_bytes import state_bytes
from ._state.to_adam_state_dict import to_adam_state_dict
from .backends import available_backends, is_built
from .functional import prox_adam
from .optimizer import ProxAdam, ProxAdamW
from .prox import prox_elastic_net, prox_group, prox_log_elastic_net, soft_threshold

__version__ = _version("proxadam")

__all__ = [
    "CubicL1",
    "L1Scheduler",
    "LinearL1",
    "PenaltyScheduler",
    "ProxAdam",
    "ProxAdamW",
    "RampL1",
    "SparsityRamp",
    "TargetRowSparsity",
    "TargetSparsityL1",
    "WarmupL1",
    "available_backends",
    "compact",
    "compact_report",
    "is_built",
    "param_groups",
    "prox_adam",
    "prox_elastic_net",
    "prox_group",
    "prox_log_elastic_net",
    "soft_threshold",
    "sparsity",
    "state_bytes",
    "stationarity",
    "suggest_l1",
    "suggest_l21",
    "to_adam_state_dict",
]
