"""Whether CUDA graphs can hold the updates of a training."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from mage_diffsim.config import TrainConfig
from mage_diffsim.cuda_graphs import CannotBeCaptured, NothingForTheHost, NothingFromPython
from mage_diffsim.dynamics import Dynamics
from mage_diffsim.envs.task import Task
from mage_diffsim.errors import InputError
from mage_diffsim.methods import METHODS


def uses_cuda_graphs(config: TrainConfig, dynamics: Dynamics) -> bool:
    """Whether the updates of an environment step are replayed as CUDA graphs: what ``graphs`` comes to.

    Raises:
        InputError: ``graphs`` is on, and no CUDA graph can hold the dynamics.
    """
    if config.graphs == "off" or not config.device.startswith("cuda"):
        return False
    possible = dynamics.capturable or not METHODS[config.method].imagines
    if config.graphs == "on" and not possible:
        raise InputError(
            "graphs is 'on', and the oracle's backend leaves the CUDA stream during an update, which no CUDA graph can "
            "hold: use backend torch or warp, learned dynamics, or graphs 'off'"
        )
    return possible


def holds_task(config: TrainConfig, task: Task, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether CUDA graphs can hold the task's own functions that an update calls; says which one they cannot.

    Raises:
        InputError: ``graphs`` is on, and they cannot.
    """
    if not METHODS[config.method].imagines:
        return True
    try:
        state = task.reset(2, torch.Generator().manual_seed(0)).to(device, dtype)
        obs = task.observe(state)
    except Exception:  # the check of the task's functions says what is wrong
        return True
    action = state.new_zeros(2, task.action_dim)
    used: dict[str, Callable[[], object]] = {"terminated": lambda: task.terminated(obs)}
    if config.reward == "task":
        used["reward"] = lambda: task.reward(obs, action, obs)
    if config.dynamics != "learned":
        used["observe"] = lambda: task.observe(state)
    if config.dynamics != "learned" and config.backend == "torch":
        used["step"] = lambda: task.step(state, action)
    for name, call in used.items():
        try:
            with NothingForTheHost(), NothingFromPython():
                call()
        except CannotBeCaptured as error:
            what = f"{name}() of task {task.name} cannot be held by a CUDA graph ({error})"
            if config.graphs == "on":
                raise InputError(f"graphs is 'on', and {what}: use graphs 'off', or other torch functions") from error
            logging.getLogger("mage_diffsim").warning(f"updates are not captured: {what}")
            return False
        except Exception:  # as above
            return True
    return True
