"""Run folders: what a training leaves on disk, and how it goes on after being killed.

run_dir/
  config.json        the whole TrainConfig
  identity.json      what it is trained with: the configuration, and digests of the task's source
  versions.json      packages, commit, devices, and what compile, graphs and other such settings came to
  eval.csv           one row per evaluation and run
  metrics.csv        one row per evaluation and run: losses, gradient sizes, speed
  checkpoints/       the newest two, see :mod:`.checkpoints`
  policy.safetensors the trained actors, written at the end
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mage_diffsim.checkpoints import checkpoints_of, load_checkpoint, newest_checkpoint, step_of
from mage_diffsim.config import TrainConfig
from mage_diffsim.doctor import versions
from mage_diffsim.envs.task import Task
from mage_diffsim.errors import InputError, reason_of
from mage_diffsim.files import AnyPath, as_path, read_json, write_atomically
from mage_diffsim.modes import in_ordinary_modes
from mage_diffsim.policy import POLICY_FILE
from mage_diffsim.run_identity import require_unchanged
from mage_diffsim.settings import recorded_options
from mage_diffsim.tables import last_step, read_evaluations
from mage_diffsim.training import Trainer
from mage_diffsim.validation import validate


@dataclass(frozen=True)
class RunResult:
    """The last evaluation of one run; see :data:`.tables.EVAL_FIELDS`, and ``mage-diffsim eval`` for more episodes."""

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
    finished: bool
    """Whether all steps are done; False where ``stop_after`` ended it before."""


def result_of(run_dir: AnyPath, config: TrainConfig) -> TrainResult:
    """The last evaluations that a run folder holds."""
    run_dir = as_path(run_dir)
    last = {(row["seed"], row["lambda"]): row for row in read_evaluations(run_dir)}
    names = [f.name for f in dataclasses.fields(RunResult) if f.name not in ("seed", "lam")]
    rows = [(seed, lam, last[seed, lam]) for seed, lam in config.runs if (seed, lam) in last]
    runs = tuple(RunResult(s, lam, **{k: row[k] for k in names}) for s, lam, row in rows)
    return TrainResult(run_dir, runs, is_finished(run_dir))


def is_run(run_dir: AnyPath) -> bool:
    """Whether the folder is a run folder."""
    return (as_path(run_dir) / "config.json").is_file()


def is_finished(run_dir: AnyPath) -> bool:
    """Whether the run in this folder has trained to the end and written every file."""
    run_dir = as_path(run_dir)
    if not is_run(run_dir) or not (run_dir / POLICY_FILE).is_file():
        return False
    newest = checkpoints_of(run_dir)
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
        config = TrainConfig.from_dict(read_json(path))
        validate(config)
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from error
    return config


def checkpoint_to_resume(run_dir: Path) -> Path | None:
    """The newest checkpoint; None for a run that ended before its first one and starts over.

    Raises:
        InputError: there is none although there was one, so starting over would replace a policy or evaluations.
    """
    path = newest_checkpoint(run_dir)
    held = [] if path else _results(run_dir)
    if held:
        raise InputError(
            f"{run_dir} has no checkpoint to go on from, and starting over would replace {' and '.join(held)}: restore "
            "the checkpoints, or train anew into another folder"
        )
    return path


def _results(run_dir: Path) -> list[str]:
    """What a run folder holds of steps after its first checkpoint, in words."""
    step = last_step(run_dir)
    rows = [f"its tables up to step {step}"] if step > read_config(run_dir).checkpoint_every else []
    return rows + [POLICY_FILE] * (run_dir / POLICY_FILE).is_file()


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
    if path is None and (run_dir / POLICY_FILE).is_file():
        raise InputError(f"the checkpoints of {run_dir} are gone: restore them; load_policy reads its {POLICY_FILE}")
    if path is None:
        cure = "restore it, or train anew" if _results(run_dir) else "train it further with --resume"
        raise InputError(f"{run_dir} has no checkpoint: {cure}")
    saved = load_checkpoint(path)
    task = task_of_run(run_dir, config, task)
    require_unchanged(run_dir, config, task, saved.get("identity"))
    # Nothing is trained with it, and what makes training fast may not be possible here.
    config = dataclasses.replace(config, device=device or trained_on, compile="off", graphs="off", matmul="highest")
    trainer = Trainer(dataclasses.replace(config, steps=max(config.steps, saved["trainer"]["env_step"])), task)
    restore(trainer, saved, path)
    return trainer


def restore(trainer: Trainer, saved: dict[str, Any], path: Path) -> None:
    """Set a trainer to a checkpoint's state.

    Args:
        trainer: of the same configuration and task.
        saved: what :func:`.load_checkpoint` gave.
        path: the checkpoint, for the message.

    Raises:
        InputError: the trainer is not of that configuration.
    """
    try:
        trainer.load_state_dict(saved["trainer"])
    except (RuntimeError, KeyError, TypeError, AttributeError, InputError) as error:
        raise InputError(
            f"checkpoint {path} does not fit the config.json beside it ({reason_of(error)}): "
            "restore the one it was trained with"
        ) from error


def task_of_run(run_dir: Path, config: TrainConfig, task: Task | None) -> Task:
    """The task of a run folder, made anew, or the object that stands for it.

    Raises:
        InputError: it is not found, or the object was made with other options.
    """
    if task is None:
        try:
            return config.make_task()
        except InputError as error:
            advice = '. Put it back, or write its new path into "task" there; or, from Python, give the object as task='
            raise InputError(
                f"the task of {run_dir / 'config.json'} is not found: {error}{advice if is_gone(config.task) else ''}"
            ) from error
    own = recorded_options(task, {})
    if own != config.task_options:
        raise InputError(
            f"{run_dir} was trained with task options {config.task_options or 'none'}, and task= was made with "
            f"{own or 'none'}: make it with the same"
        )
    return task


def is_gone(reference: str) -> bool:
    """Whether the file of a task is no longer there."""
    file = reference.rpartition(":")[0]
    return file.endswith(".py") and not Path(file).is_file()


def record_versions(trainer: Trainer, run_dir: Path) -> None:
    """Write versions.json; an entry that changes when the run goes on holds both: ``off, then on``."""
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
    return {name: str(text) for name, text in read_json(path).items()} if path.is_file() else {}
