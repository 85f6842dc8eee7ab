"""Training into a run folder: from the start or from its newest checkpoint, until done or told to stop."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mage_diffsim.checkpoints import load_checkpoint, save_checkpoint
from mage_diffsim.config import CudaGraphs, Matmul, OnOff, TrainConfig
from mage_diffsim.device_memory import says_how_many_runs_fit
from mage_diffsim.devices import wait_for
from mage_diffsim.envs.definition import require_task
from mage_diffsim.envs.identity.options import options_of
from mage_diffsim.envs.identity.reference import absolute, reference_of
from mage_diffsim.envs.registry import task_class
from mage_diffsim.envs.task import Task
from mage_diffsim.errors import InputError
from mage_diffsim.files import AnyPath, as_path, make_folder, write_atomically
from mage_diffsim.locks import locked
from mage_diffsim.modes import in_ordinary_modes
from mage_diffsim.policy import POLICY_FILE, policy_content, write_policy
from mage_diffsim.run_folder import (
    TrainResult,
    checkpoint_to_resume,
    is_gone,
    read_config,
    record_versions,
    restore,
    result_of,
    task_of_run,
)
from mage_diffsim.run_identity import identity_of, require_unchanged, with_environment
from mage_diffsim.settings import recorded_options
from mage_diffsim.signals import stop_signal
from mage_diffsim.tables import EVAL_FIELDS, METRIC_FIELDS, append_rows, columns_of, keep_rows
from mage_diffsim.training import Trainer
from mage_diffsim.validation import require_minutes, validate


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
    saved: bool = False
    """Whether a signal or ``stop_after`` ends the training here, its state saved."""


CHANGEABLE = ("steps", "device", "compile", "graphs", "matmul")
"""Fields of a configuration that may be given anew when a run goes on."""

ProgressCallback = Callable[[Progress], None]
Sink = Callable[[int, list[dict[str, Any]]], None]
"""What takes every evaluation: ``sink(env_step, rows)``, one row per run."""


@says_how_many_runs_fit(lambda config, *_, task=None, **__: (config, task))
@in_ordinary_modes
def train(
    config: TrainConfig,
    run_dir: AnyPath,
    *,
    task: Task | None = None,
    progress: ProgressCallback | None = None,
    sinks: Sequence[Sink] = (),
    stop_after: int | float | None = None,
) -> TrainResult:
    """Train from the start into a new folder.

    Args:
        config: what to train.
        run_dir: folder to create, text or a path object; may exist if it is empty.
        task: the task object, whose options are recorded; made from the configuration if None.
        progress: called after every environment step.
        sinks: further consumers of every evaluation's rows (TensorBoard, say): ``sink(env_step, rows)``.
        stop_after: minutes after which the training is saved and ends, once the environment step under way is done;
            :func:`resume` goes on. None is no limit.

    Returns:
        the folder, every run's last evaluation, and whether all steps are done.

    Raises:
        InputError: the configuration cannot be trained, the task object could not be made again from its options, the
            folder is not empty or cannot be written, or the runs do not fit into the GPU's memory.
        MissingExtra: the oracle's backend is not installed.
    """
    until = _end_of(stop_after)
    run_dir = as_path(run_dir)
    config, task = settled(config, task)
    trainer = Trainer(config, task, check=True)  # before anything is written: most bad input shows here
    identity = identity_of(config, task)
    make_folder(run_dir)
    try:
        if any(file for file in run_dir.iterdir() if file.suffix != ".tmp"):
            raise InputError(f"the run folder {run_dir} is not empty: give a new one, or --resume it")
    except OSError as error:
        raise InputError(f"cannot read the run folder {run_dir}: {error.strerror}") from error
    with _held(run_dir):
        write_atomically(run_dir / "config.json", json.dumps(config.to_dict(), indent=2))
        record_versions(trainer, run_dir)
        Session(trainer, identity, run_dir, 0.0, 0.0, progress, sinks, until).run()
    return result_of(run_dir, config)


def resumed_config(run_dir: AnyPath, **given: Any) -> TrainConfig:
    """The configuration with which a run goes on: its own, with what is given of :data:`CHANGEABLE` and not None."""
    changed = {name: given[name] for name in CHANGEABLE if given.get(name) is not None}
    return dataclasses.replace(read_config(run_dir), **changed)


@says_how_many_runs_fit(lambda run_dir, *, task=None, **given: (resumed_config(run_dir, **given), task))
@in_ordinary_modes
def resume(
    run_dir: AnyPath,
    *,
    steps: int | None = None,
    device: str | None = None,
    compile: OnOff | None = None,
    graphs: CudaGraphs | None = None,
    matmul: Matmul | None = None,
    task: Task | None = None,
    progress: ProgressCallback | None = None,
    sinks: Sequence[Sink] = (),
    stop_after: int | float | None = None,
) -> TrainResult:
    """Go on from the newest checkpoint, bit for bit on a CPU, to ``steps`` or until ``stop_after`` minutes have passed.

    ``device``, ``compile``, ``graphs`` and ``matmul`` are as configured where they are None. On another kind of device
    or another card the training goes on with other rounding, which is logged.

    ``task`` is the task object, for a class that this process does not find by itself.

    Returns:
        the folder, every run's last evaluation, and whether all steps are done.

    Raises:
        InputError: not a run folder, a damaged, newer or lost checkpoint, fewer steps than are done, a configuration or
            task that is not what the run was trained with, another process trains in it, or the runs do not fit into
            the GPU's memory.
    """
    until = _end_of(stop_after)
    run_dir = as_path(run_dir)
    config = resumed_config(run_dir, steps=steps, device=device, compile=compile, graphs=graphs, matmul=matmul)
    with _held(run_dir):
        path = checkpoint_to_resume(run_dir)
        if path is None:  # killed before the first checkpoint: nothing to go on from but the configuration
            config, task = settled(config, task)
            trainer, saved = Trainer(config, task, check=True), {"train_s": 0.0, "wall_s": 0.0}
            keep_rows(run_dir, -1)
        else:
            saved = load_checkpoint(path)
            done = saved["trainer"]["env_step"]
            if config.steps < done:
                raise InputError(f"{run_dir} is trained to {done} steps already; accepted is --steps {done} or more")
            task = task_of_run(run_dir, config, task)
            require_unchanged(run_dir, config, task, saved.get("identity"))
            reference = reference_of(type(task))
            if is_gone(config.task) and not is_gone(reference):
                config = dataclasses.replace(config, task=reference)  # where its file is now
            trainer = Trainer(config, task, check=True)
            restore(trainer, saved, path)
            _tell_other_device(run_dir, saved["used"], trainer)
            keep_rows(run_dir, done)
        write_atomically(run_dir / "config.json", json.dumps(config.to_dict(), indent=2))
        record_versions(trainer, run_dir)
        identity = identity_of(config, task)
        Session(trainer, identity, run_dir, saved["train_s"], saved["wall_s"], progress, sinks, until).run()
    return result_of(run_dir, config)


def settled(config: TrainConfig, task: Task | None) -> tuple[TrainConfig, Task]:
    """The task of a new training, and the configuration with all that makes it again.

    Raises:
        InputError: the configuration names another task or cannot be trained, or the object cannot be made again.
    """
    validate(config)
    if task is None:
        task = config.make_task()
        config = dataclasses.replace(config, task=absolute(config.task), task_options=options_of(task))
        return with_environment(config, task), task
    require_task(task)
    reference, options = reference_of(type(task)), recorded_options(task, config.task_options)
    if absolute(config.task) not in (task.name, reference) and task_class(config.task) is not type(task):
        raise InputError(
            f"task= is {task!r} of class {reference}, and the configuration is of task {config.task}: make it with "
            "make_config(task, ...)"
        )
    return with_environment(dataclasses.replace(config, task=reference, task_options=options), task), task


def _held(run_dir: Path) -> contextlib.AbstractContextManager[None]:
    """Lock the run folder against a second training; leaves no file."""
    return locked(run_dir, f"another process is training in {run_dir}: wait for it or end it")


def _end_of(stop_after: int | float | None) -> float | None:
    """When a training that begins now is to end, in seconds of the monotonic clock.

    Raises:
        InputError: ``stop_after`` is no number of minutes.
    """
    require_minutes(stop_after)
    return None if stop_after is None else time.monotonic() + 60.0 * stop_after


def _tell_other_device(run_dir: Path, before: dict[str, str], trainer: Trainer) -> None:
    """Log that a run goes on where rounding is another: on another kind of device, or another card."""
    was, now = before["device"], trainer.used["device"]

    def hardware(text: str) -> tuple[str, str]:
        name, _, card = text.partition(", ")
        return name.partition(":")[0], card

    if hardware(was) != hardware(now):
        logging.getLogger(__name__).warning(
            f"{run_dir} was trained on {was} until step {trainer.env_step} and goes on on {now}: numbers differ in "
            "rounding"
        )


class Session:
    """Trains until done or told to stop: steps, evaluations, tables, checkpoints."""

    def __init__(
        self,
        trainer: Trainer,
        identity: dict[str, Any],
        run_dir: Path,
        train_s: float,
        wall_s: float,
        progress: ProgressCallback | None,
        sinks: Sequence[Sink],
        until: float | None,
    ) -> None:
        self.trainer, self.run_dir, self.progress, self.sinks = trainer, run_dir, progress, sinks
        self.identity, self.until = identity, until
        self.train_s, self.wall_s = train_s, wall_s
        self.latest: dict[str, list[int | float | None]] = {}
        self.reported = trainer.agent.nonfinite.tolist()

    def run(self) -> None:
        write_atomically(self.run_dir / "identity.json", json.dumps(self.identity, indent=2))
        with stop_signal() as stopped:
            self._train(stopped)
        if self.trainer.env_step == self.trainer.config.steps:
            self._export()

    def _train(self, stopped: Callable[[], bool]) -> None:
        trainer, config = self.trainer, self.trainer.config
        if trainer.env_step == 0:
            self._evaluate()
        while trainer.env_step < config.steps:
            began = time.perf_counter()
            trainer.step()
            last = trainer.env_step == config.steps
            evaluates = trainer.env_step % config.eval_every == 0 or last
            saves = trainer.env_step % config.checkpoint_every == 0 or last
            if evaluates or saves:  # what a GPU has not done yet is not their time
                wait_for(trainer.device)
            elapsed = time.perf_counter() - began
            self.wall_s += elapsed
            if trainer.env_step > config.hyper.warmup_steps:
                self.train_s += elapsed
            if evaluates:
                self._evaluate()
            late = self.until is not None and time.monotonic() >= self.until
            stop = stopped() or (late and not last)
            if saves or stop:
                self._checkpoint()
            if self.progress is not None:
                self.progress(self._progress(saved=stop))
            if stop:
                return

    def _progress(self, saved: bool) -> Progress:
        trainer = self.trainer
        return Progress(trainer.env_step, trainer.config.steps, self.wall_s, self._updates_per_s(), self.latest, saved)

    def _updates_per_s(self) -> float:
        trained_steps = self.trainer.env_step - self.trainer.hyper.warmup_steps
        return max(trained_steps, 0) * self.trainer.config.updates_per_step / max(self.train_s, 1e-9)

    def _evaluate(self) -> None:
        trainer = self.trainer
        began = time.perf_counter()
        evaluation = columns_of(trainer.evaluate())
        diagnosis = columns_of(trainer.diagnose())
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
        append_rows(self.run_dir / "eval.csv", EVAL_FIELDS, eval_rows)
        append_rows(self.run_dir / "metrics.csv", METRIC_FIELDS, metric_rows)
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
            self.run_dir / "checkpoints" / f"step_{self.trainer.env_step:010d}.json",
            {
                "trainer": self.trainer.state_dict(),
                "identity": self.identity,
                "used": self.trainer.used,
                "train_s": self.train_s,
                "wall_s": self.wall_s,
            },
        )

    def _export(self) -> None:
        trainer = self.trainer
        content = policy_content(trainer.config, self.identity["task"], trainer.agent.state_dict(), trainer.env_step)
        write_policy(self.run_dir / POLICY_FILE, *content)
