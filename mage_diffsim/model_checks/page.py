"""What is found of models, for a reader: the page of one model, the table of many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table as RichTable

from mage_diffsim.experiments.tables import Table, rich_table
from mage_diffsim.model_checks.coverage import TOO_LARGE, Coverage, Obstacle
from mage_diffsim.model_checks.facts import facts_text
from mage_diffsim.model_checks.finding import Found, Model
from mage_diffsim.model_checks.rows import Looked

SHOWN = 6
"""Elements that are named of each feature that is not covered."""
COLOURS = {"right": "green", "covered": "green", "wrong": "red", "failed": "red", "refused": "yellow",
           "unjudged": "yellow"}  # fmt: skip


def head(model: Model, looked: Looked) -> Iterator[RenderableType]:
    """What the model is, and what every backend covers of it."""
    yield f"[bold]{escape(model.name)}[/] ({escape(str(model.path))})"
    if looked.facts:
        for name, text in facts_text(looked.facts).items():
            yield Padding(escape(f"{name:<8} {text}"), (0, 0, 0, 2))
        gap = looked.facts["solver_gap"]
        if gap is not None:
            text = f"its own settings ({looked.facts['solver']}) leave a step up to {gap:.1e} from the converged one"
            yield Padding(escape(f"{'solver':<8} {text}"), (0, 0, 0, 2))
    for backend, coverage in looked.coverage.items():
        yield from _covered(backend, coverage)


def _covered(backend: str, coverage: Coverage | str) -> Iterator[RenderableType]:
    if isinstance(coverage, str):
        yield f"[bold]{backend}[/] [red]could not tell what it covers:[/] {escape(coverage)}"
    elif not coverage.reason:
        yield f"[bold]{backend}[/] [green]covers the model[/]"
    else:
        yield f"[bold]{backend}[/] [yellow]does not cover the model:[/]"
        for obstacle in coverage.obstacles:
            why = f": {coverage.reason}" if obstacle.feature == TOO_LARGE else ""
            yield Padding(escape(obstacle_text(obstacle) + why), (0, 0, 0, 2))


def obstacle_text(obstacle: Obstacle) -> str:
    """The feature, how many elements have it, and the first of them."""
    if not obstacle.elements:
        return f"- {obstacle.feature}"
    more = f" and {obstacle.count - SHOWN} more" if obstacle.count > SHOWN else ""
    return f"- {obstacle.feature}, {obstacle.count}x: {', '.join(obstacle.elements[:SHOWN])}{more}"


def measured(row: Mapping[str, Any]) -> Iterator[RenderableType]:
    """What was measured of a backend: what it takes to compile, errors, speed, and the verdict."""
    status, _, why = row["status"].partition(":")
    source = " ".join(str(row[k]) for k in ("backend", "dtype", "derivative") if row[k])
    table = RichTable(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, text in _lines(row):
        table.add_row(name, escape(text))
    yield f"[bold]{source}[/]"
    yield Padding(table, (0, 0, 0, 2))
    yield Padding(f"[{COLOURS[status]}]{status}[/]{escape(f':{why}' if why else '')}", (0, 0, 0, 2))


def _lines(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if row["compile_s"] is not None:
        how = {True: "was on disk", False: "compiled", None: "nothing to compile"}[row["cached"]]
        memory = f", {row['compile_mib']:.0f} MiB" if row["compile_mib"] is not None else ""
        cpu = f"{row['compile_cpu_s']:.1f} CPU-seconds{memory}"
        yield "compilation", f"{row['compile_s']:.1f} s ({cpu}), {how}"
    if row["count"] is not None:
        states = f"{row['count']} visited states"
        if row["diverged_in_c"]:
            states += f"; MuJoCo C itself diverges from {row['diverged_in_c']} more"
        if row["ill_posed"]:
            states += f"; rounding errors change MuJoCo C's own step from {row['ill_posed']} more"
        if row["value_worst"] is not None:
            worst, beyond = row["value_worst"], row["value_beyond"]
            text = f"{worst:.1e} from MuJoCo C at worst, median {row['value_median']:.1e}; {states}"
            if beyond < worst:
                text += f"; MuJoCo C's own contacts of curved geoms explain all but {beyond:.1e}"
            yield "values", text
        else:
            yield "values", states
        for block in ("action", "state"):
            if row[f"{block}_clean"] is None:
                continue
            worst, median = row[f"{block}_worst"], row[f"{block}_median"]
            errors = "" if worst is None else f"{worst:.1e} off at worst, median {median:.1e}; "
            kinks, kink = row[f"{block}_kinks"], row[f"{block}_kink"]
            apart = f", {kinks} with a kink (up to {kink:.1e} off)" if kinks else ", no kinks"
            yield f"d/d {block}", f"{errors}{row[f'{block}_clean']} clean states{apart}"
        yield "not finite", f"{row['nonfinite_values']} values, {row['nonfinite_gradients']} gradients"
    if row["soak_states"] is not None:
        text = f"{row['soak_nonfinite_values']} values and {row['soak_nonfinite_gradients']} gradients not finite"
        lost = f"; MuJoCo C itself diverges from {row['soak_diverged_in_c']}" if row["soak_diverged_in_c"] else ""
        yield "soak", f"{text} in {row['soak_states']} visited states{lost}"
    if row["step_ms"] is not None:
        on = f"{row['worlds']} worlds on {row['threads']} thread{'s' if row['threads'] > 1 else ''}"
        yield "speed", f"{on}: step {ms(row['step_ms'])}, step and VJP {ms(row['step_vjp_ms'])}"
        own, converged = ms(row["c_step_ms"]), ms(row["c_converged_ms"])
        yield "MuJoCo C", f"step {own} with the model's own solver settings, {converged} converged"


def ms(value: float) -> str:
    """Milliseconds to three digits."""
    return f"{value:.3g} ms"


HEADER = ("model", "backend", "status", "values", "d/d action", "d/d state", "kinks", "compile [s]", "[MiB]",
          "step [ms]", "VJP [ms]", "C [ms]")  # fmt: skip


def summary(console: Console, rows: Sequence[Mapping[str, Any]], found: Found) -> Iterator[RenderableType]:
    """The table of many models, what is in the way of most, and what is no model."""
    for table in tables(rows, found):
        if table.rows:
            yield rich_table(console, *table)


def tables(rows: Sequence[Mapping[str, Any]], found: Found) -> list[Table]:
    """Tables of many models: what was measured, what is not covered, what is in the way, what is no model."""
    done = [r for r in rows if not r["status"].startswith(("refused", "covered"))]
    backends = list(dict.fromkeys(r["backend"] for r in rows))
    models = list(dict.fromkeys(r["model"] for r in rows))
    status = {(r["model"], r["backend"]): r["status"] for r in rows}
    covered = [[m, *("no" if status[m, b].startswith("refused") else "yes" for b in backends)] for m in models]
    return [
        Table("Measured", HEADER, [_cells(r) for r in done]),
        Table("Covered", ("model", *backends), covered),
        in_the_way(rows),
        Table("Not a model by itself", ("file", "why"), list(found.parts.items())),
        Table("Cannot be checked", ("file", "why"), list(found.broken.items())),
    ]


def in_the_way(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The table of features that backends do not cover, the most common first."""
    features_of: dict[str, Counter[str]] = {}
    alone: dict[str, Counter[str]] = {}
    for row in rows:
        features = [part.rpartition(" (")[0] for part in (row["in_the_way"] or "").split("; ") if part]
        features_of.setdefault(row["backend"], Counter()).update(features)
        alone.setdefault(row["backend"], Counter()).update(features if len(features) == 1 else ())
    counted = [
        (backend, feature, str(n), str(alone[backend][feature]))
        for backend, counter in features_of.items()
        for feature, n in counter.most_common()
    ]
    return Table("In the way", ("backend", "feature", "models", "models with no other"), counted)


def _cells(r: Mapping[str, Any]) -> list[str]:
    def number(name: str, form: str = ".0e") -> str:
        return "-" if r[name] is None else f"{r[name]:{form}}"

    kinks = "-" if r["count"] is None else "/".join(str(r[f"{b}_kinks"] or 0) for b in ("action", "state"))
    errors = [number(name) for name in ("value_beyond", "action_worst", "state_worst")]
    cost = [number(name, ".3g") for name in ("compile_cpu_s", "compile_mib", "step_ms", "step_vjp_ms", "c_step_ms")]
    return [r["model"], r["backend"], r["status"], *errors, kinks, *cost]
