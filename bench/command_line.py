"""What results say that they were made by."""

from __future__ import annotations

import sys
from pathlib import Path


def command() -> str:
    """What was called, without the folders of the machine that it ran on."""
    return " ".join(Path(word).name if Path(word).is_absolute() else word for word in sys.argv)
