"""Run folders: what a training leaves on disk, and how it goes on after being killed.

run_dir/
  config.json        the whole TrainConfig
  identity.json      what it is trained with: the configuration, and digests of the task's source
  versions.json      packages, commit, devices, and what compile, graphs and other such settings came to
  eval.csv           one row per evaluation and run
  metrics.csv        one row per evaluation and run: losses, gradient sizes, speed
  checkpoints/       step_<env_step>.pt, the newest two; plain dicts of tensors
  policy.safetensors the trained actors, written at the end
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import errno
import io
import json
import logging
import math
import os
import pickle
import re
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import torch

try:
    import fcntl
except ImportError:  # not a POSIX system: two trainings in one folder are then the user's own business
    fcntl = None

import mage_diffsim
from mage_diffsim import columns
from mage_diffsim.config import HARMLESS, TrainConfig, differences
from mage_diffsim.doctor import versions
from mage_diffsim.envs.identity.options import options_of
from mage_diffsim.envs.identity.reference import absolute, reference_of
from mage_diffsim.envs.identity.sources import changed_parts, sources_of
from mage_diffsim.envs.registry import task_class
from mage_diffsim.envs.task import Task
from mage_diffsim.errors import InputError
from mage_diffsim.files import AnyPath, as_path, is_replaceable, replacing, writing
from mage_diffsim.modes import in_ordinary_modes
from mage_diffsim.policy import POLICY_FILE, describe_task, policy_content, write_policy
from mage_diffsim.settings import recorded_options
from mage_diffsim.training import Trainer
from mage_diffsim.validation import validate

CHECKPOINT_VERSION = 3
"""Raised whenever the layout of a checkpoint changes, or what a run of the same settings does."""

KEPT_CHECKPOINTS = 2

EVAL_FIELDS, METRIC_FIELDS = tuple(columns.EVAL), tuple(columns.METRICS)
"""Columns of eval.csv and of metrics.csv."""


@dataclass(frozen=True)
class Progress:
    """How far a training is; given to the ``progress`` callback after every environment step."""

    env_step: int
    """Environment steps done."""
    steps: int
    """Environment steps asked for."""
    wall_s: float
    """Seconds this run has trained and evaluated, over all its sessions."""
    updates_per_s: float
    """Critic updates per second of training (evaluation apart), one update serving all runs."""
    latest: dict[str, list[int | float | None]]
    """Newest evaluation, one value per run; None for a measure of gradients that does not exist."""


@dataclass(frozen=True)
class RunResult:
    """The last evaluation of one run; see :data:`EVAL_FIELDS`, and ``mage-diffsim eval`` for more episodes."""

    seed: int
    lam: float
    """Lambda of the run."""
    env_step: int
    return_mean: float
    return_std: float
    length_mean: float
    gradient_error: float | None
    """None where it was not measured, as the two below."""
    gradient_error_median: float | None
    gradient_cosine: float | None


@dataclass(frozen=True)
class TrainResult:
    """What a training came to."""

    run_dir: Path
    """The run folder."""
    runs: tuple[RunResult, ...]
    """The last evaluation of every run, in the order of :attr:`.config.TrainConfig.runs`."""


def result_of(run_dir: AnyPath, config: TrainConfig) -> TrainResult:
    """The last evaluations that a run folder holds."""
    run_dir = as_path(run_dir)
    last = {(row["seed"], row["lambda"]): row for row in read_evaluations(run_dir)}
    names = [f.name for f in dataclasses.fields(RunResult) if f.name not in ("seed", "lam")]
    rows = [(seed, lam, last[seed, lam]) for seed, lam in config.runs if (seed, lam) in last]
    return TrainResult(run_dir, tuple(RunResult(s, lam, **{k: row[k] for k in names}) for s, lam, row in rows))


ProgressCallback = Callable[[Progress], None]


@in_ordinary_modes
def train(
    config: TrainConfig,
    run_dir: AnyPath,
    *,
    task: Task | None = None,
    progress: ProgressCallback | None = None,
    sinks: tuple[Callable[[int, list[dict[str, Any]]], None], ...] = (),
) -> TrainResult:
    """Train from the start into a new folder.

    Args:
        config: what to train.
        run_dir: folder to create, text or a path object; may exist if it is empty.
        task: the task object, whose options are recorded; made from the configuration if None.
        progress: called after every environment step.
        sinks: further consumers of every evaluation's rows (TensorBoard, say): ``sink(env_step, rows)``.

    Returns:
        the folder and every run's last evaluation.

    Raises:
        InputError: the configuration cannot be trained, the task object could not be made again from its options, or
            the folder is not empty or cannot be written.
        MissingExtra: the oracle's backend is not installed.
    """
    run_dir = as_path(run_dir)
    config, task = _settled(config, task)
    trainer = Trainer(config, task, check=True)  # before anything is written: most bad input shows here
    identity = identity_of(config, task)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if any(file for file in run_dir.iterdir() if file.suffix != ".tmp"):
            raise InputError(f"the run folder {run_dir} is not empty: give a new one, or --resume it")
    except OSError as error:
        raise InputError(f"cannot write to the run folder {run_dir}: {error.strerror}") from error
    with _held(run_dir):
        write_atomically(run_dir / "config.json", json.dumps(config.to_dict(), indent=2))
        _record_versions(trainer, run_dir)
        _Session(trainer, identity, run_dir, 0.0, 0.0, progress, sinks).run()
    return result_of(run_dir, config)


def _settled(config: TrainConfig, task: Task | None) -> tuple[TrainConfig, Task]:
    """The task of a new training, and the configuration with all that makes it again.

    Raises:
        InputError: the configuration names another task, or the object cannot be made again.
    """
    if task is None:
        task = config.make_task()
        return dataclasses.replace(config, task=absolute(config.task), task_options=options_of(task)), task
    reference, options = reference_of(type(task)), recorded_options(task, config.task_options)
    if absolute(config.task) not in (task.name, reference) and task_class(config.task) is not type(task):
        raise InputError(
            f"task= is {task!r} of class {reference}, and the configuration is of task {config.task}: make it with "
            "make_config(task, ...)"
        )
    return dataclasses.replace(config, task=reference, task_options=options), task


def _task_of_run(run_dir: Path, config: TrainConfig, task: Task | None) -> Task:
    """The task of a run folder, made anew, or the object that stands for it."""
    if task is None:
        try:
            return config.make_task()
        except InputError as error:
            advice = '. Put it back, or write its new path into "task" there; or, from Python, give the object as task='
            raise InputError(
                f"the task of {run_dir / 'config.json'} is not found: {error}{advice if _is_gone(config.task) else ''}"
            ) from error
    own = recorded_options(task, {})
    if own != config.task_options:
        raise InputError(
            f"{run_dir} was trained with task options {config.task_options or 'none'}, and task= was made with "
            f"{own or 'none'}: make it with the same"
        )
    return task


def _is_gone(reference: str) -> bool:
    """Whether the file of a task is no longer there."""
    file = reference.rpartition(":")[0]
    return file.endswith(".py") and not Path(file).is_file()


def identity_of(config: TrainConfig, task: Task) -> dict[str, Any]:
    """What a run is trained with, as plain values: what must be the same when it goes on."""
    return {
        "mage_diffsim": mage_diffsim.__version__,
        "config": config.to_dict(),
        "task": describe_task(task, config.task_options),
        "sources": sources_of(task),
    }


def require_unchanged(run_dir: Path, config: TrainConfig, task: Task, identity: dict[str, Any] | None) -> None:
    """Refuse to go on with what a run was not trained with.

    Args:
        run_dir: the run folder, for the message.
        config: the configuration now.
        task: the task now.
        identity: what :func:`identity_of` was for it; None for a run of an older version, which is let pass with a
            warning.

    Raises:
        InputError: names what has changed.
    """
    if identity is None:
        logging.getLogger(__name__).warning(
            f"{run_dir} was trained by an older version of mage_diffsim, which did not record with what: whether its "
            "configuration and its task are still the same is not known"
        )
        return
    changed = changes(identity, config, task)
    if changed:
        version = identity["mage_diffsim"]
        other = f" by mage_diffsim {version}" if version != mage_diffsim.__version__ else ""
        raise InputError(
            f"{run_dir} was trained{other} with {', '.join(changed)}: restore that to go on, or train anew into "
            "another folder"
        )


def changes(identity: dict[str, Any], config: TrainConfig, task: Task) -> list[str]:
    """In what a configuration and a task differ from those that a run was trained with: it was trained with ..."""
    was, now = ({k: v for k, v in c.items() if k not in HARMLESS} for c in (identity["config"], config.to_dict()))
    was = {k: v for k, v in now.items() if k not in was} | was  # a field that is newer than the run
    sources, sources_now = identity["sources"], sources_of(task)
    (file, _, name), (file_now, _, name_now) = (r.rpartition(":") for r in (was["task"], reference_of(type(task))))
    if file.endswith(".py") and file_now.endswith(".py") and name == name_now:
        before, after = Path(file).name, Path(file_now).name
        if before in sources and before not in sources_now:  # a file may be moved, and called otherwise
            sources = {after if part == before else part: digest for part, digest in sources.items()}
        if not changed_parts(sources, sources_now) and now["task"].rpartition(":")[2] == name:
            now["task"] = was["task"]
    parts = changed_parts(sources, sources_now)
    return differences(was, now) + [f"another {part} of task {task.name}" for part in parts]


def read_identity(run_dir: AnyPath) -> dict[str, Any] | None:
    """What a run is trained with, see :func:`identity_of`; None for a run of an older version.

    Raises:
        InputError: the file is damaged.
    """
    path = as_path(run_dir) / "identity.json"
    if not path.is_file():
        return None
    identity = _read_json(path)
    if not {"mage_diffsim", "config", "sources"} <= identity.keys():
        raise InputError(f"{path} is damaged (it lacks an entry): delete it to take the run as it is")
    return identity


def _read_json(path: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"{', '.join(sorted(twice))} stands twice in it")
        return dict(pairs)

    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=once)
        if not isinstance(data, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): it must be the JSON that `mage-diffsim train` wrote") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return data


@in_ordinary_modes
def resume(
    run_dir: AnyPath,
    *,
    steps: int | None = None,
    compile: str | None = None,
    graphs: str | None = None,
    task: Task | None = None,
    progress: ProgressCallback | None = None,
    sinks: tuple[Callable[[int, list[dict[str, Any]]], None], ...] = (),
) -> TrainResult:
    """Go on from the newest checkpoint, bit for bit on a CPU, to ``steps``, with ``compile`` and ``graphs`` (None: as
    configured).

    ``task`` is the task object, for a class that this process does not find by itself.

    Returns:
        the folder and every run's last evaluation.

    Raises:
        InputError: not a run folder, no or a damaged or newer checkpoint, fewer steps than are done, a configuration or
            task that is not what the run was trained with, or another process trains in it.
    """
    run_dir = as_path(run_dir)
    config = read_config(run_dir)
    if steps is not None:
        config = dataclasses.replace(config, steps=steps)
    if compile is not None:
        config = dataclasses.replace(config, compile=compile)
    if graphs is not None:
        config = dataclasses.replace(config, graphs=graphs)
    with _held(run_dir):
        path = newest_checkpoint(run_dir)
        if path is None:  # killed before the first checkpoint: nothing to go on from but the configuration
            config, task = _settled(config, task)
            trainer, saved = Trainer(config, task, check=True), {"train_s": 0.0, "wall_s": 0.0}
            _keep_rows(run_dir, -1)
        else:
            saved = load_checkpoint(path)
            done = saved["trainer"]["env_step"]
            if config.steps < done:
                raise InputError(f"{run_dir} is trained to {done} steps already; accepted is --steps {done} or more")
            task = _task_of_run(run_dir, config, task)
            require_unchanged(run_dir, config, task, saved.get("identity"))
            reference = reference_of(type(task))
            if _is_gone(config.task) and not _is_gone(reference):
                config = dataclasses.replace(config, task=reference)  # where its file is now
            trainer = Trainer(config, task, check=True)
            _restore(trainer, saved, path)
            _keep_rows(run_dir, done)
        write_atomically(run_dir / "config.json", json.dumps(config.to_dict(), indent=2))
        _record_versions(trainer, run_dir)
        identity = identity_of(config, task)
        _Session(trainer, identity, run_dir, saved["train_s"], saved["wall_s"], progress, sinks).run()
    return result_of(run_dir, config)


def _record_versions(trainer: Trainer, run_dir: Path) -> None:
    """Write versions.json; of what is another at a later sitting it holds both: ``off, then on``."""
    path, found = run_dir / "versions.json", versions() | trainer.used
    for name, before in read_versions(run_dir).items():
        now = found.get(name, before)
        found[name] = before if before.rpartition(", then ")[2] == now else f"{before}, then {now}"
    write_atomically(path, json.dumps(found, indent=2))


def read_versions(run_dir: Path) -> dict[str, str]:
    """What versions.json says a run was trained with; nothing where there is none.

    Raises:
        InputError: it is damaged.
    """
    path = run_dir / "versions.json"
    return {name: str(text) for name, text in _read_json(path).items()} if path.is_file() else {}


@contextlib.contextmanager
def locked(path: Path, busy: str, flags: int = os.O_RDONLY) -> Iterator[None]:
    """Hold a file or folder, opened with ``flags``, against other processes; the lock dies with this process. Where
    the file system has no such locks (some network ones), and off POSIX, nothing is held.

    Raises:
        InputError: another process holds it; its text is ``busy``.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(path, flags, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(busy) from error
        except OSError as error:  # NFS locks nothing that is opened to read, and some file systems nothing at all
            if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOTSUP):
                raise
        yield
    finally:
        os.close(descriptor)


def _held(run_dir: Path) -> contextlib.AbstractContextManager[None]:
    """A run folder against a second training; leaves no file."""
    return locked(run_dir, f"another process is training in {run_dir}: wait for it or end it")


SAME_SIGNAL_S = 1.0
"""Seconds within which a second signal is the first one again: schedulers send it to a process and to its group."""


@contextlib.contextmanager
def _stop_signal() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C (SIGINT) and SIGTERM wait until the step is done and saved; a second one acts as soon as Python sees
    it (signals within one native call, as compiling may be, count as one; SIGKILL always works).

    Yields whether one has come; on leaving, it has its ordinary effect. Handlers that somebody else has set stay, as
    does a signal that is ignored; outside the main thread Python allows none.
    """
    received: list[tuple[int, float]] = []

    def wait(signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not received:
            received.append((signum, now))
            logging.getLogger(__name__).warning("stopping: this step is done and saved first (again to stop at once)")
        elif now - received[0][1] > SAME_SIGNAL_S:
            restore()
            signal.raise_signal(signum)

    def restore() -> None:
        for signum, handler in ours.items():
            signal.signal(signum, handler)

    ours: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for signum, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            if signal.getsignal(signum) is default:
                ours[signum] = signal.signal(signum, wait)
    try:
        yield lambda: bool(received)
    finally:
        restore()
    if received:
        signal.raise_signal(received[0][0])


class _Session:
    """One sitting of a training: steps, evaluates, writes, checkpoints."""

    def __init__(
        self,
        trainer: Trainer,
        identity: dict[str, Any],
        run_dir: Path,
        train_s: float,
        wall_s: float,
        progress: ProgressCallback | None,
        sinks: tuple[Callable[[int, list[dict[str, Any]]], None], ...],
    ) -> None:
        self.trainer, self.run_dir, self.progress, self.sinks = trainer, run_dir, progress, sinks
        self.identity = identity
        self.train_s, self.wall_s = train_s, wall_s
        self.latest: dict[str, list[int | float | None]] = {}
        self.reported = trainer.agent.nonfinite.tolist()

    def run(self) -> None:
        write_atomically(self.run_dir / "identity.json", json.dumps(self.identity, indent=2))
        with _stop_signal() as stopped:
            self._train(stopped)
        self._export()

    def _train(self, stopped: Callable[[], bool]) -> None:
        trainer, config = self.trainer, self.trainer.config
        if trainer.env_step == 0:
            self._evaluate()
        while trainer.env_step < config.steps:
            began = time.perf_counter()
            trainer.step()
            elapsed = time.perf_counter() - began
            self.wall_s += elapsed
            if trainer.env_step > config.hyper.warmup_steps:
                self.train_s += elapsed
            if trainer.env_step % config.eval_every == 0 or trainer.env_step == config.steps:
                self._evaluate()
            stop = stopped()
            if trainer.env_step % config.checkpoint_every == 0 or trainer.env_step == config.steps or stop:
                self._checkpoint()
            if self.progress is not None:
                self.progress(self._progress())
            if stop:
                return

    def _progress(self) -> Progress:
        trainer = self.trainer
        return Progress(trainer.env_step, trainer.config.steps, self.wall_s, self._updates_per_s(), self.latest)

    def _updates_per_s(self) -> float:
        trained_steps = self.trainer.env_step - self.trainer.hyper.warmup_steps
        return max(trained_steps, 0) * self.trainer.config.updates_per_step / max(self.train_s, 1e-9)

    def _evaluate(self) -> None:
        trainer = self.trainer
        began = time.perf_counter()
        evaluation = _columns(trainer.evaluate())
        diagnosis = _columns(trainer.diagnose())
        self.wall_s += time.perf_counter() - began
        self.latest = evaluation
        self._report_nonfinite()
        runs = trainer.config.runs
        eval_rows: list[dict[str, Any]] = [
            {"env_step": trainer.env_step, "seed": seed, "lambda": lam} | {k: v[r] for k, v in evaluation.items()}
            for r, (seed, lam) in enumerate(runs)
        ]
        speed = {"wall_s": round(self.wall_s, 3), "updates_per_s": round(self._updates_per_s(), 2)}
        metric_rows: list[dict[str, Any]] = [
            {"env_step": trainer.env_step, "seed": seed, "lambda": lam}
            | speed
            | {k: v[r] for k, v in diagnosis.items()}
            for r, (seed, lam) in enumerate(runs)
        ]
        _append(self.run_dir / "eval.csv", EVAL_FIELDS, eval_rows)
        _append(self.run_dir / "metrics.csv", METRIC_FIELDS, metric_rows)
        for sink in self.sinks:
            sink(trainer.env_step, [a | b for a, b in zip(eval_rows, metric_rows, strict=True)])

    def _report_nonfinite(self) -> None:
        """Name task, backend and state of targets and derivatives that were masked since the last report."""
        trainer, config = self.trainer, self.trainer.config
        counts = trainer.agent.nonfinite.tolist()
        for run, (seed, lam) in enumerate(config.runs):
            if counts[run] > self.reported[run]:
                source = config.dynamics if config.dynamics == "learned" else f"{config.dynamics}, {config.backend}"
                state = [round(v, 6) for v in trainer.agent.nonfinite_state[run].tolist()]
                logging.getLogger(__name__).warning(
                    f"{config.task} ({source}), seed {seed}, lambda {lam}: {counts[run]} targets or derivatives that "
                    f"are not finite were masked so far, the last at state {state}"
                )
        self.reported = counts

    def _checkpoint(self) -> None:
        save_checkpoint(
            self.run_dir / "checkpoints" / f"step_{self.trainer.env_step:010d}.pt",
            {
                "trainer": self.trainer.state_dict(),
                "identity": self.identity,
                "train_s": self.train_s,
                "wall_s": self.wall_s,
            },
        )
        for old in _checkpoints(self.run_dir)[:-KEPT_CHECKPOINTS]:
            old.unlink()

    def _export(self) -> None:
        trainer = self.trainer
        content = policy_content(trainer.config, self.identity["task"], trainer.agent.state_dict(), trainer.env_step)
        write_policy(self.run_dir / POLICY_FILE, *content)


def is_run(run_dir: AnyPath) -> bool:
    """Whether the folder is a run folder."""
    return (as_path(run_dir) / "config.json").is_file()


def is_finished(run_dir: AnyPath) -> bool:
    """Whether the run in this folder has trained to the end and written every file."""
    run_dir = as_path(run_dir)
    if not is_run(run_dir) or not (run_dir / POLICY_FILE).is_file():
        return False
    newest = _checkpoints(run_dir)
    return bool(newest) and step_of(newest[-1]) >= read_config(run_dir).steps


def read_config(run_dir: AnyPath) -> TrainConfig:
    """The configuration of a run folder.

    Raises:
        InputError: it is not a run folder, or its config.json is damaged or of another version.
    """
    path = as_path(run_dir) / "config.json"
    if not path.is_file():
        raise InputError(f"{run_dir} is not a run folder: it has no config.json, as `mage-diffsim train` writes it")
    try:
        config = TrainConfig.from_dict(_read_json(path))
        validate(config)
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from error
    return config


def newest_checkpoint(run_dir: AnyPath) -> Path | None:
    """The checkpoint with the highest step, if there is one."""
    found = _checkpoints(as_path(run_dir))
    return found[-1] if found else None


def step_of(checkpoint: Path) -> int:
    """The environment steps done at a checkpoint, which its name says."""
    return int(checkpoint.stem.removeprefix("step_"))


def _checkpoints(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "checkpoints").glob("step_*.pt"))


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old one or the new one, never half of one.

    Raises:
        InputError: it cannot be written, as on a full disk; the old one is left.
    """
    with replacing(path, path.with_suffix(".tmp").name) as temporary:
        path.parent.mkdir(exist_ok=True)
        with open(temporary, "wb") as file:
            told = _Told(file)
            try:
                torch.save({"version": CHECKPOINT_VERSION} | content, told)  # type: ignore[arg-type]
            except RuntimeError as error:  # what torch makes of a full disk
                raise told.error or OSError(errno.EIO, str(error).splitlines()[0]) from error
            file.flush()
            os.fsync(file.fileno())


class _Told:
    """A file to write to which remembers what the system had against it: torch tells of its own trouble instead."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.flush = file, file.flush
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint (tensors and plain containers only, never code) onto the CPU.

    Raises:
        InputError: it is damaged, or written by an older or newer version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version = int(content["version"])
        if version == CHECKPOINT_VERSION:
            _ = content["train_s"] + content["wall_s"] + content["trainer"]["env_step"]  # what every reader uses
    except (
        OSError,
        RuntimeError,
        EOFError,
        LookupError,
        TypeError,
        ValueError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"checkpoint {path} is damaged ({reason[:100]}): delete it to resume from the one before"
        ) from error
    if version != CHECKPOINT_VERSION:
        older = "train the run anew, in a new folder, as the learner has changed since"
        raise InputError(
            f"checkpoint {path} has version {version}, and this mage_diffsim reads version {CHECKPOINT_VERSION}: "
            + (older if version < CHECKPOINT_VERSION else "update it")
        )
    return content


@in_ordinary_modes
def load_trainer(run_dir: AnyPath, *, task: Task | None = None, device: str | None = None) -> Trainer:
    """The trainer of a run as its newest checkpoint left it, for evaluation or inspection.

    It takes steps up to the run's ``steps``, so none after a finished run: :func:`resume` goes on with more.

    ``task`` is the task object, for a class that this process does not find by itself.

    Raises:
        InputError: not a run folder, no usable checkpoint, or a configuration or task that is not what the run was
            trained with.
    """
    run_dir = as_path(run_dir)
    config = read_config(run_dir)
    trained_on = config.device
    path = newest_checkpoint(run_dir)
    if path is None:
        raise InputError(f"{run_dir} has no checkpoint yet: train it further with --resume")
    saved = load_checkpoint(path)
    task = _task_of_run(run_dir, config, task)
    require_unchanged(run_dir, config, task, saved.get("identity"))
    # Nothing is trained with it, and what makes training fast may not be possible here.
    config = dataclasses.replace(config, device=device or trained_on, compile="off", graphs="off", matmul="highest")
    trainer = Trainer(dataclasses.replace(config, steps=max(config.steps, saved["trainer"]["env_step"])), task)
    if trainer.device.type != torch.device(trained_on).type:
        # The state of a CUDA generator means nothing to a CPU one, nor the other way round: keep fresh streams.
        fresh = trainer.state_dict()
        saved["trainer"]["streams"] = fresh["streams"]
        saved["trainer"]["env"]["generators"] = fresh["env"]["generators"]
    _restore(trainer, saved, path)
    return trainer


def _restore(trainer: Trainer, saved: dict[str, Any], path: Path) -> None:
    try:
        trainer.load_state_dict(saved["trainer"])
    except (RuntimeError, KeyError, TypeError, AttributeError, InputError) as error:
        reason = str(error).splitlines()[0][:100]
        raise InputError(
            f"checkpoint {path} does not fit the config.json beside it ({reason}): restore the one it was trained with"
        ) from error


def read_evaluations(run_dir: AnyPath) -> list[dict[str, Any]]:
    """Rows of eval.csv; numbers as float, seed and env_step as int, empty cells as None."""
    return _read(as_path(run_dir) / "eval.csv", EVAL_FIELDS)


def read_metrics(run_dir: AnyPath) -> list[dict[str, Any]]:
    """Rows of metrics.csv; numbers as float, seed and env_step as int, empty cells as None."""
    return _read(as_path(run_dir) / "metrics.csv", METRIC_FIELDS)


def make_folder(path: Path) -> None:
    """Create a folder with its parents, if it is not there.

    Raises:
        InputError: it cannot be created.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file in one go; to a device, a pipe or what the process has open, such as /dev/stdout, append.

    Raises:
        InputError: it cannot be written.
    """
    with replacing(path) as temporary, open(temporary, "w" if is_replaceable(path) else "a", encoding="utf-8") as file:
        file.write(text)


def _columns(metrics: dict[str, torch.Tensor]) -> dict[str, list[int | float | None]]:
    """CSV columns of metrics with shape [R]: the one place where they travel to the host.

    A measure of gradients that does not exist is None, an empty cell; a loss that is NaN is a broken loss, and stays.
    """

    def numbers(name: str, value: torch.Tensor) -> list[int | float | None]:
        given = value.tolist()
        return [None if math.isnan(x) else x for x in given] if name.startswith("gradient/") else given

    return {name.replace("/", "_"): numbers(name, value) for name, value in metrics.items()}


def _append(path: Path, fields: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    with writing(path):
        new = not path.exists() or not path.stat().st_size
        if not new:  # an earlier version may have begun the file with other columns
            with open(path, newline="", encoding="utf-8") as file:
                fields = tuple(next(csv.reader(file)))
        with open(path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fields, restval="", extrasaction="ignore", lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(rows)


WHOLE = ("env_step", "seed")
"""Columns of whole numbers."""


def _read(path: Path, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    header, rows = _table(path)
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    return [{name: _parse(name, row.get(name, "")) for name in fields} for row in cells]


def _parse(name: str, text: str) -> int | float | None:
    if text == "":
        return None
    return int(text) if name in WHOLE else float(text)


def _table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table, as this module writes them, whatever a spreadsheet made of them: another separator,
    decimal commas, whole numbers with a decimal point, a byte-order mark, quotes, other ends of lines.

    A last line that is still being written, or never was because the process was killed, is left out.

    Raises:
        InputError: something cannot be read for certain; names file, line and cause.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}): save it as CSV in UTF-8") from error
    first = text.split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    complete = text.endswith(("\n", "\r"))
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise InputError(f"{path} is no table ({error}): restore the one that the training wrote") from error
    lines = [(number, row) for number, row in lines if any(row)]
    if not lines or (len(lines) == 1 and not complete):
        return [], []
    (_, header), *lines = lines
    for name in ("env_step", "seed", "lambda"):
        if header.count(name) != 1:
            raise InputError(
                f"{path}, line 1: the column {name} is there {header.count(name)} times, and once is accepted; the "
                f"columns are: {', '.join(header)[:200]}"
            )
    rows = []
    for number, row in lines:
        row += [""] * (len(header) - len(row)) if complete or number != lines[-1][0] else []
        while len(row) > len(header) and not row[-1]:
            row.pop()
        if len(row) < len(header):
            continue  # the half of a line
        if len(row) > len(header):
            raise InputError(f"{path}, line {number}: {len(row)} cells, and the header has {len(header)}")
        rows.append([_number(path, number, *cell, separator) for cell in zip(header, row, strict=True)])
    return header, rows


def _number(path: Path, line: int, column: str, text: str, separator: str) -> str:
    """The text of a number as Python writes it, the same if it is that already."""
    given = text
    if column not in EVAL_FIELDS + METRIC_FIELDS:
        return text
    if separator != "," and text.count(",") == 1 and "." not in text:
        text = text.replace(",", ".")
    try:
        if column not in WHOLE:
            _ = text and float(text)
        elif not re.fullmatch(r"-?\d+", text):
            if not text or not float(text).is_integer():
                raise ValueError
            text = str(int(float(text)))
    except (ValueError, OverflowError):
        what = "a whole number" if column in WHOLE else "a number"
        raise InputError(f"{path}, line {line}: {column} is {given!r}; accepted is {what}") from None
    return text


def _keep_rows(run_dir: Path, last_step: int) -> None:
    """Drop what was written after the checkpoint: it is about to happen again. Tables that are gone begin anew."""
    paths = [run_dir / name for name in ("eval.csv", "metrics.csv")]
    gone = [path.name for path in paths if not path.is_file()]
    if gone and last_step >= 0:
        logging.getLogger(__name__).warning(
            f"{run_dir} lacks {' and '.join(gone)}: begun anew, without the rows up to step {last_step}"
        )
    for path in paths:
        if path.name in gone:
            continue
        header, rows = _table(path)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if header:
            step = header.index("env_step")
            writer.writerows([header, *(row for row in rows if int(row[step]) <= last_step)])
        write_atomically(path, text.getvalue())
