"""Train short runs eagerly and compiled and print, as JSON, how far their parameters are apart.

A process of its own (see test_compile.py): the test suite's shape checks wrap functions in code that cannot be traced.
Argument: a JSON list of settings, or ``untraceable``.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch

from mage_diffsim.envs.registry import make_task
from mage_diffsim.envs.tasks.pendulum import Pendulum
from mage_diffsim.errors import InputError
from mage_diffsim.settings import make_config
from mage_diffsim.training import Trainer

HYPER = {
    "warmup_steps": 30,
    "model_every": 10,
    "updates_per_step": 4,
    "batch_size": 32,
    "actor_hidden": (16, 16),
    "critic_hidden": (16, 16),
    "ensemble_hidden": (16, 16),
    "ensemble_members": 4,
    "model_batches": 6,
    "model_batch_size": 16,
    "reward_hidden": (16,),
    "learning_rate": 1e-3,
}


class Breaking(Pendulum):
    """Rewards that are not finite for some actions, and so high for others that the critic diverges."""

    name = "Breaking"

    def reward(self, obs, action, next_obs):
        reward = super().reward(obs, action, next_obs)
        size = action[..., 0].abs()
        reward = torch.where(size < 0.01, torch.nan, reward)
        return torch.where((size > 0.03) & (size < 0.031), 1e6, reward)


class Untraceable(Pendulum):
    """Branches on a tensor's value in the middle of an update."""

    name = "Untraceable"

    def reward(self, obs, action, next_obs):
        return super().reward(obs, action, next_obs) if obs.max() > 0.0 else obs[..., 0]


TASKS = {"Breaking": Breaking, "Untraceable": Untraceable}


def train(compile: str, settings: dict[str, Any]) -> Trainer:
    """80 environment steps; the compiled form goes on from a checkpoint after 60 of them."""
    name = settings.pop("task", "Pendulum")
    task = TASKS[name]() if name in TASKS else make_task(name)
    if compile == "off":
        settings["graphs"] = "off"
    config = make_config(task, compile=compile, steps=80, seeds=(0, 1), hyper=HYPER, **settings)
    trainer = Trainer(config, task)
    while trainer.env_step < 80:
        trainer.step()
        if compile == "on" and trainer.env_step == 60:
            saved, trainer = trainer.state_dict(), Trainer(config, task)
            trainer.load_state_dict(saved)
    return trainer


def main() -> None:
    warnings.simplefilter("ignore")
    if sys.argv[1] == "untraceable":
        try:
            train("on", {"task": "Untraceable"})
        except InputError as error:
            print(error)
        return
    results = []
    for settings in json.loads(sys.argv[1]):
        eager, compiled = (train(compile, dict(settings)) for compile in ("off", "on"))
        models = [(eager.ensemble, compiled.ensemble), (eager.reward_model, compiled.reward_model)]
        pairs = [(getattr(eager.agent, n), getattr(compiled.agent, n)) for n in ("critic", "critic_target", "actor")]
        pairs += [(m.parameters, n.parameters) for m, n in models if m is not None and n is not None]
        results.append(
            {
                "counters": [
                    [trainer.agent.nonfinite.tolist(), trainer.agent.restarts.tolist()] for trainer in (eager, compiled)
                ],
                "updates": [t.agent.critic_optimizer.count.flatten().tolist() for t in (eager, compiled)],
                "apart": [float((a - b).abs().max()) for a, b in pairs],
                "moved": float((eager.agent.critic - eager.agent.critic_target).abs().max()),
                "graphs": str(compiled.captures),
                "functions": sorted(name for name, x in vars(compiled.agent).items() if hasattr(x, "__wrapped__")),
            }
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
