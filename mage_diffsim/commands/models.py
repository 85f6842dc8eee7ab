"""``mage-diffsim check-model``."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mage_diffsim.commands.output import check_writable, make_console, say_written
from mage_diffsim.errors import InputError, unknown_name


@dataclass(frozen=True)
class CheckModel:
    """What the backends make of MJCF models: coverage, errors against MuJoCo C, speed.

    Exit code 1 if a backend that covers a model is wrong, 2 if a file is no model or a folder holds none.
    """

    paths: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATHS ...", help_behavior_hint="(required)")
    ]
    """MJCF files, folders that are searched for them, gymnasium:FILE.xml for a model of Gymnasium's, gymnasium: for
    all of them."""
    backend: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Backend to measure if it covers the model: warp, mjx or mujoco; give the flag once for each. By default warp.
    What is covered is told of all three."""
    no_compile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Tell only what is covered, in seconds."""
    states: int = 48
    """Visited states at which values and derivatives are compared."""
    worlds: int = 1024
    """Worlds of the timed steps; 0 leaves timing out."""
    soak: int = 0
    """Visit this many states besides, and count values and gradients that are not finite."""
    dtype: Literal["float64", "float32"] = "float64"
    """Precision of the backend."""
    derivative: str | None = None
    """Derivative source; None is the backend's default."""
    device: str = "cpu"
    """Device of the backend: cpu or cuda."""
    threads: int | None = None
    """CPU threads of the backend and of MuJoCo C; by default all."""
    seconds: float = 900.0
    """Time that one model may take on one backend [s]."""
    memory: float = 4096.0
    """Memory that one model may take on one backend [MiB]."""
    csv: Path | None = None
    """Also write one row per model and backend to this file."""


def check_model_command(options: CheckModel) -> int:
    """Check models and print what was found.

    Returns:
        the exit code: 0, or 1 if a backend is wrong about a model that it covers, or did not get through.

    Raises:
        InputError: a file is no model or a folder holds none (other paths are checked first), or a setting cannot be
            measured.
        MissingExtra: mujoco, or a backend that was asked for, is not installed.
    """
    from rich.markup import escape
    from rich.progress import Progress

    from mage_diffsim.display import is_interactive
    from mage_diffsim.experiments.tables import write_csv
    from mage_diffsim.files import make_folder
    from mage_diffsim.model_checks import page
    from mage_diffsim.model_checks.apart import Worker
    from mage_diffsim.model_checks.rows import FIELDS, Limits, is_bad, look, rows_of

    if not options.paths:
        raise InputError(
            "no model was given; accepted are MJCF files, folders of them, gymnasium:FILE.xml or gymnasium:"
        )
    check_writable(options.csv)
    settings, backends = _settings(options), () if options.no_compile else options.backend or ("warp",)
    limits, console = Limits(options.seconds, options.memory), make_console()
    rows: list[dict[str, Any]] = []
    with Worker(options.seconds, options.memory) as looking:
        found = _found(options, looking)
        many = len(found.models) != 1
        with Progress(console=console, disable=not many or not is_interactive(console)) as bar:
            task = bar.add_task("", total=len(found.models))
            for model in found.models:
                bar.update(task, description=escape(model.name))
                looked = look(model, looking)
                for part in () if many else page.head(model, looked):
                    console.print(part, highlight=False)
                mine = []
                for row in rows_of(model, looked, backends, settings, limits):
                    mine.append(row)
                    for part in page.measured(row) if row["dtype"] and not many else ():
                        console.print(part, highlight=False)
                if many:
                    told = ", ".join(f"{row['backend']} {row['status'].partition(':')[0]}" for row in mine)
                    console.print(f"{model.name}: {told}", highlight=False, markup=False)
                rows += mine
                if options.csv is not None:  # now, because the next model may take an hour
                    make_folder(options.csv.parent)
                    write_csv(options.csv, FIELDS, rows)
                bar.advance(task)
    for part in page.summary(console, rows, found) if many or found.parts or found.broken else ():
        console.print(part)
    if options.csv is not None and rows:
        say_written(options.csv)
    if found.barren:
        raise InputError(f"no file in {' and '.join(found.barren)} is a model by itself that MuJoCo loads")
    return int(any(is_bad(row) for row in rows))


def _settings(options: CheckModel) -> Any:
    """The settings of a measurement.

    Raises:
        InputError: a flag has a value that cannot be measured.
        MissingExtra: mujoco, or a backend that was asked for, is not installed.
    """
    from mage_diffsim.devices import torch_device
    from mage_diffsim.doctor import check_installed
    from mage_diffsim.model_checks.coverage import CHECKED
    from mage_diffsim.model_checks.measuring import Settings

    for backend in ("mujoco", *options.backend):
        if backend not in CHECKED:
            raise unknown_name("backend of check-model", backend, CHECKED)
        check_installed(backend)
    for flag, least in (("states", 1), ("worlds", 0), ("soak", 0), ("seconds", 1e-3), ("memory", 1.0), ("threads", 1)):
        value = getattr(options, flag)
        if value is not None and not value >= least:
            raise InputError(f"--{flag} is {value}; accepted is {least:g} or more")
    torch_device(options.device)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = {name: getattr(options, name) for name in ("states", "worlds", "soak", "dtype", "derivative", "device")}
    return Settings(threads=options.threads or cpus, **given)


def _found(options: CheckModel, looking: Any) -> Any:
    """The models and the files that are none, a :class:`.finding.Found`.

    Raises:
        InputError: a file that was given is no model, a path is not there, or no backend has the derivative source.
    """
    from mage_diffsim.envs.physics import BACKENDS, load
    from mage_diffsim.model_checks.apart import Ended
    from mage_diffsim.model_checks.finding import Look, find_models, look_at, task_of

    def look(path: Path) -> Look:
        try:
            return looking.call(look_at, path)
        except Ended as error:
            return Look("broken", f"it cannot be loaded: {error}")

    found = find_models(options.paths, look)
    for backend in options.backend or ("warp",) if found.models and options.derivative is not None else ():
        offered = load(BACKENDS[backend]).derivatives_of(task_of(found.models[0].path))
        if options.derivative not in offered:
            raise unknown_name(f"derivative source of backend {backend}", options.derivative, offered)
    return found
