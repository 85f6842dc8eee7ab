"""What a sweep found: rows for CSV files, a table, and sentences that follow from the numbers and from nothing else."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.console import Group as Stack
from rich.markup import escape
from rich.table import Table

from mage_diffsim import columns
from mage_diffsim.envs.registry import make_task
from mage_diffsim.experiments.cells import Cell, Outcome
from mage_diffsim.experiments.figures import DASHES, PALETTE, Line, Panel, draw, line
from mage_diffsim.experiments.statistics import (
    FINAL_EVALUATIONS,
    Interval,
    final_value,
    interval,
    side_of,
    steps_to_threshold,
    t_quantile,
)
from mage_diffsim.files import write_atomically
from mage_diffsim.methods import METHODS
from mage_diffsim.tables import read_evaluations, read_metrics

LAST_EVALUATIONS = f"last {FINAL_EVALUATIONS} evaluations (of fewer than {4 * FINAL_EVALUATIONS} the last quarter)"
"""Which evaluations final values are means over, in words."""

CELL_FIELDS, SUMMARY_FIELDS, CURVE_FIELDS = tuple(columns.CELL), tuple(columns.SUMMARY), tuple(columns.CURVES)
"""What identifies a cell, and the columns of summary.csv and of curves.csv."""

METHOD_NAMES = {
    "mage-td3": "MAGE-TD3",
    "mage-ddpg": "MAGE-DDPG",
    "dyna-td3": "Dyna-TD3",
    "dyna-ddpg": "Dyna-DDPG",
    "td3": "TD3",
    "ddpg": "DDPG",
    "data-efficient-td3": "Data-Efficient TD3",
}
"""Method names as the paper writes them."""

HYBRID_NAMES = {
    "hybrid-oracle-gradients": "learned values, oracle gradients",
    "hybrid-learned-gradients": "oracle values, learned gradients",
}


# --- rows ----------------------------------------------------------------------------------------------------------


def identity(cell: Cell) -> dict[str, str]:
    """The CELL_FIELDS of a cell."""
    config = cell.config
    dynamics = config.dynamics if METHODS[config.method].imagines else ""
    task = config.make_task().name
    variant = []
    if config.loss not in (None, METHODS[config.method].loss):
        variant.append(f"loss {config.loss}")
    if config.reward == "learned":
        variant.append("learned reward")
    if config.ensemble != "full":
        variant.append(f"{config.ensemble} ensemble")
    who = {"task": task, "method": config.method, "dynamics": dynamics, "backend": cell.simulator or ""}
    return who | {"variant": ", ".join(variant)}


def summary_rows(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """One row of SUMMARY_FIELDS per run of every finished cell."""
    rows = []
    for outcome in outcomes:
        if outcome.status != "done":
            continue
        config = outcome.cell.config
        solved, warmup = config.make_task().solved_return, config.hyper.warmup_steps
        evaluations, metrics = read_evaluations(outcome.run_dir), read_metrics(outcome.run_dir)
        for seed, lam in config.runs:
            mine = [r for r in evaluations if (r["seed"], r["lambda"]) == (seed, lam)]
            last = [r for r in metrics if (r["seed"], r["lambda"]) == (seed, lam)][-1]
            rows.append(
                identity(outcome.cell)
                | {"lambda": lam, "seed": seed, "env_steps": last["env_step"]}
                | {"final_return": final_value(mine, "return_mean")}
                | {"mean_return": interval(r["return_mean"] for r in mine if r["env_step"] >= warmup).mean}
                | {"steps_to_threshold": steps_to_threshold(mine, solved)}
                | {"gradient_error": final_value(mine, "gradient_error", geometric=True)}
                | {"gradient_cosine": final_value(mine, "gradient_cosine")}
                | {"nonfinite": int(last["grad_nonfinite"] or 0), "restarts": int(last["agent_restarts"] or 0)}
                | {name: last[name] for name in ("updates_per_s", "wall_s")}
            )
    return rows


def curve_rows(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """One row of CURVE_FIELDS per run and evaluation of every finished cell."""
    rows = []
    for outcome in outcomes:
        if outcome.status != "done":
            continue
        metrics = {(r["seed"], r["lambda"], r["env_step"]): r for r in read_metrics(outcome.run_dir)}
        for row in read_evaluations(outcome.run_dir):
            merged = identity(outcome.cell) | metrics[row["seed"], row["lambda"], row["env_step"]] | row
            rows.append({name: merged.get(name) for name in CURVE_FIELDS})  # None: not measured by an earlier version
    return rows


def write_csv(path: Path, fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a whole CSV file in one go; None and NaN are empty cells.

    Raises:
        InputError: it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(fields)
    for row in rows:
        writer.writerow(["" if _absent(row[name]) else row[name] for name in fields])
    write_atomically(path, text.getvalue())


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


# --- groups: the seeds of a cell together --------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """The runs that differ in nothing but their seed."""

    task: str
    method: str
    dynamics: str
    backend: str
    variant: str
    lam: float
    rows: tuple[Mapping[str, Any], ...]
    """Their summary rows."""

    def value(self, column: str) -> Interval:
        """Mean over seeds of a column of SUMMARY_FIELDS; the geometric mean of the gradient error."""
        return interval((row[column] for row in self.rows), geometric=column == "gradient_error")

    @property
    def solved(self) -> list[int]:
        """Environment steps at which the seeds that solved the task did so."""
        return [row["steps_to_threshold"] for row in self.rows if row["steps_to_threshold"] is not None]

    @property
    def source(self) -> str:
        """Where its transitions come from, in words."""
        return source_name(self.dynamics, self.backend)

    @property
    def name(self) -> str:
        """Method and dynamics, in words."""
        return _in_words(self.method, self.dynamics, self.backend, self.variant)


def cell_name(cell: Cell) -> str:
    """Method and dynamics of a cell, in words."""
    who = identity(cell)
    return _in_words(who["method"], who["dynamics"], who["backend"], who["variant"])


def _in_words(method: str, dynamics: str, backend: str, variant: str) -> str:
    return f"{METHOD_NAMES[method]}, {source_name(dynamics, backend)}" + (f", {variant}" if variant else "")


def source_name(dynamics: str, backend: str) -> str:
    """What the learner imagines with, in words."""
    if not dynamics:
        return "model-free"
    if dynamics == "oracle":
        return f"oracle ({backend})"
    return HYBRID_NAMES.get(dynamics, dynamics) + (f" ({backend})" if dynamics in HYBRID_NAMES else "")


def groups_of(rows: Iterable[Mapping[str, Any]]) -> list[Group]:
    """Summary rows by everything but the seed, in order of first appearance."""
    found: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[f] for f in (*CELL_FIELDS, "lambda")), []).append(row)
    return [Group(*key, rows=tuple(value)) for key, value in found.items()]


def label(group: Group, groups: Sequence[Group]) -> str:
    """The group's name, with its lambda where the groups differ in lambda."""
    return group.name + _of_lambda(group.lam, groups)


def _of_lambda(lam: float, groups: Sequence[Group]) -> str:
    """Which lambda, where the groups differ in it."""
    return f", λ = {lam:g}" if len({g.lam for g in groups}) > 1 else ""


# --- table ---------------------------------------------------------------------------------------------------------

HEADER = (
    "task",
    "method, dynamics",
    "return",
    "gradient error",
    "cosine",
    "mean return",
    "solved at step",
    "non-finite",
    "restarts",
    "updates/s",
    "wall",
)
"""Columns of the table."""


def table_rows(
    groups: Sequence[Group], solved_returns: Mapping[str, float | None], outcomes: Iterable[Outcome] = ()
) -> list[tuple[str, ...]]:
    """The cells of the table under HEADER: one row per group, then one per cell that was skipped or failed.

    Args:
        groups: what was trained.
        solved_returns: task name to the mean return that counts as solved, or None.
        outcomes: what became of every cell.
    """
    rows = []
    for group in groups:
        solved = f"{len(group.solved)} of {len(group.rows)} seeds"
        if solved_returns.get(group.task) is None:
            solved = "-"
        elif group.solved:
            solved = f"{interval(group.solved).mean:.0f} ({solved})"
        rows.append(
            (
                group.task,
                label(group, groups),
                text(group.value("final_return")),
                text(group.value("gradient_error")),
                text(group.value("gradient_cosine")),
                text(group.value("mean_return")),
                solved,
                str(sum(row["nonfinite"] for row in group.rows)),
                str(sum(row["restarts"] for row in group.rows)),
                f"{group.value('updates_per_s').mean:.0f}",
                f"{group.value('wall_s').mean:.0f} s",
            )
        )
    for outcome in outcomes:
        if outcome.status != "done":
            who = identity(outcome.cell)
            name = f"{METHOD_NAMES[who['method']]}, {source_name(who['dynamics'], who['backend'])}"
            last_line = outcome.reason.strip().splitlines()[-1]
            rows.append((who["task"], name, f"{outcome.status}: {last_line}", *[""] * (len(HEADER) - 3)))
    return rows


def text(value: Interval) -> str:
    """``mean ± half-width``, or ``geometric mean [low, high]``, to three significant digits; ``-`` for no value."""
    if value.n == 0:
        return "-"
    if not math.isfinite(value.mean):
        return str(value.mean)
    digits = decimals(value.mean)
    if not value.known:
        return f"{value.mean:.{digits}f}"
    if value.ends is not None:
        return f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"
    if value.geometric:
        return f"{value.mean:.{digits}f} [{value.low:.3g}, {value.high:.3g}]"
    return f"{value.mean:.{digits}f} ± {value.half:.{digits}f}"


def decimals(value: float) -> int:
    """Digits after the point that show three significant ones, at most 6."""
    return min(max(0, 2 - math.floor(math.log10(abs(value)))), 6) if value else 2


WRAPPED = 28
"""Characters beyond which a cell may be wrapped where a table has to be narrow."""


def rich_table(console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Stack:
    """The table for a terminal: as few tables below each other as its width allows, with all columns and no cell cut.

    Every one of them begins with the leftmost columns, as many as tell the rows apart.
    """
    keys = next((k for k in range(1, len(header)) if len({tuple(row[:k]) for row in rows}) == len(rows)), 1)

    def table(columns: Sequence[int], width: int | None, title: str | None) -> Table:
        found = Table(title=title, title_justify="left")
        for column in columns:
            found.add_column(header[column], max_width=width, overflow="fold")
        for row in rows:
            found.add_row(*(escape(row[column]) for column in columns))
        return found

    def fits(columns: Sequence[int], width: int | None) -> bool:
        unlimited = console.options.update(max_width=100_000)
        return console.measure(table(columns, width, None), options=unlimited).maximum <= console.width

    every = range(len(header))
    if fits(every, None):
        return Stack(table(every, None, title))
    # Keys that leave no room for a column beside them are wrapped to what does.
    widths = [w for w in range(WRAPPED, 5, -1) if all(fits([*range(keys), c], w) for c in every[keys:])]
    width = widths[0] if widths else 6
    parts: list[list[int]] = []
    for column in every[keys:]:
        if parts and fits([*range(keys), *parts[-1], column], width):
            parts[-1].append(column)
        else:
            parts.append([column])
    tables = [table([*range(keys), *part], width, None if i else title) for i, part in enumerate(parts)]
    return Stack(*tables)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The table for a Markdown file."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in lines) + "\n"


# --- figure --------------------------------------------------------------------------------------------------------


def comparison_figure(path: Path, curves: Sequence[Mapping[str, Any]], seeds: int) -> None:
    """Return, gradient error and cosine over training, one row of panels per task.

    Raises:
        InputError: the file cannot be written.
    """
    groups = groups_of(curves)
    styles = _styles(groups)
    grid = []
    for task in dict.fromkeys(g.task for g in groups):
        mine = [g for g in groups if g.task == task]

        def lines(column: str, mine: list[Group] = mine, *, geometric: bool = False) -> tuple[Line, ...]:
            names = [(label(g, groups), g) for g in mine]
            return tuple(line(name, g.rows, column, *styles[name], geometric=geometric) for name, g in names)

        solved = make_task(task).solved_return
        level = None if solved is None else (solved, "solved")
        grid.append(
            [
                Panel(f"{task}: return", "undiscounted return per episode", lines("return_mean"), level=level),
                Panel(
                    f"{task}: gradient error (Eq. 14)",
                    "mean |true - critic's| gradient, discounted",
                    lines("gradient_error", geometric=True),
                    log=True,
                    note="not measured",
                ),
                Panel(
                    f"{task}: gradient cosine",
                    "cosine to the true action-gradient",
                    lines("gradient_cosine"),
                    limits=(-1.05, 1.05),
                    note=NO_COSINE,
                ),
            ]
        )
    draw(path, f"Learned model, oracle and hybrids: mean (error: geometric) and 95% c.i. over {seeds} seeds", grid)


NO_COSINE = "undefined: the true\naction-gradient is zero"


def _styles(groups: Sequence[Group]) -> dict[str, tuple[str, str]]:
    """Colour by method and kind of dynamics, line style by backend: lines that should coincide look alike."""
    kinds = list(dict.fromkeys((g.method, g.dynamics, g.lam) for g in groups))
    styles = {}
    for group in groups:
        kind = (group.method, group.dynamics, group.lam)
        backends = list(dict.fromkeys(g.backend for g in groups if (g.method, g.dynamics, g.lam) == kind))
        colour = PALETTE[kinds.index(kind) % len(PALETTE)]
        styles[label(group, groups)] = (colour, DASHES[backends.index(group.backend) % len(DASHES)])
    return styles


# --- sentences -----------------------------------------------------------------------------------------------------


def findings(rows: Sequence[Mapping[str, Any]], solved_returns: Mapping[str, float | None]) -> list[str]:
    """What the summary rows say, in sentences.

    Args:
        rows: rows of SUMMARY_FIELDS.
        solved_returns: task name to the mean return that counts as solved, or None.
    """
    everything = groups_of(rows)
    found: list[str] = []
    for task in dict.fromkeys(g.task for g in everything):
        groups = [g for g in everything if g.task == task]
        found += _solving(task, groups, solved_returns.get(task))
        for method, lam in dict.fromkeys((g.method, g.lam) for g in groups):
            where = task + _of_lambda(lam, groups)
            found += _dynamics_findings(where, [g for g in groups if (g.method, g.lam) == (method, lam)])
        found += _control_findings(task, groups)
        if all(g.value("gradient_cosine").n == 0 for g in groups) and any(g.value("gradient_error").n for g in groups):
            found.append(
                f"{task}: the cosine is undefined (-), because the reward does not change with the action and the true "
                "action-gradient is exactly zero; the gradient error is then the size of the critic's own gradient."
            )
    for group in everything:
        count = sum(row["nonfinite"] for row in group.rows)
        if count:
            found.append(
                f"{group.task}: {label(group, everything)} gave {count} batch rows that were not finite; they were "
                "masked and never trained on."
            )
    found += restarts(rows, lambda r: f"{r['task']}, {_in_words(*(r[field] for field in CELL_FIELDS[1:]))},")
    return found + _caveats(everything)


def _solving(task: str, groups: list[Group], threshold: float | None) -> list[str]:
    """Which cells solved the task, and when."""
    if threshold is None:
        return [f"{task}: no return counts as solved."]
    every, some, none = [], [], []
    for group in groups:
        name, n = label(group, groups), len(group.rows)
        when = f"step {interval(group.solved).mean:.0f}" if group.solved else ""
        if len(group.solved) == n:
            every.append(f"{name} ({when})")
        elif group.solved:
            some.append(f"{name} ({len(group.solved)} of {n}, {when})")
        else:
            none.append(name)
    if not every and not some:
        return [f"{task} was solved by no cell: no evaluation reached a mean return of {threshold:g}."]
    parts = [
        f"{intro}: {'; '.join(names)}"
        for intro, names in (("by every seed", every), ("by some seeds", some), ("by no seed", none))
        if names
    ]
    return [
        f"{task} was solved (an evaluation of mean return {threshold:g} or more; mean step of the first) "
        + ". Solved ".join(parts)
        + "."
    ]


METRICS = (("final_return", "final return", True), ("gradient_error", "gradient error", False))
"""(column, words, whether more is better) of what cells are compared by."""


def paired(ours: Group, theirs: Group, column: str) -> Interval:
    """How much more ours have of a column, or of the gradient error how many times as much, seed by seed: runs of one
    seed share networks and random streams."""
    other = {row["seed"]: row[column] for row in theirs.rows}
    pairs = [(row[column], other[row["seed"]]) for row in ours.rows if row["seed"] in other]
    if column == "gradient_error":
        return interval((x / y if y else math.nan for x, y in pairs), geometric=True)
    return interval(x - y for x, y in pairs)


def _dynamics_findings(task: str, groups: list[Group]) -> list[str]:
    """One method and lambda on different dynamics: oracle against learned, backend against backend, hybrids between."""
    oracles = [g for g in groups if g.dynamics == "oracle"]
    learned = next((g for g in groups if g.dynamics == "learned"), None)
    found = []
    if learned is not None:
        found += [s for metric in METRICS for s in _against(learned, oracles, *metric, shared_method=True)]
    if len(oracles) > 1:
        found.append(_same_physics(oracles))
    kinds = {g.dynamics: g for g in groups if g.dynamics != "oracle"}
    hybrid = next((kinds[kind] for kind in HYBRID_NAMES if kind in kinds), None)
    if hybrid is not None:
        kinds |= {g.dynamics: g for g in oracles if g.backend == hybrid.backend}
        for column, words in (
            ("mean_return", "mean return over training"),
            ("final_return", "final return"),
            ("gradient_error", "gradient error (ratios)"),
            ("gradient_cosine", "cosine"),
        ):
            found += _values_and_gradients(kinds, column, words)
    return [f"{task}, {METHOD_NAMES[groups[0].method]}, {s}" for s in found]


def _control_findings(task: str, groups: list[Group]) -> list[str]:
    """MAGE against Dyna of the same kind on the same dynamics: what the gradient term itself brings."""
    found = []
    for dyna in (g for g in groups if g.method.startswith("dyna-")):
        same = (dyna.method.replace("dyna-", "mage-"), dyna.dynamics, dyna.backend, dyna.lam)
        mages = [g for g in groups if (g.method, g.dynamics, g.backend, g.lam) == same]
        where = task + _of_lambda(dyna.lam, groups)
        found += [f"{where}, {s}" for metric in METRICS for s in _against(dyna, mages, *metric, shared_method=False)]
    return found


def _against(
    reference: Group, others: list[Group], column: str, words: str, more_is_better: bool, *, shared_method: bool
) -> list[str]:
    """One sentence per group: how it differs from the reference, seed by seed."""

    def named(group: Group) -> str:
        return f"{group.source if shared_method else group.name} {text(group.value(column))}"

    found = []
    for other in others:
        effect = paired(other, reference, column)
        if not effect.n:
            continue
        size = f"{text(effect)} times it" if effect.geometric else f"by {text(effect)}"
        verdict = side_of(effect)
        if verdict == "unknown":
            end = "too few seeds for an interval, so a difference may be chance"
        elif verdict == "not told apart":
            end = f"not told apart ({size}, seed by seed)"
        else:
            better = "better" if (verdict == "above") == more_is_better else "worse"
            end = f"{better} ({'higher' if verdict == 'above' else 'lower'}, {size}, seed by seed)"
        found.append(f"{words}: {named(other)} against {named(reference)}: {end}.")
    return found


def _same_physics(oracles: list[Group]) -> str:
    """Backends of the same equations should agree."""
    names = enumeration([g.source for g in oracles])
    apart, known = [], False
    for column, words, _ in METRICS:
        for a, b in itertools.combinations(oracles, 2):
            verdict = side_of(paired(a, b, column))
            known |= verdict != "unknown"
            if verdict in ("above", "below"):
                apart.append(f"{a.source} and {b.source} in {words}")
    if apart:
        return f"{enumeration(apart)} are told apart, seed by seed, though their equations are the same."
    if not known:
        return f"{names} have too few seeds to be compared."
    return f"{names} are not told apart, as backends of the same equations should not be."


EFFECTS = (
    ("oracle values with learned gradients", "hybrid-learned-gradients", "learned"),
    ("oracle values with oracle gradients", "oracle", "hybrid-oracle-gradients"),
    ("oracle gradients with learned values", "hybrid-oracle-gradients", "learned"),
    ("oracle gradients with oracle values", "oracle", "hybrid-learned-gradients"),
    ("both", "oracle", "learned"),
)
"""What changes, and the dynamics with it and without."""


def _values_and_gradients(cells: Mapping[str, Group], column: str, words: str) -> list[str]:
    """What the oracle's values bring in place of learned ones, and what its gradients, in a sentence.

    Each is said for either kind of the other, because the one may help only together with the other; the interaction
    is what both bring more than the one and the other alone.

    Args:
        cells: kinds of dynamics to their runs, as many as there are.
        column, words: of SUMMARY_FIELDS, and what it is called.
    """
    effects = {what: paired(cells[new], cells[old], column) for what, new, old in EFFECTS if {new, old} <= cells.keys()}
    effects = {what: effect for what, effect in effects.items() if effect.n}
    if not effects:
        return []
    said = f"{words}, seed by seed: {'; '.join(f'{what} {text(effect)}' for what, effect in effects.items())}"
    if column != "gradient_error" and len(effects) == len(EFFECTS):
        score = {kind: {row["seed"]: row[column] for row in cell.rows} for kind, cell in cells.items()}
        learned, values, gradients, both = (score[k] for k in ("learned", *reversed(HYBRID_NAMES), "oracle"))
        seeds = set.intersection(*map(set, score.values()))
        said += f"; interaction {text(interval(both[s] - values[s] - gradients[s] + learned[s] for s in seeds))}"
    verdicts = {what: side_of(effect) for what, effect in effects.items()}
    if "unknown" in verdicts.values():
        return [f"{said}. Too few seeds for an interval."]
    told = [f"{what} ({verdict})" for what, verdict in verdicts.items() if verdict in ("above", "below")]
    return [f"{said}. Told apart: {enumeration(told)}." if told else f"{said}. None is told apart from no effect."]


def enumeration(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def restarts(rows: Sequence[Mapping[str, Any]], name_of: Callable[[Mapping[str, Any]], str]) -> list[str]:
    """Which runs began anew, in a sentence; none where none did.

    Args:
        rows: rows of SUMMARY_FIELDS.
        name_of: a row to what its run is called.
    """
    said = [f"{name_of(r)} seed {r['seed']} ({r['restarts']}x)" for r in rows if r["restarts"]]
    if not said:
        return []
    return [
        f"Agents that diverged and began anew with fresh networks, so that their returns are those of less training: "
        f"{enumeration(said)}."
    ]


def _caveats(groups: Sequence[Group]) -> list[str]:
    """What the reader must know to believe the rest no more than it deserves."""
    if not groups:
        return []
    n = min(len(g.rows) for g in groups)
    found = []
    if n < 2:
        found.append("With one seed there is no confidence interval: nothing here generalises beyond that seed.")
    elif n < 10:
        t = t_quantile(0.975, n - 1)
        found.append(
            f"With {n} seeds a 95% interval is ±{t:.1f} standard errors (Student's t): cells that are not told apart "
            "need not be equal, and of twenty differences one is told apart by chance."
        )
    found.append(
        f"Returns and gradient numbers are means over each run's {LAST_EVALUATIONS}. Gradient errors are geometric "
        "means with [low, high]: along some trajectories the true gradient explodes, and an ordinary mean would show "
        "nothing but those. Gradient error and cosine are measured along each cell's own trajectories, so a better "
        "policy is also measured elsewhere; with one-dimensional actions the cosine is agreement in sign."
    )
    for task in dict.fromkeys(g.task for g in groups if g.value("gradient_error").n):
        horizon = make_task(task).gradient_horizon
        if horizon is not None and any(g.value("gradient_cosine").n for g in groups if g.task == task):
            found.append(
                f"{task}: the true gradient is that of the return over the first {horizon} steps; at step t it holds "
                "only what is left of them, while the critic's is of the whole future. Both error and cosine hold that "
                "difference, too: read them between cells, not by their size."
            )
    return found
