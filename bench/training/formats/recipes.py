"""How each task is trained: as in bench/train.py, but shorter, and without weight decay."""

from __future__ import annotations

from dataclasses import replace

from ..recipes import FULL, Recipe
from .ways import FP32

L1S = (1e-4, 2e-4, 3e-4)
WANTED_ZEROS = 65.0  # percent, of the way that all others are compared with


def published(name: str) -> Recipe:
    """The form of the published results."""
    # Without a decay the objective is what the training minimises.
    recipe = replace(
        FULL[name],
        weight_decay=0.0,
        grids={FP32: [{"l1": l1} for l1 in L1S]},
        selection_seeds=1,
        sparsities=(),
        tuned_at=(),
    )
    if name == "digits":
        return replace(recipe, seeds=10)
    if name == "fashion-mnist":
        return replace(recipe, seeds=5, epochs=4)
    return replace(recipe, seeds=3, steps=600)


def quick(name: str) -> Recipe:
    """Enough to see that every line runs; the numbers say nothing."""
    few = replace(published(name), seeds=2, grids={FP32: [{"l1": 3e-4}]})
    if name == "text":
        return replace(few, steps=10, scored=(200, 200), scored_of_train=2000)
    return replace(few, epochs=10 if name == "digits" else 1)


FORMS = {"published": published, "quick": quick}
