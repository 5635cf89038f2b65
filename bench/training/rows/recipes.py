"""How each task is trained, and what is tuned for each arm; the same effort for all arms."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from ..recipes import FULL, Point, Recipe

MAGNITUDE = "AdamW, magnitude of rows"
L21 = "ProxAdamW, l21"
RAMP = "ProxAdamW, ramp by rows"
OURS = (L21, RAMP)
PRUNING = (MAGNITUDE, *OURS)

BATCHES = (1, 256)  # that the networks are timed with

# Of rows that are dead in the end, by what is trained.
SHARES = {
    "digits": (0.5, 0.75, 0.88, 0.94),
    "fashion-mnist": (0.5, 0.6, 0.75, 0.88, 0.94),
    "convolutions": (0.4, 0.5, 0.7, 0.85),
    "text": (0.5, 0.75, 0.9),
}
# l21 takes no share: it has a strength for each, found beforehand with one seed that is not
# reported, by the rows that it left alone.
L21S = {
    "digits": (5e-4, 1e-3, 2e-3, 3e-3),
    "fashion-mnist": (2.5e-5, 3.5e-5, 5e-5, 1e-4, 2e-4),
    "convolutions": (1e-4, 2e-4, 4e-4, 8e-4),
    "text": (2e-4, 4e-4, 7e-4),
}
# That points are judged by: as many as the time of a training allows.
SELECTION_SEEDS = {"digits": 2, "fashion-mnist": 4, "convolutions": 1, "text": 2}
UNTIL = 0.5  # of the training: from here on dead rows are kept, and l21 is 0

# ``by_layer``: each layer loses the same share, where otherwise all rows are compared with one
# another. Moments are parts of the training: rows die from 10 % of it on until ``end``, or, where
# that is not ``gradual``, at once at ``end``. ``metric``: the ramp's score.
TUNED: dict[str, list[Point]] = {
    MAGNITUDE: [
        {"by_layer": by_layer, "gradual": gradual, "end": end}
        for by_layer, (gradual, ends) in product((0, 1), ((1, (0.5, 0.75)), (0, (0.3, 0.5))))
        for end in ends
    ],
    RAMP: [
        {"by_layer": by_layer, "metric": metric, "end": end}
        for by_layer, metric, end in product((0, 1), (1, 0), (0.5, 0.75))
    ],
}
# Each convolution loses the same share, so that at one share the networks of both arms have as many
# multiply-adds.
BY_LAYER = {arm: [point for point in points if point["by_layer"]] for arm, points in TUNED.items()}


def published(name: str, convolutions: bool) -> Recipe:
    """The form of the published results."""
    kind = "convolutions" if convolutions else name
    shares = SHARES[kind]
    strengths: list[Point] = [{"l21": l21, "until": UNTIL} for l21 in L21S[kind]]
    recipe = replace(
        FULL[name],
        grids={**(BY_LAYER if convolutions else TUNED), L21: strengths},
        seeds=3,
        selection_seeds=SELECTION_SEEDS[kind],
        sparsities=shares,
        tuned_at=shares,
        epochs={"digits": 50, "fashion-mnist": 10, "text": 0}[name],
    )
    if name == "text":
        return replace(recipe, steps=500)
    if not convolutions:
        return recipe
    pixels, *_, classes = recipe.widths
    few = 4 * recipe.epochs // 5  # an epoch takes much longer
    return replace(recipe, channels=(32, 64), widths=(pixels, 128, classes), epochs=few)


def quick(name: str, convolutions: bool) -> Recipe:
    """Enough to see that every line runs; the numbers say nothing."""
    recipe = published(name, convolutions)
    few = replace(
        recipe,
        seeds=2,
        sparsities=(0.5, 0.75),
        tuned_at=(0.75, 0.75),
        grids=recipe.first_points(2),
    )
    if name == "text":
        return replace(few, steps=20, scored=(200, 200))
    return replace(few, epochs=8 if name == "digits" else 1)


FORMS = {"published": published, "quick": quick}
