"""Fig. 2: which method learns fastest?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mage_diffsim.experiments.command import Size
from paper_experiments.budgets import COMPARED, METHODS_OF_FIG_2, PAPER_TASKS
from paper_experiments.comparison import Comparison
from paper_experiments.verdicts import Claim


@dataclass(frozen=True)
class Performance(Comparison):
    """Fig. 2: return of MAGE-TD3, Dyna-TD3, Data-Efficient TD3 and TD3."""

    NAME: ClassVar[str] = "performance"
    SOURCE: ClassVar[str] = "Fig. 2"
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = METHODS_OF_FIG_2
    TASKS: ClassVar[dict[Size, tuple[str, ...]]] = {
        "smoke": ("Pendulum",),
        "cpu": ("Pendulum", "CartPole"),
        "paper": PAPER_TASKS,
    }
    BUDGETS: ClassVar[dict[Size, dict[str, Any]]] = COMPARED
    OF_TASK: ClassVar[dict[Size, dict[str, dict[str, Any]]]] = {"cpu": {"CartPole": dict(steps=20_000)}}
    PAPER: ClassVar[dict[tuple[str, str], float]] = {
        (task, name): value
        for task, values in {
            "HalfCheetah": (8070, 4490, 5800, 2800),
            "Pendulum": (-140, -243, -140, -140),
            "CartPole": (500, 20, 476, 245),
            "Pusher": (-23.9, -49.5, -60.9, -40.3),
            "Walker2d": (2100, 324, 1164, 384),
        }.items()
        for name, value in zip(METHODS_OF_FIG_2, values, strict=True)
    }
    CLAIMS: ClassVar[tuple[Claim, ...]] = (
        Claim("MAGE-TD3", "Dyna-TD3", "better"),
        Claim("MAGE-TD3", "Data-Efficient TD3"),
        Claim("MAGE-TD3", "TD3"),
    )
