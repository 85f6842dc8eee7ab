"""A task's functions as a training uses them: which derivatives it needs, and what is wrong with them."""

from __future__ import annotations

import functools

from mage_diffsim.config import TrainConfig
from mage_diffsim.envs.physics import Physics, backends_of
from mage_diffsim.envs.spot_check import Cut, Transitions, draw_transitions, find_cuts, refuse, require_values
from mage_diffsim.envs.task import Task
from mage_diffsim.methods import GRADIENT_FREE, METHODS


def gradient_backend(config: TrainConfig, task: Task) -> str | None:
    """The backend that imagined gradients come from; None if they come from the ensemble, or none are used."""
    gradients = METHODS[config.method].imagines and config.critic_loss not in GRADIENT_FREE
    if not gradients or config.dynamics not in ("oracle", "hybrid-oracle-gradients"):
        return None
    return config.backend or backends_of(task)[0]


def needed_derivatives(config: TrainConfig, task: Task) -> set[tuple[str, str]]:
    """(function, input) of the derivatives that the critic's loss is made of."""
    needed: set[tuple[str, str]] = set()
    if not METHODS[config.method].imagines or config.critic_loss in GRADIENT_FREE:
        return needed
    backend, start = gradient_backend(config, task), config.critic_loss == "sobolev"
    if config.reward == "task":
        needed |= {("reward", "action"), ("reward", "next_obs")} | ({("reward", "obs")} if start else set())
    if backend is not None:
        needed |= {("observe", "state"), ("step", "action")} | ({("step", "state")} if start else set())
    if backend != "torch":
        needed -= {("step", "action"), ("step", "state")}
    return needed


class TaskFunctions:
    """Looks at a task's functions on a few transitions, which are drawn when they are first needed."""

    def __init__(self, config: TrainConfig, task: Task, physics: Physics, truth_physics: Physics) -> None:
        self.config, self.task, self.physics, self.truth_physics = config, task, physics, truth_physics

    def check(self) -> None:
        """Check their values, and the derivatives that the training needs.

        Raises:
            InputError: one of them cannot be trained on.
        """
        require_values(self.task, self._transitions, self.physics)
        needed = needed_derivatives(self.config, self.task)
        for cut in self._cuts if needed else ():
            if (cut.function, cut.wrt) in needed:
                raise refuse(self.task, cut)

    def unmeasurable(self) -> str | None:
        """Why the true action-gradients cannot be taken, if they cannot."""
        torch_step = self.truth_physics.backend == "torch"
        return next((f"{c.function}() {c.detail}" for c in self._cuts if c.function != "step" or torch_step), None)

    @functools.cached_property
    def _transitions(self) -> Transitions:
        return draw_transitions(self.task, self.physics, len(self.config.runs))

    @functools.cached_property
    def _cuts(self) -> tuple[Cut, ...]:
        """Derivatives of the task's functions that autograd does not give."""
        torch_step = "torch" in (self.truth_physics.backend, gradient_backend(self.config, self.task))
        return find_cuts(self.task, self._transitions, step=torch_step)
