"""Episodes of evaluations as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mage_diffsim.cuda_graphs import Captured, GraphMemory
from mage_diffsim.envs.physics import Physics
from mage_diffsim.envs.rollouts import Episodes, advance_episodes, begin_episodes
from mage_diffsim.shapes import Float, Tensor

CHUNK = 25
"""Steps of all episodes that are one graph."""


class CapturedRollout:
    """:func:`.rollout` of a policy whose parameters stay where they are, in graphs of CHUNK steps.

    Every call takes the same number of episodes.
    """

    def __init__(self, physics: Physics, policy: Callable[[Tensor], Tensor], memory: GraphMemory) -> None:
        self.physics, self.policy = physics, policy
        self._episodes: Episodes | None = None
        self._chunk = Captured(lambda: self._advance(CHUNK), lambda: self._episodes, memory)

    @torch.no_grad()
    def __call__(self, initial_state: Float[Tensor, "N S"]) -> Episodes:
        """Whole episodes from these states; the next call overwrites what they came to."""
        task, begun = self.physics.task, begin_episodes(self.physics, initial_state)
        if self._episodes is None:
            self._episodes = begun
        self._put(begun)
        chunks, rest = divmod(task.horizon, CHUNK)
        for _ in range(chunks):
            self._chunk()
            if not self._episodes.running.any():
                break
        self._advance(rest)
        self._episodes.require_finite_actions(task.name)
        return self._episodes

    def _advance(self, steps: int) -> None:
        now = self._episodes
        assert now is not None
        for _ in range(steps):
            now = advance_episodes(self.physics, self.policy, now)[0]
        self._put(now)

    def _put(self, now: Episodes) -> None:
        assert self._episodes is not None
        torch._foreach_copy_(list(self._episodes), list(now))  # pyright: ignore[reportPrivateImportUsage]
