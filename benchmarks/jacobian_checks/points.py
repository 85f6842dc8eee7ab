"""The points at which Jacobians are taken.

The *joint input* of a step is ``state | action`` in one tensor [N, S + A], so one Jacobian [N, Y, S + A] holds every
derivative. A *block* is a range of its columns: action, position and velocity, or action and state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mage_diffsim.envs.mujoco.model import load_mujoco, quiet
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.envs.physics import Physics
from mage_diffsim.envs.sampling import Policy, actions_inside, sample_states
from mage_diffsim.envs.task import Task
from mage_diffsim.shapes import Bool, Float, Tensor


@dataclass(frozen=True)
class Points:
    """Points in float64, rounded to float32 so that one truth serves both dtypes."""

    x: Float[Tensor, "N X"]
    """Joint inputs."""
    origin: tuple[str, ...]
    """Origin of each point: one of :data:`.sampling.WAYS`, ``policy`` or ``reset``."""
    contact: Bool[Tensor, " N"] | None
    """Whether a contact or a joint limit pushes during the step; None where the physics does not say."""

    def groups(self) -> dict[str, Bool[Tensor, " N"]]:
        """Subsets by name, without empty ones: all, contact, free, and each origin."""
        found = {"all": torch.ones(len(self.origin), dtype=torch.bool)}
        if self.contact is not None:
            found |= {"contact": self.contact, "free": ~self.contact}
        for name in dict.fromkeys(self.origin):
            found[name] = torch.tensor([origin == name for origin in self.origin])
        return {name: mask for name, mask in found.items() if mask.any()}


def gather_points(
    reference: Physics, n: int, *, seed: int, rollouts: Sequence[str], policy: Policy | None = None
) -> Points:
    """Samples states of rollouts with their actions. One point in 32, at least one, is a reset state.

    Args:
        reference: float64 physics on the CPU.
        n: number of points.
        seed: seed of resets, actions and times.
        rollouts: ways of :data:`.sampling.WAYS`; each gives an equal share.
        policy: gives a further share, called ``policy``.
    """
    task, resets = reference.task, max(1, n // 32)
    reached = sample_states(reference, n - resets, seed=seed, ways=rollouts, policy=policy)
    generator = torch.Generator().manual_seed(seed + 1)
    start = torch.cat([task.reset(resets, generator), actions_inside(resets, task.action_dim, generator)], dim=1)
    x = torch.cat([torch.cat([reached.state, reached.action], dim=1), start]).float().double()
    contact = in_contact(task, x) if isinstance(task, MujocoTask) else None
    return Points(x, (*reached.ways, *["reset"] * resets), contact)


def in_contact(task: MujocoTask, x: Float[Tensor, "N X"]) -> Bool[Tensor, " N"]:
    """Whether a contact or a joint limit pushes at the beginning of any substep or after the last.

    Args:
        task: the task; MuJoCo C steps its model.
        x: joint inputs, shape [N, S + A], float64.
    """
    mujoco, simulation = load_mujoco(), task.simulation
    data = mujoco.MjData(simulation.model)
    controls = task.scale_action(x[:, task.state_dim :]).numpy()
    first, found = int(mujoco.mjtConstraint.mjCNSTR_LIMIT_JOINT), []  # equalities and friction come before

    def pushing() -> bool:
        unilateral = data.efc_type >= first
        return bool((data.efc_force[unilateral] != 0.0).any())

    with quiet():
        for row, control in zip(x.numpy(), controls, strict=True):
            mujoco.mj_resetData(simulation.model, data)
            simulation.put(data, row[: task.state_dim])
            data.ctrl[:] = control
            active = False
            for _ in range(simulation.frame_skip):
                mujoco.mj_step(simulation.model, data)
                active |= pushing()
            mujoco.mj_forward(simulation.model, data)
            found.append(active or pushing())
    return torch.tensor(found)


def blocks_of(task: Task) -> dict[str, range]:
    """Columns of the joint input by block. The readouts of a MuJoCo state have no influence and are left out."""
    states, actions = range(task.state_dim), range(task.state_dim, task.state_dim + task.action_dim)
    if not isinstance(task, MujocoTask):
        return {"action": actions, "state": states}
    parts = zip(("position", "velocity", "activation", "mocap"), task.simulation.split(np.array(states)), strict=True)
    return {"action": actions} | {name: range(part[0], part[-1] + 1) for name, part in parts if len(part)}
