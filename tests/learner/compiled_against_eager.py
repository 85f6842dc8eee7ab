"""Train short runs eagerly and compiled and print, as JSON, how far their parameters are apart.

A process of its own (see test_compile.py): the test suite's shape checks wrap functions in code that cannot be traced.
"""

from __future__ import annotations

import json
import sys
import warnings

from mage_diffsim.config import make_config
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


def train(compile: str, settings: dict) -> Trainer:
    task = settings.pop("task", "Pendulum")
    trainer = Trainer(make_config(task, compile=compile, steps=80, seeds=(0, 1), hyper=HYPER, **settings))
    for _ in range(80):
        trainer.step()
    return trainer


def main() -> None:
    warnings.simplefilter("ignore")
    results = []
    for settings in json.loads(sys.argv[1]):
        eager, compiled = (train(compile, dict(settings)) for compile in ("off", "on"))
        models = [(eager.ensemble, compiled.ensemble), (eager.reward_model, compiled.reward_model)]
        pairs = [(getattr(eager.agent, n), getattr(compiled.agent, n)) for n in ("critic", "critic_target", "actor")]
        pairs += [(m.parameters, n.parameters) for m, n in models if m is not None and n is not None]
        results.append(
            {
                "updates": [eager.agent.critic_updates, compiled.agent.critic_updates],
                "apart": [float((a - b).abs().max()) for a, b in pairs],
                "moved": float((eager.agent.critic - eager.agent.critic_target).abs().max()),
                "functions": sorted(
                    name for name in vars(compiled.agent) if name in ("update_critic", "_fit_critic", "update_actor")
                ),
            }
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
