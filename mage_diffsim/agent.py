"""The actor-critic agent of Algorithm 2, for any number of runs at once: TD3 and DDPG, with or without imagination."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from mage_diffsim.autodiff import pull_back, value_and_gradients
from mage_diffsim.buffer import Batch, ReplayBuffer
from mage_diffsim.compiling import compiled
from mage_diffsim.config import TrainConfig
from mage_diffsim.critic import (
    Derived,
    RewardFunction,
    Start,
    Target,
    bootstrapped,
    clip_norm,
    control_gradient,
    critic_loss,
    huber,
    masked,
    masked_mean,
    masked_shares,
    start_loss,
    td_target,
    term_weights,
)
from mage_diffsim.draws import Draws
from mage_diffsim.dynamics import Dynamics, Imagined
from mage_diffsim.envs.task import Task
from mage_diffsim.methods import GRADIENT_FREE, METHODS, CriticLoss
from mage_diffsim.networks import MLP, ScalarPullback, all_finite
from mage_diffsim.normalizer import Normalizer
from mage_diffsim.optim import RAdam, polyak_average
from mage_diffsim.randomness import Streams
from mage_diffsim.shapes import Bool, Float, Tensor

FRESH = 4
"""Fresh agents that a run has in store; the fifth restart takes the first of them again."""


class Losses(NamedTuple):
    """What the critics minimise, and the part of it that the divergence guard looks at."""

    total: Float[Tensor, "R C"]
    """Loss of each critic."""
    td: Float[Tensor, "R C"]
    """Mean Huber TD error of each critic over the rows whose target is finite, without any weight."""

    def guarded(self) -> Float[Tensor, " R"]:
        """Half the sum of the critics' TD errors, as the published code compares it with its bound."""
        return 0.5 * self.td.sum(dim=1)


class Agent:
    """Actor, critics, their targets and optimisers. Every tensor has the run axis first.

    The networks see observations normalised by ``self.obs``, which the training loop keeps up to date.

    After every update the divergence guard looks at each run: at half the sum over the critics of the mean Huber TD
    error, whatever the loss and its weights are, at the absolute loss of the actor if that was updated, and at whether
    the parameters are finite. A run that exceeds a bound goes on with a fresh agent after the next update of the actor,
    so that the policy delay of all agents has one phase. Nothing of this waits for the host.
    """

    def __init__(self, task: Task, config: TrainConfig, streams: Streams, dynamics: Dynamics, reward: RewardFunction):
        self.task, self.hyper, self.method = task, config.hyper, METHODS[config.method]
        self.loss: CriticLoss = config.critic_loss
        self.streams, self.dynamics, self.reward = streams, dynamics, reward
        runs, device, dtype = len(streams.seeds), streams.device, streams.dtype
        lam = torch.tensor([lam for _, lam in config.runs], device=device, dtype=dtype).view(runs, 1, 1)
        self.weights = term_weights(self.loss, self.hyper.loss_weights, lam)
        self.obs = Normalizer(runs, task.obs_dim, device, dtype)

        self.actor_network = MLP((task.obs_dim, *self.hyper.actor_hidden, task.action_dim))
        self.critic_network = MLP((task.obs_dim + task.action_dim, *self.hyper.critic_hidden, 1))
        self.actor, self.critic = self._networks(0)
        self.actor_target, self.critic_target = self.actor.clone(), self.critic.clone()
        fresh = [self._networks(number) for number in range(1, FRESH + 1)]
        self.fresh_actor, self.fresh_critic = (torch.stack(x, dim=1) for x in zip(*fresh, strict=True))
        """Networks of the agents to come, [R, FRESH, K, P]."""
        self.actor_optimizer = RAdam(self.actor, self.hyper.learning_rate, self.hyper.clip_value)
        self.critic_optimizer = RAdam(self.critic, self.hyper.learning_rate, self.hyper.clip_value)
        self.diverged = torch.zeros(runs, dtype=torch.bool, device=device)
        self.restarts = torch.zeros(runs, dtype=torch.int64, device=device)
        self.nonfinite = torch.zeros(runs, dtype=torch.int64, device=device)
        self.nonfinite_state = torch.full((runs, task.state_dim), torch.nan, device=device, dtype=dtype)
        self.freeze_actor = config.freeze_actor
        if config.compile == "on":
            self._compile(dynamics.traceable or not self.method.imagines)

    def _compile(self, in_torch: bool) -> None:
        """Compile the updates; of a critic update whose dynamics leave torch, the parts around them."""
        if in_torch:
            self.update_critic = compiled(self.update_critic)
        else:
            self._act = compiled(self._act)
            self._bootstrap = compiled(self._bootstrap)
            self._fit_critic = compiled(self._fit_critic)
        self.update_actor = compiled(self.update_actor)
        self.renew_diverged = compiled(self.renew_diverged)

    def _networks(self, number: int) -> tuple[Float[Tensor, "R 1 Pa"], Float[Tensor, "R C Pc"]]:
        """Actor and critics of each run's ``number``-th agent."""
        actors, critics = [], []
        for generator in self.streams.generators("initialise", number):
            actors.append(self.actor_network.initial(1, generator, self.streams.dtype))
            critics.append(self.critic_network.initial(self.method.critics, generator, self.streams.dtype))
        return torch.stack(actors).to(self.streams.device), torch.stack(critics).to(self.streams.device)

    # --- functions of the parameters ---------------------------------------------------------------------------

    def policy(self, obs: Float[Tensor, "R B O"], parameters: Tensor | None = None) -> Float[Tensor, "R B A"]:
        """pi(s) in (-1, 1); by default the online actor's."""
        return self._policy(self.obs.normalize(obs), self.actor if parameters is None else parameters)

    def _policy(self, x: Float[Tensor, "R B O"], parameters: Tensor) -> Float[Tensor, "R B A"]:
        """The policy as a function of normalised observations."""
        return self.actor_network(parameters, x.unsqueeze(1)).squeeze(1).tanh()

    def q(
        self, obs: Float[Tensor, "R k B O"], action: Float[Tensor, "R k B A"], parameters: Tensor | None = None
    ) -> Float[Tensor, "R C B"]:
        """Q_i(s, a) of every critic; ``k`` is 1 where the critics share rows, or their number C."""
        return self._q(self.obs.normalize(obs), action, self.critic if parameters is None else parameters)

    def _q(
        self, x: Float[Tensor, "R k B O"], action: Float[Tensor, "R k B A"], parameters: Tensor
    ) -> Float[Tensor, "R C B"]:
        """The critics as functions of normalised observations."""
        return self.critic_network(parameters, torch.cat([x, action], dim=-1)).squeeze(-1)

    def min_q(self, obs: Float[Tensor, "R B O"], action: Float[Tensor, "R B A"]) -> Float[Tensor, "R B"]:
        """min_i Q_i(s, a): the value that the actor climbs."""
        return self.q(obs.unsqueeze(1), action.unsqueeze(1)).amin(dim=1)

    def target_value(self, next_obs: Float[Tensor, "R B O"], noise: Float[Tensor, "R B A"]) -> Float[Tensor, "R B"]:
        """min_i Q_target_i(s', a') with a' the target policy's action plus clipped noise, within [-1, 1]."""
        noise = (noise * self.hyper.target_noise).clamp(-self.hyper.target_noise_clip, self.hyper.target_noise_clip)
        x = self.obs.normalize(next_obs)
        action = (self._policy(x, self.actor_target) + noise).clamp(-1.0, 1.0)
        return self._q(x.unsqueeze(1), action.unsqueeze(1), self.critic_target).amin(dim=1)

    # --- the critic step ---------------------------------------------------------------------------------------

    def target(self, batch: Batch, draws: Draws) -> Target:
        """The detached TD target of a batch: imagined from pi(s), or the buffer's own transition if model-free."""
        return masked(self._derived(batch, draws))

    def _derived(self, batch: Batch, draws: Draws) -> Derived:
        """The target and its derivatives: the part of an update that steps the dynamics."""
        if not self.method.imagines:
            with torch.no_grad():
                bootstrap = torch.where(batch.terminated, 0.0, self.target_value(batch.next_obs, draws.target))
                return Derived(batch.reward + self.hyper.gamma * bootstrap, batch.action)
        return td_target(
            Imagined(batch.obs, batch.state),
            self._act(batch.obs),
            dynamics=self.dynamics,
            noise=draws.imagine,
            bootstrap=functools.partial(self._bootstrap, draws.target),
            differentiate=self.loss not in GRADIENT_FREE,
            start=self.start(batch) if self.loss == "sobolev" else None,
        )

    def _act(self, obs: Float[Tensor, "R B O"]) -> Float[Tensor, "R B A"]:
        with torch.no_grad():
            return self.policy(obs)

    def _bootstrap(
        self, noise: Float[Tensor, "R B A"], obs: Tensor, action: Tensor, next_obs: Tensor, derivatives: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """A :data:`.critic.Bootstrap` with this noise of the target policy."""
        return bootstrapped(
            obs,
            action,
            next_obs,
            derivatives,
            reward=self.reward,
            terminated=self.task.terminated,
            target_value=lambda next_obs: self.target_value(next_obs, noise),
            gamma=self.hyper.gamma,
        )

    def start(self, batch: Batch) -> Start:
        """Where imagination starts, as a function of the simulator state, or of the observation if learned."""
        if self.dynamics.reads_state:
            return Start(lambda state: Imagined(self.task.observe(state), state), batch.state)
        return Start(lambda obs: Imagined(obs, batch.state), batch.obs)

    def critic_gradient(self, batch: Batch, target: Target, draws: Draws) -> tuple[Losses, Float[Tensor, "R C P"]]:
        """Losses of each critic and their gradient with respect to the critic parameters.

        The loss is a function of Q_i and grad_a Q_i. Its derivatives with respect to those two have closed forms, and
        the networks' pullback takes them from there to the parameters.
        """
        start = None if target.start_gradient is None else self.start(batch)
        obs = batch.obs if start is None else start.at(start.x).obs
        x = torch.cat([self.obs.normalize(obs), target.action], dim=-1)
        pullback = ScalarPullback(self.critic_network, self.critic, x.unsqueeze(1))
        delta, finite, action_error, of_obs = target.y.unsqueeze(1) - pullback.value, target.finite, None, None
        if target.action_gradient is not None:
            goal = clip_norm(target.action_gradient, self.hyper.max_dynamics_gradient)
            goal, finite = control_gradient(self.loss, goal, finite, draws.control)
            x_gradient = pullback.input_gradient(0 if start is not None else self.task.obs_dim)
            of_obs, of_action = x_gradient.split([x_gradient.shape[-1] - goal.shape[-1], goal.shape[-1]], dim=-1)
            action_error = goal.unsqueeze(1) - of_action
        per_sample = critic_loss(self.loss, delta, action_error, self.weights, self.hyper.taylor_variance)
        loss, cotangents = masked_mean(per_sample.value, finite), [-masked_shares(per_sample.by_delta, finite)]
        if per_sample.by_action_error is not None:
            cotangents.append(-masked_shares(per_sample.by_action_error, finite))
        if start is not None and of_obs is not None:
            of_start, (by_obs,) = value_and_gradients(functools.partial(self._start_loss, target, start), of_obs)
            loss, cotangents[1] = loss + of_start, torch.cat([by_obs, cotangents[1]], dim=-1)
        return Losses(loss, masked_mean(huber(delta), target.finite)), pullback(*cotangents)

    def _start_loss(self, target: Target, start: Start, obs_gradient: Float[Tensor, "R C B O"]) -> Float[Tensor, "R C"]:
        """What ``sobolev`` adds to the loss of each critic as a function of its gradient by the normalised obs."""
        assert target.start_gradient is not None
        # from the critic's input to where imagination starts, per critic
        per_critic = pull_back(lambda x: self.obs.normalize(start.at(x).obs), start.x, obs_gradient.unbind(1))
        goal = clip_norm(target.start_gradient, self.hyper.max_dynamics_gradient)
        return masked_mean(start_loss(goal.unsqueeze(1) - torch.stack(per_critic, dim=1), self.weights), target.finite)

    def update_critic(self, batch: Batch, draws: Draws) -> None:
        """One step of every critic, and of its target network."""
        self._fit_critic(batch, self._derived(batch, draws), draws)

    def _fit_critic(self, batch: Batch, derived: Derived, draws: Draws) -> None:
        """One step of every critic towards the target and of its target network, then the divergence guard."""
        target = masked(derived)
        losses, gradient = self.critic_gradient(batch, target, draws)
        self.critic_optimizer.step(self.critic, gradient)
        polyak_average(self.critic_target, self.critic, self.hyper.polyak)
        sound = ~self.diverged  # what a run does between its divergence and its fresh agent is not counted
        self._count_nonfinite(~target.finite & sound.unsqueeze(1), batch.state)
        within = losses.guarded() <= self.hyper.diverged_critic_loss
        self.diverged |= ~(within & all_finite(self.critic))

    def _count_nonfinite(self, bad: Bool[Tensor, "R B"], state: Float[Tensor, "R B S"]) -> None:
        """Count masked rows and remember the last offending state of each run."""
        self.nonfinite += bad.sum(dim=1)
        # Not argmax: compiled, it reads an uninitialised index where no entry exceeds the dtype's smallest number.
        rows = torch.arange(bad.shape[1], device=bad.device)
        first = torch.where(bad, rows, len(rows) - 1).amin(dim=1)
        example = state[torch.arange(len(first), device=first.device), first]
        self.nonfinite_state.copy_(torch.where(bad.any(dim=1, keepdim=True), example, self.nonfinite_state))

    # --- the actor step ----------------------------------------------------------------------------------------

    def update_actor(self, batch: Batch) -> None:
        """One step of the actor up min_i Q_i(s, pi(s)), and of its target network."""
        losses, (gradient,) = value_and_gradients(functools.partial(self._actor_loss, batch.obs), self.actor)
        self.actor_optimizer.step(self.actor, gradient)
        polyak_average(self.actor_target, self.actor, self.hyper.polyak)
        within = losses.abs() <= self.hyper.diverged_actor_loss
        self.diverged |= ~(within & all_finite(self.actor))

    def _actor_loss(self, obs: Float[Tensor, "R B O"], parameters: Float[Tensor, "R 1 P"]) -> Float[Tensor, " R"]:
        x = self.obs.normalize(obs)
        q = self._q(x.unsqueeze(1), self._policy(x, parameters).unsqueeze(1), self.critic)
        return -q.amin(dim=1).mean(dim=-1)

    # --- the policy optimisation steps -------------------------------------------------------------------------

    def improve(self, buffer: ReplayBuffer, draws: Sequence[Draws], done: int = 0) -> None:
        """A critic update per element of ``draws``, and an actor update after every ``policy_delay``-th.

        Args:
            buffer: where the transitions are.
            draws: the random numbers of each update.
            done: critic updates done before, which say when an actor update is due.
        """
        for number, drawn in enumerate(draws, done + 1):
            batch = buffer.gather(drawn.index)
            self.update_critic(batch, drawn)
            if number % self.method.policy_delay == 0:
                if not self.freeze_actor:
                    self.update_actor(batch)
                self.renew_diverged()

    # --- upkeep ------------------------------------------------------------------------------------------------

    def renew_diverged(self) -> None:
        """Give the runs that diverged a fresh agent: networks, targets and optimisers. A frozen actor stays."""
        run, marked = torch.arange(len(self.restarts), device=self.restarts.device), self.diverged.view(-1, 1, 1)
        renewed = [(self.fresh_critic, self.critic, self.critic_target)]
        if not self.freeze_actor:  # all that is measured depends on a frozen one
            renewed += [(self.fresh_actor, self.actor, self.actor_target)]
        for store, *networks in renewed:
            fresh = store[run, self.restarts % FRESH]
            for parameters in networks:
                torch.where(marked, fresh, parameters, out=parameters)
        self.actor_optimizer.restart(self.diverged)
        self.critic_optimizer.restart(self.diverged)
        self.restarts += self.diverged
        self.diverged.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Everything that training changes."""
        tensors = {name: getattr(self, name) for name in self._TENSORS}
        return tensors | {
            "obs": self.obs.state_dict(),
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
        }

    _TENSORS = (
        "actor",
        "critic",
        "actor_target",
        "critic_target",
        "diverged",
        "restarts",
        "nonfinite",
        "nonfinite_state",
    )

    def load_state_dict(self, state: dict) -> None:
        """The inverse of :meth:`state_dict`, in place."""
        for name in self._TENSORS:
            getattr(self, name).copy_(state[name])
        for name in ("obs", "actor_optimizer", "critic_optimizer"):
            getattr(self, name).load_state_dict(state[name])
