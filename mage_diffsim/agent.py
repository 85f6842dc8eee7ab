"""The actor-critic agent of Algorithm 2, for any number of runs at once: TD3 and DDPG, with or without imagination."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch

from mage_diffsim.autodiff import pull_back, value_and_gradients
from mage_diffsim.buffer import Batch, ReplayBuffer
from mage_diffsim.capturable import holds_task, uses_cuda_graphs
from mage_diffsim.compiling import compiled
from mage_diffsim.config import TrainConfig
from mage_diffsim.critic import (
    RewardFunction,
    Start,
    Target,
    clip_norm,
    control_gradient,
    critic_loss,
    huber,
    masked_mean,
    td_target,
    term_weights,
)
from mage_diffsim.cuda_graphs import Captured, tensors_of
from mage_diffsim.draws import Draws
from mage_diffsim.dynamics import Dynamics, Imagined
from mage_diffsim.envs.task import Task
from mage_diffsim.methods import GRADIENT_FREE, METHODS, CriticLoss
from mage_diffsim.networks import MLP, ScalarPullback
from mage_diffsim.normalizer import Normalizer
from mage_diffsim.optim import RAdam, polyak_average
from mage_diffsim.randomness import Streams
from mage_diffsim.shapes import Bool, Float, Tensor


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
    the parameters are finite. A run that exceeds a bound goes on with a fresh agent from the next update on.
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
        self.actor = torch.empty(runs, 1, self.actor_network.n_parameters, device=device, dtype=dtype)
        shape = (runs, self.method.critics, self.critic_network.n_parameters)
        self.critic = torch.empty(shape, device=device, dtype=dtype)
        self.actor_target, self.critic_target = torch.empty_like(self.actor), torch.empty_like(self.critic)
        self.actor_optimizer = RAdam(self.actor, self.hyper.learning_rate, self.hyper.clip_value)
        self.critic_optimizer = RAdam(self.critic, self.hyper.learning_rate, self.hyper.clip_value)
        self.diverged = torch.zeros(runs, dtype=torch.bool, device=device)
        self.begun = torch.zeros(runs, dtype=torch.int64, device=device)
        """Updates of this environment step that each run began before it diverged."""
        self.restarts = torch.zeros(runs, dtype=torch.int64, device=device)
        self.nonfinite = torch.zeros(runs, dtype=torch.int64, device=device)
        self.nonfinite_state = torch.full((runs, task.state_dim), torch.nan, device=device, dtype=dtype)
        self.critic_updates = [0] * runs
        """Critic updates of each run since its agent was new."""
        self.freeze_actor = config.freeze_actor
        self._initialise(range(runs))
        if config.compile == "on":
            self._compile(dynamics.traceable or not self.method.imagines)
        self.cuda_graphs: dict[tuple[ReplayBuffer, tuple[bool | None, ...]], Captured] | None = None
        """Captured forms of the updates by buffer and which of them include the actor; None runs them eagerly."""
        if uses_cuda_graphs(config, dynamics) and holds_task(config, task, device, dtype):
            self.cuda_graphs = {}

    def _compile(self, in_torch: bool) -> None:
        """Compile the updates; of a critic update whose target leaves torch, the part after the target."""
        logging.getLogger("mage_diffsim").info("compiling the updates: up to a few minutes at the first of them")
        if in_torch:
            self.update_critic = compiled(self.update_critic)
        else:
            self._fit_critic = compiled(self._fit_critic)
        self.update_actor = compiled(self.update_actor)

    def _initialise(self, runs: range | list[int], *, again: bool = False) -> None:
        """Fresh networks; ``again``, a frozen actor stays, as all that is measured depends on it."""
        for run in runs:
            generator = self.streams.generators["initialise"][run]
            actor = self.actor_network.initial(1, generator, self.streams.dtype)
            self.critic[run] = self.critic_network.initial(self.method.critics, generator, self.streams.dtype)
            self.critic_target[run] = self.critic[run]
            if not (again and self.freeze_actor):
                self.actor[run] = self.actor_target[run] = actor

    # --- functions of the parameters ---------------------------------------------------------------------------

    def policy(self, obs: Float[Tensor, "R B O"], parameters: Tensor | None = None) -> Float[Tensor, "R B A"]:
        """pi(s) in (-1, 1); by default the online actor's."""
        x = self.obs.normalize(obs).unsqueeze(1)
        return self.actor_network(self.actor if parameters is None else parameters, x).squeeze(1).tanh()

    def q(
        self, obs: Float[Tensor, "R k B O"], action: Float[Tensor, "R k B A"], parameters: Tensor | None = None
    ) -> Float[Tensor, "R C B"]:
        """Q_i(s, a) of every critic; ``k`` is 1 where the critics share rows, or their number C."""
        x = torch.cat([self.obs.normalize(obs), action], dim=-1)
        return self.critic_network(self.critic if parameters is None else parameters, x).squeeze(-1)

    def min_q(self, obs: Float[Tensor, "R B O"], action: Float[Tensor, "R B A"]) -> Float[Tensor, "R B"]:
        """min_i Q_i(s, a): the value that the actor climbs."""
        return self.q(obs.unsqueeze(1), action.unsqueeze(1)).amin(dim=1)

    def target_value(self, next_obs: Float[Tensor, "R B O"], noise: Float[Tensor, "R B A"]) -> Float[Tensor, "R B"]:
        """min_i Q_target_i(s', a') with a' the target policy's action plus clipped noise, within [-1, 1]."""
        noise = (noise * self.hyper.target_noise).clamp(-self.hyper.target_noise_clip, self.hyper.target_noise_clip)
        action = (self.policy(next_obs, self.actor_target) + noise).clamp(-1.0, 1.0)
        return self.q(next_obs.unsqueeze(1), action.unsqueeze(1), self.critic_target).amin(dim=1)

    # --- the critic step ---------------------------------------------------------------------------------------

    def target(self, batch: Batch, draws: Draws) -> Target:
        """The detached TD target of a batch: imagined from pi(s), or the buffer's own transition if model-free."""
        if not self.method.imagines:
            with torch.no_grad():
                bootstrap = torch.where(batch.terminated, 0.0, self.target_value(batch.next_obs, draws.target))
                y = batch.reward + self.hyper.gamma * bootstrap
            return Target(torch.nan_to_num(y, 0.0, 0.0, 0.0), None, None, batch.action, torch.isfinite(y))
        differentiate = self.loss not in GRADIENT_FREE
        with torch.no_grad():
            action = self.policy(batch.obs)
        return td_target(
            Imagined(batch.obs, batch.state),
            action,
            dynamics=self.dynamics,
            noise=draws.imagine,
            reward=self.reward,
            terminated=self.task.terminated,
            target_value=lambda next_obs: self.target_value(next_obs, draws.target),
            gamma=self.hyper.gamma,
            differentiate=differentiate,
            start=self.start(batch) if self.loss == "sobolev" else None,
        )

    def start(self, batch: Batch) -> Start:
        """Where imagination starts, as a function of the simulator state, or of the observation if learned."""
        if self.dynamics.reads_state:
            return Start(lambda state: Imagined(self.task.observe(state), state), batch.state)
        return Start(lambda obs: Imagined(obs, batch.state), batch.obs)

    def critic_gradient(self, batch: Batch, target: Target, draws: Draws) -> tuple[Losses, Float[Tensor, "R C P"]]:
        """Losses of each critic and their gradient with respect to the critic parameters.

        The loss is a function of Q_i and grad_a Q_i. Autograd differentiates it with respect to those two, which is
        cheap; the networks' pullback takes it from there to the parameters.
        """
        start = None if target.start_gradient is None else self.start(batch)
        obs = batch.obs if start is None else start.at(start.x).obs
        x = torch.cat([self.obs.normalize(obs), target.action], dim=-1)
        pullback = ScalarPullback(self.critic_network, self.critic, x.unsqueeze(1))
        finite = target.finite
        if target.action_gradient is None:
            loss_of, at = functools.partial(self._critic_loss, target, start, None, finite), (pullback.value,)
        else:
            goal = clip_norm(target.action_gradient, self.hyper.max_dynamics_gradient)
            goal, finite = control_gradient(self.loss, goal, finite, draws.control)
            loss_of = functools.partial(self._critic_loss, target, start, goal, finite)
            at = (pullback.value, pullback.input_gradient())
        loss, cotangents = value_and_gradients(loss_of, *at)
        td = masked_mean(huber(target.y.unsqueeze(1) - pullback.value), target.finite)
        return Losses(loss, td), pullback(*cotangents)

    def _critic_loss(
        self,
        target: Target,
        start: Start | None,
        goal: Float[Tensor, "R B A"] | None,
        finite: Bool[Tensor, "R B"],
        q: Float[Tensor, "R C B"],
        x_gradient: Float[Tensor, "R C B i"] | None = None,
    ) -> Float[Tensor, "R C"]:
        """Loss of each critic as a function of Q_i(s, a) and its gradient with respect to the networks' input.

        ``goal`` is what grad_a Q_i is held against, and ``finite`` says which rows count.
        """
        delta = target.y.unsqueeze(1) - q
        action_error = start_error = None
        if goal is not None and x_gradient is not None:
            action_error = goal.unsqueeze(1) - x_gradient[..., self.task.obs_dim :]
            if start is not None and target.start_gradient is not None:
                # from the critic's input to where imagination starts, per critic
                obs_gradient = x_gradient[..., : self.task.obs_dim]
                per_critic = pull_back(lambda x: self.obs.normalize(start.at(x).obs), start.x, obs_gradient.unbind(1))
                start_goal = clip_norm(target.start_gradient, self.hyper.max_dynamics_gradient)
                start_error = start_goal.unsqueeze(1) - torch.stack(per_critic, dim=1)
        per_sample = critic_loss(self.loss, delta, action_error, start_error, self.weights, self.hyper.taylor_variance)
        return masked_mean(per_sample, finite)

    def update_critic(self, batch: Batch, draws: Draws) -> None:
        """One step of every critic, and of its target network."""
        self._fit_critic(batch, self.target(batch, draws), draws)

    def _fit_critic(self, batch: Batch, target: Target, draws: Draws) -> None:
        """One step of every critic towards the target and of its target network, then the divergence guard."""
        losses, gradient = self.critic_gradient(batch, target, draws)
        self.critic_optimizer.step(self.critic, gradient)
        polyak_average(self.critic_target, self.critic, self.hyper.polyak)
        sound = ~self.diverged  # what a run does after it diverged is done again by a fresh agent, and counted then
        self.begun += sound
        self._count_nonfinite(~target.finite & sound.unsqueeze(1), batch.state)
        within = losses.guarded() <= self.hyper.diverged_critic_loss
        self.diverged |= ~(within & _all_finite(self.critic))

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
        self.diverged |= ~(within & _all_finite(self.actor))

    def _actor_loss(self, obs: Float[Tensor, "R B O"], parameters: Float[Tensor, "R 1 P"]) -> Float[Tensor, " R"]:
        return -self.min_q(obs, self.policy(obs, parameters)).mean(dim=-1)

    # --- the policy optimisation steps -------------------------------------------------------------------------

    def improve(self, buffer: ReplayBuffer, draws: Sequence[Draws]) -> None:
        """A critic update per element of ``draws``; an agent's every ``policy_delay``-th has an actor update after it.

        A run that diverges in an update gets a fresh agent, which does the updates that follow: the result is that of
        looking after each update, although the host looks once.

        Compiled (``compile``) and replayed as one CUDA graph (``graphs``) if the configuration says so.
        """
        self.begun.zero_()
        due = [self._actor_due(ahead) for ahead in range(1, len(draws) + 1)]
        # of all runs, of none, or (None) of those that a mask marks: runs that began anew may be out of phase
        actor_too = tuple(all(runs) if all(runs) == any(runs) else None for runs in due)
        masks = [self._mask(runs) for runs, also in zip(due, actor_too, strict=True) if also is None]
        if self.cuda_graphs is None:
            self._improve(buffer, draws, actor_too, masks)
        else:
            key = (buffer, actor_too)
            if key not in self.cuda_graphs:
                function = functools.partial(self._improve_flat, buffer, draws, actor_too)
                self.cuda_graphs[key] = Captured(function, self.state_dict)
            self.cuda_graphs[key](*tensors_of(draws), *masks)
        self.critic_updates = [count + len(draws) for count in self.critic_updates]
        self._renew_diverged(buffer, draws)

    def _actor_due(self, ahead: int) -> tuple[bool, ...]:
        """Whether each run's critic update ``ahead`` updates from now is followed by one of the actor."""
        return tuple(
            not self.freeze_actor and (count + ahead) % self.method.policy_delay == 0 for count in self.critic_updates
        )

    def _mask(self, runs: Sequence[bool]) -> Bool[Tensor, " R"]:
        return torch.tensor(runs, dtype=torch.bool, device=self.diverged.device)

    def _improve(
        self, buffer: ReplayBuffer, draws: Sequence[Draws], actor_too: tuple[bool | None, ...], masks: Sequence[Tensor]
    ) -> None:
        rest = iter(masks)
        for drawn, also in zip(draws, actor_too, strict=True):
            self._update(buffer.gather(drawn.index), drawn, next(rest) if also is None else also)

    def _improve_flat(
        self, buffer: ReplayBuffer, like: Sequence[Draws], actor_too: tuple[bool | None, ...], *tensors: Tensor
    ) -> None:
        """:meth:`_improve` of the tensors of draws that are present in ``like``, followed by the masks."""
        rest = iter(tensors)
        draws = [
            drawn._replace(**{k: next(rest) for k, x in drawn._asdict().items() if x is not None}) for drawn in like
        ]
        self._improve(buffer, draws, actor_too, list(rest))

    def _update(self, batch: Batch, draws: Draws, actor_too: bool | Bool[Tensor, " R"]) -> None:
        """One critic update and one actor update: of all runs, of none, or of the marked ones."""
        self.update_critic(batch, draws)
        if actor_too is True:
            self.update_actor(batch)
        elif actor_too is not False:
            changed = [self.actor, self.actor_target, *tensors_of(self.actor_optimizer.state_dict()), self.diverged]
            before = [x.clone() for x in changed]
            self.update_actor(batch)
            _put_back(changed, before, ~actor_too)

    # --- upkeep ------------------------------------------------------------------------------------------------

    def restart(self, runs: Sequence[int]) -> None:
        """Give these runs a fresh agent: networks, targets, optimisers and policy delay. A frozen actor stays."""
        marked = self._mask([run in runs for run in range(len(self.critic_updates))])
        self._initialise(list(runs), again=True)
        self.actor_optimizer.restart(marked)
        self.critic_optimizer.restart(marked)
        self.restarts += marked
        self.diverged &= ~marked
        for run in runs:
            self.critic_updates[run] = 0

    def _renew_diverged(self, buffer: ReplayBuffer, draws: Sequence[Draws]) -> None:
        """Restart the runs that diverged in these updates, and let them alone do those that follow.

        The functions work on all runs at once, so the others' results are thrown away.
        """
        diverged = self.diverged.tolist()
        if not any(diverged):
            return
        done_when = {run: done for run, done in enumerate(self.begun.tolist()) if diverged[run]}
        renewed = [False] * len(diverged)
        tensors = list(tensors_of(self.state_dict()))
        before = [x.clone() for x in tensors]
        for done in range(min(done_when.values()), len(draws) + 1):
            fresh = [run for run, n in done_when.items() if n == done]
            self.restart(fresh)
            for run in fresh:
                renewed[run] = True
            if done == len(draws):
                break
            due = self._actor_due(1)
            self._update(buffer.gather(draws[done].index), draws[done], self._mask(due) if any(due) else False)
            _put_back(tensors, before, ~self._mask(renewed))
            for run, bad in enumerate(self.diverged.tolist()):
                if renewed[run]:
                    self.critic_updates[run] += 1
                    if bad:
                        done_when[run] = done + 1

    def state_dict(self) -> dict[str, object]:
        """Everything that training changes."""
        tensors = {name: getattr(self, name) for name in self._TENSORS}
        return tensors | {
            "critic_updates": list(self.critic_updates),
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
        "begun",
        "restarts",
        "nonfinite",
        "nonfinite_state",
    )

    def load_state_dict(self, state: dict) -> None:
        """The inverse of :meth:`state_dict`, in place."""
        for name in self._TENSORS:
            getattr(self, name).copy_(state[name])
        self.critic_updates = list(state["critic_updates"])
        for name in ("obs", "actor_optimizer", "critic_optimizer"):
            getattr(self, name).load_state_dict(state[name])


def _all_finite(parameters: Float[Tensor, "R K P"]) -> Bool[Tensor, " R"]:
    """Whether all parameters of each run are finite: a sum is so only if every term is."""
    return parameters.sum(dim=(1, 2)).isfinite()


def _put_back(tensors: Sequence[Tensor], before: Sequence[Tensor], runs: Bool[Tensor, " R"]) -> None:
    """Give the marked runs of each tensor, which has the run axis first, their values of ``before`` again."""
    for x, old in zip(tensors, before, strict=True):
        x.copy_(torch.where(runs.view(-1, *(1,) * (x.ndim - 1)), old, x))
