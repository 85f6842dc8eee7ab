"""Fig. 7: does a smaller ensemble do?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mage_diffsim.experiments.command import Size
from paper_experiments.budgets import ABLATED
from paper_experiments.comparison import Comparison
from paper_experiments.verdicts import Claim


@dataclass(frozen=True)
class Capacity(Comparison):
    """Appendix B.3, Fig. 7: smaller ensembles."""

    NAME: ClassVar[str] = "capacity"
    SOURCE: ClassVar[str] = "Fig. 7"
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        f"{label}{suffix}": dict(method=method, ensemble=ensemble)
        for method, label in (("mage-td3", "MAGE-TD3"), ("dyna-td3", "Dyna-TD3"))
        for ensemble, suffix in (("full", ""), ("small", "-small"), ("smaller", "-smaller"))
    }
    TASKS: ClassVar[dict[Size, tuple[str, ...]]] = {"smoke": ("Pendulum",), "cpu": ("Pendulum",), "paper": ("Pusher",)}
    BUDGETS: ClassVar[dict[Size, dict[str, Any]]] = ABLATED
    CLAIMS: ClassVar[tuple[Claim, ...]] = (
        Claim("MAGE-TD3-small", "MAGE-TD3", "no worse"),
        Claim("MAGE-TD3", "MAGE-TD3-smaller", "better"),
        Claim("MAGE-TD3-small", "Dyna-TD3-small"),
        Claim("MAGE-TD3-smaller", "Dyna-TD3-smaller"),
    )
