"""What every experiment script shares: flags, training, results, exit code."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import math
import os
import shlex
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, ClassVar, Literal

import tyro
from rich.console import Console

from mage_diffsim.commands.ending import exit_code
from mage_diffsim.config import CudaGraphs, Matmul, OnOff
from mage_diffsim.doctor import versions
from mage_diffsim.envs.physics import Solver, require_backend
from mage_diffsim.envs.registry import make_task
from mage_diffsim.errors import InputError, MissingExtra
from mage_diffsim.experiments.cells import Cell, Outcome
from mage_diffsim.experiments.figures import failures_kept, marked, not_drawn
from mage_diffsim.experiments.horizons import HORIZONS
from mage_diffsim.experiments.launchers import Launcher, LocalLauncher
from mage_diffsim.experiments.ray_launcher import RayLauncher
from mage_diffsim.experiments.sweep import held, run_cells
from mage_diffsim.experiments.sweep_display import make_sweep_display
from mage_diffsim.experiments.tables import Table, markdown_table, screen_table, told_columns
from mage_diffsim.files import write_atomically
from mage_diffsim.run_folder import read_versions
from mage_diffsim.validation import require_minutes

Size = Literal["smoke", "cpu", "paper"]


SMOKE: dict[str, Any] = dict(
    seeds=(0, 1),
    steps=120,
    evaluations=2,
    eval_episodes=2,
    gradient_episodes=2,
    hyper=dict(warmup_steps=60, batch_size=32, updates_per_step=2, model_batches=5),
)
"""A budget that tries everything and shows nothing."""


@dataclass(frozen=True)
class Findings:
    """What an experiment reports besides the files it wrote."""

    table: Table
    """Shown on the terminal, as many columns from the left and rows from the top as fit, and in summary.md."""
    verdict: Sequence[str] = ()
    """At most three lines of at most 80 characters."""
    tables: Sequence[Table] = ()
    """More, in summary.md alone; those without rows are left out."""
    notes: Sequence[str] = ()
    """How to read them, in summary.md alone."""


@dataclass(frozen=True)
class Experiment(abc.ABC):
    """Flags that every experiment has; a subclass adds its own, its cells and its report."""

    NAME: ClassVar[str]
    """Of the experiment and its default out folder."""
    FILES: ClassVar[tuple[str, ...]]
    """What :meth:`report` writes into the out folder."""
    BUDGETS: ClassVar[dict[Size, dict[str, Any]]]
    """Size to ``seeds``, ``steps``, ``evaluations`` (evenly spaced) or ``eval_every``, and any other fields of
    TrainConfig; every evaluation also writes a checkpoint where ``checkpoint_every`` is not given."""
    OF_TASK: ClassVar[dict[Size, dict[str, dict[str, Any]]]] = {}
    """What of a size's budget is different for single tasks."""

    size: Size = "cpu"
    """smoke: try everything in about a minute, the numbers mean nothing. cpu: minutes to an hour or two on two cores,
    with the preset cpu. paper: the paper's own budget and hyper-parameters, for a GPU."""
    seeds: tuple[int, ...] | None = None
    """Seeds, one run each per cell; by default the experiment's own number of seeds from 0."""
    steps: int | None = None
    """Environment steps per run; by default the experiment's own."""
    preset: str | None = None
    """Hyper-parameter set: paper (appendix D.2), authors (the published code) or cpu (reduced, for a laptop); by
    default the size's."""
    device: str = "cpu"
    """Torch device of every cell: cpu, cuda, cuda:1, ..."""
    environment: str | None = None
    """Physics backend of the real environment, its evaluations and true gradients. By default the first of a task:
    torch, or MuJoCo C in threads; on a GPU warp instead of MuJoCo C, where it covers the model."""
    solver: Solver = "converged"
    """Of the constraints of MuJoCo models, in environment and oracle: converged, or as far as the model's own settings
    go, as in Gymnasium's environments (backends mujoco and mujoco-warp; tasks without them have converged only)."""
    compile: OnOff = "off"
    """on: fuse updates with torch.compile, in every cell; needs a C++ compiler and a minute per cell."""
    graphs: CudaGraphs = "auto"
    """auto: replay updates and model batches as CUDA graphs where device and dynamics allow it. on: a cell where they
    do not fails. off: nowhere. The results are the same."""
    matmul: Matmul | None = None
    """Float32 matrix products of training on a GPU: highest, or high: TF32, faster and less exact. By default high for
    size paper on a GPU, else highest; summary.md says which it was."""
    out: Path | None = None
    """Folder for the run folders and results; by default runs/<experiment> for size cpu and
    runs/<experiment>-<size> for the others. The results there are of the last command's cells; run folders stay."""
    workers: int = min(2, os.cpu_count() or 1)
    """Cells that train at once, each in a process of its own; the results do not depend on it."""
    launcher: Literal["local", "ray"] = "local"
    """local: processes of this machine. ray: tasks of a Ray cluster (the extra sweep); the results are the same."""
    ray_address: str | None = None
    """A Ray cluster that exists, host:port or auto; by default Ray starts here with as many CPUs as there are
    workers."""
    gpus_per_cell: float | None = None
    """Share of a GPU that a cell on device cuda holds under Ray: 0.25 puts four on one; by default 1."""
    stop_after: float | None = None
    """Minutes for the whole command. Then every cell that trains is saved, the results so far are written, marked as
    unfinished, and the command ends with exit code 0; the same command goes on. None is no limit."""
    fresh: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Delete this sweep's run folders first instead of going on with them."""

    @abc.abstractmethod
    def cells(self) -> list[Cell]:
        """What to train.

        Raises:
            InputError: a flag's value is not accepted.
        """

    @abc.abstractmethod
    def report(self, outcomes: list[Outcome], out: Path) -> Findings:
        """Write FILES into ``out`` and say what was found."""

    def budget(self, task: str, own: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Fields of a TrainConfig for a task (as it was given), from the size's budget and the flags that change it.

        Args:
            task: as it was given.
            own: what of the size's budget is different for one cell.

        Raises:
            InputError: the task has no backend ``environment``.
        """
        settings = self.BUDGETS[self.size] | self.OF_TASK.get(self.size, {}).get(make_task(task).name, {})
        settings |= own or {}
        settings |= {k: v for k, v in (("seeds", self.seeds), ("steps", self.steps)) if v is not None}
        # Rounded up, so that the evaluation after the last step never follows another within a few steps.
        every = settings.pop("eval_every", None) or math.ceil(settings["steps"] / settings.pop("evaluations"))
        preset = self.preset or ("paper" if self.size == "paper" else "cpu")
        flags: dict[str, Any] = {"preset": preset, "device": self.device, "compile": self.compile}
        tf32 = self.size == "paper" and self.device.startswith("cuda")
        matmul = self.matmul or ("high" if tf32 else "highest")
        flags |= {"solver": self.solver, "graphs": self.graphs, "matmul": matmul}
        if self.environment is not None:
            known = make_task(task)
            require_backend(known, self.environment)
            flags["environment"] = self.environment
        return {"checkpoint_every": every} | settings | {"eval_every": every} | flags

    def make_launcher(self) -> Launcher:
        """Where the cells train.

        Raises:
            InputError: the flags contradict each other.
        """
        if self.launcher == "ray":
            share = 1.0 if self.gpus_per_cell is None else self.gpus_per_cell
            return RayLauncher(self.workers, self.ray_address, share)
        for flag in ("ray_address", "gpus_per_cell"):
            if getattr(self, flag) is not None:
                raise InputError(f"{flag} is {getattr(self, flag)} and launcher is local: give --launcher ray")
        return LocalLauncher(self.workers)

    @property
    def longest_horizon(self) -> int:
        """Steps up to which horizon.csv measures the true gradient."""
        return 100 if self.size == "smoke" else HORIZONS[-1]

    @property
    def folder(self) -> Path:
        """The out folder."""
        return (
            self.out
            if self.out is not None
            else Path("runs") / (self.NAME + ("" if self.size == "cpu" else f"-{self.size}"))
        )


def unfinished_text(outcomes: Sequence[Outcome]) -> list[str]:
    """How many cells the end of the time left unfinished and how to go on, in a line; none if it left none."""
    left = [o for o in outcomes if o.status == "unfinished"]
    if not left:
        return []
    begun = sum(o.measured for o in left)
    text = f"Unfinished: {begun} cell{'s' * (begun != 1)} stopped, {len(left) - begun} not begun, of {len(outcomes)}."
    return [f"{text} Run the same command again."]


SCREEN_LINES = 24
"""Lines that the terminal shows at the end."""


def run(experiment: Experiment, began: float | None = None) -> int:
    """Train the experiment's cells, write its results, print its verdict and its table.

    Args:
        experiment: what to run.
        began: when ``stop_after`` begins, by the monotonic clock; None is now.

    Returns:
        the exit code: 0, or 1 if a cell broke or a figure could not be drawn.

    Raises:
        InputError, MissingExtra: see :func:`.sweep.run_cells`.
    """
    require_minutes(experiment.stop_after)
    spent = 0.0 if began is None else time.monotonic() - began
    until = None if experiment.stop_after is None else time.time() - spent + 60.0 * experiment.stop_after
    out = experiment.folder
    launcher, display = experiment.make_launcher(), make_sweep_display()
    cells, fresh = experiment.cells(), experiment.fresh
    outcomes = run_cells(cells, out, launcher=launcher, fresh=fresh, display=display, until=until)
    unfinished = unfinished_text(outcomes)
    failed = [o for o in outcomes if o.status == "failed"]
    undrawn: list[tuple[Path, str]] = []
    if any(o.measured for o in outcomes):
        with held(out), failures_kept() as undrawn, marked(" (unfinished)" if unfinished else ""):
            found = experiment.report(outcomes, out)
        if unfinished:
            table = found.table._replace(title=f"{found.table.title} (unfinished)")
            found = dataclasses.replace(found, table=table, verdict=[*unfinished, *found.verdict][:3])
        warnings = [f"{o.cell.name} was skipped: {o.reason}." for o in outcomes if o.status == "skipped"]
        warnings += [f"{o.cell.name}: {o.reason}." for o in outcomes if o.status == "unfinished"]
        warnings += [f"{o.cell.name} failed; run the same command again to go on with it." for o in failed]
        warnings += not_drawn(undrawn)
        if experiment.size == "smoke":
            warnings.append("This was a smoke test: its budget is too small for the numbers to mean something.")
        write_atomically(out / "summary.md", markdown(found, warnings, used_by(outcomes)))
        missing = {path.name for path, _ in undrawn}
        files = ", ".join(("summary.md", *(f for f in experiment.FILES if f not in missing)))
        print(screen(Console(), found, warnings, f"Written to {out}: {files}"))
    else:
        print("\n".join(unfinished), flush=True)
    for outcome in failed:
        print(f"{script_name()}: cell {outcome.cell.name} failed:\n{outcome.reason}", file=sys.stderr)
    if failed and len(failed) == len(outcomes):
        print("run the same command again to go on", file=sys.stderr)
    return 1 if failed or undrawn else 0


def screen(console: Console, found: Findings, warnings: Sequence[str], written: str) -> str:
    """What the terminal shows at the end: verdict, table, warnings, files; at most SCREEN_LINES if the table can give
    way."""
    around = [textwrap.fill(line, console.width, break_long_words=False) for line in (*warnings, written)]
    above = [*found.verdict, ""] if found.verdict else []
    # One line for the prompt that follows.
    lines = SCREEN_LINES - 1 - len(above) - len("\n".join(around).splitlines()) - 1
    table = screen_table(console, *told_columns(found.table.header, found.table.rows), lines)
    return "\n".join([*above, table, "", *around])


def markdown(found: Findings, warnings: Sequence[str], used: dict[str, str]) -> str:
    """What summary.md holds: verdict, tables, notes, warnings and how the results came about."""
    lines = [f"# {found.table.title}", ""]
    if found.verdict:
        lines += ["  \n".join(found.verdict), ""]
    lines += [markdown_table(*told_columns(found.table.header, found.table.rows))]
    for table in (table for table in found.tables if table.rows):
        lines += [f"## {table.title}", "", markdown_table(*told_columns(table.header, table.rows))]
    lines += [f"- {sentence}" for sentence in (*found.notes, *warnings)]
    lines += provenance(used)
    return "\n".join(lines) + "\n"


USED = ("device", "environment", "solver", "compile", "graphs", "matmul", "commit")
"""What of a cell's versions.json is in summary.md."""


def used_by(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """What the measured cells were trained with: a name of USED to its value, or to each value and the cells that had
    it; the commit only if it is not this one."""
    recorded = {o.cell.name: read_versions(o.run_dir) for o in outcomes if o.measured}
    found: dict[str, str] = {}
    for name in USED:
        cells: dict[str, list[str]] = {}
        for cell, values in recorded.items():
            cells.setdefault(values.get(name, "not recorded"), []).append(cell)
        if name == "commit" and set(cells) <= {versions().get("commit", "not recorded")}:
            continue
        one = len(cells) == 1
        text = "; ".join(value if one else f"{value} ({', '.join(of)})" for value, of in cells.items())
        found["commit of the cells" if name == "commit" else name] = text
    return found


def provenance(more: dict[str, Any] | None = None) -> list[str]:
    """Lines of Markdown that say how results came about: the command, the versions and ``more`` facts."""
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    found = versions() | {"processors": os.cpu_count()} | (more or {})
    lines = ["", f"Command: `{command}`", "", "| what | found |", "| --- | --- |"]
    return lines + [f"| {name} | {version} |" for name, version in found.items()]


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM, a scheduler's way to say it, end a sweep as Ctrl-C does: its workers save their step first."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    main_thread = threading.current_thread() is threading.main_thread()  # no other may set a handler
    if not main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def script_name() -> str:
    """The name of the script that runs, which begins its error lines."""
    return Path(sys.argv[0]).name


def script_exit_code(
    body: Callable[[], int], *, resumes: bool = True, refused: tuple[type[Exception], ...] = ()
) -> int:
    """:func:`.ending.exit_code` of a script, which SIGTERM interrupts as Ctrl-C does.

    Args:
        body: all of the script, the parsing of its flags included, whose output may have no reader either.
        resumes: whether the same command goes on where it was interrupted.
        refused: further errors whose text is a sentence for the user.
    """

    def interruptible() -> int:
        with _interrupted_by_sigterm():
            return body()

    interrupted = "interrupted: run the same command again to go on" if resumes else "interrupted"
    return exit_code(script_name(), interruptible, interrupted, (InputError, MissingExtra, *refused))


def main(parse: Callable[[], Experiment], began: float | None = None) -> int:
    """Parse the flags and :func:`run` the experiment; returns the exit code."""
    return script_exit_code(lambda: run(parse(), began))
