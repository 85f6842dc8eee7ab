"""The learned models: an ensemble of Gaussian dynamics networks and a reward network, and how they are trained."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from mage_diffsim.autodiff import value_and_gradients
from mage_diffsim.buffer import Batch, ReplayBuffer
from mage_diffsim.compiling import compiled
from mage_diffsim.config import TrainConfig
from mage_diffsim.cuda_graphs import Captured
from mage_diffsim.hyper import Hyper
from mage_diffsim.networks import MLP
from mage_diffsim.normalizer import Normalizer
from mage_diffsim.optim import RAdam
from mage_diffsim.randomness import Streams
from mage_diffsim.shapes import Float, Int, Tensor


class GaussianEnsemble:
    """M networks per run, each predicting mean and log-variance of the normalised change of the observation.

    The log-variance is bounded by a sigmoid between two constants; the model is trained by maximum likelihood.
    """

    stream = "model"
    """Random stream of its training batches."""

    def __init__(self, obs_dim: int, action_dim: int, hyper: Hyper, streams: Streams) -> None:
        runs, device, dtype = len(streams.seeds), streams.device, streams.dtype
        self.hyper = hyper
        self.members = hyper.ensemble_members
        self.network = MLP((obs_dim + action_dim, *hyper.ensemble_hidden, 2 * obs_dim), last="normal")
        self.generators = streams.generators["initialise_model"]
        self.parameters = torch.stack([self.network.initial(self.members, g, dtype) for g in self.generators])
        self.optimizer = RAdam(self.parameters, hyper.model_learning_rate, hyper.clip_value, hyper.model_weight_decay)
        self.obs = Normalizer(runs, obs_dim, device, dtype)
        self.action = Normalizer(runs, action_dim, device, dtype)
        self.delta = Normalizer(runs, obs_dim, device, dtype)

    def predict(
        self, parameters: Float[Tensor, "R M P"], obs: Float[Tensor, "R M B O"], action: Float[Tensor, "R M B A"]
    ) -> tuple[Float[Tensor, "R M B O"], Float[Tensor, "R M B O"]]:
        """Mean and log-variance of the normalised delta, each member on its own rows."""
        x = torch.cat(
            [
                self.obs.normalize(obs),
                self.action.normalize(action),
            ],
            dim=-1,
        )
        mean, raw = self.network(parameters, x).chunk(2, dim=-1)
        low, high = self.hyper.log_var_low, self.hyper.log_var_high
        return mean, low + (high - low) * torch.sigmoid(raw)

    def step(
        self,
        obs: Float[Tensor, "R B O"],
        action: Float[Tensor, "R B A"],
        noise: Float[Tensor, "R B O"] | None = None,
    ) -> Float[Tensor, "R B O"]:
        """One sampled next observation per row, reparameterised: obs + delta(obs, action, noise).

        Each row is imagined by one member: member k serves rows k*B/M to (k+1)*B/M. With rows drawn uniformly this
        leaves each (state, member) marginal uniform, as a random member per row does, at 1/M of the work.

        Args:
            obs: current observations, shape [R, B, O].
            action: actions, shape [R, B, A].
            noise: standard normal numbers, shape [R, B, O]; None takes the mean.

        Raises:
            ValueError: B is not a multiple of the number of members.
        """
        rows, members = obs.shape[1], self.members
        if rows % members:
            raise ValueError(f"{rows} rows cannot be shared equally among {members} ensemble members")
        mean, log_var = self.predict(self.parameters, _by_member(obs, members), _by_member(action, members))
        if noise is not None:
            mean = mean + (0.5 * log_var).exp() * _by_member(noise, members)
        delta = mean * self.delta.std.unsqueeze(1) + self.delta.mean.unsqueeze(1)
        return obs + delta.view(obs.shape)

    def adopt_statistics(self, obs: Normalizer, action: Normalizer, delta: Normalizer) -> None:
        """Take the current normalisation; between trainings the model keeps the one it was trained with."""
        self.obs.load_state_dict(obs.state_dict())
        self.action.load_state_dict(action.state_dict())
        self.delta.load_state_dict(delta.state_dict())

    def train_batch(self, batch: Batch) -> Float[Tensor, " R"]:
        """One maximum-likelihood step of every member on its own rows (batch rows are member-major, [R, M*B]).

        Returns:
            mean loss per run, mean((mu - t)^2 / var + log var) over rows and components, shape [R].
        """
        losses, (gradient,) = value_and_gradients(functools.partial(self._loss, batch), self.parameters)
        self.optimizer.step(self.parameters, gradient)
        return losses.mean(dim=1)

    def _loss(self, batch: Batch, parameters: Float[Tensor, "R M P"]) -> Float[Tensor, "R M"]:
        members = self.members
        target = _by_member((batch.next_obs - batch.obs - self.delta.mean) / self.delta.std, members)
        mean, log_var = self.predict(parameters, _by_member(batch.obs, members), _by_member(batch.action, members))
        return ((mean - target).square() * (-log_var).exp() + log_var).mean(dim=(-1, -2))

    def state_dict(self) -> dict[str, object]:
        """Parameters, optimiser and normalisation."""
        return {
            "parameters": self.parameters,
            "optimizer": self.optimizer.state_dict(),
            "obs": self.obs.state_dict(),
            "action": self.action.state_dict(),
            "delta": self.delta.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """The inverse of :meth:`state_dict`, in place."""
        self.parameters.copy_(state["parameters"])
        for name in ("optimizer", "obs", "action", "delta"):
            getattr(self, name).load_state_dict(state[name])


def _by_member(x: Float[Tensor, "R B W"], members: int) -> Float[Tensor, "R M b W"]:
    """Member-major rows as each member's own."""
    return x.view(x.shape[0], members, x.shape[1] // members, x.shape[2])


class RewardModel:
    """r_hat(s, a, s'): one network per run, trained on the mean squared error (appendix B.2).

    The network sees normalised observations and predicts the normalised reward, as the published code's does; the mean
    squared error is that of the denormalised estimate, in units of the reward.
    """

    stream = "reward_model"
    """Random stream of its training batches."""

    def __init__(self, obs_dim: int, action_dim: int, hyper: Hyper, streams: Streams) -> None:
        runs, device, dtype = len(streams.seeds), streams.device, streams.dtype
        self.members = 1
        self.network = MLP((2 * obs_dim + action_dim, *hyper.reward_hidden, 1), last="normal")
        self.generators = streams.generators["initialise_reward"]
        self.parameters = torch.stack([self.network.initial(1, g, dtype) for g in self.generators])
        self.optimizer = RAdam(self.parameters, hyper.model_learning_rate, hyper.clip_value, hyper.model_weight_decay)
        self.obs = Normalizer(runs, obs_dim, device, dtype)
        self.reward = Normalizer(runs, 1, device, dtype)

    def __call__(
        self,
        obs: Float[Tensor, "R B O"],
        action: Float[Tensor, "R B A"],
        next_obs: Float[Tensor, "R B O"],
        parameters: Float[Tensor, "R 1 P"] | None = None,
    ) -> Float[Tensor, "R B"]:
        """The estimated reward, shape [R, B]."""
        x = torch.cat([self.obs.normalize(obs), action, self.obs.normalize(next_obs)], dim=-1)
        normalized = self.network(self.parameters if parameters is None else parameters, x.unsqueeze(1))[:, 0, :, 0]
        return normalized * self.reward.std[..., 0] + self.reward.mean[..., 0]

    def adopt_statistics(self, obs: Normalizer, reward: Normalizer) -> None:
        """Take the current normalisation; between trainings the model keeps the one it was trained with."""
        self.obs.load_state_dict(obs.state_dict())
        self.reward.load_state_dict(reward.state_dict())

    def train_batch(self, batch: Batch) -> Float[Tensor, " R"]:
        """One step on the mean squared error; returns it per run, shape [R]."""
        losses, (gradient,) = value_and_gradients(functools.partial(self._loss, batch), self.parameters)
        self.optimizer.step(self.parameters, gradient)
        return losses

    def _loss(self, batch: Batch, parameters: Float[Tensor, "R 1 P"]) -> Float[Tensor, " R"]:
        estimate = self(batch.obs, batch.action, batch.next_obs, parameters)
        return (estimate - batch.reward).square().mean(dim=-1)

    def state_dict(self) -> dict[str, object]:
        """Parameters, optimiser and normalisation."""
        return {
            "parameters": self.parameters,
            "optimizer": self.optimizer.state_dict(),
            "obs": self.obs.state_dict(),
            "reward": self.reward.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """The inverse of :meth:`state_dict`, in place."""
        self.parameters.copy_(state["parameters"])
        for name in ("optimizer", "obs", "reward"):
            getattr(self, name).load_state_dict(state[name])


BatchStep = Callable[[Tensor], Tensor]
"""Indices [R, M, B] of one batch's transitions to the loss per run, shape [R], having trained on them."""


def batch_step(model: GaussianEnsemble | RewardModel, buffer: ReplayBuffer, config: TrainConfig) -> BatchStep:
    """A step of the model on transitions of the buffer, compiled and captured if the configuration says so.

    It is then for full batches, of ``model_batch_size`` transitions per member, only.
    """
    train_batch = compiled(model.train_batch) if config.compile == "on" else model.train_batch

    def step(index: Tensor) -> Tensor:
        return train_batch(buffer.gather(index))

    captured = config.graphs != "off" and model.parameters.is_cuda  # it steps no dynamics, which might forbid it
    return Captured(step, model.state_dict) if captured else step


def train_model(
    model: GaussianEnsemble | RewardModel,
    buffer: ReplayBuffer,
    hyper: Hyper,
    streams: Streams,
    full_batch: BatchStep | None = None,
) -> Float[Tensor, " R"]:
    """Train ``model`` on the buffer for one round; returns the mean loss per run over the round, shape [R].

    A run whose model then has a parameter that is not finite starts over with a fresh one (its loss says so: NaN).

    Args:
        model: what to train, in place.
        buffer: transitions.
        hyper: sizes and numbers of batches.
        streams: random numbers.
        full_batch: :func:`batch_step` of model and buffer, used for full batches (a small buffer gives shorter ones).
    """
    total = torch.zeros(len(streams.seeds), dtype=streams.dtype, device=streams.device)
    n = 0
    for index in _batches(model, buffer.size, hyper, streams):
        if full_batch is not None and index.shape[-1] == hyper.model_batch_size:
            total += full_batch(index)
        else:
            total += model.train_batch(buffer.gather(index))
        n += 1
    broken = ~model.parameters.isfinite().flatten(1).all(dim=1)
    if broken.any():
        for run in broken.nonzero():
            model.parameters[run] = model.network.initial(model.members, model.generators[run], streams.dtype)
        model.optimizer.restart(broken)
    return total / n


def _batches(
    model: GaussianEnsemble | RewardModel, size: int, hyper: Hyper, streams: Streams
) -> Iterator[Int[Tensor, "R M B"]]:
    """Indices of one round's batches: independent draws, or whole epochs with the last short batch left out."""
    members, stream = model.members, model.stream
    if not hyper.model_epochs:
        index = streams.integers(stream, size, hyper.model_batches, members, hyper.model_batch_size)
        yield from index.unbind(dim=1)
        return
    rows = min(hyper.model_batch_size, size)
    done = 0
    while done < hyper.model_batches:
        order = streams.permutations(stream, size, members)
        for start in range(0, size - rows + 1, rows):
            yield order[..., start : start + rows]
            done += 1
