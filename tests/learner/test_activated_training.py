"""A task with muscles and a mocap body: it trains, goes on bit for bit, and is a Gymnasium environment."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mage_diffsim.checkpoints import load_checkpoint
from mage_diffsim.envs.contract import check_task
from mage_diffsim.envs.gymnasium_env import GymEnv
from mage_diffsim.session import resume, train
from mage_diffsim.settings import make_config
from mage_diffsim.training import Trainer
from tests.learner.limb import Limb
from tests.tiny import HYPER

LIMB = f"{__file__.replace('test_activated_training', 'limb')}:Limb"


def config_of(**settings):
    defaults = {"steps": 40, "eval_every": 20, "eval_episodes": 2, "gradient_episodes": 1, "gradient_horizon": 5}
    return make_config(LIMB, hyper=HYPER, **defaults | settings)


@pytest.mark.parametrize(("dynamics", "backend"), [("learned", None), ("oracle", "mujoco"), ("oracle", "warp")])
def test_a_task_with_muscles_trains(dynamics, backend):
    pytest.importorskip(backend or "mujoco")
    trainer = Trainer(config_of(dynamics=dynamics, backend=backend))
    start = trainer.agent.actor.clone()
    for _ in range(26):
        trainer.step()
    assert trainer.agent.nonfinite.item() == 0 and not torch.equal(trainer.agent.actor, start)
    assert Limb().act(trainer.env.state).abs().max() > 0.0
    assert trainer.diagnose()["grad/dynamics_norm"].item() > 0.0


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    config = config_of(dynamics="oracle", checkpoint_every=25)

    def kill(progress):
        if progress.env_step == 33:
            raise InterruptedError

    train(config, tmp_path / "whole")
    with pytest.raises(InterruptedError):
        train(config, tmp_path / "killed", progress=kill)
    resume(tmp_path / "killed")
    whole, killed = (
        load_checkpoint(tmp_path / name / "checkpoints" / "step_0000000040.json")["trainer"]
        for name in ("whole", "killed")
    )
    for part, name in (("agent", "critic"), ("env", "state")):
        assert torch.equal(whole[part][name], killed[part][name])


def test_its_step_passes_the_checks():
    report = check_task(Limb(), "mujoco", "fd", samples=16)
    assert report.passed, report.failures


def test_a_gymnasium_environment_starts_from_any_of_its_states():
    env = GymEnv(Limb())
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.array([1.0, 0.5, 0.5]))
    state = env.state
    expected = env.step(np.array([0.0, 0.5, 1.0]))[0]
    env.reset(seed=1, options={"state": state})
    assert (env.step(np.array([0.0, 0.5, 1.0]))[0] == expected).all()
    assert Limb().act(torch.as_tensor(state)).abs().min() > 0.1
