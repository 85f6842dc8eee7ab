"""Prints what `benchmarks/gpu_check.sh` found on one page, and writes it to summary.md.

    python benchmarks/gpu_report.py FOLDER

FOLDER holds status.tsv (step, exit code or "skipped", seconds and last line of output) and throughput/throughput.csv;
what is missing is shown as not measured. The exit code is 1 if a step failed. A skipped step and a missed target are
shown and change nothing.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import tyro
from throughput_sections.page import aligned, number

from mage_diffsim.doctor import versions
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.envs.registry import make_task
from mage_diffsim.experiments.command import script_exit_code
from mage_diffsim.files import write_atomically

Rows = list[dict[str, str]]


class Target(NamedTuple):
    """A number that a GPU is to reach."""

    what: str
    bound: float
    measured: Callable[[Rows], float]
    least: bool = False
    """Whether ``bound`` is the least instead of the greatest accepted value."""

    def line(self, rows: Rows) -> list[str]:
        """Returns the target, what was measured and the verdict."""
        value = self.measured(rows)
        verdict = "not measured"
        if not math.isnan(value):
            verdict = "reached" if (value >= self.bound if self.least else value <= self.bound) else "missed"
        return [self.what, f"{'>=' if self.least else '<='} {number(self.bound)}", number(value), verdict]


def field(rows: Rows, column: str, **wanted: str) -> float:
    """Returns a number of the first row that has these values, or NaN."""
    found = (row for row in rows if all(row[name] == value for name, value in wanted.items()))
    return float(next(found, {}).get(column) or math.nan)


def ms(what: str, how: str, runs: int) -> Callable[[Rows], float]:
    """Returns a function that finds a median time of section steps."""
    return lambda rows: field(rows, "median_ms", section="steps", subject=what, variant=how, runs=str(runs))


def ratio(what: str, how: str, runs: int) -> Callable[[Rows], float]:
    """Returns a function that finds how many times the time of one run so many runs take."""
    return lambda rows: ms(what, how, runs)(rows) / ms(what, how, 1)(rows)


def simulated(task: str, worlds: int) -> Callable[[Rows], float]:
    """Returns a function that finds the simulator steps per second, with their pull-backs, on Warp in float32."""
    made = make_task(task)
    substeps = made.frame_skip if isinstance(made, MujocoTask) else 1
    wanted = dict(section="physics", subject=f"{task} VJP", variant="warp adjoint float32", size=str(worlds))
    return lambda rows: substeps * field(rows, "per_s", **wanted)


PLAIN, FUSED, FUSED_TF32 = "captured, float32", "compiled + captured, float32", "compiled + captured, TF32"
LEARNED, ORACLE = "HalfCheetah learned", "HalfCheetah warp oracle"
TARGETS = (
    Target("HalfCheetah update, R=1, TF32 [ms]", 0.40, ms(f"{LEARNED} update", FUSED_TF32, 1)),
    Target("HalfCheetah update, R=5, TF32 [ms]", 0.80, ms(f"{LEARNED} update", FUSED_TF32, 5)),
    Target("HalfCheetah update, R=5, float32 [ms]", 1.25, ms(f"{LEARNED} update", FUSED, 5)),
    Target("model batch, R=5, TF32 [ms]", 0.6, ms(f"{LEARNED} model batch", FUSED_TF32, 5)),
    Target("environment step, R=5, learned [ms]", 10.0, ms(f"{LEARNED} step with models", FUSED_TF32, 5)),
    Target("environment step, R=5, Warp [ms]", 8.5, ms(f"{ORACLE} step with models", FUSED_TF32, 5)),
    Target("Pendulum update, R=32 / R=1", 1.5, ratio("Pendulum learned update", PLAIN, 32)),
    Target("Ant, 65536 worlds, VJP [steps/s]", 50e6, simulated("Ant", 65536), least=True),
)
"""What is expected of one NVIDIA H200."""
VERDICTS = {"0": "passed", "skipped": "skipped", "124": "cut at its time limit", "137": "cut at its time limit"}
"""Exit code to what it means; others are failures."""


def report(folder: Path) -> int:
    """Prints the page and writes it; returns the exit code."""
    with (folder / "status.tsv").open(errors="replace") as file:
        steps = [line.rstrip("\n").split("\t") for line in file]
    table = folder / "throughput" / "throughput.csv"
    rows: Rows = []
    if table.exists():
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
    lines = list(page(steps, rows))
    print("\n".join(lines))
    write_atomically(folder / "summary.md", "\n".join(["# GPU check", "", "```", *lines, "```", ""]))
    return 1 if any(code not in ("0", "skipped") for _, code, *_ in steps) else 0


def page(steps: list[list[str]], rows: Rows) -> Iterator[str]:
    """Yields the lines of the page."""
    found = versions()
    hardware = next((row["hardware"] for row in rows), found["cpu"])
    known = ", ".join(f"{name} {found[name][:16]}" for name in ("torch", "jax", "warp", "commit") if name in found)
    yield f"GPU check on {hardware}: {known}"
    yield ""
    told = [
        [name, VERDICTS.get(code, f"FAILED, exit code {code}"), taken, last[:60]] for name, code, taken, last in steps
    ]
    yield from aligned([["step", "result", "seconds", "last line"], *told])
    yield ""
    yield from aligned([["target", "bound", "found", "verdict"], *(target.line(rows) for target in TARGETS)])
    for row in rows:
        if row["unit"] == "training":
            hours = number(float(row["median_ms"]) / 3.6e6)
            yield f"{row['subject']}, {row['variant']}, R={row['runs']}: {hours} h for {row['size']} steps"


if __name__ == "__main__":
    sys.exit(script_exit_code(lambda: report(tyro.cli(tyro.conf.Positional[Path])), resumes=False))
