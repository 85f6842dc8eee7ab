"""The learned models: an ensemble of Gaussian dynamics networks and a reward network, and how they are trained."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch

from mage_diffsim.autodiff import value_and_gradients
from mage_diffsim.buffer import Batch, ReplayBuffer
from mage_diffsim.compiling import compiled
from mage_diffsim.config import TrainConfig
from mage_diffsim.cuda_graphs import Captured, GraphMemory
from mage_diffsim.hyper import Hyper
from mage_diffsim.networks import MLP, all_finite
from mage_diffsim.normalizer import Normalizer
from mage_diffsim.optim import RAdam
from mage_diffsim.randomness import Streams, integers, permutations
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
        self.parameters = _initial(self.network, self.members, streams, "initialise_model", 0)
        self.fresh = _initial(self.network, self.members, streams, "initialise_model", 1)
        """Parameters to go on with if those in use break."""
        self.optimizer = RAdam(self.parameters, hyper.model_learning_rate, hyper.clip_value, hyper.model_weight_decay)
        self.obs = Normalizer(runs, obs_dim, device, dtype)
        self.action = Normalizer(runs, action_dim, device, dtype)
        self.delta = Normalizer(runs, obs_dim, device, dtype)

    def predict(
        self, parameters: Float[Tensor, "R M P"], obs: Float[Tensor, "R M B O"], action: Float[Tensor, "R M B A"]
    ) -> tuple[Float[Tensor, "R M B O"], Float[Tensor, "R M B O"]]:
        """Mean and log-variance of the normalised delta, each member on its own rows."""
        x = torch.cat([self.obs.normalize(obs), self.action.normalize(action)], dim=-1)
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
        predicted = self.predict(self.parameters, _by_member(obs, members), _by_member(action, members))
        mean, log_var = (x.flatten(1, 2) for x in predicted)
        if noise is not None:
            mean = mean + (0.5 * log_var).exp() * noise
        return obs + (mean * self.delta.std + self.delta.mean)

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


def _initial(network: MLP, copies: int, streams: Streams, purpose: str, number: int) -> Float[Tensor, "R K P"]:
    """Each run's ``number``-th initial parameters."""
    generators = streams.generators(purpose, number)
    return torch.stack([network.initial(copies, g, streams.dtype) for g in generators]).to(streams.device)


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
        self.parameters = _initial(self.network, 1, streams, "initialise_reward", 0)
        self.fresh = _initial(self.network, 1, streams, "initialise_reward", 1)
        """Parameters to go on with if those in use break."""
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


class ModelTraining:
    """Trains a model on the buffer, a round at a time.

    Compiled if the configuration says so, and captured: a whole round, or, in epochs, whose batches depend on the
    buffer's size, each full batch.

    Args:
        model: what is trained, in place.
        buffer: transitions.
        config: of the training.
        streams: random numbers.
        graphs: memory of the training's CUDA graphs, if they hold it.
    """

    def __init__(
        self,
        model: GaussianEnsemble | RewardModel,
        buffer: ReplayBuffer,
        config: TrainConfig,
        streams: Streams,
        graphs: GraphMemory | None = None,
    ) -> None:
        self.model, self.buffer, self.hyper, self.streams = model, buffer, config.hyper, streams
        self.loss = torch.zeros(len(streams.seeds), dtype=streams.dtype, device=streams.device)
        """Mean loss of each run over the last round; of a run whose model broke in it, not finite."""
        self.begun = False
        """Whether there was a round."""
        self.train_batch = compiled(model.train_batch) if config.compile == "on" else model.train_batch
        self._index = torch.zeros(
            len(streams.seeds), model.members, self.hyper.model_batch_size, dtype=torch.int64, device=streams.device
        )
        self._clock = torch.zeros((), dtype=torch.int64, device=streams.device)
        self._whole: Callable[[], None] = self._drawn_round
        self._full: Callable[[], None] = self._full_batch
        if graphs is not None:
            changing = lambda: [model.state_dict(), self.loss]  # noqa: E731
            self._whole, self._full = (Captured(x, changing, graphs) for x in (self._whole, self._full))

    def round(self, clock: Int[Tensor, ""], size: int) -> None:
        """Train for one round. A run whose model then has a parameter that is not finite starts over with a fresh one.

        Args:
            clock: the environment step, on the device.
            size: transitions in the buffer.
        """
        self.begun = True
        self._clock.copy_(clock)
        if self.hyper.model_epochs:
            self._epochs(size)
        else:
            self._whole()

    def _drawn_round(self) -> None:
        """Batches of independent draws."""
        name, hyper, members = self.model.stream, self.hyper, self.model.members
        shape = (hyper.model_batches, members, hyper.model_batch_size)
        words = self.streams.words(self._clock, {name: math.prod(shape)})[name]
        index = integers(words, self.buffer.filled, *shape)
        self.loss.zero_()
        for rows in index.unbind(1):
            self.loss += self.train_batch(self.buffer.gather(rows))
        self.loss /= hyper.model_batches
        self._renew_broken()

    def _epochs(self, size: int) -> None:
        """Whole epochs, each without its last short batch, until there were ``model_batches`` batches."""
        name, hyper, members = self.model.stream, self.hyper, self.model.members
        rows = min(hyper.model_batch_size, size)
        epochs = -(-hyper.model_batches // (size // rows))
        words = self.streams.words(self._clock, {name: epochs * members * size})[name]
        order = permutations(words, epochs, members, size)
        batches = [order[:, e, :, i : i + rows] for e in range(epochs) for i in range(0, size - rows + 1, rows)]
        self.loss.zero_()
        for index in batches:
            if rows == hyper.model_batch_size:
                self._index.copy_(index)
                self._full()
            else:
                self.loss += self.model.train_batch(self.buffer.gather(index))
        self.loss /= len(batches)
        self._renew_broken()

    def _full_batch(self) -> None:
        self.loss += self.train_batch(self.buffer.gather(self._index))

    def _renew_broken(self) -> None:
        """Let the runs with a parameter that is not finite start over: parameters and optimiser."""
        model = self.model
        broken = ~all_finite(model.parameters)
        model.parameters.copy_(torch.where(broken.view(-1, 1, 1), model.fresh, model.parameters))
        model.optimizer.restart(broken)

    def state_dict(self) -> dict[str, object]:
        """The loss of the last round."""
        return {"loss": self.loss, "begun": self.begun}

    def load_state_dict(self, state: dict) -> None:
        """The inverse of :meth:`state_dict`, in place."""
        self.loss.copy_(state["loss"])
        self.begun = state["begun"]
