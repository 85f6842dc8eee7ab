"""Random numbers by counting: each is a function of seed, purpose, environment step and position, and of nothing else.

So there is no state to save, R runs that share a process see the numbers that R separate processes would, a purpose
(say, evaluation) never shifts the numbers of another (say, exploration), and all numbers of a purpose are drawn at once
for all runs, without the host.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mage_diffsim.shapes import Float, Int, Tensor

Step = int | Tensor
"""An environment step: a number, or an int64 tensor on the device."""
WORD = 1 << 32
AHEAD = 1 << 14
"""Words of a run that are made at once, for steps to come, where the host knows the step."""


class Philox:
    """Philox4x32-10 (Salmon et al., SC 2011): four random 32-bit words for each counter of four words.

    Words are int64 tensors of values from 0 to 2^32 - 1.

    Args:
        key: two words for each place, shape [2, *n]; the axes after the first broadcast with the counters'.
    """

    MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
    KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
    ROUNDS = 10

    def __init__(self, key: Int[Tensor, "2 ..."]) -> None:
        pair = (2, *(1,) * (key.ndim - 1))
        multipliers = torch.tensor(self.MULTIPLIERS, device=key.device).view(pair)
        self.multipliers = multipliers, multipliers.flip(0)
        steps = torch.tensor(self.KEY_STEPS, device=key.device).view(pair)
        keys = [(key + n * steps) % WORD for n in range(self.ROUNDS)]
        self.keys = [key.flip(0) if n % 2 == 0 else key for n, key in enumerate(keys)]
        """The key of each round."""

    def __call__(self, counter: Int[Tensor, "4 ..."]) -> Int[Tensor, "4 ..."]:
        even, odd = counter[0::2], counter[1::2].flip(0)
        for n, key in enumerate(self.keys):
            # After every round the two halves of a pair have changed places; two rounds put them back.
            product = even * self.multipliers[n % 2]
            # The shift copies the sign into the upper half, which is cut off before it is multiplied.
            even = (product >> 32).bitwise_xor_(odd).bitwise_xor_(key).bitwise_and_(WORD - 1)
            odd = product.flip(0)
        return torch.stack((even, odd.bitwise_and_(WORD - 1).flip(0)), dim=1).flatten(0, 1)


class Streams:
    """Random numbers of all runs: run r's depend on its seed and not on the other runs.

    Networks and initial states come from a :class:`torch.Generator` each, on the CPU, as tasks draw from one. All else
    comes from :meth:`words`, on the device.
    """

    PURPOSES = (
        "explore",  # warm-up actions and exploration noise
        "batch",  # which transitions an update uses
        "imagine",  # the ensemble's Gaussian
        "target",  # target-policy noise
        "control",  # permutations and directions of the negative controls
        "probe",  # directions of the diagnosis
        "model",  # which transitions the ensemble trains on
        "reward_model",  # which transitions the reward model trains on
    )

    def __init__(self, seeds: Sequence[int], device: torch.device, dtype: torch.dtype) -> None:
        self.seeds, self.device, self.dtype = tuple(seeds), device, dtype
        keys = [np.random.SeedSequence(seed).generate_state(2, np.uint32).tolist() for seed in seeds]
        self._philox = Philox(torch.tensor(keys, device=device).T.view(2, -1, 1, 1))
        self._made: dict[tuple[tuple[str, int], ...], tuple[int, dict[str, Tensor]]] = {}
        """Words of several steps by what was wanted, from the first of these steps on."""

    def generator(self, run: int, purpose: str, number: int) -> torch.Generator:
        """The generator of one thing that is drawn on the CPU: of the run's ``number``-th network, say."""
        words = np.random.SeedSequence([self.seeds[run], zlib.crc32(purpose.encode()), number])
        return torch.Generator("cpu").manual_seed(int(words.generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def generators(self, purpose: str, number: int) -> list[torch.Generator]:
        """:meth:`generator` of every run."""
        return [self.generator(run, purpose, number) for run in range(len(self.seeds))]

    def words(self, step: Step, counts: Mapping[str, int]) -> dict[str, Int[Tensor, "R n"]]:
        """``counts[purpose]`` random 32-bit words of every run for each purpose, from 0 to 2^32 - 1.

        Args:
            step: the environment step: int64 on the device, or an int, for which the words of several steps to come are
                made at once where they are few.
            counts: number of words by purpose.
        """
        if not isinstance(step, int):
            return {purpose: x[:, 0] for purpose, x in self._of_steps(step.view(1), counts).items()}
        wanted, several = tuple(counts.items()), max(1, AHEAD // sum(counts.values()))
        first, made = self._made.get(wanted, (-several, {}))
        if not first <= step < first + several:
            first = step - step % several
            steps = torch.arange(first, first + several, device=self.device)
            made = self._of_steps(steps, counts)
            self._made[wanted] = first, made
        return {purpose: x[:, step - first] for purpose, x in made.items()}

    def _of_steps(self, steps: Int[Tensor, " T"], counts: Mapping[str, int]) -> dict[str, Int[Tensor, "R T n"]]:
        blocks = {purpose: -(-count // 4) for purpose, count in counts.items()}
        like: dict[str, Any] = dict(dtype=torch.int64, device=self.device)
        positions = torch.cat([torch.arange(n, **like) for n in blocks.values()])
        purposes = torch.cat([torch.full((n,), self.PURPOSES.index(p), **like) for p, n in blocks.items()])
        clock = steps.unsqueeze(1)
        parts = torch.broadcast_tensors(positions, purposes, clock & (WORD - 1), clock >> 32)
        counter = torch.stack(parts).unsqueeze(1)
        words = self._philox(counter.expand(-1, len(self.seeds), -1, -1)).movedim(0, -1).flatten(-2)
        of_purpose = words.split([4 * n for n in blocks.values()], dim=-1)
        return {p: part[..., :count] for (p, count), part in zip(counts.items(), of_purpose, strict=True)}


def uniform(words: Int[Tensor, "R n"], dtype: torch.dtype, *shape: int) -> Float[Tensor, "R ..."]:
    """Numbers uniform in [0, 1) with 24 bits, the same in every dtype, shape [R, *shape]."""
    return ((words >> 8).to(dtype) * 2.0**-24).reshape(-1, *shape)


def normal(words: Int[Tensor, "R n"], dtype: torch.dtype, *shape: int) -> Float[Tensor, "R ..."]:
    """Standard normal numbers by Box and Muller's transform, shape [R, *shape]; ``words`` are an even number.

    Of an odd number of numbers the last word is left over.
    """
    first, second = words.to(dtype).chunk(2, dim=-1)
    radius = ((first + 0.5) * (1.0 / WORD)).log_().mul_(-2.0).sqrt_()
    angle = second * (2.0 * math.pi / WORD)
    numbers = torch.cat((radius * angle.cos(), radius * angle.sin()), dim=-1)
    return numbers[:, : math.prod(shape)].reshape(-1, *shape)


def normal_words(*shape: int) -> int:
    """Words that :func:`normal` takes for numbers of this shape."""
    return 2 * -(-math.prod(shape) // 2)


def integers(words: Int[Tensor, "R n"], high: int | Int[Tensor, ""], *shape: int) -> Int[Tensor, "R ..."]:
    """Integers uniform in [0, high) up to high / 2^32, for ``high`` below 2^31, shape [R, *shape]."""
    return (words * high >> 32).reshape(-1, *shape)


def permutations(words: Int[Tensor, "R n"], *shape: int) -> Int[Tensor, "R ..."]:
    """Permutations of ``range(shape[-1])``, each uniform and independent, shape [R, *shape]."""
    return words.reshape(-1, *shape).argsort(dim=-1)
