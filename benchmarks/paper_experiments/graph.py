"""Fig. 9: what is the computation graph of the TD error?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mage_diffsim.experiments.autograd_graph import computation_graph, draw_computation_graph
from mage_diffsim.experiments.cells import Cell, Outcome
from mage_diffsim.experiments.command import SMOKE, Experiment, Findings, Size
from mage_diffsim.experiments.tables import Table, enumeration, write_csv
from mage_diffsim.run_folder import load_trainer
from mage_diffsim.settings import make_config


@dataclass(frozen=True)
class Graph(Experiment):
    """Appendix C, Fig. 9: the computation graph of the TD error delta, with the learned model and with the oracle.

    The graph is autograd's of one update after a little training. What is random is found by drawing it again.
    """

    NAME: ClassVar[str] = "graph"
    FILES: ClassVar[tuple[str, ...]] = ("graph.csv", "learned.png", "oracle.png")
    BUDGETS: ClassVar[dict[Size, dict[str, Any]]] = dict.fromkeys(
        ("smoke", "cpu", "paper"), SMOKE | dict(seeds=(0,), gradient_episodes=0)
    )

    task: str = "Pendulum"
    """Registered task."""

    def cells(self) -> list[Cell]:
        return [
            Cell(dynamics, make_config(self.task, shared=self._settings() | dict(dynamics=dynamics)))
            for dynamics in ("learned", "oracle")
        ]

    def _settings(self) -> dict[str, Any]:
        # The graph is the same at every size, so the small preset will do.
        return self.budget(self.task) | ({} if self.preset else {"preset": "cpu"})

    def report(self, outcomes: list[Outcome], out: Path) -> Findings:
        rows, table, found = [], [], []
        for outcome in (o for o in outcomes if o.status == "done"):
            graph = computation_graph(load_trainer(outcome.run_dir, device="cpu"))
            name = outcome.cell.name
            draw_computation_graph(out / f"{name}.png", graph, f"TD error of {self.task}, {name} dynamics (Fig. 9)")
            for quantity in graph:
                parents = ", ".join(quantity.parents) or "-"
                kind = "drawn" if quantity.stochastic else "computed"
                rows.append(dict(dynamics=name, quantity=quantity.name, kind=kind, parents=parents))
                table.append((name, quantity.name, kind, parents, str(quantity.operations)))
            drawn = [q.name for q in graph if q.stochastic]
            found.append(f"{name}: {enumeration(drawn)} are random, the rest is computed.")
        write_csv(out / "graph.csv", ("dynamics", "quantity", "kind", "parents"), rows)
        header = ("dynamics", "quantity", "kind", "computed from", "operations")
        return Findings(Table("Fig. 9: the computation graph of δ", header, table), found)
