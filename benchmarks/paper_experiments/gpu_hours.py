"""How long a training takes on a GPU."""

from __future__ import annotations

from mage_diffsim.config import TrainConfig
from mage_diffsim.methods import METHODS

GPU_MS = dict(step=3.75, update=2.97, model_batch=2.76)
"""Wall times of an environment step's host work, of an update and of a model batch [ms]: MAGE-TD3 on HalfCheetah, five
runs side by side, captured, on an NVIDIA H200."""


def gpu_hours(config: TrainConfig) -> float:
    """Returns about how long a training takes on that GPU [h], evaluation apart; smaller networks take less."""
    batches = config.hyper.model_batches / config.hyper.model_every if METHODS[config.method].imagines else 0.0
    step = GPU_MS["step"] + config.updates_per_step * GPU_MS["update"] + batches * GPU_MS["model_batch"]
    return config.steps * step * max(1.0, len(config.runs) / 5) / 3.6e6
