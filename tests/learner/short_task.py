"""A pendulum with short episodes, and a configuration that trains it in a moment."""

from __future__ import annotations

from mage_diffsim.envs.tasks.pendulum import Pendulum
from mage_diffsim.settings import make_config
from tests.tiny import HYPER


def settings(task, **more):
    defaults = dict(dynamics="oracle", steps=4, eval_episodes=1, gradient_episodes=1, gradient_horizon=5)
    return make_config(task, hyper=HYPER | {"warmup_steps": 3}, **defaults | more)


class Short(Pendulum):
    horizon = 6


class Detached(Short):
    def reward(self, obs, action, next_obs):
        return super().reward(obs, action, next_obs).detach()
