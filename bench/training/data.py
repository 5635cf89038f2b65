"""The data of the tasks, each split into train, validation and test."""

from __future__ import annotations

import gzip
import hashlib
import math
import platform
import struct
import sysconfig
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor

IDX_UBYTE = 0x08
CHARACTERS = 128  # ASCII; everything else is read as a question mark


class DataError(Exception):
    """The data cannot be used; the message is one sentence for the user."""


@dataclass(frozen=True)
class Images:
    """Rows of standardised pixels, and class numbers."""

    name: str
    train_x: Tensor
    train_y: Tensor
    validation_x: Tensor
    validation_y: Tensor
    test_x: Tensor
    test_y: Tensor

    def about(self) -> dict[str, object]:
        """What the JSON says of the data."""
        sizes = {"train": self.train_y, "validation": self.validation_y, "test": self.test_y}
        return {"name": self.name} | {part: len(y) for part, y in sizes.items()}

    def joined(self) -> Images:
        """The same with all that is not for the test to train on, and nothing to validate."""
        x = torch.cat([self.train_x, self.validation_x])
        y = torch.cat([self.train_y, self.validation_y])
        none = (self.validation_x[:0], self.validation_y[:0])
        return Images(self.name, x, y, *none, self.test_x, self.test_y)


@dataclass(frozen=True)
class Text:
    """Characters as numbers below ``CHARACTERS``, and the files that they are from."""

    name: str
    train: Tensor
    validation: Tensor
    test: Tensor
    corpus: dict[str, object] = field(repr=False)

    def about(self) -> dict[str, object]:
        """What the JSON says of the data."""
        sizes = {"train": self.train, "validation": self.validation, "test": self.test}
        return {"name": self.name} | {part: len(t) for part, t in sizes.items()} | self.corpus


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


def load_fashion(directory: Path) -> Images:
    """Load Fashion-MNIST from its four IDX files; a tenth of its train images is to validate."""
    parts: list[Tensor] = []
    for prefix in ("train", "t10k"):
        images = read_idx(directory / f"{prefix}-images-idx3-ubyte.gz", None, 28, 28)
        labels = read_idx(directory / f"{prefix}-labels-idx1-ubyte.gz", len(images))
        if labels.max() >= 10:
            raise DataError(f"{directory} holds the label {labels.max()} in its {prefix} labels.")
        parts += [images.flatten(1).float(), labels.long()]
    x, y, test_x, test_y = parts
    validation, train = _shuffled(len(x), len(x) // 10)
    data = Images("Fashion-MNIST", x[train], y[train], x[validation], y[validation], test_x, test_y)
    return standardise(data)


def load_digits_split() -> Images:
    """Load scikit-learn's digits; a quarter is for the test, and a fifth of the rest to validate.

    The split is the same whatever the seed.
    """
    x, y = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    test, rest = _shuffled(len(x), len(x) // 4)
    validation, train = rest.tensor_split([len(rest) // 5])
    x = x.float()
    parts = [part for rows in (train, validation, test) for part in (x[rows], y[rows])]
    return standardise(Images("digits", *parts))


def _shuffled(count: int, first: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    begin, end = order.tensor_split([first])
    return begin, end


def standardise(data: Images) -> Images:
    """Centre each pixel and scale all alike, by the train images only."""
    mean = data.train_x.mean(0)
    # One scale for all: by their own deviations, pixels that are nearly always blank would explode.
    std = (data.train_x - mean).square().mean().sqrt()
    names = ("train_x", "validation_x", "test_x")
    return replace(data, **{name: (getattr(data, name) - mean) / std for name in names})


def load_text() -> Text:
    """Load the source of Python's standard library, the modules that are one file.

    Of ten files in the order of their names the fifth is to validate and the tenth for the test.
    """
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    if len(files) < 10:
        raise DataError(f"{sysconfig.get_paths()['stdlib']} holds no source of Python's library.")
    parts: dict[str, list[Path]] = {"train": [], "validation": [], "test": []}
    for i, file in enumerate(files):
        parts[{4: "validation", 9: "test"}.get(i % 10, "train")].append(file)
    raw = {part: b"".join(file.read_bytes() for file in some) for part, some in parts.items()}
    corpus = {
        "python": platform.python_version(),
        "files": {part: [file.name for file in some] for part, some in parts.items()},
        "sha256": {part: hashlib.sha256(text).hexdigest() for part, text in raw.items()},
    }
    tokens = {part: _tokens(text) for part, text in raw.items()}
    return Text("Python's standard library", **tokens, corpus=corpus)


def _tokens(raw: bytes) -> Tensor:
    ascii_only = raw.decode(errors="replace").encode("ascii", "replace")
    return torch.frombuffer(bytearray(ascii_only), dtype=torch.uint8).long()
