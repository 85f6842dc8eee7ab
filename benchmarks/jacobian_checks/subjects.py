"""The tasks and the sources of derivatives to measure."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from jacobian_checks.options import DTYPES, QUICK, QUICK_LEARNED, Options
from jacobian_checks.points import Points, blocks_of, gather_points
from mage_diffsim.devices import torch_device
from mage_diffsim.envs.differences import TrueJacobian, true_jacobians
from mage_diffsim.envs.physics import BACKENDS, Physics, backends_of, load, make_physics, step_of
from mage_diffsim.envs.registry import make_task
from mage_diffsim.envs.sampling import Policy
from mage_diffsim.envs.task import Task
from mage_diffsim.errors import InputError, MissingExtra, unknown_name
from mage_diffsim.run_folder import load_trainer


@dataclass(frozen=True)
class Source:
    """A physics with a derivative source in a dtype, or the learned ensemble after some transitions."""

    task: str
    backend: str
    derivative: str = ""
    dtype: str = "float32"
    device: str = "cpu"
    transitions: int | None = None

    @property
    def name(self) -> str:
        """Name of its file and of its line of progress."""
        device = "" if self.device == "cpu" else self.device.replace(":", "")
        parts = (self.task, self.backend, self.derivative, self.dtype, device, str(self.transitions or ""))
        return "_".join(part for part in parts if part)

    def make(self, task: Task) -> Physics:
        """Makes the physics.

        Raises:
            InputError, MissingExtra: the backend refuses the task, the dtype or the device.
        """
        dtype, device = DTYPES[self.dtype], torch_device(self.device)
        return make_physics(task, self.backend, dtype=dtype, device=device, derivative=self.derivative)


def source_name(row: Mapping[str, Any]) -> str:
    """The source of a row of results, for tables."""
    device = "" if row["device"] == "cpu" else f" {row['device']}"
    return f"{row['backend']}/{row['derivative']} {row['dtype']}{device}"


@dataclass
class Subject:
    """A task with its points and the truth there, computed when first needed."""

    reference: str
    """Its name in ``--tasks``."""
    options: Options
    sources: list[Source] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.task = make_task(self.reference)
        self.blocks = blocks_of(self.task)

    @cached_property
    def truth_physics(self) -> Physics:
        """Physics of the truth: the task's first backend in float64."""
        return make_physics(self.task, backends_of(self.task)[0], dtype=torch.float64)

    @cached_property
    def points(self) -> Points:
        """States with their actions."""
        settings = self.options.settings
        n, seed, rollouts = settings["states"], settings["seed"], self.options.rollouts
        return gather_points(self.truth_physics, n, seed=seed, rollouts=rollouts, policy=self._policy())

    def _policy(self) -> Policy | None:
        if self.options.policy is None:
            return None
        trainer = load_trainer(self.options.policy, device="cpu")
        if trainer.task.name != self.task.name:
            return None

        def policy(obs: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return trainer.agent.policy(obs.to(trainer.dtype).expand(len(trainer.config.runs), -1, -1))[0]

        return policy

    @cached_property
    def truth(self) -> dict[str, TrueJacobian]:
        """d next_state / d block, by block."""
        return true_jacobians(step_of(self.truth_physics), self.points.x, self.blocks)

    @cached_property
    def observed_truth(self) -> TrueJacobian:
        """d next_obs / d action."""
        step = step_of(self.truth_physics, observed=True)
        return true_jacobians(step, self.points.x, {"action": self.blocks["action"]})["action"]


def subjects_of(options: Options) -> list[Subject]:
    """The tasks with their sources.

    Raises:
        InputError: an unknown task; a derivative source that no chosen backend has; or a policy of none of the tasks.
    """
    options.check()
    offered: set[str] = set()
    subjects = []
    for name in options.references:
        subject = Subject(name, options)
        of_task = QUICK.get(name) if options.quick else None
        for backend in options.backends or of_task or backends_of(subject.task):
            try:
                sources = load(BACKENDS[backend]).derivatives_of(subject.task)
            except MissingExtra:
                sources = ("default",)  # its measurement says what is missing
            offered.update(sources)
            chosen = [s for s in sources if s in options.derivatives] if options.derivatives else sources
            first_only = (options.quick or options.soak is not None) and not options.derivatives
            for derivative in chosen[:1] if first_only else chosen:
                for dtype in options.dtypes or (("float64",) if options.quick else tuple(DTYPES)):
                    subject.sources.append(Source(subject.task.name, backend, derivative, dtype, options.device))
        if options.learned and not (options.quick and name not in QUICK_LEARNED and options.transitions is None):
            for count in sorted(options.transitions or ((1000,) if options.quick else (1000, 5000))):
                subject.sources.append(Source(subject.task.name, "learned", device=options.device, transitions=count))
        subjects.append(subject)
    for derivative in options.derivatives or ():
        if derivative not in offered:
            raise unknown_name("derivative source", derivative, offered)
    if options.policy is not None:
        trained_on = load_trainer(options.policy, device="cpu").task.name
        if trained_on not in (s.task.name for s in subjects):
            raise InputError(f"--policy {options.policy} was trained on {trained_on}, which is not among the tasks")
    return subjects


def forget_models() -> None:
    """Frees what MJX has compiled for a finished task."""
    if "mage_diffsim.envs.mjx" in sys.modules:
        load("mage_diffsim.envs.mjx:forget_compilations")()
