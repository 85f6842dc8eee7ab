"""MAGE with pluggable differentiable dynamics: the short names of the whole package.

Importing this module imports nothing else. Each name below is imported when it is first used, so that
``mage_diffsim.bridges`` and ``mage_diffsim.envs`` load without the learner, and the learner without any simulator.
"""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mage_diffsim.bridges.jax import from_jax
    from mage_diffsim.bridges.warp import from_warp
    from mage_diffsim.config import TrainConfig
    from mage_diffsim.envs.batched import BatchedEnv
    from mage_diffsim.envs.mujoco.task import MujocoTask
    from mage_diffsim.envs.physics import make_physics
    from mage_diffsim.envs.registry import make_task, register_task, task_names
    from mage_diffsim.envs.task import Task
    from mage_diffsim.errors import InputError, MissingExtra
    from mage_diffsim.policy import load_policy
    from mage_diffsim.run_folder import load_trainer
    from mage_diffsim.session import resume, train
    from mage_diffsim.settings import make_config
    from mage_diffsim.training import Trainer

__version__ = "0.1.0"

IMPORTED = time.monotonic()
"""When this module was imported, by the monotonic clock: in a script, within a second of the start of its process."""

__all__ = [
    "BatchedEnv",
    "InputError",
    "MissingExtra",
    "MujocoTask",
    "Task",
    "TrainConfig",
    "Trainer",
    "from_jax",
    "from_warp",
    "load_policy",
    "load_trainer",
    "make_config",
    "make_physics",
    "make_task",
    "register_task",
    "resume",
    "task_names",
    "train",
]

# Type checkers read the imports above; these lines do the same imports when a name is first used.
_MODULES = {
    "BatchedEnv": "mage_diffsim.envs.batched",
    "InputError": "mage_diffsim.errors",
    "MissingExtra": "mage_diffsim.errors",
    "MujocoTask": "mage_diffsim.envs.mujoco.task",
    "Task": "mage_diffsim.envs.task",
    "TrainConfig": "mage_diffsim.config",
    "Trainer": "mage_diffsim.training",
    "from_jax": "mage_diffsim.bridges.jax",
    "from_warp": "mage_diffsim.bridges.warp",
    "load_policy": "mage_diffsim.policy",
    "load_trainer": "mage_diffsim.run_folder",
    "make_config": "mage_diffsim.settings",
    "make_physics": "mage_diffsim.envs.physics",
    "make_task": "mage_diffsim.envs.registry",
    "register_task": "mage_diffsim.envs.registry",
    "resume": "mage_diffsim.session",
    "task_names": "mage_diffsim.envs.registry",
    "train": "mage_diffsim.session",
}

if not TYPE_CHECKING:  # a type checker that saw it would accept every name

    def __getattr__(name: str) -> object:
        """The public object ``name``, imported now (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_MODULES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
