"""Fig. 6: does learning the reward, too, do harm?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mage_diffsim.experiments.command import Size
from paper_experiments.budgets import ABLATED, PAPER_TASKS
from paper_experiments.comparison import Comparison
from paper_experiments.verdicts import Claim


@dataclass(frozen=True)
class LearnedReward(Comparison):
    """Appendix B.2, Fig. 6: the reward learned as r_hat(s, a, s') or given."""

    NAME: ClassVar[str] = "learned-reward"
    SOURCE: ClassVar[str] = "Fig. 6"
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "MAGE-TD3": dict(method="mage-td3"),
        "MAGE-TD3 (learned reward)": dict(method="mage-td3", reward="learned"),
        "Dyna-TD3": dict(method="dyna-td3"),
        "Dyna-TD3 (learned reward)": dict(method="dyna-td3", reward="learned"),
    }
    TASKS: ClassVar[dict[Size, tuple[str, ...]]] = {
        "smoke": ("Pendulum",),
        "cpu": ("Pendulum",),
        "paper": PAPER_TASKS,
    }
    BUDGETS: ClassVar[dict[Size, dict[str, Any]]] = ABLATED
    CLAIMS: ClassVar[tuple[Claim, ...]] = (
        Claim("MAGE-TD3 (learned reward)", "MAGE-TD3", "no worse"),
        Claim("Dyna-TD3 (learned reward)", "Dyna-TD3", "no worse"),
        Claim("MAGE-TD3 (learned reward)", "Dyna-TD3 (learned reward)"),
    )
