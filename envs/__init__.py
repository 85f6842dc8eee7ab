"""Tasks (physics, observation, reward, termination, reset), and physics that step them with gradients.

>>> task = make_task("Pendulum")
>>> physics = make_physics(task, "torch")

Importing this package imports torch only; jax, warp, mujoco and gymnasium are imported where they are used.
"""

from mage_diffsim.envs.batched import BatchedEnv, Transition
from mage_diffsim.envs.mujoco.model import BodyPosition, CentreOfMass, CentreOfMassVelocity, MeanVelocity, SitePosition
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.envs.physics import BACKENDS, Physics, TorchPhysics, backends_of, make_physics
from mage_diffsim.envs.registry import ENTRY_POINT_GROUP, make_task, register_task, task_names
from mage_diffsim.envs.rollouts import Rollout, rollout
from mage_diffsim.envs.task import Task, uniform

__all__ = [
    "BACKENDS",
    "ENTRY_POINT_GROUP",
    "BatchedEnv",
    "BodyPosition",
    "CentreOfMass",
    "CentreOfMassVelocity",
    "MeanVelocity",
    "MujocoTask",
    "Physics",
    "Rollout",
    "SitePosition",
    "Task",
    "TorchPhysics",
    "Transition",
    "backends_of",
    "make_physics",
    "make_task",
    "register_task",
    "rollout",
    "task_names",
    "uniform",
]
