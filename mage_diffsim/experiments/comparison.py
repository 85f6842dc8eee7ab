"""What a sweep over dynamics found: its table, its figure, a verdict of at most three lines and notes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mage_diffsim.envs.task import Task
from mage_diffsim.experiments.cells import Outcome
from mage_diffsim.experiments.figures import Panel, draw, line, styles
from mage_diffsim.experiments.groups import (
    HYBRID_NAMES,
    METHOD_NAMES,
    Group,
    cell_name,
    groups_of,
    label,
    paired,
)
from mage_diffsim.experiments.rows import identity
from mage_diffsim.experiments.statistics import LAST_EVALUATIONS, Interval, interval, side_of
from mage_diffsim.experiments.tables import text

HEADER = (
    "task",
    "method, dynamics",
    "return",
    "solved at step",
    "against learned",
    "return - learned's",
    "return - Dyna's",
    "gradient error",
    "error / learned's",
    "error / Dyna's",
    "cosine",
    "mean return",
    "non-finite",
    "restarts",
    "updates/s",
    "wall",
)
"""Columns of the table."""

STAR = " *"
"""Marks a difference or ratio whose interval excludes no effect."""


def table_rows(
    groups: Sequence[Group], tasks: Mapping[str, Task], outcomes: Iterable[Outcome] = ()
) -> list[tuple[str, ...]]:
    """The cells of the table under HEADER: one row per group, then one per cell that was skipped or failed.

    Args:
        groups: what was trained.
        tasks: by name.
        outcomes: what became of every cell.
    """
    rows = []
    for group in groups:
        learned, dyna = learned_of(group, groups), dyna_of(group, groups)
        solved = "-"
        if tasks[group.task].solved_return is not None:
            when = f"{interval(group.solved).mean:.0f} " if group.solved else ""
            solved = f"{when}({len(group.solved)} of {len(group.rows)})"
        rows.append(
            (
                group.task,
                label(group, groups),
                text(group.value("final_return")),
                solved,
                verdict_of(group, learned),
                _effect(group, learned, "final_return"),
                _effect(group, dyna, "final_return"),
                text(group.value("gradient_error")),
                _effect(group, learned, "gradient_error"),
                _effect(group, dyna, "gradient_error"),
                text(group.value("gradient_cosine")) if has_cosine(tasks[group.task]) else "-",
                text(group.value("mean_return")),
                str(sum(row["nonfinite"] for row in group.rows)),
                str(sum(row["restarts"] for row in group.rows)),
                f"{group.value('updates_per_s').mean:.0f}",
                f"{group.value('wall_s').mean:.0f} s",
            )
        )
    for outcome in outcomes:
        if outcome.status != "done":
            last_line = outcome.reason.strip().splitlines()[-1]
            row = (identity(outcome.cell)["task"], cell_name(outcome.cell), f"{outcome.status}: {last_line}")
            rows.append((*row, *[""] * (len(HEADER) - len(row))))
    return rows


def learned_of(group: Group, groups: Iterable[Group]) -> Group | None:
    """The same method on learned dynamics; None for that itself and for a model-free method."""
    same = (group.task, group.method, group.variant, group.lam)
    if group.dynamics in ("", "learned"):
        return None
    return next((g for g in groups if (g.task, g.method, g.variant, g.lam) == same and g.dynamics == "learned"), None)


def dyna_of(group: Group, groups: Iterable[Group]) -> Group | None:
    """Dyna on the same dynamics as a MAGE group: what the gradient term brings is the difference."""
    if not group.method.startswith("mage-"):
        return None
    method = group.method.replace("mage-", "dyna-")
    same = (group.task, method, group.dynamics, group.backend)
    dynas = [g for g in groups if (g.task, g.method, g.dynamics, g.backend) == same]
    # Lambda does not weigh Dyna's loss, so one Dyna cell stands for all.
    return next((g for g in dynas if g.lam == group.lam), dynas[0] if dynas else None)


def verdict_of(group: Group, reference: Group | None) -> str:
    """``better``, ``worse`` or ``not told apart`` in the final return, paired by seed; ``-`` where nothing is known."""
    verdict = "unknown" if reference is None else side_of(paired(group, reference, "final_return"))
    return {"above": "better", "below": "worse", "unknown": "-"}.get(verdict, verdict)


def has_cosine(task: Task) -> bool:
    """Whether a cosine says more than agreement in sign."""
    return task.action_dim > 1


def _effect(group: Group, reference: Group | None, column: str) -> str:
    return "-" if reference is None else _starred(paired(group, reference, column))


def _starred(effect: Interval) -> str:
    return text(effect) + STAR * (side_of(effect) in ("above", "below"))


def verdict(groups: Sequence[Group], tasks: Mapping[str, Task]) -> list[str]:
    """At most three lines: who solved the tasks, what oracles and hybrids changed, what MAGE's gradient term changed.

    Args:
        groups: what was trained.
        tasks: by name.
    """
    found = []
    counted = [g for g in groups if tasks[g.task].solved_return is not None]
    if counted:
        said = []
        for method in dict.fromkeys(g.method for g in counted):
            rows = [(len(g.solved), len(g.rows)) for g in counted if g.method == method]
            said.append(f"{METHOD_NAMES[method]} {sum(s for s, _ in rows)} of {sum(n for _, n in rows)} runs")
        found.append(f"Solved: {', '.join(said)}.")
    mages = [g for g in groups if g.method.startswith("mage-")]
    for what, reference_of in (("oracle/hybrid against learned", learned_of), ("MAGE against Dyna", dyna_of)):
        references = [(g, reference_of(g, groups)) for g in mages]
        verdicts = [verdict_of(g, reference) for g, reference in references if reference is not None]
        if verdicts:
            found.append(f"Return, {what}: {_counted(verdicts)}.")
    return found


def _counted(verdicts: Sequence[str]) -> str:
    words = ("better", "worse", "not told apart")
    counted = ", ".join(f"{verdicts.count(word)} {word}" for word in words if word in verdicts)
    return counted or "one seed tells nothing"


EFFECTS = (
    ("oracle values", "learned gradients", "hybrid-learned-gradients", "learned"),
    ("oracle values", "oracle gradients", "oracle", "hybrid-oracle-gradients"),
    ("oracle gradients", "learned values", "hybrid-oracle-gradients", "learned"),
    ("oracle gradients", "oracle values", "oracle", "hybrid-learned-gradients"),
    ("both", "", "oracle", "learned"),
)
"""What replaces its learned counterpart, beside what, and the dynamics with it and without."""

EFFECTS_HEADER = (
    "task",
    "method",
    "learned replaced by",
    "beside",
    "mean return",
    "return",
    "gradient error",
    "cosine",
)
"""Columns of the second table; of the gradient error it has ratios."""

EFFECT_COLUMNS = ("mean_return", "final_return", "gradient_error", "gradient_cosine")


def effect_rows(groups: Sequence[Group], tasks: Mapping[str, Task]) -> list[tuple[str, ...]]:
    """What the oracle's values and what its gradients change, paired by seed, wherever there are hybrids.

    Either is told beside both kinds of the other, because one may help only together with the other. The interaction is
    what both change beyond the sum of either alone beside learned dynamics.
    """
    found = []
    for task, method, lam in dict.fromkeys((g.task, g.method, g.lam) for g in groups):
        mine = [g for g in groups if (g.task, g.method, g.lam) == (task, method, lam)]
        kinds = {g.dynamics: g for g in mine if g.dynamics != "oracle"}
        hybrid = next((kinds[kind] for kind in HYBRID_NAMES if kind in kinds), None)
        if hybrid is None:
            continue
        kinds |= {g.dynamics: g for g in mine if g.dynamics == "oracle" and g.backend == hybrid.backend}
        name = METHOD_NAMES[method] + (f", λ = {lam:g}" if len({g.lam for g in groups}) > 1 else "")
        columns = EFFECT_COLUMNS if has_cosine(tasks[task]) else EFFECT_COLUMNS[:-1]
        undefined = ["-"] * (len(EFFECT_COLUMNS) - len(columns))
        for what, beside, new, old in EFFECTS:
            if {new, old} <= kinds.keys():
                effects = [_effect(kinds[new], kinds[old], column) for column in columns]
                found.append((task, name, what, beside, *effects, *undefined))
        if {"learned", "oracle", *HYBRID_NAMES} <= kinds.keys():
            effects = ["-" if c == "gradient_error" else _starred(_interaction(kinds, c)) for c in columns]
            found.append((task, name, "interaction", "", *effects, *undefined))
    return found


def _interaction(kinds: Mapping[str, Group], column: str) -> Interval:
    score = {kind: {row["seed"]: row[column] for row in group.rows} for kind, group in kinds.items()}
    learned, values, gradients, both = (score[k] for k in ("learned", *reversed(HYBRID_NAMES), "oracle"))
    seeds = set.intersection(*map(set, (learned, values, gradients, both)))
    return interval(both[s] - values[s] - gradients[s] + learned[s] for s in seeds)


def notes(groups: Sequence[Group], tasks: Mapping[str, Task]) -> list[str]:
    """How to read the tables."""
    if not groups:
        return []
    fewest = min(len(g.rows) for g in groups)
    found = [
        f"Values are means over each run's {LAST_EVALUATIONS}, gradient errors "
        "geometric means; intervals are 95% over seeds (Student's t).",
        f"Differences and ratios are paired by seed;{STAR} marks those whose interval excludes no effect."
        if fewest > 1
        else "One seed has no interval: nothing here holds beyond that seed.",
    ]
    for task in dict.fromkeys(g.task for g in groups):
        mine = [g for g in groups if g.task == task]
        errors, cosines = (any(g.value(c).n for g in mine) for c in ("gradient_error", "gradient_cosine"))
        horizon = tasks[task].gradient_horizon
        if errors and not cosines:
            found.append(
                f"{task}: the true action-gradient is zero, so the error is the size of the critic's gradient."
            )
        elif errors and horizon is not None:
            found.append(f"{task}: the true gradient is of {horizon} steps, the critic's of all: compare cells only.")
    return found


def comparison_figure(path: Path, curves: Sequence[Mapping[str, Any]], tasks: Mapping[str, Task]) -> None:
    """Return, gradient error and cosine over training, one row of panels per task; columns that no task has are left
    out.

    Raises:
        InputError: the file cannot be written.
    """
    groups = groups_of(curves)
    style = styles({label(g, groups): (g.method, g.dynamics, g.backend) for g in groups})
    grid = []
    for name in dict.fromkeys(g.task for g in groups):
        mine, task = [g for g in groups if g.task == name], tasks[name]
        row = []
        for column, title, ylabel in (
            ("return_mean", "return", "undiscounted return per episode"),
            ("gradient_error", "gradient error (Eq. 14)", "mean |true - critic's| gradient, discounted"),
            ("gradient_cosine", "gradient cosine", "cosine to the true action-gradient"),
        ):
            if column == "gradient_cosine" and not has_cosine(task):
                continue
            error = column == "gradient_error"
            lines = tuple(
                line(label(g, groups), g.rows, column, *style[label(g, groups)], geometric=error) for g in mine
            )
            if not any(drawn.points for drawn in lines):
                continue
            level = None
            if column == "return_mean" and task.solved_return is not None:
                level = (task.solved_return, "solved")
            limits = (-1.05, 1.05) if column == "gradient_cosine" else None
            row.append(Panel(f"{name}: {title}", ylabel, lines, log=error, level=level, limits=limits))
        grid.append(row)
    draw(path, "Thick: mean over seeds (error: geometric). Thin: single seeds", grid)
