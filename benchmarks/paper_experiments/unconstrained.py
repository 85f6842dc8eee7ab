"""Fig. 5: what do the critic's action-gradients become without the TD error?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mage_diffsim.experiments.cells import Cell, Outcome
from mage_diffsim.experiments.command import Experiment, Findings, Size
from mage_diffsim.experiments.figures import DASHES, PALETTE, Line, Panel, draw, line
from mage_diffsim.experiments.rows import CURVE_FIELDS, curve_rows
from mage_diffsim.experiments.statistics import Interval, interval
from mage_diffsim.experiments.tables import Table, text, write_csv
from mage_diffsim.settings import make_config


@dataclass(frozen=True)
class Unconstrained(Experiment):
    """Appendix B.1, Fig. 5: without the TD error (lambda = 0) the critic's action-gradients degenerate.

    MAGE-DDPG trains on the torch oracle of Pendulum, with lambda = 0 and, for contrast, 0.2. Every lambda and seed
    trains in one process.
    """

    NAME: ClassVar[str] = "unconstrained"
    FILES: ClassVar[tuple[str, ...]] = ("curves.csv", "figure.png")
    CURVES: ClassVar[dict[str, str]] = {
        "grad_q": "|∇ₐ Q(s, a)|",
        "grad_q_through_dynamics": "|∇ₐ Q(s', π(s'))|",
        "grad_reward": "|∇ₐ r(s, a)|",
    }
    """The curves of Fig. 5: columns of curves.csv and their names. All are means over a batch at a = pi(s). The second
    goes through the dynamics s' = s'(s, a)."""
    COLLAPSED: ClassVar[float] = 0.01
    """|grad_a Q| has collapsed where it is below this share of what it is compared with."""
    BUDGETS: ClassVar[dict[Size, dict[str, Any]]] = {
        "smoke": dict(seeds=(0, 1), steps=150, evaluations=3, eval_episodes=2, hyper=dict(warmup_steps=50)),
        "cpu": dict(seeds=(0, 1, 2, 3, 4), steps=5000, evaluations=50),
        # D.2's 1000 steps between evaluations are those of returns. The paper does not state the steps of Fig. 5.
        "paper": dict(seeds=(0, 1, 2, 3, 4), steps=10_000, eval_every=100),
    }

    lambdas: tuple[float, ...] = (0.0, 0.2)
    """Weights of the TD error. 0 is the unconstrained loss of Fig. 5; the others are for comparison."""

    def cells(self) -> list[Cell]:
        config = make_config(
            "Pendulum",
            method="mage-ddpg",
            dynamics="oracle",
            backend="torch",
            lambdas=self.lambdas,
            gradient_episodes=0,  # Eq. 14 is not asked here
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
        title = f"MAGE-DDPG, oracle Pendulum. Thick: geometric mean over {seeds} seeds. Thin: single seeds"
        draw(out / "figure.png", title, [panels])
        step = rows[-1]["env_step"]
        last = {lam: [r for r in mine if r["env_step"] == step] for lam, mine in by_lambda.items()}
        return Findings(
            Table(f"Fig. 5: action-gradients at step {step}", HEADER, gradient_rows(last)),
            collapse_verdict(last),
            notes=[
                "Norms and ratios are geometric means, ratios seed by seed, with 95% intervals.",
                "Without the TD error the loss is least at ∇ₐ Q(s, a) = ∇ₐ r(s, a) + γ ∇ₐ Q(s', π(s')).",
                "Where the second term is lost, |∇ₐ Q| tends to |∇ₐ r| and not to zero.",
            ],
        )

    def _lines(self, rows: Sequence[Mapping[str, Any]]) -> tuple[Line, ...]:
        styles = zip(PALETTE, DASHES, strict=False)
        curves = zip(self.CURVES.items(), styles, strict=False)
        return tuple(line(name, rows, column, *style, geometric=True) for (column, name), style in curves)


HEADER = (
    "λ", *Unconstrained.CURVES.values(), "|∇ₐ Q| / |∇ₐ r|", f"seeds below {Unconstrained.COLLAPSED:.0%}",
    "|∇ₐ Q| of λ = 0 / this", "collapse of λ = 0", "return",
)  # fmt: skip
"""Columns of :func:`gradient_rows`."""

LastRows = Mapping[float, Sequence[Mapping[str, Any]]]
"""Lambda to its seeds' last rows of curves.csv, in the same order of seeds."""


def gradient_rows(last: LastRows) -> list[tuple[str, ...]]:
    """Returns a row under HEADER for every lambda."""
    rows = []
    for lam, mine in last.items():
        ratios, against = reward_ratios(mine), against_zero(last, lam)
        rows.append(
            (
                f"{lam:g}",
                *(text(interval((r[c] for r in mine), geometric=True)) for c in Unconstrained.CURVES),
                text(interval(ratios, geometric=True)),
                f"{sum(r < Unconstrained.COLLAPSED for r in ratios)} of {len(ratios)}" if ratios else "-",
                text(against) if against else "-",
                collapse(against) if against else "-",
                text(interval(r["return_mean"] for r in mine)),
            )
        )
    return rows


def collapse_verdict(last: LastRows) -> list[str]:
    """Returns whether |grad_a Q| collapsed without the TD error, in at most three lines."""
    if not any(map(reward_ratios, last.values())):
        return ["The runs ended before their first critic update: nothing to measure."]
    found = [
        f"Without the TD error, beside λ = {lam:g}: {collapse(against)}."
        for lam in last
        if (against := against_zero(last, lam)) is not None
    ][:2]
    if ratios := reward_ratios(last.get(0.0, ())):
        share, count = Unconstrained.COLLAPSED, sum(r < Unconstrained.COLLAPSED for r in ratios)
        found.append(f"λ = 0: |∇ₐ Q| is below {share:.0%} of |∇ₐ r| in {count} of {len(ratios)} seeds.")
    return found


def reward_ratios(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Returns |grad_a Q| / |grad_a r| of every seed, or nothing where a run ended before its first critic update."""
    if any(row["grad_q"] is None or not row["grad_reward"] for row in rows):
        return []
    return [row["grad_q"] / row["grad_reward"] for row in rows]


def against_zero(last: LastRows, lam: float) -> Interval | None:
    """Returns |grad_a Q| of lambda = 0 by that of ``lam``, seed by seed; None where one of them is not known."""
    if lam == 0.0 or not reward_ratios(last.get(0.0, ())) or not reward_ratios(last[lam]):
        return None
    pairs = zip(last[0.0], last[lam], strict=True)
    return interval((zero["grad_q"] / other["grad_q"] for zero, other in pairs), geometric=True)


def collapse(ratio: Interval) -> str:
    """Returns whether a ratio of gradients is a collapse, in words."""
    if ratio.known and ratio.high < Unconstrained.COLLAPSED:
        return "collapse"
    return "no collapse" if ratio.known and ratio.low > Unconstrained.COLLAPSED else "not told"
