"""Which public models do the backends cover, how right are they, and how fast?

    python benchmarks/model_coverage.py                                # everything: hours
    python benchmarks/model_coverage.py --no-compile                   # what is covered: minutes
    python benchmarks/model_coverage.py --only 'brax/*' 'dm_control/suite/h*'
    python benchmarks/model_coverage.py --list

The models are those of dm_control, Gymnasium, brax and mujoco_playground, unchanged, as their code puts them together.
What is not there is downloaded into --folder: two wheels by pip, and two repositories as archives. A wheel that lies
there is taken, as is a folder with a repository's name. What cannot be downloaded is named and left out.

Each model is checked as by `mage-diffsim check-model`, with an empty cache of compiled kernels. Interrupt it at any
time; the same command goes on where it stopped. Writes results.csv and summary.md.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from public_models.building import build
from public_models.collections import PUBLIC, Public
from public_models.downloading import NotHad
from public_models.report import FIELDS, tables, verdict

from mage_diffsim.errors import InputError, unknown_name
from mage_diffsim.experiments.command import script_exit_code
from mage_diffsim.experiments.summary import write_summary
from mage_diffsim.experiments.sweep_display import make_sweep_display
from mage_diffsim.experiments.tables import write_csv
from mage_diffsim.files import make_folder, write_atomically
from mage_diffsim.model_checks.apart import Worker
from mage_diffsim.model_checks.coverage import CHECKED
from mage_diffsim.model_checks.finding import Model
from mage_diffsim.model_checks.measuring import Settings
from mage_diffsim.model_checks.rows import Limits, is_bad, look, rows_of


@dataclass(frozen=True)
class Options:
    """What to measure."""

    only: tuple[str, ...] = ()
    """Patterns of names, such as brax/*; by default all."""
    backends: tuple[str, ...] = ("warp",)
    """Backends that are measured where they cover a model; of all three it is told whether they do."""
    no_compile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Only tell what is covered."""
    states: int = 48
    """Visited states at which values and derivatives are compared."""
    worlds: int = 1024
    """Worlds of the timed steps."""
    soak: int = 100_000
    """States that are visited to find values and gradients that are not finite."""
    dtype: Literal["float64", "float32"] = "float64"
    """Precision."""
    threads: int = 1
    """CPU threads of the backend and of MuJoCo C."""
    seconds: float = 1800.0
    """Time that one model may take on one backend."""
    memory: float = 4096.0
    """MiB that one model may take on one backend."""
    folder: Path = Path("runs/public_models")
    """Folder of the models' files."""
    out: Path = Path("runs/model_coverage")
    """Folder for results."""
    fresh: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Measure everything anew."""
    list: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the names of the models and end."""

    @property
    def chosen(self) -> list[Public]:
        """The models that the patterns choose.

        Raises:
            InputError: a pattern chooses none.
        """
        for pattern in self.only:
            if not any(fnmatch.fnmatchcase(model.name, pattern) for model in PUBLIC):
                raise InputError(f"--only {pattern} is the name of no model; --list shows them")
        return [m for m in PUBLIC if not self.only or any(fnmatch.fnmatchcase(m.name, p) for p in self.only)]

    @property
    def settings(self) -> Settings:
        """What is measured of each model."""
        names = ("states", "worlds", "soak", "dtype", "threads")
        return Settings(**{name: getattr(self, name) for name in names})


def check(model: Public, path: Path, options: Options, looking: Worker) -> list[dict[str, Any]]:
    """The rows of one model, with kernels compiled anew."""
    known = Model(model.name, path)
    measured = () if options.no_compile else options.backends
    with tempfile.TemporaryDirectory(dir=options.out, prefix="kernels_") as cache:
        settings = dataclasses.replace(options.settings, cache=os.path.abspath(cache))
        rows = rows_of(known, look(known, looking), measured, settings, Limits(options.seconds, options.memory))
        return [row | {"collection": model.collection} for row in rows]


def run(options: Options) -> int:
    """Measures what is not finished and reports the whole out folder; returns 1 if a backend is wrong, else 0.

    Raises:
        InputError: a flag has a value that cannot be measured, or the out folder has results of others.
    """
    chosen = options.chosen
    if options.list:
        print(*(model.name for model in chosen), sep="\n")
        return 0
    for backend in options.backends:
        if backend not in CHECKED:
            raise unknown_name("backend of MuJoCo models", backend, CHECKED)
    cells = options.out / "cells"
    if options.fresh:
        shutil.rmtree(cells, ignore_errors=True)
    make_folder(cells)
    asked = dataclasses.asdict(options.settings) | {"backends": list(() if options.no_compile else options.backends)}
    files = {model.name: cells / f"{model.name.replace('/', '.')}.json" for model in chosen}
    not_had: dict[str, str] = {}
    display = make_sweep_display()
    done = {name: int(_rows(file, asked) is not None) for name, file in files.items()}
    with display, Worker(options.seconds, options.memory) as looking:
        display.begin(dict(done), dict.fromkeys(files, 1))
        for model in chosen:
            if done[model.name]:
                continue
            display.start(model.name)
            try:
                rows = check(model, build(model, options.folder), options, looking)
            except NotHad as error:
                not_had[model.name] = str(error)
                display.finish(model.name, f"left out: {error}")
                continue
            write_atomically(files[model.name], json.dumps({"asked": asked, "rows": rows}))
            display.update(model.name, 1)
            display.finish(model.name, ", ".join(f"{r['backend']} {r['status'].partition(':')[0]}" for r in rows))
    rows = [row for file in files.values() for row in _rows(file, asked) or ()]
    write_csv(options.out / "results.csv", FIELDS, rows)
    title = "Public models: what is covered, how right, how fast"
    write_summary(options.out / "summary.md", title, verdict(rows, not_had), tables(rows, not_had))
    return int(any(is_bad(row) for row in rows))


def _rows(file: Path, asked: dict[str, Any]) -> list[dict[str, Any]] | None:
    """What a model's cell holds; None if it is not there or was measured with other settings."""
    if not file.exists():
        return None
    cell = json.loads(file.read_text(encoding="utf-8"))
    return cell["rows"] if cell["asked"] == asked else None


if __name__ == "__main__":
    sys.exit(script_exit_code(lambda: run(tyro.cli(Options, description=__doc__))))
