"""Table 1: where do long runs end?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mage_diffsim.experiments.command import SMOKE, Size
from paper_experiments.budgets import METHODS_OF_FIG_2
from paper_experiments.comparison import Comparison
from paper_experiments.verdicts import Claim


@dataclass(frozen=True)
class Asymptotic(Comparison):
    """Appendix B.5, Table 1: the maximum average return of long runs.

    At size paper the replay buffer of TD3's ten runs takes 25 GB on the device, and the run folder some 10 GB.
    """

    NAME: ClassVar[str] = "asymptotic"
    SOURCE: ClassVar[str] = "Table 1"
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        name: METHODS_OF_FIG_2[name] for name in ("MAGE-TD3", "Dyna-TD3", "TD3")
    }
    TASKS: ClassVar[dict[Size, tuple[str, ...]]] = {
        "smoke": ("Pendulum",),
        "cpu": ("Pendulum",),
        "paper": ("HalfCheetah",),
    }
    BUDGETS: ClassVar[dict[Size, dict[str, Any]]] = {
        "smoke": SMOKE | dict(gradient_episodes=0, lambdas=(0.05,)),
        "cpu": dict(seeds=(0, 1, 2), steps=10_000, evaluations=80, gradient_episodes=0, lambdas=(0.05,)),
        "paper": dict(
            seeds=(0, 1, 2, 3, 4), steps=3_000_000, eval_every=1000, checkpoint_every=50_000, gradient_episodes=0,
            lambdas=(0.05,),
        ),
    }  # fmt: skip
    OF_VARIANT: ClassVar[dict[Size, dict[str, dict[str, Any]]]] = {
        "paper": {"TD3": dict(seeds=tuple(range(10)), steps=10_000_000, checkpoint_every=200_000)}
    }
    PAPER: ClassVar[dict[tuple[str, str], float]] = {
        ("HalfCheetah", "MAGE-TD3"): 9660.79,
        ("HalfCheetah", "Dyna-TD3"): 8372.76,
        ("HalfCheetah", "TD3"): 9636.95,
    }
    PAPER_BUDGET: ClassVar[str] = "of 3,000,000 steps and 5 runs (TD3: 10,000,000 and 10)"
    BEST: ClassVar[bool] = True
    CLAIMS: ClassVar[tuple[Claim, ...]] = (
        Claim("MAGE-TD3", "Dyna-TD3", "better"),
        Claim("MAGE-TD3", "TD3", "no worse"),
    )
