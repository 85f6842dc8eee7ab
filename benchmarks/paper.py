"""Experiments of the MAGE paper, one subcommand each. Each is resumable and writes CSV, a figure and what was found."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import tyro

from mage_diffsim.config import make_config
from mage_diffsim.experiments import report
from mage_diffsim.experiments.command import Experiment, Findings, main
from mage_diffsim.experiments.figures import DASHES, PALETTE, Line, Panel, draw, line
from mage_diffsim.experiments.statistics import Interval, interval
from mage_diffsim.experiments.sweep import Cell, Outcome


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
        "grad_q_next": "|∇ₐ Q(s', π(s'))|",
        "grad_reward": "|∇ₐ r(s, a)|",
    }
    """The curves of Fig. 5: columns of curves.csv and what they hold, means over a batch at a = pi(s)."""
    COLLAPSED: ClassVar[float] = 0.01
    """|grad_a Q| has collapsed when it is below this share of what it is compared with."""
    FULL: ClassVar[dict[str, Any]] = dict(seeds=(0, 1, 2), steps=3000, evaluations=30)
    """The default budget."""
    SMOKE: ClassVar[dict[str, Any]] = dict(
        seeds=(0, 1), steps=150, evaluations=3, eval_episodes=2, hyper=dict(warmup_steps=50)
    )
    """The budget of --smoke."""

    lambdas: tuple[float, ...] = (0.0, 0.2)
    """Weights of the TD error; 0 is the unconstrained loss of Fig. 5."""

    def cells(self) -> list[Cell]:
        config = make_config(
            "Pendulum",
            method="mage-ddpg",
            dynamics="oracle",
            backend="torch",
            lambdas=self.lambdas,
            gradient_episodes=0,  # Fig. 5 shows sizes of gradients, which every evaluation writes anyway
            **self.budget(self.FULL, self.SMOKE),
        )
        return [Cell("Pendulum_mage-ddpg_oracle_torch", config)]

    def report(self, outcomes: list[Outcome], out: Path) -> Findings:
        rows = report.curve_rows(outcomes)
        report.write_csv(out / "curves.csv", report.CURVE_FIELDS, rows)
        by_lambda = {lam: [r for r in rows if r["lambda"] == lam] for lam in self.lambdas}
        panels = [
            Panel(f"λ = {lam:g}", "mean norm over a batch", self._lines(mine), log=True)
            for lam, mine in by_lambda.items()
        ]
        seeds = len({row["seed"] for row in rows})
        title = f"MAGE-DDPG, oracle Pendulum: action-gradients, geometric mean and 95% c.i. over {seeds} seeds"
        draw(out / "figure.png", title, [panels])
        last = {lam: [r for r in mine if r["env_step"] == rows[-1]["env_step"]] for lam, mine in by_lambda.items()}
        header = ("λ", *self.CURVES.values(), "return")
        table = [
            (
                f"{lam:g}",
                *(report.text(interval((r[c] for r in mine), geometric=True)) for c in self.CURVES),
                report.text(interval(r["return_mean"] for r in mine)),
            )
            for lam, mine in last.items()
        ]
        return Findings(
            f"Fig. 5: action-gradients at step {rows[-1]['env_step']}", header, table, unconstrained_findings(last)
        )

    def _lines(self, rows: Sequence[Mapping[str, Any]]) -> tuple[Line, ...]:
        styles = zip(PALETTE, DASHES, strict=False)
        curves = zip(self.CURVES.items(), styles, strict=False)
        return tuple(line(name, rows, column, *style, geometric=True) for (column, name), style in curves)


def unconstrained_findings(last: Mapping[float, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Whether |grad_a Q| collapsed, in sentences.

    Args:
        last: lambda to its seeds' last rows of curves.csv.
    """
    share = Unconstrained.COLLAPSED
    found = []
    size: dict[float, Interval] = {}
    for lam, rows in last.items():
        pairs = [(r["grad_q"], r["grad_reward"]) for r in rows if r["grad_q"] is not None and r["grad_reward"]]
        if not pairs:
            found.append(f"λ = {lam:g}: the run ended before its first critic update, so there is nothing to measure.")
            continue
        size[lam] = interval((q for q, _ in pairs), geometric=True)
        ratios = interval((q / r for q, r in pairs), geometric=True)
        collapsed = sum(q < share * r for q, r in pairs)
        found.append(
            f"λ = {lam:g}: |∇ₐ Q| ends at {size[lam].mean:.2g}, {report.text(ratios)} times |∇ₐ r|: it "
            f"{'fell' if collapsed == len(pairs) else 'did not fall'} below {share:.0%} of |∇ₐ r| "
            + ("in every seed." if collapsed == len(pairs) else f"({collapsed} of {len(pairs)} seeds did).")
        )
    for lam, contrast in size.items():
        if 0.0 in size and lam > 0.0 and contrast.mean > 0.0:
            ratio = size[0.0].mean / contrast.mean
            found.append(
                f"|∇ₐ Q| of λ = 0 is {ratio:.2g} times that of λ = {lam:g}: "
                + (
                    f"below {share:.0%}, so without the TD error the critic's gradients collapse, as in the paper."
                    if ratio < share
                    else f"not below {share:.0%}, so there is no collapse like the paper's."
                )
            )
    if 0.0 in size:
        found.append(
            "Where ∇ₐ' Q(s', π(s')) = 0 the loss of λ = 0 vanishes at ∇ₐ Q = ∇ₐ r, so |∇ₐ Q| need not fall below "
            "|∇ₐ r| to be degenerate: it then knows the immediate reward and nothing of the future."
        )
    return found


EXPERIMENTS: dict[str, type[Experiment]] = {"unconstrained": Unconstrained}
"""Subcommand to its experiment."""


if __name__ == "__main__":
    sys.exit(main(lambda: tyro.extras.subcommand_cli_from_dict(EXPERIMENTS, description=__doc__)))
