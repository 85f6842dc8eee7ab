"""The ``mage-diffsim`` command: train, eval, list-tasks, check-task, doctor.

Exit codes: 0 done; 1 a check of ``check-task`` failed; 2 something given is not accepted, with one sentence on stderr;
130 interrupted. Everything heavy is imported after the arguments have been read.
"""

# No `from __future__ import annotations`: tyro reads the annotations of a dataclass that is local to a function.

import argparse
import contextlib
import dataclasses
import datetime
import importlib.metadata
import io
import json
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Column, Table

from mage_diffsim import __version__
from mage_diffsim.choices import choices_of, require_choices
from mage_diffsim.errors import InputError, MissingExtra, missing_extra, unknown_name

PROGRAM = "mage-diffsim"

NAMED = ("task", "method", "dynamics", "reward", "loss", "preset", "ensemble")
"""Flags of ``train`` that choose among names. They are read first: they decide the defaults of all the others."""

WITH_RESUME = ("resume", "steps", "compile", "quiet", "no-quiet", "tensorboard", "no-tensorboard", "help")
"""What may stand beside ``--resume``: a run goes on with the settings it began with."""


# --- train -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resume:
    """Go on from the newest checkpoint of a run folder, with the settings it began with."""

    resume: Path
    """The run folder."""
    steps: int | None = None
    """Environment steps per run in all; None is what the run was started with."""
    compile: Literal["off", "on"] | None = None
    """Whether to compile the updates from now on; None is as before. The only setting that changes nothing else."""
    tensorboard: bool = False
    """Also write TensorBoard event files to RUN_DIR/tensorboard (extra: log)."""
    quiet: bool = False
    """Print nothing but errors."""


def _train(arguments: list[str]) -> int:
    flags = {_flag(a) for a in arguments if a.startswith("--")}
    if "resume" in flags:
        extra = sorted(flags - set(WITH_RESUME))
        if extra:
            raise InputError(
                f"--{extra[0]} was given with --resume, which goes on with the settings of the run: "
                "accepted beside it are --steps, --compile, --tensorboard and --quiet"
            )
        options = _parse(Resume, "train", arguments)
        return _train_or_resume(options.resume, options, resumes=True)
    return _train_new(arguments, flags)


def _train_new(arguments: list[str], flags: set[str]) -> int:
    from mage_diffsim.config import TrainConfig
    from mage_diffsim.display import describe
    from mage_diffsim.effects import require_effect
    from mage_diffsim.envs.physics import BACKENDS, backends_of, load
    from mage_diffsim.validation import validate

    @dataclass(frozen=True)
    class Train:
        """Train runs (seeds x lambdas) of one method on one task into a run folder.

        The values below are those of the chosen preset, task and ensemble; a flag overrides one of them.
        """

        config: TrainConfig
        out: Path | None = None
        """Run folder to create; None is runs/<task>_<method>_<dynamics>_<timestamp>."""
        resume: Path | None = None
        """Go on with this run folder instead; only --steps, --compile, --tensorboard and --quiet may stand beside
        it."""
        tensorboard: bool = False
        """Also write TensorBoard event files to RUN_DIR/tensorboard (extra: log)."""
        quiet: bool = False
        """Print nothing but errors."""

    options = _parse(Train, "train", arguments, default=Train(_defaults(arguments)))
    config = options.config
    task = config.make_task()
    validate(config)
    # Only an oracle uses backend and derivative, but a name that means nothing is a mistake in any case.
    of_oracle = config.backend if flags & {"backend", "derivative"} else None
    for backend in (of_oracle, config.environment):
        if backend not in (None, *backends_of(task)):
            raise unknown_name(f"backend of task {task.name}", backend, backends_of(task))
    sources = load(BACKENDS[config.backend]).derivatives_of(task) if "derivative" in flags else ()
    if sources and config.derivative not in (None, *sources):
        raise unknown_name(f"derivative source of backend {config.backend}", config.derivative, sources)
    unused = require_effect(config, [flag.removeprefix("no-").replace("-", "_") for flag in sorted(flags)])
    notes = [f"note: --{name.replace('_', '-')} has no effect, as {reason}" for name, reason in unused.items()]
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    out = options.out or Path("runs") / f"{task.name}_{config.method}_{config.dynamics}_{now}"
    return _train_or_resume(out, options, config, banner=[*describe(config, task), *notes])


def _defaults(arguments: list[str]) -> Any:
    """The configuration that the named flags alone amount to.

    Raises:
        InputError: one of the names is unknown, or they do not go together.
    """
    from mage_diffsim.envs.identity.options import parse_options
    from mage_diffsim.settings import make_config

    found: dict[str, Any] = _given(NAMED, arguments)
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    scan.add_argument("--task-options", "--task_options", nargs="*")
    if (options := scan.parse_known_args(arguments)[0].task_options) is not None:
        found["task_options"] = parse_options(options)
    return make_config(found.pop("task", "Pendulum"), shared=found)  # what has no effect is told of all flags together


def _train_or_resume(
    run_dir: Path, options: Any, config: Any = None, resumes: bool = False, banner: Sequence[str] = ()
) -> int:
    """Train ``config`` into the folder, or go on with what is there."""
    from mage_diffsim.checkpoints import newest_checkpoint
    from mage_diffsim.display import TrainingDisplay, describe
    from mage_diffsim.files import as_path
    from mage_diffsim.run_folder import read_config
    from mage_diffsim.session import resume, train

    run_dir = as_path(run_dir)
    if resumes:
        config = read_config(run_dir)
        config = dataclasses.replace(config, steps=config.steps if options.steps is None else options.steps)
        if newest_checkpoint(run_dir) is None:
            print(f"{PROGRAM}: {run_dir} has no checkpoint yet and starts over", file=sys.stderr)
        with contextlib.suppress(InputError):  # which resume reports
            banner = describe(config, config.make_task())
    console = Console(quiet=options.quiet)
    if options.quiet:
        logging.getLogger("mage_diffsim").setLevel(logging.WARNING)
    warmup = config.hyper.warmup_steps
    if config.steps < warmup:
        text = (
            f"note: nothing is learned in {config.steps} steps, as the first {warmup} are the warm-up (--warmup-steps)"
        )
        console.print(text, highlight=False, soft_wrap=True)
    sinks: list[Callable[[int, list[dict[str, Any]]], None]] = []
    try:
        with contextlib.ExitStack() as stack:
            if options.tensorboard:
                from mage_diffsim.tensorboard import TensorBoardSink

                sinks.append(stack.enter_context(contextlib.closing(TensorBoardSink(run_dir / "tensorboard"))))
            display = stack.enter_context(TrainingDisplay(console, run_dir, config.steps, banner))
            sinks.append(display.evaluation)
            if resumes:
                resume(
                    run_dir, steps=options.steps, compile=options.compile, progress=display.progress, sinks=tuple(sinks)
                )
            else:
                train(config, run_dir, progress=display.progress, sinks=tuple(sinks))
    except KeyboardInterrupt:
        sentence = "interrupted before the run folder was written"
        if (run_dir / "config.json").is_file():
            saved = newest_checkpoint(run_dir)
            step = int(saved.stem.removeprefix("step_")) if saved else 0
            sentence = f"interrupted: go on from step {step} with `{PROGRAM} train --resume {run_dir}`"
        print(f"{PROGRAM}: {sentence}", file=sys.stderr)
        return 130
    console.print(f"trained to step {config.steps}: {run_dir}", highlight=False, markup=False, soft_wrap=True)
    return 0


# --- eval ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Eval:
    """Run the trained policies of a run folder without noise, from the same initial states for every run."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """The run folder; its newest checkpoint is used."""
    episodes: int = 10
    """Episodes per run."""
    seed: int = 0
    """Seed of the initial states: the same seed gives the same numbers."""
    device: str | None = None
    """Torch device; None is the one it was trained on."""
    json: Path | None = None
    """Also write the table to this file."""
    video: Path | None = None
    """Film the first episode of the first run: a .mp4 or .gif file, its folder created (extra: video)."""


def _eval(options: Eval) -> int:
    _check_writable(options.json)
    write_video = _video_writer(options.video) if options.video else None
    if options.episodes < 1:
        raise InputError(f"--episodes is {options.episodes}; accepted is 1 or more")
    if not 0 <= options.seed < 2**63:
        raise InputError(f"--seed is {options.seed}; accepted is 0 or more, below 2**63")

    import torch

    from mage_diffsim.envs.batched import rollout
    from mage_diffsim.run_folder import load_trainer

    trainer = load_trainer(options.run_dir, device=options.device)
    runs, episodes = trainer.config.runs, options.episodes
    initial = trainer.task.reset(episodes, torch.Generator().manual_seed(options.seed))
    result = rollout(trainer.physics, trainer.policy, initial.repeat(len(runs), 1), record=write_video is not None)
    returns = result.returns.double().cpu().unflatten(0, (-1, episodes))
    lengths = result.lengths.double().cpu().unflatten(0, (-1, episodes))
    rows = [
        {
            "seed": seed,
            "lambda": lam,
            "mean": returns[r].mean().item(),
            "std": returns[r].std(correction=0).item(),
            "min": returns[r].min().item(),
            "max": returns[r].max().item(),
            "length": lengths[r].mean().item(),
        }
        for r, (seed, lam) in enumerate(runs)
    ]
    many = f"{episodes} episode{'s' * (episodes > 1)}"
    title = f"{trainer.task.name} at step {trainer.env_step}: return of {many}, seed {options.seed}"
    table = Table(*rows[0], title=title, title_justify="left")
    for row in rows:
        table.add_row(str(row["seed"]), f"{row['lambda']:g}", *(f"{v:.2f}" for v in list(row.values())[2:]))
    _console().print(table)
    if write_video is not None and result.states is not None:
        states = result.states[: int(result.lengths[0]) + 1, 0].cpu()
        write_video([trainer.task.render(state) for state in states], max(1, round(1.0 / trainer.task.dt)))
    _write_json(
        options.json,
        {
            "task": trainer.task.name,
            "env_step": trainer.env_step,
            "episodes": episodes,
            "eval_seed": options.seed,
            "runs": rows,
        },
    )
    return 0


def _video_writer(path: Path) -> Callable[[list[Any], int], None]:
    """``write(frames, frames_per_second)`` into ``path``, in one go.

    Raises:
        InputError: not a .mp4 or .gif, or a file that cannot be written.
        MissingExtra: imageio is not installed.
    """
    if path.suffix not in (".mp4", ".gif"):
        raise InputError(f"--video is {path}; accepted is a name that ends in .mp4 or .gif")
    _check_writable(path)
    try:
        import imageio.v2 as imageio

        if path.suffix == ".mp4":
            import imageio_ffmpeg  # noqa: F401  (a GIF needs no ffmpeg)
    except ImportError as error:
        raise missing_extra("imageio", "video") from error

    def write(frames: list[Any], frames_per_second: int) -> None:
        from mage_diffsim.files import make_folder, replacing

        make_folder(path.parent)
        try:
            with replacing(path, f".{path.stem}.tmp{path.suffix}") as temporary:  # the ending tells ffmpeg the format
                if path.suffix == ".mp4":
                    imageio.mimwrite(temporary, frames, fps=frames_per_second, macro_block_size=2)  # type: ignore[arg-type]
                else:  # in memory first: imageio's own writer goes on writing after an error
                    film = io.BytesIO()
                    imageio.mimwrite(film, frames, format="gif", duration=1000 / frames_per_second, loop=0)  # type: ignore[arg-type]
                    temporary.write_bytes(film.getvalue())
        except InputError as error:
            raise InputError(" ".join(str(error).split())[:300]) from error  # ffmpeg has much to say
        _say_written(path)

    return write


# --- tasks and installation ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ListTasks:
    """The registered tasks: sizes of state, observation and action, and their physics backends."""


def _list_tasks(options: ListTasks) -> int:
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
    _print_tasks(_console(), rows)
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
    task_options: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME=VALUE ...]")] = ()
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


def _check_task(options: CheckTask) -> int:
    import torch

    from mage_diffsim.envs.contract import check_task
    from mage_diffsim.envs.coverage import read_states
    from mage_diffsim.envs.identity.options import parse_options
    from mage_diffsim.envs.registry import make_task

    _check_writable(options.json)
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
    console = _console()
    console.print(table)
    if report.coverage is not None:
        _print_coverage(console, report.coverage)
    counts = ", ".join(f"{sum(c.status == s for c in report.checks)} {s}" for s in colours)
    console.print(f"{report.task}: {counts}", highlight=False, markup=False)
    _write_json(options.json, json.loads(report.to_json()))
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

    from mage_diffsim.envs.batched import rollout
    from mage_diffsim.envs.coverage import pick
    from mage_diffsim.envs.identity.options import options_of
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
    generators = trainer.streams.evaluation(0)
    result = rollout(trainer.physics, trainer.policy, trainer.initial_states(8, generators), record=True)
    assert result.states is not None
    episodes = [result.states[: int(n) + 1, i] for i, n in enumerate(result.lengths)]
    visited = torch.cat(episodes).double()
    return pick(visited, visited[:1], min(64, len(visited))), trainer.config.solver


@dataclass(frozen=True)
class Doctor:
    """What is installed, and which physics backends and bridges work."""

    json: Path | None = None
    """Also write the report to this file."""


def _doctor(options: Doctor) -> int:
    from mage_diffsim import doctor

    _check_writable(options.json)
    report = doctor.report()
    _console().print(doctor.render(report))
    _write_json(options.json, report)
    return 0


# --- shared ----------------------------------------------------------------------------------------------------------


def _console() -> Console:
    """Standard output; wide when it is a file or a pipe, whose reader can scroll."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


PROBE = 1 << 16
"""Bytes written to see whether a disk takes more: of a few, the error would come when the file is long closed."""


def _check_writable(path: Path | None) -> None:
    """Refuse an output file before the work for it is done; folders that are not there are created when it is written.

    Raises:
        InputError: it is a folder itself, or its folder cannot be created or written to, or its disk is full.
    """
    from mage_diffsim.files import is_replaceable

    if path is None:
        return
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give the name of a file")
    folder = next(p for p in Path(os.path.realpath(path)).parents if p.exists())
    if not folder.is_dir():
        raise InputError(f"cannot write {path}: {folder} is a file, not a folder")
    if not is_replaceable(path):  # a device or a pipe, which answers when it is written to
        return
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE))
    except OSError as error:
        raise InputError(
            f"cannot write {path}: nothing can be written into the folder {folder}: {error.strerror or error}"
        ) from error


def _write_json(path: Path | None, content: Any) -> None:
    if path is not None:
        from mage_diffsim.files import make_folder, write_atomically

        make_folder(path.parent)
        write_atomically(path, json.dumps(content, indent=2) + "\n")
        _say_written(path)


def _say_written(path: Path) -> None:
    _console().print(f"written: {path}", highlight=False, markup=False, soft_wrap=True)


def _given(names: Iterable[str], arguments: Sequence[str]) -> dict[str, str]:
    """The values of those of the named flags that are given; None, and a missing value, are left to tyro."""
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        scan.add_argument(f"--{name}", f"--{name.replace('_', '-')}", nargs="?", dest=name)
    return {k: v for k, v in vars(scan.parse_known_args(arguments)[0]).items() if v not in (None, "None")}


def _flag(argument: str) -> str:
    return argument.partition("=")[0].removeprefix("--").replace("_", "-")


def _parse(options: Any, command: str, arguments: list[str], default: Any = tyro.MISSING_NONPROP) -> Any:
    """The options that the arguments give.

    Raises:
        InputError: a value is not among its option's choices. Other mistakes are reported by tyro, with SystemExit(2).
    """
    require_choices(options, _given(choices_of(options), arguments))
    return tyro.cli(
        options,
        prog=f"{PROGRAM} {command}",
        args=arguments,
        default=default,
        config=(tyro.conf.OmitArgPrefixes,),
    )


@dataclass(frozen=True)
class Command:
    """One word after ``mage-diffsim``."""

    help: str
    run: Callable[[Any], int]
    """Takes the options; those of ``train`` depend on the task, so it takes its arguments unread."""
    options: type | None = None


COMMANDS = {
    "train": Command("train a method on a task, or go on with a training", _train),
    "eval": Command("run the trained policies of a run folder", _eval, Eval),
    "list-tasks": Command("the registered tasks and their physics backends", _list_tasks, ListTasks),
    "check-task": Command("check a task of your own, gradients included", _check_task, CheckTask),
    "doctor": Command("what is installed and what works", _doctor, Doctor),
}

USAGE = (
    f"usage: {PROGRAM} COMMAND [OPTIONS]\n\n"
    + "".join(f"  {name:<12}{command.help}\n" for name, command in COMMANDS.items())
    + f"\n{PROGRAM} COMMAND --help lists the options of a command; {PROGRAM} --version prints the version."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code (see the module's text). Arguments that tyro refuses raise SystemExit(2)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help"):
        print(USAGE)
        return 0
    if first == "--version":
        print(f"{PROGRAM} {__version__}")
        return 0
    command = COMMANDS.get(first)
    try:
        if command is None:
            raise unknown_name("command", first, COMMANDS)
        # Read before torch is imported, so that `eval --help` answers at once.
        options = _parse(command.options, first, arguments[1:]) if command.options else arguments[1:]

        from mage_diffsim.display import show_log
        from mage_diffsim.memory import keep_freed_memory

        keep_freed_memory()
        with show_log(lambda text: print(text, file=sys.stderr, flush=True)):
            return command.run(options)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return 130
    except (InputError, MissingExtra) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
