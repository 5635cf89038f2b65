"""Train one network with AdamW, with AdamW and L1 in the loss, and with ProxAdamW, on real data.

Every arm starts from the same weights, sees the same batches and follows the same learning rate.
What differs is who minimises l1 · Σ|w|: nobody, the gradient, or the proximal step. The table and
the plot show what that does to the test accuracy, to the exact zeros and to the time of a step.

    python bench/train.py                                           # scikit-learn's digits
    python bench/train.py --data /usr/share/datasets/fashion-mnist  # Debian: dataset-fashion-mnist
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import struct
import sys
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from harness import machine
from proxadam import ProxAdamW, available_backends

ADAMW, L1_IN_LOSS, PROX = "AdamW", "AdamW, L1 in the loss", "ProxAdamW"
CUT = 1e-3  # where one would cut by hand the weights that L1 in the loss leaves near zero
IDX_UBYTE = 0x08


@dataclass(frozen=True)
class Recipe:
    """How a data set is trained; the same for every arm."""

    widths: tuple[int, ...]  # of the network, from the pixels to the classes
    epochs: int
    batch: int
    seeds: int
    l1: tuple[float, ...]
    lr: float = 3e-3
    weight_decay: float = 1e-2


DIGITS = Recipe((64, 128, 64, 10), epochs=100, batch=128, seeds=5, l1=(3e-4, 1e-3, 3e-3))
FASHION = Recipe((784, 512, 256, 10), epochs=20, batch=512, seeds=1, l1=(1e-5, 3e-5, 1e-4))


@dataclass(frozen=True)
class Data:
    """A split data set: rows of standardised pixels, and class numbers."""

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass(frozen=True)
class Run:
    """What one arm reached with one seed; accuracies and shares of zeros in percent."""

    seed: int
    accuracy: float
    zeros: float
    layer_zeros: list[float]
    cut_accuracy: float
    cut_zeros: float
    step_ms: float
    iteration_ms: float


@dataclass(frozen=True)
class Arm:
    """One way to train, and its runs, one for each seed."""

    name: str
    l1: float
    runs: list[Run]

    def mean(self, field: str) -> np.ndarray:
        """Return the mean over the seeds."""
        return np.mean([getattr(run, field) for run in self.runs], axis=0)


class DataError(Exception):
    """The data cannot be used; the message is one sentence for the user."""


def read_idx(path: Path, *dims: int | None) -> Tensor:
    """Read a gzipped IDX file of unsigned bytes; ``None`` stands for any size."""
    try:
        raw = bytearray(gzip.decompress(path.read_bytes()))
    except EOFError:
        raise DataError(f"{path} ends too early.") from None
    except (OSError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read: {reason}.") from None
    start = 4 + 4 * len(dims)
    if len(raw) < start or raw[:4] != bytes([0, 0, IDX_UBYTE, len(dims)]):
        raise DataError(f"{path} is not an IDX file of unsigned bytes in {len(dims)} dimensions.")
    shape = struct.unpack_from(f">{len(dims)}I", raw, 4)
    if not all(n and dim in (None, n) for n, dim in zip(shape, dims, strict=True)):
        wanted = str(dims).replace("None", "any")
        raise DataError(f"{path} holds an array of shape {shape}, where {wanted} is needed.")
    if len(raw) - start != math.prod(shape):
        sizes = f"{len(raw) - start} bytes of data where its header says {math.prod(shape)}"
        raise DataError(f"{path} holds {sizes}.")
    return torch.frombuffer(raw, dtype=torch.uint8, offset=start).reshape(shape)


def load_fashion(directory: Path) -> Data:
    """Load Fashion-MNIST from its four IDX files."""
    halves: list[Tensor] = []
    for prefix in ("train", "t10k"):
        images = read_idx(directory / f"{prefix}-images-idx3-ubyte.gz", None, 28, 28)
        labels = read_idx(directory / f"{prefix}-labels-idx1-ubyte.gz", len(images))
        if labels.max() >= FASHION.widths[-1]:
            raise DataError(f"{directory} holds the label {labels.max()} in its {prefix} labels.")
        halves += [images.flatten(1).float(), labels.long()]
    return standardise(Data("Fashion-MNIST", *halves))


def load_digits_split() -> Data:
    """Load scikit-learn's digits; a quarter, whatever the seed, is for the test."""
    x, y = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    test, train = order.tensor_split([len(x) // 4])
    return standardise(Data("digits", x[train].float(), y[train], x[test].float(), y[test]))


def standardise(data: Data) -> Data:
    """Centre each pixel and scale all alike, by the train images only."""
    mean = data.train_x.mean(0)
    # One scale for all: by their own deviations, pixels that are nearly always blank would explode.
    std = (data.train_x - mean).square().mean().sqrt()
    return replace(data, train_x=(data.train_x - mean) / std, test_x=(data.test_x - mean) / std)


def make_model(widths: Sequence[int]) -> nn.Sequential:
    """Build a multilayer perceptron with ReLU between its layers."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def make_optimizer(arm: Arm, model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the arm's optimizer; biases are neither decayed nor thresholded."""
    biases = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": weights_of(model)}, {"params": biases, "weight_decay": 0.0, "l1": 0.0}]
    if arm.name == PROX:
        return ProxAdamW(groups, recipe.lr, weight_decay=recipe.weight_decay, l1=arm.l1)
    # fused is torch's fastest on the CPU; AdamW carries the l1 of the biases along unread.
    return torch.optim.AdamW(groups, recipe.lr, weight_decay=recipe.weight_decay, fused=True)


def weights_of(model: nn.Module) -> list[nn.Parameter]:
    """Return the weight matrices, without the biases."""
    return [p for p in model.parameters() if p.ndim > 1]


class Trainer:
    """One arm in training with one seed."""

    def __init__(self, arm: Arm, seed: int, data: Data, recipe: Recipe) -> None:
        torch.manual_seed(seed)
        self.arm, self.seed, self.data, self.batch = arm, seed, data, recipe.batch
        self.model = make_model(recipe.widths)
        self.weights = weights_of(self.model)
        self.optimizer = make_optimizer(arm, self.model, recipe)
        steps = recipe.epochs * math.ceil(len(data.train_x) / recipe.batch)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        self.shuffle = torch.Generator().manual_seed(seed)
        self.step_times: list[float] = []
        self.iteration_times: list[float] = []

    def loss(self, batch: Tensor) -> Tensor:
        """Return the mean loss of a batch, with the L1 term if this arm keeps it there."""
        loss = cross_entropy(self.model(self.data.train_x[batch]), self.data.train_y[batch])
        if self.arm.name == L1_IN_LOSS:
            loss = loss + self.arm.l1 * sum(w.abs().sum() for w in self.weights)
        return loss

    def train_epoch(self) -> None:
        """Pass once over the train images."""
        order = torch.randperm(len(self.data.train_x), generator=self.shuffle)
        for batch in order.split(self.batch):
            start = perf_counter()
            self.optimizer.zero_grad()
            self.loss(batch).backward()
            before_step = perf_counter()
            self.optimizer.step()
            end = perf_counter()
            self.step_times.append(1e3 * (end - before_step))
            self.iteration_times.append(1e3 * (end - start))
            self.scheduler.step()

    @torch.no_grad()
    def measure(self) -> Run:
        """Measure accuracy and zeros, then again with the small weights cut from the model."""
        accuracy, zeros = self.accuracy(), zero_share(self.weights)
        layer_zeros = [zero_share([w]) for w in self.weights]
        for w in self.weights:
            w[w.abs() < CUT] = 0.0
        return Run(
            seed=self.seed,
            accuracy=accuracy,
            zeros=zeros,
            layer_zeros=layer_zeros,
            cut_accuracy=self.accuracy(),
            cut_zeros=zero_share(self.weights),
            step_ms=float(np.median(self.step_times)),
            iteration_ms=float(np.median(self.iteration_times)),
        )

    def accuracy(self) -> float:
        """Return the share of test images that are classified correctly, in percent."""
        hits = self.model(self.data.test_x).argmax(1) == self.data.test_y
        return 100.0 * hits.float().mean().item()


def zero_share(weights: Sequence[Tensor]) -> float:
    """Return the share of elements that are exactly zero, in percent."""
    nonzeros = sum(int(w.count_nonzero()) for w in weights)
    return 100.0 - 100.0 * nonzeros / sum(w.numel() for w in weights)


def train_all(arms: Sequence[Arm], seeds: Sequence[int], data: Data, recipe: Recipe) -> None:
    """Train every arm with every seed, and give each arm its runs."""
    total = len(arms) * len(seeds) * recipe.epochs
    with tqdm(total=total, unit="epoch", disable=None, leave=False) as bar:
        for seed in seeds:
            trainers = [Trainer(arm, seed, data, recipe) for arm in arms]
            for _ in range(recipe.epochs):
                for trainer in trainers:  # in turns, so that a busy machine slows all arms alike
                    bar.set_description(f"seed {seed}, {trainer.arm.name}")
                    trainer.train_epoch()
                    bar.update()
            for trainer in trainers:
                trainer.arm.runs.append(trainer.measure())


def format_table(arms: Sequence[Arm]) -> str:
    """Lay the results out in aligned columns."""
    layers = [f"W{i + 1} %" for i, _ in enumerate(arms[0].runs[0].layer_zeros)]
    rows = [["arm", "l1", "accuracy %", "zeros %", *layers, f"< {CUT:g} %", "cut accuracy %"]]
    rows[0] += ["step ms", "iteration ms"]
    for arm in arms:
        accuracy = f"{arm.mean('accuracy'):.2f}"
        if len(arm.runs) > 1:
            accuracy += f" ± {np.std([run.accuracy for run in arm.runs], ddof=1):.2f}"
        cells = [arm.name, f"{arm.l1:g}", accuracy]
        cells += [f"{zeros:.1f}" for zeros in (arm.mean("zeros"), *arm.mean("layer_zeros"))]
        cells += [f"{arm.mean('cut_zeros'):.1f}", f"{arm.mean('cut_accuracy'):.2f}"]
        cells += [f"{arm.mean('step_ms'):.3f}", f"{arm.mean('iteration_ms'):.2f}"]
        rows.append(cells)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join(map("  ".join, lines))


def plot(arms: Sequence[Arm], title: str, path: Path) -> None:
    """Draw accuracy against sparsity."""
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    baseline = arms[0].mean("accuracy")
    axes.axhline(baseline, color="0.4", linestyle="--", label=f"{ADAMW}: {baseline:.1f} %")
    for name, color in ((PROX, "C0"), (L1_IN_LOSS, "C1")):
        drawn = [arm for arm in arms if arm.name == name]
        points = [(arm.mean("zeros"), arm.mean("accuracy")) for arm in drawn]
        axes.plot(*zip(*points, strict=True), "o-", color=color, label=name)
        cut = [(arm.mean("cut_zeros"), arm.mean("cut_accuracy")) for arm in drawn]
        label = f"{name}, then |w| < {CUT:g} cut"
        axes.plot(*zip(*cut, strict=True), "o:", color=color, markerfacecolor="white", label=label)
        for arm, point in zip(drawn, points, strict=True):
            offset = {"xytext": (-7, -10), "textcoords": "offset points", "ha": "right"}
            axes.annotate(f"l1 = {arm.l1:g}", point, color=color, fontsize=8, **offset)
    axes.set(title=title, xlabel="weights that are exactly zero (%)", ylabel="test accuracy (%)")
    axes.set_xlim(-14, 104)
    axes.margins(y=0.12)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower center", fontsize=8)
    figure.savefig(path, dpi=150)


def write_json(path: Path, arms: Sequence[Arm], data: Data, recipe: Recipe) -> None:
    """Write everything one needs to judge or repeat the run."""
    document = {
        "machine": machine() | {p: version(p) for p in ("numpy", "scikit-learn")},
        "data": {"name": data.name, "train": len(data.train_x), "test": len(data.test_x)},
        "recipe": asdict(recipe) | {"cut": CUT},
        "arms": [asdict(arm) for arm in arms],
    }
    path.write_text(json.dumps(document, indent=2) + "\n")


def positive_int(text: str) -> int:
    """Parse an integer of at least 1."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def positive_float(text: str) -> float:
    """Parse a finite number above 0."""
    if not 0.0 < (number := float(text)) < math.inf:
        raise ValueError
    return number


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out = Path(__file__).parent / "out" / "train.png"
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="folder with Fashion-MNIST's four IDX .gz files")
    add("--l1", type=positive_float, nargs="+", help="the strengths of L1 to compare")
    add("--epochs", type=positive_int, help="passes over the train images")
    add("--seed", type=int, default=0, help="the first seed (default: 0)")
    add("--seeds", type=positive_int, help="how many seeds to average over")
    add("--quick", action="store_true", help="one seed, a fifth of the epochs")
    add("--threads", type=positive_int, help="threads for torch (default: its own choice)")
    add("--plot", type=Path, default=out, metavar="FILE", help="PNG to draw (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="where to write all results")
    return parser.parse_args()


def make_recipe(arguments: argparse.Namespace) -> Recipe:
    """Take the data set's recipe, with what the command line changes."""
    recipe = FASHION if arguments.data else DIGITS
    if arguments.quick:
        recipe = replace(recipe, epochs=max(1, recipe.epochs // 5), seeds=1)
    given = {name: getattr(arguments, name) for name in ("epochs", "seeds", "l1")}
    return replace(recipe, **{name: value for name, value in given.items() if value})


def main() -> None:
    """Run the comparison."""
    arguments = parse_arguments()
    recipe = make_recipe(arguments)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        data = load_fashion(arguments.data) if arguments.data else load_digits_split()
        for path in filter(None, (arguments.plot, arguments.json)):
            path.parent.mkdir(parents=True, exist_ok=True)
    except (DataError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
    title = f"{data.name}, network {'-'.join(map(str, recipe.widths))}"
    print(f"{title}: {len(data.train_x)} train and {len(data.test_x)} test images")
    print(f"epochs {recipe.epochs}, batch {recipe.batch}, seeds {recipe.seeds}", end=", ")
    print(f"threads {torch.get_num_threads()}, proxadam's backends {available_backends()}\n")
    arms = [Arm(name, l1, []) for name in (L1_IN_LOSS, PROX) for l1 in recipe.l1]
    arms.insert(0, Arm(ADAMW, 0.0, []))
    train_all(arms, range(arguments.seed, arguments.seed + recipe.seeds), data, recipe)
    print(format_table(arms))
    print("\nTimes are medians over all steps: optimizer.step() alone, and the whole iteration.")
    plot(arms, title, arguments.plot)
    if arguments.json:
        write_json(arguments.json, arms, data, recipe)


if __name__ == "__main__":
    main()
