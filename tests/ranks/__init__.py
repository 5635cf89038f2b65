"""What the ranks of a distributed test do: ``python -m ranks WORLD_SIZE FOLDER CHECK...``.

engines.py has the models and how they are distributed; steps.py, scaling.py, dtensors.py, rows.py,
ramps.py, reports.py, checkpoints.py, small_state.py and small_checkpoints.py what is checked of
them; checks.py the list of all; __main__.py runs them.
"""

from __future__ import annotations

from . import (  # noqa: F401 (each registers its own)
    checkpoints,
    dtensors,
    ramps,
    reports,
    rows,
    scaling,
    small_checkpoints,
    small_state,
    steps,
)
from .checks import CHECKS

__all__ = ["CHECKS"]
