"""MAGE with pluggable differentiable dynamics: the learner, and the short names of the whole package.

Importing this module imports nothing else: each name below is looked up on first use, so that ``mage_diffsim.bridges``
and ``mage_diffsim.envs`` load without the learner, and the learner without any simulator.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

__version__ = "0.1.0"

# In a checkout the folders envs/ and bridges/ lie beside this one; an installed copy holds them.
_here = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(os.path.join(_here, "bridges")):
    __path__.append(os.path.dirname(_here))

_LAZY: dict[str, str] = {
    "InputError": "mage_diffsim.errors",
    "MissingExtra": "mage_diffsim.errors",
    "Task": "mage_diffsim.envs.task",
    "make_task": "mage_diffsim.envs.registry",
    "register_task": "mage_diffsim.envs.registry",
    "task_names": "mage_diffsim.envs.registry",
    "make_physics": "mage_diffsim.envs.physics",
    "TrainConfig": "mage_diffsim.config",
    "make_config": "mage_diffsim.config",
    "Trainer": "mage_diffsim.training",
    "train": "mage_diffsim.runs",
    "resume": "mage_diffsim.runs",
    "load_trainer": "mage_diffsim.runs",
    "load_policy": "mage_diffsim.policy",
}
"""Public name to the module that defines it."""


def __getattr__(name: str) -> Any:
    """The public object ``name``, imported now (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
