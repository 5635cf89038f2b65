"""A task: its data, a network for it, its batches, and how well the network does."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .data import CHARACTERS, Images, Text, load_digits_split, load_fashion, load_text
from .models import Transformer, make_convnet, make_perceptron
from .recipes import Recipe

Batch: TypeAlias = tuple[Tensor, Tensor]


class Task(ABC):
    """What all arms of a comparison have in common.

    Attributes:
        sign: 1 where a higher score is better, −1 where a lower one is.
        steps: of a training.
    """

    sign: int
    unit: str
    steps: int

    @abstractmethod
    def about(self) -> dict[str, object]:
        """What the JSON says of the data."""

    @abstractmethod
    def make_model(self) -> nn.Module:
        """A network with random weights."""

    @abstractmethod
    def batches(self, seed: int) -> Iterator[Batch]:
        """The batches of a whole training."""

    @abstractmethod
    def inputs(self, count: int) -> Tensor:
        """The first inputs of the test."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a batch."""

    @abstractmethod
    def score(self, model: nn.Module, part: str) -> float:
        """How well the network does on a part of the data, "validation" or "test"."""

    @abstractmethod
    def accuracy(self, model: nn.Module, part: str) -> float:
        """How much of a part the network foretells, in percent."""

    @abstractmethod
    def mean_loss(self, model: nn.Module, part: str) -> float:
        """The mean loss on a part of the data."""


class Classification(Task):
    """A network that tells images apart; its score is the accuracy in percent."""

    sign = 1
    unit = "accuracy in %"

    def __init__(self, data: Images, recipe: Recipe) -> None:
        self.data, self.recipe = data, recipe
        self.steps = recipe.epochs * math.ceil(len(data.train_x) / recipe.batch)

    def about(self) -> dict[str, object]:  # noqa: D102
        return self.data.about()

    def make_model(self) -> nn.Module:  # noqa: D102
        if self.recipe.channels:
            return make_convnet(self.recipe.channels, self.recipe.widths)
        return make_perceptron(self.recipe.widths)

    def batches(self, seed: int) -> Iterator[Batch]:  # noqa: D102
        shuffle = torch.Generator().manual_seed(seed)
        for _ in range(self.recipe.epochs):
            order = torch.randperm(len(self.data.train_x), generator=shuffle)
            for rows in order.split(self.recipe.batch):
                yield self.data.train_x[rows], self.data.train_y[rows]

    def inputs(self, count: int) -> Tensor:  # noqa: D102
        return self.data.test_x[:count]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:  # noqa: D102
        return cross_entropy(model(batch[0]), batch[1])

    def score(self, model: nn.Module, part: str) -> float:  # noqa: D102
        return self.accuracy(model, part)

    @torch.no_grad()
    def accuracy(self, model: nn.Module, part: str) -> float:  # noqa: D102
        x, y = getattr(self.data, f"{part}_x"), getattr(self.data, f"{part}_y")
        return 100.0 * (model(x).argmax(1) == y).float().mean().item()

    @torch.no_grad()
    def mean_loss(self, model: nn.Module, part: str) -> float:  # noqa: D102
        return self.loss(
            model, (getattr(self.data, f"{part}_x"), getattr(self.data, f"{part}_y"))
        ).item()


class Language(Task):
    """A transformer that foretells characters; its score is the loss in nats a character."""

    sign = -1
    unit = "loss in nats a character"

    def __init__(self, data: Text, recipe: Recipe) -> None:
        self.data, self.recipe, self.steps = data, recipe, recipe.steps

    def about(self) -> dict[str, object]:  # noqa: D102
        return self.data.about()

    def make_model(self) -> nn.Module:  # noqa: D102
        r = self.recipe
        return Transformer(CHARACTERS, r.context, r.width, r.heads, r.layers)

    def batches(self, seed: int) -> Iterator[Batch]:  # noqa: D102
        generator = torch.Generator().manual_seed(seed)
        offsets = torch.arange(self.recipe.context + 1)
        most = len(self.data.train) - len(offsets)
        for _ in range(self.steps):
            begins = torch.randint(most + 1, (self.recipe.batch, 1), generator=generator)
            windows = self.data.train[begins + offsets]
            yield windows[:, :-1], windows[:, 1:]

    def inputs(self, count: int) -> Tensor:  # noqa: D102
        context = self.recipe.context
        return self.data.test[: count * context].view(count, context)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:  # noqa: D102
        return cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    def score(self, model: nn.Module, part: str) -> float:  # noqa: D102
        return self.mean_loss(model, part)

    def _windows(self, part: str) -> Tensor:
        text, recipe = getattr(self.data, part), self.recipe
        context = recipe.context
        windows = text[: (len(text) - 1) // context * context + 1].unfold(0, context + 1, context)
        return windows[
            :: recipe.scored_of_train if part == "train" else recipe.scored[part == "test"]
        ]

    @torch.no_grad()
    def accuracy(self, model: nn.Module, part: str) -> float:  # noqa: D102
        windows = self._windows(part)
        right = [(model(w[:, :-1]).argmax(-1) == w[:, 1:]).sum().item() for w in windows.split(64)]
        return 100.0 * sum(right) / windows[:, 1:].numel()

    @torch.no_grad()
    def mean_loss(self, model: nn.Module, part: str) -> float:  # noqa: D102
        windows = self._windows(part)
        losses = [
            self.loss(model, (some[:, :-1], some[:, 1:])).item() * len(some)
            for some in windows.split(64)
        ]
        return sum(losses) / len(windows)


def make_task(name: str, recipe: Recipe, directory: Path | None) -> Task:
    """Load a task's data; ``directory`` is Fashion-MNIST's."""
    if name == "text":
        return Language(load_text(), recipe)
    return Classification(load_fashion(directory) if directory else load_digits_split(), recipe)
