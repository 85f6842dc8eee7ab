"""Named random streams, one generator per run and purpose.

Run r draws only from its own generators, so R runs that share a process see the numbers that R separate processes
would, and a purpose (say, evaluation) never shifts the numbers of another (say, exploration).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch

from mage_diffsim.shapes import Float, Int, Tensor


class Streams:
    """Random streams of all runs, derived from one root seed per run."""

    NAMES = (
        "initialise",  # actor and critic parameters
        "initialise_model",  # parameters of the ensemble, apart, so that no dynamics changes the first actor
        "initialise_reward",  # parameters of the reward model
        "environment",  # resets of the training environment
        "explore",  # warm-up actions and exploration noise
        "batch",  # which transitions an update uses
        "imagine",  # the ensemble's Gaussian
        "target",  # target-policy noise
        "control",  # permutations and directions of the negative controls
        "model",  # which transitions the ensemble trains on
        "reward_model",  # which transitions the reward model trains on
    )

    def __init__(self, seeds: Sequence[int], device: torch.device, dtype: torch.dtype) -> None:
        self.seeds, self.device, self.dtype = tuple(seeds), device, dtype
        self.generators = {name: [self._generator(seed, name) for seed in seeds] for name in self.NAMES}

    def evaluation(self, env_step: int) -> list[torch.Generator]:
        """A generator per run for the initial states of the evaluation at this step, whatever was evaluated before."""
        return [self._generator(seed, "evaluate", env_step) for seed in self.seeds]

    def _generator(self, seed: int, name: str, *more: int) -> torch.Generator:
        words = np.random.SeedSequence([seed, zlib.crc32(name.encode()), *more]).generate_state(1, np.uint64)
        return torch.Generator(self.device).manual_seed(int(words[0] >> np.uint64(1)))

    def normal(self, name: str, *shape: int) -> Float[Tensor, "R ..."]:
        """Standard normal numbers, shape [R, *shape]."""
        return torch.stack(
            [
                torch.randn(shape, dtype=self.dtype, device=self.device, generator=generator)
                for generator in self.generators[name]
            ]
        )

    def uniform(self, name: str, *shape: int) -> Float[Tensor, "R ..."]:
        """Numbers uniform in [0, 1), shape [R, *shape]."""
        return torch.stack(
            [
                torch.rand(shape, dtype=self.dtype, device=self.device, generator=generator)
                for generator in self.generators[name]
            ]
        )

    def integers(self, name: str, high: int, *shape: int) -> Int[Tensor, "R ..."]:
        """Integers uniform in [0, high), shape [R, *shape]."""
        return torch.stack(
            [torch.randint(high, shape, device=self.device, generator=generator) for generator in self.generators[name]]
        )

    def permutations(self, name: str, length: int, *shape: int) -> Int[Tensor, "R ..."]:
        """Independent uniform permutations of ``range(length)``, shape [R, *shape, length]."""
        return self.uniform(name, *shape, length).argsort(dim=-1)

    def state_dict(self) -> dict[str, list[Tensor]]:
        """The state of every generator."""
        return {name: [g.get_state() for g in generators] for name, generators in self.generators.items()}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """The inverse of :meth:`state_dict`."""
        for name, generators in self.generators.items():
            for generator, saved in zip(generators, state[name], strict=True):
                generator.set_state(saved)
