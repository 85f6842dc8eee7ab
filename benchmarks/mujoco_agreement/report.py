"""Tables and verdict of the agreement with MuJoCo C."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jacobian_checks.errors import NEGLIGIBLE

from mage_diffsim.experiments.tables import Table
from mage_diffsim.model_checks.reference import KINDS

WORST_HEADER = ("source", "states", "models", "value", "by action", "by state", "contacts differ", "non-finite")
HEADER = ("model", "source", "states", "value (median, worst)", "contacts differ (most)", "by action (median, worst)",
          "by state (median, worst)", "clean (action, state)", "non-finite (values, derivatives)",
          "diverged in C (finite here)")  # fmt: skip
GAP_HEADER = ("model", "states", "median", "worst")
WORST = ("value_worst", "action_worst", "state_worst")


def _number(x: float | None) -> str:
    return "-" if x is None or math.isnan(x) else "0" if x == 0.0 else f"{x:.0e}"


def _median_and_worst(row: Mapping[str, Any], name: str) -> str:
    return f"{_number(row[f'{name}_median'])}, {_number(row[f'{name}_worst'])}"


def verdict(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One sentence per backend: how many models it measured, and its largest float64 error of a value."""
    sentences = []
    for backend in dict.fromkeys(r["backend"] for r in rows):
        mine = [r for r in rows if r["backend"] == backend]
        fine = [r for r in mine if r["status"] == "ok"]
        failed = sum(r["status"].startswith("failed") for r in mine)
        models, measured = ({r["model"] for r in part} for part in (mine, fine))
        text = f"{backend}: {len(measured)} of {len(models)} models measured, {failed} crashed or not done"
        exact = [r for r in fine if r["dtype"] == "float64"]
        if exact:
            worst = _largest(exact, "value_worst")
            text += f"; largest float64 value error {_number(worst['value_worst'])} ({worst['model']})"
        sentences.append(f"{text}.")
    return sentences


def tables(rows: Sequence[Mapping[str, Any]], left_out: Mapping[str, str]) -> list[Table]:
    """Every table of the summary."""
    refused: dict[tuple[str, str], str] = {}
    for r in rows:
        if r["status"] != "ok":
            refused.setdefault((r["model"], r["backend"]), r["status"])
    gaps: dict[tuple[str, str], tuple[Any, Any]] = {}
    for r in sorted(rows, key=lambda r: -((r["count"] or 0) + (r["diverged_in_c"] or 0))):  # most states first
        if r["solver_gap_worst"] is not None:
            gaps.setdefault((r["model"], r["states"] or "visited"), (r["solver_gap_median"], r["solver_gap_worst"]))
    far = [(*key, *map(_number, gap)) for key, gap in gaps.items() if gap[1] > NEGLIGIBLE]
    return [
        Table("Largest differences from MuJoCo C", WORST_HEADER, _worst_cells(rows)),
        Table("Differences from MuJoCo C", HEADER, [_cells(r) for r in rows if r["status"] == "ok"]),
        Table("Not measured", ("model", "backend", "why"), [(*key, why) for key, why in refused.items()]),
        Table(f"Own solver settings more than {NEGLIGIBLE:.0e} from the converged step", GAP_HEADER, far),
        Table("Files that are no model of their own", ("file", "why"), list(left_out.items())),
    ]


def _cells(r: Mapping[str, Any]) -> list[str]:
    differ = "-" if r["contacts_differ"] is None else f"{r['contacts_differ']} ({r['contacts_in_c']})"
    errors = [_median_and_worst(r, block) for block in ("action", "state")]
    clean, nonfinite = (
        f"{r['action_clean']}, {r['state_clean']}",
        f"{r['nonfinite_values']}, {r['nonfinite_gradients']}",
    )
    states, source = f"{r['count']} {r['states']}", f"{r['backend']} {r['dtype']}"
    diverged = f"{r['diverged_in_c']} ({r['finite_there']})"
    return [r["model"], source, states, _median_and_worst(r, "value"), differ, *errors, clean, nonfinite, diverged]


def _worst_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One row per backend, dtype and kind of states."""
    found = []
    sources = dict.fromkeys((r["backend"], r["dtype"]) for r in rows if r["status"] == "ok")
    for (backend, dtype), kind in ((source, kind) for source in sources for kind in KINDS):
        key = ("ok", backend, dtype, kind)
        mine = [r for r in rows if (r["status"], r["backend"], r["dtype"], r["states"]) == key]
        if not mine:
            continue
        worst = [f"{_number(r[name])} ({r['model']})" for name in WORST for r in [_largest(mine, name)]]
        told = [r["contacts_differ"] for r in mine if r["contacts_differ"] is not None]
        bad = sum(r["nonfinite_values"] + r["nonfinite_gradients"] for r in mine)
        differ = str(sum(told)) if told else "-"
        found.append([f"{backend} {dtype}", kind, str(len(mine)), *worst, differ, str(bad)])
    return found


def _largest(rows: Sequence[Mapping[str, Any]], column: str) -> Mapping[str, Any]:
    return max(rows, key=lambda r: r[column] or 0.0)
