"""Training inside torch's global modes equals training outside them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mage_diffsim.policy import load_policy
from mage_diffsim.run_folder import load_trainer
from mage_diffsim.session import resume, train
from mage_diffsim.settings import make_config
from mage_diffsim.tables import read_evaluations
from tests.tiny import HYPER, RUN

SETTINGS = RUN | {
    "steps": 15,
    "eval_every": 10,
    "gradient_horizon": 5,
    "hyper": HYPER | {"warmup_steps": 10, "model_every": 5},
}


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default dtype": lambda: default_dtype(torch.float64),
    "default device": lambda: torch.device("meta"),
}


def trained(folder: Path) -> Path:
    train(make_config("Pendulum", **SETTINGS), folder)
    resume(folder, steps=20)
    return folder


@pytest.fixture(scope="module")
def outside(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("modes") / "outside")


@pytest.mark.parametrize("mode", MODES)
def test_training_inside_a_mode_is_training_outside_it_bit_for_bit(mode, outside, tmp_path):
    with MODES[mode]():
        inside = trained(tmp_path / "inside")
        trainer = load_trainer(inside)
        evaluation = trainer.evaluate()
        policy = load_policy(inside)
    assert read_evaluations(inside) == read_evaluations(outside)
    assert (inside / "policy.safetensors").read_bytes() == (outside / "policy.safetensors").read_bytes()
    other = load_trainer(outside)
    for name, value in other.evaluate().items():
        torch.testing.assert_close(evaluation[name], value, rtol=0.0, atol=0.0, equal_nan=True)
    for name in ("actor", "critic", "critic_target"):
        mine = getattr(trainer.agent, name)
        assert torch.equal(mine, getattr(other.agent, name)) and not mine.is_inference()
    trainer.agent.improve(trainer.buffer, trainer.draw(1))  # of ordinary tensors
    obs = torch.ones(3, requires_grad=True)
    assert torch.autograd.grad(policy(obs).sum(), obs)[0].isfinite().all()


def test_the_callers_modes_are_as_before():
    with torch.no_grad(), default_dtype(torch.float64), torch.autocast("cpu"):
        with pytest.raises(Exception, match="nowhere"):
            load_trainer("nowhere")
        assert not torch.is_grad_enabled() and torch.get_default_dtype() == torch.float64
        assert torch.is_autocast_enabled("cpu")
