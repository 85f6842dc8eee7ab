"""What a configuration must satisfy to be trained."""

from __future__ import annotations

import math

from mage_diffsim.choices import require_choices
from mage_diffsim.config import TrainConfig
from mage_diffsim.errors import InputError
from mage_diffsim.hyper import Hyper
from mage_diffsim.methods import METHODS, WITHOUT_LAMBDA


def validate(config: TrainConfig) -> None:
    """Refuse what cannot be trained, in one sentence.

    Raises:
        InputError: names the field, what was given and what is accepted.
    """
    given: object = config
    if not isinstance(given, TrainConfig):
        raise InputError(f"config is {given!r}; accepted is a TrainConfig, which make_config gives")
    require_choices(TrainConfig, vars(config))
    require_choices(Hyper, vars(config.hyper))
    if config.residuals == "keep" and config.dynamics == "learned":
        raise InputError("residuals 'keep' is about an oracle, and dynamics is 'learned': leave it at 'recompute'")
    if config.graphs == "on" and not config.device.startswith("cuda"):
        raise InputError(
            f"graphs is 'on', which needs a CUDA device, and device is {config.device!r}: use graphs 'auto'"
        )
    if config.matmul == "high" and (config.float64 or not config.device.startswith("cuda")):
        kind = "float64" if config.float64 else "float32"
        raise InputError(
            f"matmul is 'high', which is about float32 products on a CUDA device, and this trains in {kind} on "
            f"{config.device!r}: use matmul 'highest'"
        )
    method, hyper = METHODS[config.method], config.hyper
    if not method.imagines:
        drawn = f"method {config.method} draws transitions from the replay buffer"
        if config.loss not in (None, "td"):
            raise InputError(f"loss {config.loss!r} needs an imagined next state, and {drawn}: use a mage-* method")
        if config.reward != "task":
            raise InputError(f"reward {config.reward!r} is for imagined transitions, and {drawn}: leave it at 'task'")
        if config.dynamics != "learned":
            raise InputError(f"dynamics {config.dynamics!r} was given, and {drawn}: leave it at its default")
    if config.critic_loss in WITHOUT_LAMBDA and len(config.lambdas) > 1:
        raise InputError(f"lambdas are {config.lambdas}, and the loss {config.critic_loss} has no lambda: give one")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds) or min(config.seeds) < 0:
        raise InputError(f"seeds are {config.seeds}; accepted is one or more different integers of 0 or more")
    if (
        not config.lambdas
        or len(set(config.lambdas)) < len(config.lambdas)
        or not all(0.0 <= lam < math.inf for lam in config.lambdas)
    ):
        raise InputError(f"lambdas are {config.lambdas}; accepted is one or more different finite numbers of 0 or more")
    if hyper.loss_weights == "authors" and config.critic_loss not in WITHOUT_LAMBDA and 0.0 in config.lambdas:
        raise InputError(
            f"lambdas are {config.lambdas}, and loss_weights 'authors' (the preset 'authors') weighs the gradient term "
            "by 0.5 / lambda: give numbers above 0, or loss_weights 'paper'"
        )
    for name, least in (
        ("steps", 1),
        ("eval_every", 1),
        ("eval_episodes", 1),
        ("gradient_episodes", 0),
        ("gradient_horizon", 0),
        ("checkpoint_every", 1),
    ):
        if getattr(config, name) < least:
            raise InputError(f"{name} is {getattr(config, name)}; accepted is {least} or more")
    for name, (low, high) in _RANGES.items():
        value = getattr(hyper, name)
        values = value if isinstance(value, tuple) else (value,)
        if not all(low <= v <= high and v < math.inf for v in values):
            bound = f"{low} or more" if high == math.inf else f"{low} to {high}"
            raise InputError(f"{name} is {value}; accepted is {bound}")
    if hyper.log_var_low >= hyper.log_var_high:
        raise InputError(f"log_var_low is {hyper.log_var_low}; accepted is below log_var_high ({hyper.log_var_high})")
    if hyper.batch_size % hyper.ensemble_members:
        raise InputError(
            f"batch_size is {hyper.batch_size}; accepted is a multiple of ensemble_members "
            f"({hyper.ensemble_members}), as each member imagines an equal share of the batch"
        )


def require_minutes(stop_after: object) -> None:
    """Refuse a time limit of a training that is none.

    Raises:
        InputError: says what was given.
    """
    if stop_after is None:
        return
    if isinstance(stop_after, bool) or not isinstance(stop_after, int | float) or not 0.0 < stop_after < math.inf:
        raise InputError(f"stop_after is {stop_after!r}; accepted is a number of minutes above 0")


_SMALLEST = 1e-12
"""Stands for "above 0"."""

_RANGES: dict[str, tuple[float, float]] = {
    "gamma": (0.0, 1.0),
    "batch_size": (1, math.inf),
    "updates_per_step": (1, math.inf),
    "warmup_steps": (1, math.inf),
    "actor_hidden": (1, math.inf),
    "critic_hidden": (1, math.inf),
    "learning_rate": (0.0, math.inf),
    "clip_value": (_SMALLEST, math.inf),
    "polyak": (_SMALLEST, 1.0),
    "exploration_noise": (0.0, math.inf),
    "target_noise": (0.0, math.inf),
    "target_noise_clip": (0.0, math.inf),
    "taylor_variance": (0.0, math.inf),
    "max_dynamics_gradient": (0.0, math.inf),
    "diverged_critic_loss": (_SMALLEST, math.inf),
    "diverged_actor_loss": (_SMALLEST, math.inf),
    "ensemble_members": (1, math.inf),
    "ensemble_hidden": (1, math.inf),
    "model_every": (1, math.inf),
    "model_batches": (1, math.inf),
    "model_batch_size": (1, math.inf),
    "model_learning_rate": (0.0, math.inf),
    "model_weight_decay": (0.0, math.inf),
    "log_var_low": (-100.0, 100.0),
    "log_var_high": (-100.0, 100.0),
    "reward_hidden": (1, math.inf),
}
"""Least and greatest value of every number in :class:`Hyper`; a tuple's entries each obey it."""
