"""RAdam and Polyak averaging on flat parameters with a run axis."""

from __future__ import annotations

import torch

from mage_diffsim.shapes import Bool, Float, Tensor


class RAdam:
    """Rectified Adam with gradient value clipping and decoupled weight decay, one step count per run.

    The update is :class:`torch.optim.RAdam`'s with ``decoupled_weight_decay=True`` (a test holds them equal). It is
    written out because runs that diverge restart alone: every run needs its own step count, kept on the device.
    """

    def __init__(
        self,
        parameters: Float[Tensor, "R K P"],
        learning_rate: float,
        clip_value: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.learning_rate, self.clip_value, self.weight_decay = learning_rate, clip_value, weight_decay
        self.beta1, self.beta2 = betas
        self.eps = eps
        self.first = torch.zeros_like(parameters)
        self.second = torch.zeros_like(parameters)
        self.count = torch.zeros(parameters.shape[0], 1, 1, dtype=torch.float64, device=parameters.device)

    @torch.no_grad()
    def step(self, parameters: Float[Tensor, "R K P"], gradient: Float[Tensor, "R K P"]) -> None:
        """Update ``parameters`` in place along ``gradient``, which is clipped to +-``clip_value`` per component."""
        gradient = gradient.clamp(-self.clip_value, self.clip_value)
        self.count += 1
        self.first.lerp_(gradient, 1.0 - self.beta1)
        self.second.mul_(self.beta2).addcmul_(gradient, gradient, value=1.0 - self.beta2)
        if self.weight_decay:
            parameters.mul_(1.0 - self.learning_rate * self.weight_decay)

        decay2 = self.beta2**self.count
        correction1, correction2 = 1.0 - self.beta1**self.count, 1.0 - decay2
        rho_max = 2.0 / (1.0 - self.beta2) - 1.0
        rho = rho_max - 2.0 * self.count * decay2 / correction2
        rectified = rho > 5.0
        rectifier = (rho - 4.0) * (rho - 2.0) * rho_max / ((rho_max - 4.0) * (rho_max - 2.0) * rho)
        adaptive = torch.where(rectified, (rectifier.clamp(min=0.0) * correction2).sqrt(), 0.0) / correction1
        plain = torch.where(rectified, 0.0, 1.0) / correction1

        scale = self.second.sqrt().add_(self.eps).reciprocal_()
        scale.mul_((-self.learning_rate * adaptive).to(scale.dtype)).add_((-self.learning_rate * plain).to(scale.dtype))
        parameters.addcmul_(self.first, scale)

    @torch.no_grad()
    def restart(self, runs: Bool[Tensor, " R"]) -> None:
        """Forget all moments and the step count of the marked runs."""
        for tensor in (self.first, self.second, self.count):
            tensor[runs] = 0.0

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and step counts."""
        return {"first": self.first, "second": self.second, "count": self.count}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of :meth:`state_dict`, in place."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


@torch.no_grad()
def polyak_average(target: Tensor, online: Tensor, share: float) -> None:
    """target <- (1 - share) * target + share * online, in place."""
    target.lerp_(online, share)
