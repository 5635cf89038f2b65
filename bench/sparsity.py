"""Ask for a sparsity, and see what a training on real data makes of it.

The network of bench/train.py trains without L1 for some epochs; then ``suggest_l1`` is asked for
the l1 that makes the wanted share of the weights zero. One arm goes on with that l1 to the end;
the other takes it as the base of ``TargetSparsityL1``. The table and the plot show how close both
come, and when the question is best asked.

    python bench/sparsity.py
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from harness import machine
from proxadam import ProxAdamW, TargetSparsityL1, param_groups, sparsity, stationarity, suggest_l1
from training.data import Images, load_digits_split
from training.models import make_perceptron
from training.options import positive_int
from training.recipes import FULL, Recipe

TARGETS = (0.5, 0.8, 0.9, 0.95)
DENSE_EPOCHS = (2, 5, 10, 20)
DIGITS, SEEDS = FULL["digits"], 5
USED = ("widths", "epochs", "batch", "lr", "weight_decay")  # of the recipe
EVERY = 10  # steps between two updates of the steering
NOTED = 5  # epochs between two looks at the zeros


@dataclass(frozen=True)
class Arm:
    """What is asked for, when, and who keeps to it."""

    metric: str
    target: float
    dense_epochs: int
    steered: bool


@dataclass(frozen=True)
class Run:
    """What an arm reached with one seed; shares from 0 to 1."""

    arm: Arm
    seed: int
    guess: float
    last_l1: float
    zeros: list[float]  # after every few epochs, of the weights that take l1
    residual: float  # root mean square over those weights, at the end
    accuracy: float


def train(arm: Arm, seed: int, data: Images, recipe: Recipe) -> Run:
    """Train one arm with one seed."""
    torch.manual_seed(seed)
    model = make_perceptron(recipe.widths)
    groups = param_groups(model, l1=0.0)
    optimizer = ProxAdamW(groups, recipe.lr, weight_decay=recipe.weight_decay, metric=arm.metric)
    steps = recipe.epochs * math.ceil(len(data.train_x) / recipe.batch)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    shuffle = torch.Generator().manual_seed(seed)
    guess, steering = 0.0, None
    zeros = []
    for epoch in range(recipe.epochs):
        if epoch == arm.dense_epochs:
            guess = suggest_l1(optimizer, arm.target, groups=[0])
            optimizer.param_groups[0]["l1"] = guess
            if arm.steered:
                steering = TargetSparsityL1(optimizer, arm.target, EVERY)
        for batch in torch.randperm(len(data.train_x), generator=shuffle).split(recipe.batch):
            optimizer.zero_grad()
            cross_entropy(model(data.train_x[batch]), data.train_y[batch]).backward()
            optimizer.step()
            decay.step()
            if steering:
                steering.step()
        if (epoch + 1) % NOTED == 0:
            zeros.append(round(sparsity(optimizer).groups[0], 5))
    with torch.no_grad():
        hits = model(data.test_x).argmax(1) == data.test_y
    return Run(
        arm,
        seed,
        guess,
        optimizer.param_groups[0]["l1"],
        zeros,
        stationarity(optimizer).groups[0],
        hits.float().mean().item(),
    )


def make_arms(targets: tuple[float, ...]) -> list[Arm]:
    """All that is compared: every target and metric, and for the guess alone every moment."""
    arms = []
    for metric in ("adaptive", "euclidean"):
        for target in targets:
            arms += [Arm(metric, target, epochs, False) for epochs in DENSE_EPOCHS]
            arms.append(Arm(metric, target, DENSE_EPOCHS[1], True))
    return arms


def format_table(arms: list[Arm], runs: list[Run]) -> str:
    """Lay the means over the seeds out in aligned columns."""
    rows = [
        ["metric", "wanted %", "asked after", "l1", "zeros %", "lowest", "highest", "accuracy %"]
    ]
    for arm in arms:
        own = [run for run in runs if run.arm == arm]
        ends = [100 * run.zeros[-1] for run in own]
        rows.append(
            [
                arm.metric + (", steered" if arm.steered else ""),
                f"{100 * arm.target:g}",
                f"{arm.dense_epochs} epochs",
                f"{np.mean([run.last_l1 for run in own]):.2g}",
                f"{np.mean(ends):.1f}",
                f"{min(ends):.1f}",
                f"{max(ends):.1f}",
                f"{100 * np.mean([run.accuracy for run in own]):.2f}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join(map("  ".join, lines))


def plot(runs: list[Run], path: Path) -> None:
    """Draw the share of zeros over the epochs, the guess alone beside the steered one."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, metric in zip(panels, ("adaptive", "euclidean"), strict=True):
        for color, target in enumerate(sorted({run.arm.target for run in runs})):
            axes.axhline(100 * target, color=f"C{color}", linewidth=0.7, linestyle="--")
            for steered in (False, True):
                arm = Arm(metric, target, DENSE_EPOCHS[1], steered)
                mean = 100 * np.mean([run.zeros for run in runs if run.arm == arm], axis=0)
                label = f"{100 * target:g} %{', steered' if steered else ', guess'}"
                style = "-" if steered else ":"
                epochs = NOTED * np.arange(1, len(mean) + 1)
                axes.plot(epochs, mean, style, color=f"C{color}", label=label)
        axes.set(title=f'metric="{metric}"', xlabel="epoch")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("weights that are exactly zero (%)")
    panels[0].legend(fontsize=7, ncols=2, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out = Path(__file__).parent / "out" / "sparsity.png"
    add = parser.add_argument
    add("--seeds", type=positive_int, default=SEEDS, help="how many (default: %(default)s)")
    add("--quick", action="store_true", help="one seed and one target")
    add("--plot", type=Path, default=out, metavar="FILE", help="PNG to draw (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="where to write all results")
    return parser.parse_args()


def main() -> None:
    """Train all arms, and print, draw and write what they reached."""
    arguments = parse_arguments()
    data = load_digits_split().joined()  # nothing is chosen here: there is nothing to validate
    seeds = 1 if arguments.quick else arguments.seeds
    arms = make_arms((0.9,) if arguments.quick else TARGETS)
    jobs = [(arm, seed) for seed in range(seeds) for arm in arms]
    bar = tqdm(jobs, unit="run", disable=None, leave=False)
    runs = [train(arm, seed, data, DIGITS) for arm, seed in bar]
    print(f"{data.name}, {DIGITS.epochs} epochs, means over {seeds} seeds\n")
    print(format_table(arms, runs))
    plot(runs, arguments.plot)
    if arguments.json:
        document = {
            "machine": machine(),
            "data": {"name": data.name, "train": len(data.train_x), "test": len(data.test_x)},
            "recipe": {name: getattr(DIGITS, name) for name in USED}
            | {"every": EVERY, "noted": NOTED},
            "runs": [asdict(run) for run in runs],
        }
        arguments.json.write_text(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
