"""Tasks, methods and budgets that several of the paper's experiments share."""

from __future__ import annotations

from typing import Any

from mage_diffsim.experiments.command import SMOKE, Size

PAPER_TASKS = ("Pendulum", "CartPole", "HalfCheetah", "Swimmer", "Walker2d", "Pusher")
"""The tasks of Fig. 2 and Fig. 6. The published code has a Hopper, which no figure shows."""

METHODS_OF_FIG_2: dict[str, dict[str, Any]] = {
    "MAGE-TD3": dict(method="mage-td3"),
    "Dyna-TD3": dict(method="dyna-td3"),
    "Data-Efficient TD3": dict(method="data-efficient-td3"),
    "TD3": dict(method="td3"),
}
"""Name to fields of TrainConfig."""

COMPARED: dict[Size, dict[str, Any]] = {
    "smoke": SMOKE | dict(gradient_episodes=0),
    "cpu": dict(seeds=(0, 1, 2, 3, 4), steps=10_000, evaluations=40, gradient_episodes=0),
    "paper": dict(seeds=(0, 1, 2, 3, 4), steps=100_000, eval_every=1000, checkpoint_every=10_000, gradient_episodes=0),
}
"""Budgets of Fig. 2."""

ABLATED: dict[Size, dict[str, Any]] = {
    size: budget | dict(lambdas=(0.05,)) | (dict(steps=4000, evaluations=20) if size == "cpu" else {})
    for size, budget in COMPARED.items()
}
"""Budgets of the ablations. The paper uses this lambda in every experiment but Fig. 2 [D.2]. At size cpu, Pendulum gets
half as many steps again as MAGE needs to solve it."""
