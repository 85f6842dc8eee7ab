"""The learned ensemble's values and action-Jacobians."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from mage_diffsim.dynamics import Imagined, LearnedDynamics
from mage_diffsim.envs.differences import jacobian_of
from mage_diffsim.settings import make_config
from mage_diffsim.shapes import Float, Tensor
from mage_diffsim.training import Trainer


def trained_ensembles(
    reference: str, counts: Sequence[int], *, seed: int, device: str
) -> Iterator[tuple[int, Trainer]]:
    """Trains an ensemble on random transitions with the preset ``cpu``, and pauses after each number of transitions.

    Args:
        reference: the task's name.
        counts: numbers of transitions, ascending.
        seed: seed of the run.
        device: torch device.
    """
    steps = counts[-1]
    config = make_config(
        reference, preset="cpu", seeds=(seed,), steps=steps, device=device, hyper={"warmup_steps": steps + 1}
    )
    trainer = Trainer(config)
    for n in range(1, steps + 1):
        trainer.step()
        if n in counts:
            yield n, trainer


class Learned(NamedTuple):
    """Values and action-Jacobians of each of the M members, without noise."""

    next_obs: Float[Tensor, "M N O"]
    jacobian: Float[Tensor, "M N O A"]
    """d next_obs / d action."""


def ask_ensemble(trainer: Trainer, obs: Float[Tensor, "N O"], action: Float[Tensor, "N A"]) -> Learned:
    """Values and derivatives of every member at every point, float64 on the CPU."""
    assert trainer.ensemble is not None
    dynamics, members, n = LearnedDynamics(trainer.ensemble), trainer.ensemble.members, len(obs)
    like = {"device": trainer.device, "dtype": trainer.dtype}
    # The dynamics give equal blocks of rows to the members in turn.
    at = Imagined(obs.to(**like).repeat(members, 1)[None], None)
    rows = action.to(**like).repeat(members, 1)

    def step(a: Tensor) -> Tensor:
        return dynamics.step(at, a[None]).obs[0]

    with torch.no_grad():
        next_obs = step(rows)
    jacobian = jacobian_of(step, rows)
    return Learned(*(y.double().cpu().unflatten(0, (members, n)) for y in (next_obs, jacobian)))


def change_error(delta: Float[Tensor, "N O"], truth: Float[Tensor, "N O"]) -> Float[Tensor, " N"]:
    """max|d - d_true| / max|d_true| of the change of the observation, per point."""
    return (delta - truth).abs().amax(1) / truth.abs().amax(1)


def explained_variance(delta: Float[Tensor, "N O"], truth: Float[Tensor, "N O"]) -> float:
    """R^2 of the predicted change, averaged over the components that change."""
    variance = truth.var(dim=0, correction=0)
    share = 1.0 - (delta - truth).square().mean(0) / variance
    return float(share[variance > 1e-12].mean())
