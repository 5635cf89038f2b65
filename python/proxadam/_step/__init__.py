"""The step, from the options of a group to the kernel or torch ops that take it."""

from __future__ import annotations
