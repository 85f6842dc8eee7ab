"""Hyper-parameters of learner, ensemble and loop, and the presets that fill them.

Presets: ``paper`` (appendix D.2, the default), ``authors`` (what the published code does where it differs) and ``cpu``
(a reduced budget for a laptop, ours).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, get_args

from mage_diffsim.errors import unknown_name
from mage_diffsim.methods import LossWeights

Preset = Literal["paper", "authors", "cpu"]
EnsembleName = Literal["full", "small", "smaller"]


@dataclass(frozen=True)
class Hyper:
    """Hyper-parameters of learner, ensemble and loop. ``Hyper.preset(...)`` gives the documented sets."""

    gamma: float = 0.99
    """Discount factor, gamma [D.2]."""
    batch_size: int = 1024
    """States per critic update, uniform over the whole buffer; 512 for Pendulum and CartPole [D.2]."""
    updates_per_step: int = 10
    """Critic updates per environment step [published code; not stated in the paper]."""
    warmup_steps: int = 1000
    """Environment steps with uniformly random actions before the first update; 100 for Pendulum, CartPole [D.2]."""
    actor_hidden: tuple[int, ...] = (384, 384)
    """Hidden layers of the actor (D.2's 284 is a typo for the code's 384); (128, 128) for small tasks [D.2]."""
    critic_hidden: tuple[int, ...] = (384, 384)
    """Hidden layers of each critic [D.2]; (128, 128) for small tasks, ours: D.2 names 128 only for their actor."""
    learning_rate: float = 1e-4
    """RAdam step size of actor and critic, alpha_pi = alpha_Q [D.2]."""
    clip_value: float = 5.0
    """Every gradient component is clipped to +- this, on every network [published code]."""
    polyak: float = 0.005
    """Share of the online network a target network takes per update; D.2's tau = 0.995 is the share kept."""
    exploration_noise: float = 0.1
    """Standard deviation of the Gaussian added to executed actions, sigma, in action units [D.2]."""
    target_noise: float = 0.2
    """Standard deviation of the Gaussian on target actions, sigma-bar, in action units [D.2]."""
    target_noise_clip: float = 0.5
    """Bound of that noise, c [D.2]."""
    loss_weights: LossWeights = "paper"
    """Weights of the critic's gradient and TD terms: paper, 1 and lambda [Algorithm 2]; authors, 0.5 / lambda and 0.5
    [published code, which weighs its terms 5 = 1 / lambda and 1 and halves both]. A loss without lambda: 1 or 0.5."""
    taylor_variance: float = 0.25
    """Action variance of the ``taylor`` loss, weight of its gradient term [ours; Taylor TD tunes it per task]."""
    max_dynamics_gradient: float = 0.0
    """Bound on the 2-norm of each gradient of the target, per sample; 0 is no bound [ours]."""
    diverged_critic_loss: float = 100.0
    """A run gets a fresh agent when half the sum over its critics of the mean Huber TD error exceeds this in an update,
    whatever loss and weights are [published code], or is not finite, or a parameter is not finite [ours]."""
    diverged_actor_loss: float = 1e5
    """The same for the absolute value of the actor loss [published code]."""

    ensemble_members: int = 8
    """Members of the dynamics ensemble [D.2]; 2 for -small, 1 for -smaller [B.3]."""
    ensemble_hidden: tuple[int, ...] = (512, 512, 512, 512)
    """Hidden layers of each member; (128, 128) for small tasks [D.2]."""
    model_every: int = 25
    """Environment steps between two trainings of the model [D.2]."""
    model_batches: int = 120
    """Batches per training of the model, and of the reward model [D.2]."""
    model_batch_size: int = 256
    """Transitions per member and batch [D.2]."""
    model_epochs: bool = False
    """True: whole epochs over the buffer until at least ``model_batches`` batches have run [published code]."""
    model_learning_rate: float = 1e-4
    """RAdam step size of the model, alpha_p [D.2]."""
    model_weight_decay: float = 1e-4
    """Decoupled weight decay of the model [D.2] and of the reward model [published code]."""
    log_var_low: float = -5.0
    """Lower bound of the predicted log-variance of normalised deltas [published code]."""
    log_var_high: float = -1.0
    """Upper bound of the same [published code]."""
    reward_hidden: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of the learned reward model; (128,) for small tasks [D.2]."""

    @staticmethod
    def preset(name: Preset, size: Literal["small", "full"], ensemble: EnsembleName = "full") -> Hyper:
        """The documented hyper-parameters.

        Args:
            name: ``paper``, ``authors`` or ``cpu``.
            size: the task's ``network_size``: ``small`` are the paper's Pendulum and CartPole sizes.
            ensemble: ``full``, ``small`` or ``smaller`` (appendix B.3's capacities).

        Raises:
            InputError: an unknown preset or ensemble.
        """
        if name not in get_args(Preset):
            raise unknown_name("preset", name, get_args(Preset))
        if ensemble not in get_args(EnsembleName):
            raise unknown_name("ensemble", ensemble, get_args(EnsembleName))
        hyper = Hyper()
        if name == "authors":  # the published code has one size for all tasks
            hyper = replace(hyper, loss_weights="authors", model_epochs=True)
        elif size == "small":
            hyper = replace(
                hyper,
                batch_size=512,
                warmup_steps=100,
                actor_hidden=(128, 128),
                critic_hidden=(128, 128),
                ensemble_hidden=(128, 128),
                reward_hidden=(128,),
            )
        if name == "cpu":
            hyper = replace(hyper, **(_CPU_SMALL if size == "small" else _CPU_FULL))
        if ensemble == "small":
            hyper = replace(hyper, ensemble_members=2, ensemble_hidden=_narrow(hyper.ensemble_hidden, 4))
        elif ensemble == "smaller":
            hyper = replace(hyper, ensemble_members=1, ensemble_hidden=_narrow(hyper.ensemble_hidden, 2))
        return hyper


class HyperSettings(TypedDict, total=False):
    """Single overrides of a preset: the fields of :class:`Hyper`."""

    gamma: float
    batch_size: int
    updates_per_step: int
    warmup_steps: int
    actor_hidden: tuple[int, ...]
    critic_hidden: tuple[int, ...]
    learning_rate: float
    clip_value: float
    polyak: float
    exploration_noise: float
    target_noise: float
    target_noise_clip: float
    loss_weights: LossWeights
    taylor_variance: float
    max_dynamics_gradient: float
    diverged_critic_loss: float
    diverged_actor_loss: float
    ensemble_members: int
    ensemble_hidden: tuple[int, ...]
    model_every: int
    model_batches: int
    model_batch_size: int
    model_epochs: bool
    model_learning_rate: float
    model_weight_decay: float
    log_var_low: float
    log_var_high: float
    reward_hidden: tuple[int, ...]


# The cpu preset keeps what an environment step does to the learner: learning rate x updates and Polyak share x updates
# are twice and about the same as the paper's 1e-4 x 10 and 0.005 x 10, with a fifth of the updates.
_CPU_SMALL: dict[str, Any] = {
    "batch_size": 256,
    "updates_per_step": 2,
    "warmup_steps": 500,
    "learning_rate": 1e-3,
    "polyak": 0.02,
    "exploration_noise": 0.3,
    "actor_hidden": (64, 64),
    "critic_hidden": (64, 64),
    "ensemble_members": 4,
    "ensemble_hidden": (64, 64),
    "model_learning_rate": 1e-3,
    "model_batches": 30,
    "reward_hidden": (64,),
}
_CPU_FULL: dict[str, Any] = {
    "batch_size": 256,
    "updates_per_step": 2,
    "learning_rate": 5e-4,
    "polyak": 0.02,
    "actor_hidden": (256, 256),
    "critic_hidden": (256, 256),
    "ensemble_members": 4,
    "ensemble_hidden": (200, 200, 200),
    "model_learning_rate": 1e-3,
    "model_batches": 30,
}


def _narrow(hidden: tuple[int, ...], layers: int) -> tuple[int, ...]:
    """Appendix B.3's smaller models: half the width (512 to 256), ``layers`` layers at most."""
    return (hidden[0] // 2,) * min(layers, len(hidden))
