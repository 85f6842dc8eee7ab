"""Running mean and standard deviation, per run."""

from __future__ import annotations

import torch

from mage_diffsim.shapes import Bool, Float, Tensor


class Normalizer:
    """Population mean and standard deviation of everything seen, by Welford's update, one per run.

    Components whose standard deviation is below 1e-6 are left unscaled. Before the first update it is the identity.
    Statistics accumulate in float64 whatever the training dtype.
    """

    def __init__(self, runs: int, width: int, device: torch.device, dtype: torch.dtype) -> None:
        self.count = torch.zeros(runs, 1, dtype=torch.float64, device=device)
        self.running_mean = torch.zeros(runs, width, dtype=torch.float64, device=device)
        self.sum_squares = torch.zeros(runs, width, dtype=torch.float64, device=device)
        self.mean = torch.zeros(runs, 1, width, dtype=dtype, device=device)
        self.std = torch.ones(runs, 1, width, dtype=dtype, device=device)

    @torch.no_grad()
    def update(self, x: Float[Tensor, "R D"], valid: Bool[Tensor, " R"] | None = None) -> None:
        """Take in one vector per run, or only of the ``valid`` runs."""
        weight = 1.0 if valid is None else valid.unsqueeze(1).to(torch.float64)
        self.count += weight
        count = self.count.clamp(min=1.0)
        deviation = (x.to(torch.float64) - self.running_mean) * weight
        self.running_mean += deviation / count
        self.sum_squares += deviation * (x.to(torch.float64) - self.running_mean)
        std = (self.sum_squares / count).sqrt()
        self.mean.copy_(self.running_mean.unsqueeze(1))
        self.std.copy_(torch.where(std < 1e-6, 1.0, std).unsqueeze(1))

    def normalize(self, x: Float[Tensor, "R *rows D"]) -> Float[Tensor, "R *rows D"]:
        """(x - mean) / std, whatever the axes between run and component."""
        shape = (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])
        return (x - self.mean.view(shape)) / self.std.view(shape)

    def state_dict(self) -> dict[str, Tensor]:
        """The statistics."""
        return {name: getattr(self, name) for name in ("count", "running_mean", "sum_squares", "mean", "std")}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of :meth:`state_dict`, in place; also how one normaliser takes another's view."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
