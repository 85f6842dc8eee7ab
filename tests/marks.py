"""Marks for some cases of a parametrised test."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

LARGE = ("HalfCheetah", "Hopper", "Walker2d", "Ant", "Pusher")
"""Tasks whose Warp kernels take about ten seconds to compile, or more."""

BORROWED = (
    *("Humanoid", "HumanoidStandup"),
    *("DmWalker", "DmCheetah", "DmHopper", "DmHumanoid", "DmQuadruped", "Go1"),
)
"""Tasks whose physics takes minutes to check on every backend, and has nothing that other tasks and models lack."""


def slow_but(fast: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """The cases of ``pytest.mark.parametrize``, those outside ``fast`` with the mark slow."""
    fast, cases = list(fast), list(cases)
    assert any(case in fast for case in cases), f"none of {cases} is fast"
    return [case if case in fast else pytest.param(*_arguments(case), marks=pytest.mark.slow) for case in cases]


def _arguments(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)
