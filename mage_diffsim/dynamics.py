"""What the learner imagines with: a learned ensemble, an oracle simulator, or a hybrid of both."""

from __future__ import annotations

import abc
from typing import NamedTuple

import torch

from mage_diffsim.envs.physics import Physics
from mage_diffsim.models import GaussianEnsemble
from mage_diffsim.shapes import Float, Tensor


class Imagined(NamedTuple):
    """Where imagination stands: what the critic sees, and the simulator's state if there is a simulator."""

    obs: Float[Tensor, "R B O"]
    state: Float[Tensor, "R B S"] | None


class Dynamics(abc.ABC):
    """One step of imagination, differentiable with respect to the action and to where it starts."""

    reads_state: bool
    """Whether its Jacobian with respect to the start is taken at the simulator's state (else at the observation)."""
    traceable: bool = False
    """Whether it is torch code throughout, which can be compiled together with the update."""
    capturable: bool = False
    """Whether a CUDA graph can hold it: it runs on torch's stream and never waits for the device."""

    @abc.abstractmethod
    def step(
        self, at: Imagined, action: Float[Tensor, "R B A"], noise: Float[Tensor, "R B O"] | None = None
    ) -> Imagined:
        """The next observation and state.

        Args:
            at: current observation [R, B, O] and, for a simulator, state [R, B, S].
            action: actions in [-1, 1], shape [R, B, A].
            noise: standard normal numbers for stochastic dynamics, shape [R, B, O]; None takes the mean.
        """


class LearnedDynamics(Dynamics):
    """The ensemble: reads the observation, returns no state."""

    reads_state = False
    traceable = capturable = True

    def __init__(self, ensemble: GaussianEnsemble) -> None:
        self.ensemble = ensemble

    def step(self, at: Imagined, action: Tensor, noise: Tensor | None = None) -> Imagined:
        return Imagined(self.ensemble.step(at.obs, action, noise), None)


class OracleDynamics(Dynamics):
    """A simulator: reads the state; the observation follows from it."""

    reads_state = True

    def __init__(self, physics: Physics) -> None:
        self.physics, self.task = physics, physics.task
        self.traceable, self.capturable = physics.backend == "torch", physics.capturable

    def step(self, at: Imagined, action: Tensor, noise: Tensor | None = None) -> Imagined:
        if at.state is None:
            raise ValueError("the oracle dynamics read the simulator's state, and none was given")
        runs, rows = action.shape[:2]
        next_state = self.physics.step(at.state.flatten(0, 1), action.flatten(0, 1)).unflatten(0, (runs, rows))
        return Imagined(self.task.observe(next_state), next_state)


class HybridDynamics(Dynamics):
    """Values of one dynamics, Jacobians of another: ``next = values.detach() + jacobians - jacobians.detach()``.

    Tells apart what a model's values and what its gradients do to the learner.
    """

    def __init__(self, values: Dynamics, jacobians: Dynamics) -> None:
        self.values, self.jacobians = values, jacobians
        self.reads_state = jacobians.reads_state
        self.traceable = values.traceable and jacobians.traceable
        self.capturable = values.capturable and jacobians.capturable

    def step(self, at: Imagined, action: Tensor, noise: Tensor | None = None) -> Imagined:
        value = self.values.step(at, action.detach(), noise)
        if not torch.is_grad_enabled():
            return value
        jacobian = self.jacobians.step(at, action, noise)
        obs = value.obs.detach() + (jacobian.obs - jacobian.obs.detach())
        return Imagined(obs, None if value.state is None else value.state.detach())
