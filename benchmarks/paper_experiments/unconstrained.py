"""Fig. 5: what the critic's action-gradients become without the TD error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mage_diffsim.experiments.cells import Cell, Outcome
from mage_diffsim.experiments.command import Experiment, Findings, Size, Table
from mage_diffsim.experiments.figures import DASHES, PALETTE, Line, Panel, draw, line
from mage_diffsim.experiments.rows import CURVE_FIELDS, curve_rows
from mage_diffsim.experiments.statistics import interval
from mage_diffsim.experiments.tables import text, write_csv
from mage_diffsim.settings import make_config


@dataclass(frozen=True)
class Unconstrained(Experiment):
    """Appendix B.1, Fig. 5: without the TD error (lambda = 0) the critic's action-gradients degenerate.

    MAGE-DDPG on the torch oracle of Pendulum, with lambda = 0.2 as the contrast; every lambda and seed trains in one
    process. Writes curves.csv, figure.png and summary.md.
    """

    NAME: ClassVar[str] = "unconstrained"
    FILES: ClassVar[tuple[str, ...]] = ("curves.csv", "figure.png")
    CURVES: ClassVar[dict[str, str]] = {
        "grad_q": "|∇ₐ Q(s, a)|",
        "grad_q_through_dynamics": "|∇ₐ Q(s', π(s'))|",
        "grad_reward": "|∇ₐ r(s, a)|",
    }
    """The curves of Fig. 5: columns of curves.csv and what they hold, means over a batch at a = pi(s). The second is
    that of s' = s'(s, a), through the dynamics; the gradient by the next state's action alone is `grad_q_next`."""
    COLLAPSED: ClassVar[float] = 0.01
    """|grad_a Q| has collapsed when it is below this share of what it is compared with."""
    BUDGETS: ClassVar[dict[Size, dict[str, Any]]] = {
        "smoke": dict(seeds=(0, 1), steps=150, evaluations=3, eval_episodes=2, hyper=dict(warmup_steps=50)),
        "cpu": dict(seeds=(0, 1, 2, 3, 4), steps=5000, evaluations=50),
        # Fig. 5 is not of performance, so D.2's 1000 steps between evaluations do not hold; over how many steps it is
        # drawn is not stated.
        "paper": dict(seeds=(0, 1, 2, 3, 4), steps=10_000, eval_every=100),
    }

    lambdas: tuple[float, ...] = (0.0, 0.2)
    """Weights of the TD error; 0 is the unconstrained loss of Fig. 5, the others are beside it for comparison."""

    def cells(self) -> list[Cell]:
        config = make_config(
            "Pendulum",
            method="mage-ddpg",
            dynamics="oracle",
            backend="torch",
            lambdas=self.lambdas,
            gradient_episodes=0,  # Fig. 5 shows sizes of gradients, which every evaluation writes anyway
            shared=self.budget("Pendulum"),
        )
        return [Cell("Pendulum_mage-ddpg_oracle_torch", config)]

    def report(self, outcomes: list[Outcome], out: Path) -> Findings:
        rows = curve_rows(outcomes)
        write_csv(out / "curves.csv", CURVE_FIELDS, rows)
        by_lambda = {lam: [r for r in rows if r["lambda"] == lam] for lam in self.lambdas}
        panels = [
            Panel(f"λ = {lam:g}", "mean norm over a batch", self._lines(mine), log=True)
            for lam, mine in by_lambda.items()
        ]
        seeds = len({row["seed"] for row in rows})
        title = f"MAGE-DDPG, oracle Pendulum: action-gradients. Thick: geometric mean over {seeds} seeds"
        draw(out / "figure.png", title, [panels])
        last = {lam: [r for r in mine if r["env_step"] == rows[-1]["env_step"]] for lam, mine in by_lambda.items()}
        header = ("λ", *self.CURVES.values(), "return")
        table = [
            (
                f"{lam:g}",
                *(text(interval((r[c] for r in mine), geometric=True)) for c in self.CURVES),
                text(interval(r["return_mean"] for r in mine)),
            )
            for lam, mine in last.items()
        ]
        title = f"Fig. 5: action-gradients at step {rows[-1]['env_step']}"
        return Findings(Table(title, header, table), notes=unconstrained_findings(last))

    def _lines(self, rows: Sequence[Mapping[str, Any]]) -> tuple[Line, ...]:
        styles = zip(PALETTE, DASHES, strict=False)
        curves = zip(self.CURVES.items(), styles, strict=False)
        return tuple(line(name, rows, column, *style, geometric=True) for (column, name), style in curves)


def unconstrained_findings(last: Mapping[float, Sequence[Mapping[str, Any]]]) -> list[str]:
    """How small |grad_a Q| became, in sentences.

    Args:
        last: lambda to its seeds' last rows of curves.csv, in the same order of seeds.
    """
    share = Unconstrained.COLLAPSED
    found = []
    known: dict[float, list[float]] = {}
    for lam, rows in last.items():
        if any(row["grad_q"] is None or not row["grad_reward"] for row in rows):
            found.append(f"λ = {lam:g}: the run ended before its first critic update, so there is nothing to measure.")
            continue
        known[lam] = [row["grad_q"] for row in rows]
        ratios = [row["grad_q"] / row["grad_reward"] for row in rows]
        found.append(
            f"λ = {lam:g}: |∇ₐ Q| ends at {text(interval(ratios, geometric=True))} times |∇ₐ r|, below "
            f"{share:.0%} of it in {sum(r < share for r in ratios)} of {len(ratios)} seeds."
        )
    for lam in known:
        if 0.0 in known and lam > 0.0:
            ratio = interval((a / b for a, b in zip(known[0.0], known[lam], strict=True)), geometric=True)
            verdict = " These seeds do not tell whether it collapses beside it."
            if ratio.known and ratio.high < share:
                verdict = " It collapses beside it."
            elif ratio.known and ratio.low > share:
                verdict = " No collapse."
            found.append(f"|∇ₐ Q| of λ = 0 is {text(ratio)} times that of λ = {lam:g}, seed by seed.{verdict}")
    if 0.0 in known:
        found.append(
            "Without the TD error the loss is least at ∇ₐ Q(s, a) = ∇ₐ r(s, a) + γ ∇ₐ Q(s', π(s')): where the second "
            "term is lost, the immediate reward still draws |∇ₐ Q| towards |∇ₐ r|, so a collapse need not end at zero."
        )
    return found
