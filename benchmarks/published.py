"""MAGE's update as the paper and its published code formulate it: the baseline for correctness and speed.

It is written anew, and differs from :mod:`mage_diffsim` on purpose:

- Networks are ordinary modules.
- All ensemble members imagine the whole batch, and one is picked per row.
- The TD error keeps its whole graph. Its action-gradient is taken once per critic, with ``create_graph``.
- ``backward()`` runs through everything that requires a gradient, model and target networks included.
- Losses are read back to the host after every update.

The bugs of the published code are left out; docs/deviations.md lists them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mage_diffsim.models import RewardModel
from mage_diffsim.networks import MLP
from mage_diffsim.training import Trainer


class PublishedDraws(NamedTuple):
    """The random numbers of one update, without a run axis."""

    member: Tensor | None
    """Ensemble member of each row, [B]; None where no ensemble imagines."""
    imagine: Tensor | None
    """Standard normal numbers, [B, O]; None where nothing is imagined."""
    target: Tensor
    """Standard normal numbers, [B, A]."""


class Stored(NamedTuple):
    """What a model-free critic reads from the buffer beside the observation, without a run axis."""

    action: Tensor
    next_obs: Tensor
    reward: Tensor
    terminated: Tensor


def mlp(sizes: tuple[int, ...], flat: Tensor) -> nn.Sequential:
    """Returns a swish network of linear layers with the given parameters.

    Args:
        sizes: widths of input, hidden layers and output.
        flat: parameters in the layout of :class:`mage_diffsim.networks.MLP`.
    """
    modules: list[nn.Module] = []
    for weight, bias in MLP(sizes).layers(flat.view(1, 1, -1)):
        linear = nn.Linear(weight.shape[1], weight.shape[2], dtype=flat.dtype, device=flat.device)
        with torch.no_grad():
            linear.weight.copy_(weight[0].T)
            linear.bias.copy_(bias[0, 0])
        modules += [linear, nn.SiLU()]
    return nn.Sequential(*modules[:-1])


def flatten(network: nn.Sequential, gradient: bool = False) -> Tensor:
    """Returns the parameters of a network, or their gradients, in the layout of :func:`mlp`."""
    linears = [module for module in network if isinstance(module, nn.Linear)]
    pieces = []
    for linear in linears:
        weight, bias = (linear.weight.grad, linear.bias.grad) if gradient else (linear.weight, linear.bias)
        assert weight is not None and bias is not None
        pieces += [weight.detach().T.reshape(1, -1), bias.detach().view(1, -1)]
    return MLP((linears[0].in_features, *(linear.out_features for linear in linears))).join(pieces)[0]


class EnsembleLayer(nn.Module):
    """A linear layer of every member, weights [M, in, out]."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class PublishedReward(nn.Module):
    """The reward model of one run. It reads normalised observations and raw actions, and its output is denormalised.

    Args:
        model: gives parameters and statistics; not changed.
        run: which of its runs.
    """

    def __init__(self, model: RewardModel, run: int = 0) -> None:
        super().__init__()
        self.network = mlp(model.network.sizes, model.parameters[run, 0])
        self.obs_mean, self.obs_std = model.obs.mean[run].clone(), model.obs.std[run].clone()
        self.mean, self.std = model.reward.mean[run].clone(), model.reward.std[run].clone()

    def forward(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        obs, next_obs = ((x - self.obs_mean) / self.obs_std for x in (obs, next_obs))
        normalized = self.network(torch.cat([obs, action, next_obs], dim=-1))
        return (normalized * self.std + self.mean).squeeze(-1)


class PublishedUpdate:
    """Critic and actor updates of the published formulation, from one run of a trainer.

    Args:
        trainer: gives parameters, normalisation, reward and the configuration; not changed.
        run: which of its runs.
    """

    def __init__(self, trainer: Trainer, run: int = 0) -> None:
        agent, hyper = trainer.agent, trainer.hyper
        self.trainer, self.hyper, self.loss, self.run = trainer, hyper, agent.loss, run
        lam = trainer.config.runs[run][1]
        # The published code halves both terms of the loss; Algorithm 2 does not.
        self.td_weight, self.gradient_weight, self.factor = lam, 1.0, 1.0
        if hyper.loss_weights == "authors":
            self.td_weight, self.gradient_weight, self.factor = 1.0, 1.0 / lam, 0.5
        if self.loss == "td":
            self.td_weight, self.gradient_weight = 1.0, 0.0
        if self.loss == "squared":  # x^2 / 2 in either formulation
            self.factor = 0.5
        self.obs_mean, self.obs_std = agent.obs.mean[run].clone(), agent.obs.std[run].clone()
        self.model: nn.Sequential | None = None
        if trainer.ensemble is not None:
            layers: list[nn.Module] = []
            for weight, bias in trainer.ensemble.network.layers(trainer.ensemble.parameters[run : run + 1]):
                layers += [EnsembleLayer(weight, bias), nn.SiLU()]
            self.model = nn.Sequential(*layers[:-1])
        self.reward_model = None if trainer.reward_model is None else PublishedReward(trainer.reward_model, run)
        self.renew(agent.actor[run], agent.critic[run], agent.actor_target[run], agent.critic_target[run])

    def renew(
        self, actor: Tensor, critic: Tensor, actor_target: Tensor | None = None, critic_target: Tensor | None = None
    ) -> None:
        """Starts a new agent with these parameters, [1, P] and [C, P], and with new optimisers and policy delay."""
        agent = self.trainer.agent
        self.actor = mlp(agent.actor_network.sizes, actor[0])
        self.actor_target = mlp(agent.actor_network.sizes, (actor if actor_target is None else actor_target)[0])
        self.critics = [mlp(agent.critic_network.sizes, p) for p in critic]
        targets = critic if critic_target is None else critic_target
        self.critic_targets = [mlp(agent.critic_network.sizes, p) for p in targets]
        radam = {"lr": self.hyper.learning_rate, "decoupled_weight_decay": True}
        self.actor_optimizer = torch.optim.RAdam(self.actor.parameters(), **radam)
        self.critic_optimizer = torch.optim.RAdam([p for c in self.critics for p in c.parameters()], **radam)
        self.updates = 0

    def has_diverged(self, logged: dict[str, float]) -> bool:
        """Returns whether an update's losses exceed their bounds, as the published code tests, or are not finite."""
        bounds = {"td_error": self.hyper.diverged_critic_loss, "actor_loss": self.hyper.diverged_actor_loss}
        return not all(abs(logged[name]) <= bound for name, bound in bounds.items() if name in logged)

    def normalize(self, obs: Tensor) -> Tensor:
        return (obs - self.obs_mean) / self.obs_std

    def policy(self, obs: Tensor, actor: nn.Module | None = None) -> Tensor:
        return torch.tanh((actor or self.actor)(self.normalize(obs)))

    def q(self, obs: Tensor, action: Tensor, critic: nn.Module) -> Tensor:
        return critic(torch.cat([self.normalize(obs), action], dim=-1)).squeeze(-1)

    def imagine(self, obs: Tensor, action: Tensor, draws: PublishedDraws) -> Tensor:
        """Returns the next observations [B, O]: every member on every row, then the chosen member of each row."""
        ensemble, run = self.trainer.ensemble, self.run
        assert ensemble is not None and self.model is not None
        assert draws.member is not None and draws.imagine is not None
        hyper = self.hyper
        x = torch.cat(
            [
                (obs - ensemble.obs.mean[run]) / ensemble.obs.std[run],
                (action - ensemble.action.mean[run]) / ensemble.action.std[run],
            ],
            dim=-1,
        )
        mean, raw = self.model(x.expand(ensemble.members, *x.shape)).chunk(2, dim=-1)
        log_var = hyper.log_var_low + (hyper.log_var_high - hyper.log_var_low) * torch.sigmoid(raw)
        rows = torch.arange(len(obs), device=obs.device)
        mean, log_var = mean[draws.member, rows], log_var[draws.member, rows]
        delta = mean + (0.5 * log_var).exp() * draws.imagine
        return obs + delta * ensemble.delta.std[run] + ensemble.delta.mean[run]

    def reward(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """Returns the task's reward, or that of the reward model."""
        if self.reward_model is None:
            return self.trainer.task.reward(obs, action, next_obs)
        return self.reward_model(obs, action, next_obs)

    def critic_loss(
        self, obs: Tensor, state: Tensor, draws: PublishedDraws, stored: Stored | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the loss with its whole graph, and half the sum of the TD errors for the divergence guard."""
        hyper, task = self.hyper, self.trainer.task
        if stored is not None:
            action, next_obs, reward, terminated = stored
        else:
            action = self.policy(obs).detach().requires_grad_()
            if self.model is None:
                next_obs = task.observe(task.step(state, action))
            else:
                next_obs = self.imagine(obs, action, draws)
            reward, terminated = self.reward(obs, action, next_obs), task.terminated(next_obs)
        noise = (draws.target * hyper.target_noise).clamp(-hyper.target_noise_clip, hyper.target_noise_clip)
        next_action = (self.policy(next_obs, self.actor_target) + noise).clamp(-1.0, 1.0)
        next_q = torch.stack([self.q(next_obs, next_action, c) for c in self.critic_targets]).min(dim=0).values
        target = reward + hyper.gamma * (1.0 - terminated.to(obs.dtype)) * next_q
        value_loss = F.mse_loss if self.loss == "squared" else F.smooth_l1_loss
        loss, watched = obs.new_zeros(()), obs.new_zeros(())
        for critic in self.critics:
            td_error = target - self.q(obs, action, critic)
            zeros = torch.zeros_like(td_error)
            watched = watched + 0.5 * F.smooth_l1_loss(td_error, zeros)
            loss = loss + self.td_weight * self.factor * value_loss(td_error, zeros)
            if self.gradient_weight:
                (gradient,) = torch.autograd.grad(td_error.sum(), action, create_graph=True, retain_graph=True)
                loss = loss + self.gradient_weight * self.factor * value_loss(gradient.norm(dim=-1), zeros)
        return loss, watched

    def critic_gradient(
        self, obs: Tensor, state: Tensor, draws: PublishedDraws, stored: Stored | None = None
    ) -> Tensor:
        """Returns the gradient of the loss by every critic's parameters, [C, P], in the layout of the learner."""
        self.critic_optimizer.zero_grad()
        self.critic_loss(obs, state, draws, stored)[0].backward()
        return torch.stack([flatten(c, gradient=True) for c in self.critics])

    def update(
        self, obs: Tensor, state: Tensor, draws: PublishedDraws, stored: Stored | None = None
    ) -> dict[str, float]:
        """Does one critic update and, when due, one actor update. Returns the losses as Python numbers."""
        hyper, method = self.hyper, self.trainer.agent.method
        self.critic_optimizer.zero_grad()
        loss, watched = self.critic_loss(obs, state, draws, stored)
        loss.backward()
        critic_parameters = [p for c in self.critics for p in c.parameters()]
        nn.utils.clip_grad_value_(critic_parameters, hyper.clip_value)
        self.critic_optimizer.step()
        logged = {"critic_loss": loss.item(), "td_error": watched.item()}
        for target, online in zip(self.critic_targets, self.critics, strict=True):
            self._polyak(target, online)
        self.updates += 1
        if self.updates % method.policy_delay == 0:
            self.actor_optimizer.zero_grad()
            action = self.policy(obs)
            actor_loss = -torch.stack([self.q(obs, action, c) for c in self.critics]).min(dim=0).values.mean()
            actor_loss.backward()
            nn.utils.clip_grad_value_(self.actor.parameters(), hyper.clip_value)
            self.actor_optimizer.step()
            logged["actor_loss"] = actor_loss.item()
            self._polyak(self.actor_target, self.actor)
        return logged

    def _polyak(self, target: nn.Module, online: nn.Module) -> None:
        with torch.no_grad():
            for t, o in zip(target.parameters(), online.parameters(), strict=True):
                t.data.mul_(1.0 - self.hyper.polyak).add_(o.data, alpha=self.hyper.polyak)


class PublishedModelTraining:
    """Maximum-likelihood steps of the ensemble in the published formulation, from run 0 of a trainer.

    Args:
        trainer: gives parameters, normalisation and the configuration; not changed.
    """

    def __init__(self, trainer: Trainer) -> None:
        assert trainer.ensemble is not None
        self.ensemble, self.hyper = trainer.ensemble, trainer.hyper
        layers: list[nn.Module] = []
        for weight, bias in self.ensemble.network.layers(self.ensemble.parameters[:1]):
            layers += [EnsembleLayer(weight, bias), nn.SiLU()]
        self.model = nn.Sequential(*layers[:-1])
        self.optimizer = torch.optim.RAdam(
            self.model.parameters(),
            lr=self.hyper.model_learning_rate,
            weight_decay=self.hyper.model_weight_decay,
            decoupled_weight_decay=True,
        )

    def update(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> float:
        """Does one step on a batch [M, B, ...], each member's own. Returns the loss as a Python number."""
        ensemble, hyper = self.ensemble, self.hyper
        x = torch.cat(
            [
                (obs - ensemble.obs.mean[0]) / ensemble.obs.std[0],
                (action - ensemble.action.mean[0]) / ensemble.action.std[0],
            ],
            dim=-1,
        )
        target = (next_obs - obs - ensemble.delta.mean[0]) / ensemble.delta.std[0]
        mean, raw = self.model(x).chunk(2, dim=-1)
        log_var = hyper.log_var_low + (hyper.log_var_high - hyper.log_var_low) * torch.sigmoid(raw)
        loss = ((mean - target).square() * (-log_var).exp() + log_var).mean(dim=(-1, -2)).sum()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(self.model.parameters(), hyper.clip_value)
        self.optimizer.step()
        return loss.item() / ensemble.members


class PublishedRewardTraining:
    """Steps of the reward model on the mean squared error of raw rewards, from run 0 of a trainer.

    Args:
        trainer: gives parameters, normalisation and the configuration; not changed.
    """

    def __init__(self, trainer: Trainer) -> None:
        assert trainer.reward_model is not None
        self.model, self.hyper = PublishedReward(trainer.reward_model), trainer.hyper
        self.optimizer = torch.optim.RAdam(
            self.model.parameters(),
            lr=self.hyper.model_learning_rate,
            weight_decay=self.hyper.model_weight_decay,
            decoupled_weight_decay=True,
        )

    def update(self, obs: Tensor, action: Tensor, next_obs: Tensor, reward: Tensor) -> float:
        """Does one step on a batch [B, ...]. Returns its loss."""
        loss = F.mse_loss(self.model(obs, action, next_obs), reward)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(self.model.parameters(), self.hyper.clip_value)
        self.optimizer.step()
        return loss.item()
