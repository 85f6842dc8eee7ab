"""Nothing that is not finite is ever trained on."""

from __future__ import annotations

import pytest
import torch

from mage_diffsim.config import make_config
from mage_diffsim.dynamics import Dynamics, Imagined
from mage_diffsim.training import Trainer

TINY = {
    "batch_size": 32,
    "warmup_steps": 40,
    "actor_hidden": (16,),
    "critic_hidden": (16,),
    "updates_per_step": 2,
}


class Poisoned(Dynamics):
    """The oracle with a value or an action derivative that is not finite wherever the pendulum moves clockwise."""

    reads_state = True

    def __init__(self, oracle: Dynamics, what: str) -> None:
        self.oracle, self.what = oracle, what

    def step(self, at, action, noise=None):
        imagined = self.oracle.step(at, action, noise)
        bad = (at.obs[..., 2] < 0.0).unsqueeze(-1)
        if self.what == "value":
            return Imagined(torch.where(bad, torch.nan, imagined.obs), imagined.state)
        zero = (action - action.detach()).square()
        poison = torch.where(bad, zero, 1.0).sqrt()  # in bad rows sqrt(0) of a square: 0 in value, 0/0 in derivative
        return Imagined(imagined.obs + torch.where(bad, poison, 0.0), None)


def poisoned_trainer(what: str, method: str = "mage-td3", **settings) -> Trainer:
    config = make_config("Pendulum", method=method, dynamics="oracle", steps=80, float64=True, hyper=TINY, **settings)
    trainer = Trainer(config)
    trainer.agent.dynamics = Poisoned(trainer.agent.dynamics, what)
    return trainer


@pytest.mark.parametrize("what", ["value", "derivative"])
def test_rows_with_a_bad_derivative_are_counted_masked_and_remembered(what):
    trainer = poisoned_trainer(what)
    while trainer.env_step < 80:
        trainer.step()
    agent = trainer.agent
    for parameters in (agent.actor, agent.critic, agent.actor_target, agent.critic_target):
        assert parameters.isfinite().all()
    assert agent.restarts.item() == 0
    imagined = 41 * 2 * 32
    assert 0.2 * imagined < agent.nonfinite.item() < 0.8 * imagined
    assert agent.nonfinite_state[0, 1] < 0.0  # a state in which the pendulum does move clockwise
    assert trainer.diagnose()["grad/nonfinite"].item() == agent.nonfinite.item()


def test_the_gradient_is_the_mean_over_the_good_rows_alone():
    trainer = poisoned_trainer("derivative")
    while trainer.env_step < 45:
        trainer.step()
    agent = trainer.agent
    (draws,) = agent.draw(1, trainer.buffer.size)
    batch = trainer.buffer.gather(draws.index)
    masked = agent.target(batch, draws)
    assert 0 < masked.finite.sum() < 32
    _, gradient = agent.critic_gradient(batch, masked, draws)

    agent.dynamics = agent.dynamics.oracle
    clean = agent.target(batch, draws)
    good = masked.finite[0].nonzero().squeeze(-1)
    kept = type(batch)(*(x[:, good] for x in batch))
    assert clean.action_gradient is not None
    kept_target = clean._replace(
        y=clean.y[:, good],
        action_gradient=clean.action_gradient[:, good],
        action=clean.action[:, good],
        finite=clean.finite[:, good],
    )
    _, expected = agent.critic_gradient(kept, kept_target, draws)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_one_poisoned_run_leaves_its_neighbour_alone():
    together = poisoned_trainer("derivative", seeds=(0, 1))
    alone = poisoned_trainer("derivative", seeds=(1,))
    for trainer in (together, alone):
        while trainer.env_step < 60:
            trainer.step()
    torch.testing.assert_close(together.agent.critic[1], alone.agent.critic[0], rtol=0, atol=1e-9)


def test_dyna_masks_values_too():
    trainer = poisoned_trainer("value", method="dyna-td3")
    while trainer.env_step < 50:
        trainer.step()
    assert trainer.agent.nonfinite.item() > 0 and trainer.agent.critic.isfinite().all()


@pytest.mark.gpu
def test_training_on_a_gpu_follows_the_cpu():
    """Same parameters, batch and noise: the critic's update on the GPU is the CPU's to float32 rounding."""
    config = make_config("Pendulum", dynamics="oracle", steps=60, float64=True, hyper=TINY)
    cpu = Trainer(config)
    while cpu.env_step < 50:
        cpu.step()
    gpu = Trainer(make_config("Pendulum", dynamics="oracle", steps=60, float64=True, hyper=TINY, device="cuda"))
    for name in ("actor", "critic", "actor_target", "critic_target"):
        getattr(gpu.agent, name).copy_(getattr(cpu.agent, name))
    gpu.agent.obs.load_state_dict(cpu.agent.obs.state_dict())
    (draws,) = cpu.agent.draw(1, cpu.buffer.size)
    batch = cpu.buffer.gather(draws.index)
    _, expected = cpu.agent.critic_gradient(batch, cpu.agent.target(batch, draws), draws)
    draws = type(draws)(*(None if x is None else x.cuda() for x in draws))
    batch = type(batch)(*(x.cuda() for x in batch))
    _, gradient = gpu.agent.critic_gradient(batch, gpu.agent.target(batch, draws), draws)
    torch.testing.assert_close(gradient.cpu(), expected, rtol=1e-9, atol=1e-11)
    while gpu.env_step < 60:
        gpu.step()
    assert gpu.agent.critic.isfinite().all() and gpu.evaluate()["return/mean"].isfinite().all()
