"""Dynamics that break in some states."""

from __future__ import annotations

import torch

from mage_diffsim.dynamics import Dynamics, Imagined


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
