"""``mage-diffsim list-tasks`` and ``mage-diffsim check-task``."""

import importlib.metadata
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Column, Table

from mage_diffsim.commands.output import check_writable, make_console, write_json
from mage_diffsim.errors import InputError, MissingExtra


@dataclass(frozen=True)
class ListTasks:
    """The registered tasks: sizes of state, observation and action, and their physics backends."""


def list_tasks(options: ListTasks) -> int:
    """Print the registered tasks; returns the exit code."""
    from mage_diffsim.envs.physics import backends_of
    from mage_diffsim.envs.registry import make_task, task_names

    rows: list[tuple[str, ...]] = []
    for name in task_names():
        try:
            task = make_task(name)
            sizes = f"{task.state_dim}/{task.obs_dim}/{task.action_dim}"
            backends = ", ".join(_backend(b) for b in backends_of(task))
            rows.append((name, sizes, str(task.horizon), f"{task.dt:g}", backends, escape(task.source)))
        except (InputError, ImportError) as error:  # one broken task of another package must not hide the others
            rows.append((name, "", "", "", "", f"[red]not available: {escape(str(error))}[/]"))
    console = make_console()
    _print_tasks(console, rows)
    console.print("A backend may refuse a task's model: mage-diffsim check-task NAME tells which do.", highlight=False)
    return 0


def _print_tasks(console: Console, rows: list[tuple[str, ...]]) -> None:
    """One table row per task, or one paragraph where the console is too narrow for a table that hides nothing."""
    whole = [Column(heading, no_wrap=True) for heading in ("task", "S/O/A", "horizon", "dt [s]", "backends")]
    table = Table(*whole, Column("source", min_width=30, overflow="fold"))
    for row in rows:
        table.add_row(*row)
    if Measurement.get(console, console.options.update_width(10_000), table).minimum <= console.width:
        console.print(table)
        return
    for name, sizes, horizon, dt, backends, source in rows:
        console.print(f"[bold]{escape(name)}[/]", highlight=False, soft_wrap=True)
        facts = [f"S/O/A {sizes}, horizon {horizon}, dt {dt} s", f"backends {backends}", source] if sizes else [source]
        for fact in facts:
            console.print(Padding(fact, (0, 0, 0, 2)), highlight=False)


def _backend(name: str) -> str:
    """The backend's name, with a remark if a package it needs is not installed."""
    from mage_diffsim.doctor import NEEDS

    packages, extra = NEEDS.get(name, ((), ""))
    for package in packages:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return f"{name} [red](not installed: extra {extra})[/]"
    return name


@dataclass(frozen=True)
class CheckTask:
    """Check everything the learner relies on in a task, gradients included. Exit code 1 if a check failed."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Registered task, path/to/file.py:Class or module:Class."""
    task_options: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="[NAME=VALUE ...]", help_behavior_hint="(default: none)")
    ] = ()
    """Options of the task's constructor, such as mass=20."""
    backend: str | None = None
    """One physics backend only; None is all of the task's, of which mjx compiles for minutes."""
    solver: str | None = None
    """Of the constraints of MuJoCo models: converged, or model, as far as the model's own settings go (backends mujoco
    and mujoco-warp; tasks without them have converged only). None is that of --run, or else converged."""
    states: Path | None = None
    """Also look at the states in this file: .npy or .pt of an array, .npz, or .csv, one state a row."""
    run: Path | None = None
    """Also look at states that the trained policies of this run folder visit, of the same task."""
    json: Path | None = None
    """Also write the report to this file."""


def check_task_command(options: CheckTask) -> int:
    """Check a task and print the report.

    Returns:
        the exit code: 0, or 1 if a check failed.

    Raises:
        InputError: the task, the states or the run cannot be had.
        MissingExtra: the backend that was asked for is not installed.
    """
    import torch

    from mage_diffsim.envs.contract import check_task
    from mage_diffsim.envs.coverage import read_states
    from mage_diffsim.envs.identity.options import parse_options
    from mage_diffsim.envs.registry import make_task

    check_writable(options.json)
    task = make_task(options.name, **parse_options(options.task_options))
    more = [read_states(options.states, task)] if options.states else []
    solver = "converged"
    if options.run:
        states, solver = _states_of_run(options.run, task)
        more.append(states)
    report = check_task(
        task, options.backend, solver=options.solver or solver, states=torch.cat(more) if more else None
    )
    for check in report.checks:
        if options.backend and check.status == "skipped" and check.name == "built":
            raise MissingExtra(check.detail)  # asked for by name, so leaving it out is no success
    colours = {"passed": "green", "failed": "red", "skipped": "yellow"}
    table = Table("check", "result", "worst", "accepted", "detail", title=report.task, title_justify="left")
    for check, status, worst, tolerance, detail in report.rows():
        table.add_row(escape(check), f"[{colours[status]}]{status}[/]", worst, tolerance, escape(detail))
    console = make_console()
    console.print(table)
    if report.coverage is not None:
        _print_coverage(console, report.coverage)
    counts = ", ".join(f"{sum(c.status == s for c in report.checks)} {s}" for s in colours)
    console.print(f"{report.task}: {counts}", highlight=False, markup=False)
    write_json(options.json, json.loads(report.to_json()))
    return 0 if report.passed else 1


def _print_coverage(console: Console, coverage: Any) -> None:
    """The ranges of the states looked at, and what none of them shows."""
    title = f"{coverage.tested} states tested, picked from {coverage.visited} of rollouts"
    table = Table("state", "tested from", "to", "visited from", "to", title=title, title_justify="left")
    for span in coverage.states:
        table.add_row(escape(span.name), *(f"{x:.4g}" for x in (*span.tested, *span.visited)))
    console.print(table)
    console.print("not exercised:")
    for sentence in coverage.not_exercised:
        console.print(Padding(escape(f"- {sentence}"), (0, 0, 0, 2)), highlight=False)


def _words(options: dict[str, Any]) -> str:
    from mage_diffsim.envs.identity.options import format_options

    return f"--task-options {shlex.join(format_options(options))}" if options else "no task options"


def _states_of_run(run_dir: Path, task: Any) -> tuple[Any, str]:
    """Some of the states [K, S] that the policies of a run visit, float64; and the run's solver.

    Raises:
        InputError: it is no run folder, or one of another task or of other options.
    """
    import torch

    from mage_diffsim.envs.coverage import pick
    from mage_diffsim.envs.identity.options import options_of
    from mage_diffsim.envs.rollouts import rollout
    from mage_diffsim.run_folder import load_trainer

    trainer = load_trainer(run_dir, device="cpu")
    if trainer.task.name != task.name:
        raise InputError(f"{run_dir} is a run of task {trainer.task.name}; accepted is one of task {task.name}")
    ours, theirs = options_of(task), options_of(trainer.task)
    if ours != theirs:
        raise InputError(
            f"{run_dir} is a run of task {task.name} with {_words(theirs)}, and the task to check has {_words(ours)}: "
            "give the same"
        )
    generators = trainer.streams.generators("evaluate", 0)
    result = rollout(trainer.physics, trainer.policy, trainer.initial_states(8, generators), record=True)
    assert result.states is not None
    episodes = [result.states[: int(n) + 1, i] for i, n in enumerate(result.lengths)]
    visited = torch.cat(episodes).double()
    return pick(visited, visited[:1], min(64, len(visited))), trainer.config.solver
