"""RAdam and Polyak averaging on flat parameters with a run axis."""

from __future__ import annotations

import torch

from mage_diffsim.shapes import Bool, Float, Tensor


class RAdam:
    """Rectified Adam with gradient value clipping and decoupled weight decay, one step count per run.

    The update is :class:`torch.optim.RAdam`'s with ``decoupled_weight_decay=True`` (a test holds them equal). It is
    written out because runs that diverge restart alone: every run needs its own step count, kept on the device. What
    depends on the step count alone is read from a table, so that all the rest is elementwise.
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
        self.first = torch.zeros_like(parameters)
        self.second = torch.zeros_like(parameters)
        self.count = torch.zeros(parameters.shape[0], dtype=torch.int64, device=parameters.device)
        self.divisors = _divisors(self.beta1, self.beta2, eps).to(parameters)

    @torch.no_grad()
    def step(self, parameters: Float[Tensor, "R K P"], gradient: Float[Tensor, "R K P"]) -> None:
        """Update ``parameters`` in place along ``gradient``, which is clipped to +-``clip_value`` per component."""
        self.count += 1
        divisors = self.divisors.index_select(0, self.count.clamp(max=len(self.divisors) - 1))
        of_root, offset = divisors.view(-1, 1, 1, 2).unbind(-1)
        gradient = gradient.clamp(-self.clip_value, self.clip_value)
        self.first.lerp_(gradient, 1.0 - self.beta1)
        self.second.mul_(self.beta2).addcmul_(gradient, gradient, value=1.0 - self.beta2)
        if self.weight_decay:
            parameters.mul_(1.0 - self.learning_rate * self.weight_decay)
        divisor = self.second.sqrt().mul_(of_root).add_(offset)
        parameters.addcdiv_(self.first, divisor, value=-self.learning_rate)

    @torch.no_grad()
    def restart(self, runs: Bool[Tensor, " R"]) -> None:
        """Forget all moments and the step count of the marked runs."""
        for tensor in (self.first, self.second):
            tensor.masked_fill_(runs.view(-1, 1, 1), 0.0)
        self.count.masked_fill_(runs, 0)

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and step counts."""
        return {"first": self.first, "second": self.second, "count": self.count}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of :meth:`state_dict`, in place."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


def _divisors(beta1: float, beta2: float, eps: float) -> Float[Tensor, "T 2"]:
    """a and b for every step count: RAdam divides the first moment by a * sqrt(second moment) + b.

    While the variance of the adaptive rate is intractable (rho <= 5), a is 0. The last row holds for all later counts:
    the bias corrections are 1 by then, to float64's precision.
    """
    count = torch.arange(int(50.0 / (1.0 - beta2)) + 1, dtype=torch.float64)
    count[0] = 1.0  # no step has this count
    decay2 = beta2**count
    correction1, correction2 = 1.0 - beta1**count, 1.0 - decay2
    rho_max = 2.0 / (1.0 - beta2) - 1.0
    rho = rho_max - 2.0 * count * decay2 / correction2
    rectified = rho > 5.0
    rectifier = (rho - 4.0) * (rho - 2.0) * rho_max / ((rho_max - 4.0) * (rho_max - 2.0) * rho)
    adaptive = correction1 / (torch.where(rectified, rectifier, 1.0) * correction2).sqrt()
    rows = torch.where(rectified, torch.stack([adaptive, eps * adaptive]), torch.stack([0.0 * count, correction1]))
    return rows.T


@torch.no_grad()
def polyak_average(target: Tensor, online: Tensor, share: float) -> None:
    """target <- (1 - share) * target + share * online, in place."""
    target.lerp_(online, share)
