"""What the examples share: tasks of small models, their rollouts, and what is found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.envs.physics import Physics, make_physics
from mage_diffsim.experiments.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Tensor = torch.Tensor


class Found(NamedTuple):
    """What one example shows."""

    rows: Sequence[dict[str, Any]]
    """The numbers, by column."""
    table: Table
    """The most telling of them."""
    size: tuple[float, float]
    """Width and height of the figure [inches]."""
    paint: Callable[[Figure], None]
    """Draws it."""


class Scene(MujocoTask):
    """A model without an objective: the state is the observation."""

    frame_skip = 1
    horizon = 1000
    source = "benchmarks/contact_examples"

    def observe(self, state: Tensor) -> Tensor:
        return state

    def reward(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return torch.zeros_like(obs[..., 0])

    def terminated(self, next_obs: Tensor) -> Tensor:
        return torch.zeros_like(next_obs[..., 0], dtype=torch.bool)


def physics_of(name: str, mjcf: str, parameters: Sequence[str] = ()) -> Physics:
    """The step of a model in float64, by backend ``warp``: one simulator step."""
    task = type(name, (Scene,), {"name": name, "mjcf": mjcf})()
    return make_physics(task, "warp", dtype=torch.float64, parameters=tuple(parameters))


def rolled(physics: Physics, state: Tensor, steps: int, action: Tensor | None = None) -> Tensor:
    """The state [N, S] after some steps of one action, 0 by default."""
    if action is None:
        action = state.new_zeros(len(state), physics.task.action_dim)
    for _ in range(steps):
        state = physics.step(state, action)
    return state


def state_at(physics: Physics, **values: Tensor | float) -> Tensor:
    """States [N, S] with some of their numbers given by name, and the others 0."""
    n = max(len(x) for x in values.values() if isinstance(x, Tensor))
    columns = {name: torch.zeros(n, dtype=torch.float64) for name in physics.task.state_names}
    for name, x in values.items():
        columns[name] = columns[name] + x
    return torch.stack(list(columns.values()), 1)


def derivative(y: Tensor, x: Tensor) -> Tensor:
    """dy_i / dx_i of rows that do not depend on each other."""
    return torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
