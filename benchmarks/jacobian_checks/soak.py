"""Is any value or gradient not finite in very many states?"""

from __future__ import annotations

import json
import shutil
import time
from typing import Any

from jacobian_checks.errors import number
from jacobian_checks.options import Options
from jacobian_checks.subjects import Source, Subject, forget_models, source_name, subjects_of
from mage_diffsim.doctor import versions
from mage_diffsim.envs.checks import error_text
from mage_diffsim.errors import InputError, MissingExtra
from mage_diffsim.experiments.summary import write_summary
from mage_diffsim.experiments.sweep_display import SweepDisplay, make_sweep_display
from mage_diffsim.experiments.tables import Table, write_csv
from mage_diffsim.files import make_folder, write_atomically
from mage_diffsim.model_checks.visiting import Visits, visit

ROWS = 256
"""Environments side by side."""
HEADER = ("task", "source", "states", "episodes", "values not finite", "gradients not finite", "largest gradient")


FIELDS = ("task", "backend", "derivative", "dtype", "device", *Visits._fields, "seconds", "status")
"""Columns of soak.csv, see :class:`Visits`."""


def run_soak(options: Options, states: int) -> int:
    """Visits many states with every source; returns 1 if something was not finite or a source failed, else 0."""
    subjects = subjects_of(options)
    sources = [(s, source) for s in subjects for source in s.sources if source.transitions is None]
    rows, cells, commit = [], options.folder / "soak", versions().get("commit", "")
    if options.fresh:
        shutil.rmtree(cells, ignore_errors=True)
    make_folder(cells)
    display = make_sweep_display()
    with display:
        names = [source.name for _, source in sources]
        display.begin(dict.fromkeys(names, 0), dict.fromkeys(names, states))
        for subject, source in sources:
            cell = cells / f"{source.name}_{states}_{options.seed}_{commit}.json"
            display.start(source.name)
            before = cell.exists()
            if before:
                row = json.loads(cell.read_text(encoding="utf-8"))
            else:
                row = _soak_one(subject, source, states, options.seed, display)
                if row["status"] == "ok":
                    write_atomically(cell, json.dumps(row))  # the next source may take an hour
            rows.append(row)
            forget_models()
            display.finish(source.name, f"{row['status']}{', measured before' if before else ''}")
    write_csv(options.folder / "soak.csv", FIELDS, rows)
    ok = [row for row in rows if row["status"] == "ok"]
    bad, seen = sum(row["nonfinite_values"] + row["nonfinite_gradients"] for row in ok), sum(r["states"] for r in ok)
    found = [[r["task"], source_name(r), *(str(r[k]) for k in Visits._fields[:-1]), number(r["largest_gradient"])]
             for r in ok]  # fmt: skip
    tables = [
        Table("Values and gradients that are not finite", HEADER, found),
        Table("Not measured", ("task", "source", "why"),
              [[r["task"], source_name(r), r["status"]] for r in rows if r["status"] != "ok"]),
    ]  # fmt: skip
    verdict = [f"Not finite: {bad} of {2 * seen} values and gradients, by {len(ok)} of {len(rows)} sources."]
    write_summary(options.folder / "soak.md", "Soak", verdict, tables, options.facts)
    return int(bad > 0 or not ok or any(r["status"].startswith("failed") for r in rows))


def _soak_one(subject: Subject, source: Source, states: int, seed: int, display: SweepDisplay) -> dict[str, Any]:
    """One row; a source that raises is a row too, because hours of other results do not depend on it."""
    row: dict[str, Any] = dict.fromkeys(FIELDS) | {k: v for k, v in vars(source).items() if k in FIELDS}
    began = time.perf_counter()

    def progress(n: int) -> None:
        display.update(source.name, min(n, states))

    try:
        physics = source.make(subject.task)
        visits = visit(physics, states, rows=min(ROWS, states), seed=seed, progress=progress)
    except (InputError, MissingExtra) as error:
        return row | {"status": f"refused: {error}"}
    except Exception as error:
        return row | {"status": f"failed: {error_text(error)}"}
    return row | visits._asdict() | {"seconds": round(time.perf_counter() - began, 1), "status": "ok"}
