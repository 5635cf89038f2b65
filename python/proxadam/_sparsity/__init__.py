"""The tools around sparsity: who takes l1, how much of it, and what came of it."""

from __future__ import annotations
