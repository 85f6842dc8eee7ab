"""Tables, verdict and figure of the accuracy of Jacobians."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jacobian_checks.errors import number
from jacobian_checks.subjects import source_name
from mage_diffsim.experiments.figures import PALETTE, write_figure
from mage_diffsim.experiments.tables import Table

HEADER = ("task", "source", "block", "clean", "median", "p90", "p99", "max", "cosine min", "max in contact",
          "unclean", "unclean median", "unclean max", "non-finite")  # fmt: skip
TIME_HEADER = ("task", "source", "step ms", "step + VJP ms", "ratio", "compile s", "value error median", "max")
LEARNED_HEADER = ("task", "transitions", "states", "gradient error median", "p90", "cosine median", "p10", "min",
                  "value error median", "value R²")  # fmt: skip
BOUNDS = (("float64", "largest", "error_max", 1e-6), ("float32", "median", "error_median", 1e-3))
"""Per dtype: the statistic of clean states that is judged, its column and its bound."""


def is_main(row: Mapping[str, Any]) -> bool:
    """Whether a row is about all clean states."""
    return row["states"] == "all" and row["kind"] == "clean"


def tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Every table of the summary."""
    found = {(r["task"], source_name(r), r["block"], r["states"], r["kind"]): r for r in rows}
    accuracy, times, learned = [], [], []
    for row in rows:
        if row["kind"] != "clean" or row["status"] != "ok":
            continue
        if row["backend"] == "learned":
            if row["derivative"] == "member":
                learned.append(_learned_cells(row))
        elif is_main(row):
            key = (row["task"], source_name(row), row["block"])
            accuracy.append(
                _accuracy_cells(row, found[(*key, "all", "unclean")], found.get((*key, "contact", "clean")))
            )
            if row["block"] == "action":
                times.append(_time_cells(row))
    broken = dict.fromkeys((r["task"], r["backend"], r["status"]) for r in rows if r["status"] != "ok")
    return [
        Table("Jacobians against central differences", HEADER, accuracy),
        Table("Times of one batch, and next states against the reference", TIME_HEADER, times),
        Table("d next_obs / d action of the learned ensemble, by member", LEARNED_HEADER, learned),
        Table("Not measured", ("task", "backend", "why"), list(broken)),
    ]


def _accuracy_cells(row: Mapping[str, Any], unclean: Mapping[str, Any], contact: Mapping[str, Any] | None) -> list[str]:
    errors = [number(row[f"error_{k}"]) for k in ("median", "p90", "p99", "max")]
    in_contact = number(contact["error_max"] if contact else None)
    of_unclean = [str(unclean["n"]), number(unclean["error_median"]), number(unclean["error_max"])]
    nonfinite = str(row["nonfinite"] + unclean["nonfinite"])
    name = [row["task"], source_name(row), row["block"], str(row["n"])]
    return [*name, *errors, number(row["cosine_min"], ".6f"), in_contact, *of_unclean, nonfinite]


def _time_cells(row: Mapping[str, Any]) -> list[str]:
    times = [number(row[k], ".2f") for k in ("step_ms", "step_vjp_ms", "vjp_ratio", "compile_s")]
    return [row["task"], source_name(row), *times, *(number(row[f"value_error_{k}"]) for k in ("median", "max"))]


def _learned_cells(row: Mapping[str, Any]) -> list[str]:
    forms = {"error_median": ".3f", "error_p90": ".3f", "cosine_median": ".4f", "cosine_p10": ".4f",
             "cosine_min": ".4f", "value_error_median": ".3f", "value_r2": ".4f"}  # fmt: skip
    numbers = [number(row[column], form) for column, form in forms.items()]
    return [row["task"], str(row["transitions"]), row["states"], *numbers]


def verdict(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether the physics keep the bound of each dtype, and whether every Jacobian is finite."""
    measured = [r for r in rows if r["status"] == "ok" and r["backend"] != "learned" and r["states"] == "all"]
    sentences = []
    for dtype, statistic, column, bound in BOUNDS:
        mine = [r for r in measured if r["dtype"] == dtype and r["kind"] == "clean" and r["n"]]
        if mine:
            kept = sum(r[column] <= bound for r in mine)
            worst = max(mine, key=lambda r, column=column: r[column])
            sentences.append(
                f"{dtype}: the {statistic} error of clean states is at most {bound:.0e} in {kept} of {len(mine)} "
                f"blocks; the worst is {worst[column]:.1e} ({worst['task']} {source_name(worst)}, {worst['block']})."
            )
    if measured:
        sentences.append(f"Jacobians that are not finite: {sum(r['nonfinite'] for r in measured)}.")
    return sentences


def draw_errors(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Draws the errors of clean states, one row of axes per block and one box per source.

    A box shows quartiles, its whiskers the extremes. Errors below 1e-13 are drawn at 1e-13.

    Raises:
        InputError: the file cannot be written.
    """
    boxes: dict[tuple[str, str, str], list[float]] = {}
    for result in results:
        row = result["rows"][0]
        name = f"learned, {row['transitions']} transitions" if row["backend"] == "learned" else source_name(row)
        boxes |= {(block, row["task"], name): errors for block, errors in result["errors"].items() if errors}
    blocks, _, names = (list(dict.fromkeys(keys)) for keys in zip(*boxes, strict=True))
    tasks = {block: list(dict.fromkeys(task for b, task, _ in boxes if b == block)) for block in blocks}
    width = max(5.0, 1.5 * max(map(len, tasks.values())))

    def paint(page: Any) -> None:
        from matplotlib.patches import Patch

        page.suptitle("Error of one-step Jacobians, clean states")
        colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}
        hatches = {name: ("", "////", "....")[i // len(PALETTE) % 3] for i, name in enumerate(names)}
        axes = page.subplots(len(blocks), 1, squeeze=False, sharey=True)[:, 0]
        for axis, block in zip(axes, blocks, strict=True):
            for (i, task), (j, name) in itertools.product(enumerate(tasks[block]), enumerate(names)):
                errors = [min(max(e, 1e-13), 1e3) for e in boxes.get((block, task, name), [])]
                if errors:
                    box = axis.boxplot(
                        [errors], positions=[i + 0.8 * ((j + 0.5) / len(names) - 0.5)], widths=0.7 / len(names),
                        whis=(0, 100), patch_artist=True, manage_ticks=False, medianprops={"color": "black"},
                    )  # fmt: skip
                    box["boxes"][0].set(facecolor=colours[name], hatch=hatches[name])
            axis.set(yscale="log", ylabel=f"by {block}", xlim=(-0.6, len(tasks[block]) - 0.4))
            axis.set_xticks(range(len(tasks[block])), tasks[block])
            axis.tick_params(axis="x", labelsize="small")
            axis.grid(axis="y", alpha=0.25)
        legend = [Patch(facecolor=colours[name], hatch=hatches[name], label=name) for name in names]
        page.legend(handles=legend, loc="outside right center", frameon=False, fontsize="small")

    write_figure(path, width + 3.0, 2.6 * len(blocks) + 0.6, paint)
