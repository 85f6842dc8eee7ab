"""Fig. 8: which weight of the TD error is best?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mage_diffsim.experiments.cells import Cell
from mage_diffsim.experiments.command import Size
from mage_diffsim.settings import make_config
from paper_experiments.budgets import ABLATED
from paper_experiments.comparison import Comparison
from paper_experiments.verdicts import Claim


@dataclass(frozen=True)
class Lambda(Comparison):
    """Appendix B.4, Fig. 8: the weight lambda of the TD error against the gradient term; one cell trains all."""

    NAME: ClassVar[str] = "lambda"
    SOURCE: ClassVar[str] = "Fig. 8"
    LAMBDAS: ClassVar[tuple[float, ...]] = (0.02, 0.05, 0.2, 1.0)
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {f"λ = {weight:g}": {} for weight in LAMBDAS} | {"Dyna-TD3": {}}
    CLAIMS: ClassVar[tuple[Claim, ...]] = tuple(Claim(f"λ = {weight:g}", "Dyna-TD3", "better") for weight in LAMBDAS)
    TASKS: ClassVar[dict[Size, tuple[str, ...]]] = {
        "smoke": ("Pendulum",),
        "cpu": ("Pendulum",),
        "paper": ("HalfCheetah",),
    }
    BUDGETS: ClassVar[dict[Size, dict[str, Any]]] = ABLATED
    MEDIAN: ClassVar[bool] = True

    def cells(self) -> list[Cell]:
        return [
            Cell(f"{name}_{label}", make_config(task, shared=self.budget(task) | dict(method=method, lambdas=lambdas)))
            for task, name in self.chosen()
            for label, method, lambdas in (("MAGE-TD3", "mage-td3", self.LAMBDAS), ("Dyna-TD3", "dyna-td3", (1.0,)))
        ]

    def variant_of(self, cell: Cell, row: Mapping[str, Any]) -> str:
        return "Dyna-TD3" if cell.config.method == "dyna-td3" else f"λ = {row['lambda']:g}"
