"""Tables and verdict of the public models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mage_diffsim.experiments.tables import Table
from mage_diffsim.model_checks import page
from mage_diffsim.model_checks.measuring import NONFINITE
from mage_diffsim.model_checks.rows import FIELDS as CHECKED_FIELDS
from mage_diffsim.model_checks.rows import is_bad

FIELDS = ("collection", *CHECKED_FIELDS)
"""Columns of results.csv: those of `check-model --csv`, see the reference, after the collection."""
HEADER = ("model", "backend", "values", "by action", "by state", "kinks", "not finite", "compile, CPU-s", "MiB",
          "step, ms", "step and VJP, ms", "C step, ms", "C converged, ms", "verdict")  # fmt: skip


def verdict(rows: Sequence[Mapping[str, Any]], not_had: Mapping[str, str]) -> list[str]:
    """At most three sentences: what is covered, what is wrong, what could not be had."""
    models = {row["model"] for row in rows}
    counts = [f"{backend} {_covered(rows, backend)}" for backend in dict.fromkeys(row["backend"] for row in rows)]
    said = [f"Of {len(models)} models are covered: {', '.join(counts)}."]
    measured = [row for row in rows if row["count"] is not None]
    if measured:
        right = sum(row["status"] == "right" for row in measured)
        bad = [f"{row['model']} ({row['backend']})" for row in rows if is_bad(row)]
        values = max(row["value_beyond"] or 0.0 for row in measured)
        worst = f"the largest error of a value, beyond MuJoCo C's own, is {values:.0e}"
        failed = f"wrong or not done: {', '.join(bad) or 'none'}"
        said.append(f"{right} of {len(measured)} measured ones are right; {worst}; {failed}.")
    if not_had:
        said.append(f"{len(not_had)} models could not be had.")
    return said


def tables(rows: Sequence[Mapping[str, Any]], not_had: Mapping[str, str]) -> list[Table]:
    """Every table of the summary."""
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    collections = []
    for collection in dict.fromkeys(row["collection"] for row in rows):
        mine = [row for row in rows if row["collection"] == collection]
        models = {row["model"] for row in mine}
        collections.append([collection, str(len(models)), *(str(_covered(mine, backend)) for backend in backends)])
    measured = [_cells(row) for row in rows if row["compile_s"] is not None or is_bad(row)]
    refused = [[row["model"], row["backend"], row["in_the_way"]] for row in rows if row["status"].startswith("refused")]
    return [
        Table("Covered, by collection", ("collection", "models", *backends), collections),
        Table("Measured", HEADER, measured),
        Table("Refused", ("model", "backend", "in the way"), refused),
        page.in_the_way(rows),
        Table("Not had", ("model", "why"), list(not_had.items())),
    ]


def _covered(rows: Sequence[Mapping[str, Any]], backend: str) -> int:
    return sum(row["backend"] == backend and not row["status"].startswith("refused") for row in rows)


def _cells(row: Mapping[str, Any]) -> list[str]:
    def number(name: str, form: str) -> str:
        return "-" if row[name] is None else f"{row[name]:{form}}"

    errors = [number(name, ".0e") for name in ("value_beyond", "action_worst", "state_worst")]
    kinks = "-" if row["count"] is None else "/".join(str(row[f"{b}_kinks"] or 0) for b in ("action", "state"))
    bad = "-" if row["count"] is None else str(sum(row[key] or 0 for key in NONFINITE))
    names = ("compile_cpu_s", "compile_mib", "step_ms", "step_vjp_ms", "c_step_ms", "c_converged_ms")
    return [row["model"], row["backend"], *errors, kinks, bad, *(number(n, ".3g") for n in names), row["status"]]
