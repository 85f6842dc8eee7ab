"""Replay buffer on the device, with the simulator's states beside the observations."""

from __future__ import annotations

from typing import NamedTuple

import torch

from mage_diffsim.shapes import Bool, Float, Int, Tensor


class Batch(NamedTuple):
    """Transitions, leading axes [R, B]."""

    obs: Float[Tensor, "R B O"]
    action: Float[Tensor, "R B A"]
    next_obs: Float[Tensor, "R B O"]
    reward: Float[Tensor, "R B"]
    terminated: Bool[Tensor, "R B"]
    state: Float[Tensor, "R B S"]


class ReplayBuffer:
    """Every transition of every run, one row each, so that a batch is one gather.

    Time limits are not stored: ``terminated`` is the only thing that may mask a bootstrap.
    """

    def __init__(
        self,
        runs: int,
        capacity: int,
        obs_dim: int,
        action_dim: int,
        state_dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.widths = [obs_dim, action_dim, obs_dim, 1, 1, state_dim]
        self.rows = torch.zeros(runs, capacity, sum(self.widths), dtype=dtype, device=device)
        self.filled = torch.zeros((), dtype=torch.int64, device=device)
        """Number of rows in use, on the device."""
        self._first_row = torch.arange(runs, device=device).unsqueeze(1) * capacity

    @property
    def size(self) -> int:
        """Number of rows in use; the host waits for the device."""
        return int(self.filled)

    def add(
        self,
        obs: Float[Tensor, "R O"],
        action: Float[Tensor, "R A"],
        next_obs: Float[Tensor, "R O"],
        reward: Float[Tensor, " R"],
        terminated: Bool[Tensor, " R"],
        state: Float[Tensor, "R S"],
        valid: Bool[Tensor, " R"] | None = None,
    ) -> None:
        """Append one transition per run; a run whose transition is not ``valid`` gets a copy of its last one.

        There must be room: nothing here waits for the device to find that there is not.
        """
        row = torch.cat(
            [obs, action, next_obs, reward.unsqueeze(-1), terminated.to(obs.dtype).unsqueeze(-1), state], dim=-1
        )
        if valid is not None:
            last = self.rows.index_select(1, (self.filled - 1).clamp(min=0).view(1)).squeeze(1)
            row = torch.where((valid | (self.filled == 0)).unsqueeze(-1), row, last)
        self.rows.index_copy_(1, self.filled.view(1), row.unsqueeze(1))
        self.filled += 1

    def gather(self, index: Int[Tensor, "R ..."]) -> Batch:
        """The transitions that ``index`` (values below ``filled``) names for each run, flattened to [R, B, ...]."""
        runs = self.rows.shape[0]
        flat = index.reshape(runs, -1)
        rows = self.rows.view(-1, self.rows.shape[-1]).index_select(0, (flat + self._first_row).view(-1))
        obs, action, next_obs, reward, terminated, state = rows.view(runs, flat.shape[1], -1).split(self.widths, -1)
        return Batch(obs, action, next_obs, reward.squeeze(-1), terminated.squeeze(-1) > 0.5, state)

    def state_dict(self) -> dict[str, object]:
        """The rows in use, which later ones are added to and which never change."""
        return {"rows": self.rows[:, : self.size], "size": self.size}

    def load_state_dict(self, state: dict) -> None:
        """The inverse of :meth:`state_dict`, in place."""
        self.filled.fill_(state["size"])
        self.rows[:, : self.size] = state["rows"]
