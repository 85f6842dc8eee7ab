"""Which settings change nothing beside the others, and which of them are refused then."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mage_diffsim.config import TrainConfig
from mage_diffsim.errors import InputError
from mage_diffsim.methods import GRADIENT_FREE, METHODS, WITHOUT_LAMBDA


def _imagines(config: TrainConfig) -> bool:
    return METHODS[config.method].imagines


def _simulates(config: TrainConfig) -> bool:
    return _imagines(config) and config.dynamics != "learned"


def _takes_derivatives(config: TrainConfig) -> bool:
    return _simulates(config) and config.dynamics != "hybrid-learned-gradients"


def _models(config: TrainConfig) -> bool:
    return _imagines(config) and config.dynamics != "oracle"


def _fits(config: TrainConfig) -> bool:
    return _models(config) or config.reward == "learned"


def _has_lambda(config: TrainConfig) -> bool:
    return config.critic_loss not in WITHOUT_LAMBDA


_NO_DERIVATIVE = "no simulator is differentiated with dynamics {dynamics!r}: add --dynamics oracle"
_NO_MODEL = "no ensemble is trained with dynamics {dynamics!r}: add --dynamics learned"
_NO_FIT = "no model is trained with dynamics {dynamics!r} and reward {reward!r}: add --dynamics learned"

USES: dict[str, tuple[Callable[[TrainConfig], bool], str]] = {
    "dynamics": (
        _imagines,
        "method {method} learns from the replay buffer alone and imagines nothing; use a mage-* or dyna-* method",
    ),
    "backend": (_simulates, "nothing is simulated with dynamics {dynamics!r}: add --dynamics oracle"),
    "derivative": (_takes_derivatives, _NO_DERIVATIVE),
    "residuals": (_takes_derivatives, _NO_DERIVATIVE),
    "ensemble": (_models, _NO_MODEL),
    "lambdas": (_has_lambda, "the loss {critic_loss} has no lambda"),
    "gradient_horizon": (lambda c: c.gradient_episodes > 0, "gradient_episodes is 0"),
    "updates_per_step": (
        lambda c: not METHODS[c.method].update_every_step_once,
        "method {method} makes one update per step; take data-efficient-td3",
    ),
    "taylor_variance": (lambda c: c.critic_loss == "taylor", "the loss is {critic_loss}; add --loss taylor"),
    "max_dynamics_gradient": (
        lambda c: c.critic_loss not in GRADIENT_FREE,
        "the loss {critic_loss} uses no gradient of the target",
    ),
    "target_noise_clip": (lambda c: c.hyper.target_noise > 0.0, "target_noise is 0"),
    "diverged_actor_loss": (lambda c: not c.freeze_actor, "freeze_actor is on"),
    "reward_hidden": (lambda c: c.reward == "learned", "reward is {reward!r}; add --reward learned"),
    **{name: (_models, _NO_MODEL) for name in ("ensemble_members", "ensemble_hidden", "log_var_low", "log_var_high")},
    **{
        name: (_fits, _NO_FIT)
        for name in (
            "model_every",
            "model_batches",
            "model_batch_size",
            "model_epochs",
            "model_learning_rate",
            "model_weight_decay",
        )
    },
}
"""Fields that matter in some configurations only: when, and what to say where they do not. All others always do."""

MISLEADING = frozenset({"dynamics", "backend", "derivative", "residuals", "ensemble", "lambdas", "gradient_horizon"})
"""Of these, the ones by which an experiment is named: given where they have no effect, they are refused."""


LABELS = frozenset({"dynamics", "lambdas", "gradient_horizon"})
"""Of these, the ones that Python callers give to every run of a comparison. :func:`.settings.make_config` only warns
where they have no effect."""


def without_effect(config: TrainConfig, given: Iterable[str]) -> dict[str, str]:
    """Which of the fields that were given (of :class:`TrainConfig` or :class:`Hyper`) change nothing, and why."""
    values = vars(config.hyper) | vars(config) | {"critic_loss": config.critic_loss}
    neutral = {"gradient_horizon": 0, "max_dynamics_gradient": 0.0}  # say that the default is wanted
    found = {}
    for name in given:
        if name not in USES or values[name] is None or (name in neutral and values[name] == neutral[name]):
            continue
        matters, reason = USES[name]
        if not matters(config):
            if not _imagines(config) and matters in (_simulates, _takes_derivatives, _models, _fits):
                reason = USES["dynamics"][1]
            found[name] = reason.format(**values)
    return found


def require_effect(
    config: TrainConfig, given: Iterable[str], misleading: frozenset[str] = MISLEADING
) -> dict[str, str]:
    """Refuse what was given for another experiment than this.

    Returns:
        name to reason of what was given, has no effect, and misleads nobody: for a note.

    Raises:
        InputError: one of ``misleading`` was given and has no effect.
    """
    unused = without_effect(config, given)
    for name, reason in unused.items():
        if name in misleading:
            value = getattr(config, name)
            raise InputError(f"{name} {value!r} was given and has no effect, as {reason}")
    return unused
