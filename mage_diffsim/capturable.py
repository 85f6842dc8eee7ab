"""Which parts of an environment step CUDA graphs can hold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from mage_diffsim.config import TrainConfig
from mage_diffsim.cuda_graphs import CannotBeCaptured, NothingForTheHost, NothingFromPython
from mage_diffsim.dynamics import Dynamics
from mage_diffsim.envs.physics import Physics, backends_of
from mage_diffsim.envs.task import Task
from mage_diffsim.errors import InputError
from mage_diffsim.methods import METHODS


class Captures(NamedTuple):
    """Which parts of an environment step are replayed as CUDA graphs: what ``graphs`` comes to."""

    collection: bool
    updates: bool
    models: bool

    def __str__(self) -> str:
        """``on``, ``off``, or the parts, as ``versions.json`` says it."""
        if self.collection and self.updates:
            return "on"
        parts = [name for name in self._fields if getattr(self, name)]
        return f"{' and '.join(parts)} only" if parts else "off"


def captures_of(config: TrainConfig, task: Task, physics: Physics, dynamics: Dynamics) -> Captures:
    """What CUDA graphs hold of a training.

    With ``graphs`` auto a warning names a function of the task that they cannot hold.

    Args:
        config: of the training.
        task: its task.
        physics: of the real environment.
        dynamics: of the updates.

    Raises:
        InputError: ``graphs`` is on, and no CUDA graph can hold the dynamics or a function of the task.
    """
    if config.graphs == "off" or not config.device.startswith("cuda"):
        return Captures(False, False, False)
    imagines = METHODS[config.method].imagines
    if config.graphs == "on" and imagines and not dynamics.capturable:
        raise InputError(
            "graphs is 'on', and the oracle's backend leaves the CUDA stream during an update, which no CUDA graph can "
            "hold: use backend torch or warp, learned dynamics, or graphs 'off'"
        )
    of_updates: set[str] = set()
    if imagines and dynamics.capturable:
        of_updates = {"terminated"} | ({"reward"} if config.reward == "task" else set())
        if config.dynamics != "learned":
            of_updates |= {"observe"} | ({"step"} if (config.backend or backends_of(task)[0]) == "torch" else set())
    of_collection: set[str] = set()
    if physics.capturable:
        of_collection = {"observe", "reward", "terminated"} | ({"step"} if physics.backend == "torch" else set())
    unfit = dict(_unfit(task, physics, of_updates | of_collection))
    for name, error in unfit.items():
        what = f"{name}() of task {task.name} cannot be held by a CUDA graph ({error})"
        if config.graphs == "on":
            raise InputError(f"graphs is 'on', and {what}: use graphs 'off', or other torch functions") from error
        logging.getLogger("mage_diffsim").warning(f"not captured: {what}")
    return Captures(
        collection=physics.capturable and not of_collection & set(unfit),
        updates=not imagines or (dynamics.capturable and not of_updates & set(unfit)),
        models=imagines and (config.dynamics != "oracle" or config.reward == "learned"),
    )


def _unfit(task: Task, physics: Physics, functions: set[str]) -> Iterator[tuple[str, CannotBeCaptured]]:
    """Those of the task's functions that no CUDA graph can hold, each with the operation that it cannot."""
    try:
        state = task.reset(2, torch.Generator().manual_seed(0)).to(physics.device, physics.dtype)
        obs = task.observe(state)
    except Exception:  # the check of the task's functions says what is wrong
        return
    action = state.new_zeros(2, task.action_dim)
    calls: dict[str, Callable[[], object]] = {
        "observe": lambda: task.observe(state),
        "reward": lambda: task.reward(obs, action, obs),
        "terminated": lambda: task.terminated(obs),
        "step": lambda: task.step(state, action),
    }
    for name, call in calls.items():
        if name not in functions:
            continue
        try:
            with torch.no_grad(), NothingForTheHost(), NothingFromPython():
                call()
        except CannotBeCaptured as error:
            yield name, error
        except Exception:  # as above
            return
