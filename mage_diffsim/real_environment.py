"""The real environment that a training collects from: one of every run, stepped without waiting for the host."""

from __future__ import annotations

from typing import Any

import torch

from mage_diffsim.envs.batched import Transition, advance
from mage_diffsim.envs.physics import Physics
from mage_diffsim.errors import InputError
from mage_diffsim.randomness import Streams
from mage_diffsim.shapes import Float, Tensor

LOOK_EVERY = 16
"""Environment steps between the host's looks at the device. Training is the same whatever it is."""
STORE = 2 * LOOK_EVERY + 1
"""Initial states of each run in store. What the host sees at a look was so at the look before, and before the next one
begins, two such spans are over: no more episodes can have begun than they have steps."""


class RealEnvironment:
    """One environment per run. The initial state of a run's n-th episode is a function of its seed and n.

    Initial states are drawn on the CPU, as a task's ``reset`` may do what no device does, and lie in store on the
    device before they are needed.
    """

    def __init__(self, physics: Physics, streams: Streams) -> None:
        self.physics, self.task, self.streams = physics, physics.task, streams
        runs, task = len(streams.seeds), self.task
        like: dict[str, Any] = dict(dtype=physics.dtype, device=physics.device)
        self.state = torch.zeros(runs, task.state_dim, **like)
        self.obs = torch.zeros(runs, task.obs_dim, **like)
        self.elapsed = torch.zeros(runs, dtype=torch.int64, device=physics.device)
        self.episode = torch.zeros(runs, dtype=torch.int64, device=physics.device)
        """Which episode each run is in, from 0."""
        self.bad_action = torch.zeros(runs, dtype=torch.bool, device=physics.device)
        self._run = torch.arange(runs, device=physics.device)
        self._starts = torch.zeros(runs, STORE, task.state_dim, **like)
        self._drawn = [0] * runs
        """Episodes whose initial states were drawn."""
        pinned = physics.device.type == "cuda"
        self._seen = torch.zeros(2, runs, dtype=torch.int64, pin_memory=pinned)
        """What the last look asked for: the episode of each run, and whether an action was not finite."""
        self._answered: torch.cuda.Event | None = torch.cuda.Event() if pinned else None

    def reset(self) -> None:
        """Begin every run's first episode."""
        self.episode.zero_()
        self._settle()
        self.state.copy_(self._starts[:, 0])
        self.obs.copy_(self.task.observe(self.state))
        self.elapsed.zero_()

    @torch.no_grad()
    def step(self, action: Float[Tensor, "R A"]) -> Transition:
        """One step of every run, and a reset of those whose episode ended; nothing of it waits for the host.

        Args:
            action: in [-1, 1], of the physics' dtype and device.
        """
        state, obs = self.state.clone(), self.obs.clone()
        moved = advance(self.physics, state, obs, action)
        elapsed = self.elapsed + 1
        truncated = (elapsed >= self.task.horizon) | moved.diverged
        ended = moved.terminated | truncated
        self.bad_action |= ~action.isfinite().all(-1)
        self.episode += ended
        start = self._starts[self._run, self.episode % STORE]
        self.state.copy_(torch.where(ended.unsqueeze(1), start, moved.next_state))
        self.obs.copy_(torch.where(ended.unsqueeze(1), self.task.observe(start), moved.next_obs))
        self.elapsed.copy_(elapsed.masked_fill(ended, 0))
        return Transition(
            obs, moved.next_obs, moved.reward, moved.terminated, truncated, state, moved.next_state, moved.diverged
        )

    def look(self) -> None:
        """Ask how far the device is, and act on what it said when asked before; to be called every LOOK_EVERY steps.

        Raises:
            InputError: an action was not finite.
        """
        if self._answered is not None:
            self._answered.synchronize()
        episodes, bad = self._seen.tolist()
        self._refuse(bad)
        self._fill(episodes)
        self._ask()

    def require_finite_actions(self) -> None:
        """Check all actions so far; the host waits for the device.

        Raises:
            InputError: an action was not finite.
        """
        self._refuse(self.bad_action.tolist())

    def _refuse(self, bad: list[int]) -> None:
        if any(bad):
            raise InputError(
                f"{self.task.name}: the policy of seed {self.streams.seeds[bad.index(1)]} gave an action that is not "
                "finite: give a smaller learning_rate, or observations of smaller size"
            )

    def _ask(self) -> None:
        self._seen.copy_(torch.stack((self.episode, self.bad_action)), non_blocking=True)
        if self._answered is not None:  # recorded on the stream of the copy, whatever the process's current device is
            self._answered.record(torch.cuda.current_stream(self.physics.device))

    def _fill(self, episodes: list[int]) -> None:
        """Draw initial states of the STORE episodes from these ones on."""
        places, rows = [], []
        for run, episode in enumerate(episodes):
            for number in range(max(self._drawn[run], episode), episode + STORE):
                places.append(run * STORE + number % STORE)
                rows.append(self.task.reset(1, self.streams.generator(run, "environment", number)))
            self._drawn[run] = episode + STORE
        if rows:
            starts = torch.cat(rows).to(self.physics.device, self.physics.dtype, non_blocking=True)
            index = torch.tensor(places).to(self.physics.device, non_blocking=True)
            self._starts.view(-1, self.task.state_dim).index_copy_(0, index, starts)

    def _settle(self) -> None:
        """Fill the store for the episodes that the runs are in."""
        self._drawn = [0] * len(self._drawn)
        self._fill(self.episode.tolist())
        self._ask()

    def changing(self) -> list[Tensor]:
        """What :meth:`step` changes."""
        return [*self.state_dict().values(), self.obs]

    def state_dict(self) -> dict[str, Tensor]:
        """States, steps since the last reset, episodes, and where an action was not finite."""
        names = ("state", "elapsed", "episode", "bad_action")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """The inverse of :meth:`state_dict`, in place."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(saved[name])
        with torch.no_grad():
            self.obs.copy_(self.task.observe(self.state))
        self._settle()
