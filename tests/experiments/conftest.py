"""The benchmark scripts as modules, and cells small enough to train in a second."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

TINY: dict[str, Any] = dict(
    seeds=(0, 1),
    steps=60,
    eval_every=20,
    checkpoint_every=20,
    eval_episodes=1,
    gradient_episodes=1,
    preset="cpu",
    hyper=dict(
        warmup_steps=20,
        batch_size=8,
        updates_per_step=1,
        actor_hidden=(8,),
        critic_hidden=(8,),
        ensemble_members=2,
        ensemble_hidden=(8,),
        model_batches=2,
        model_batch_size=8,
    ),
)
"""A training of about a second."""


def load_script(name: str) -> ModuleType:
    """benchmarks/<name>.py as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def oracle_vs_learned() -> ModuleType:
    return load_script("oracle_vs_learned")


@pytest.fixture(scope="session")
def paper() -> ModuleType:
    return load_script("paper")


@pytest.fixture
def tiny() -> dict[str, Any]:
    return dict(TINY)
