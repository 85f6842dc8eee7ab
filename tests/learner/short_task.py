"""A pendulum with short episodes, and a configuration that trains it in a moment."""

from __future__ import annotations

from mage_diffsim.envs.tasks.pendulum import Pendulum
from mage_diffsim.settings import make_config

HYPER = {"batch_size": 8, "warmup_steps": 3, "updates_per_step": 1, "actor_hidden": (4,), "critic_hidden": (4,)}
MODEL = {"ensemble_hidden": (4,), "model_batches": 1, "model_batch_size": 4}


def settings(task, **more):
    defaults = dict(dynamics="oracle", steps=4, eval_episodes=1, gradient_episodes=1, gradient_horizon=5)
    return make_config(task, hyper=HYPER | MODEL, **defaults | more)


class Short(Pendulum):
    horizon = 6


class Detached(Short):
    def reward(self, obs, action, next_obs):
        return super().reward(obs, action, next_obs).detach()
