"""Algorithm 2: collect, train the model, improve critic and actor, evaluate; all runs of a process in step."""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch

from mage_diffsim.agent import Agent
from mage_diffsim.buffer import ReplayBuffer
from mage_diffsim.config import TrainConfig
from mage_diffsim.critic import RewardFunction
from mage_diffsim.devices import device_text, environment_of, environment_text, matmul_precision, torch_device
from mage_diffsim.diagnosis import diagnose
from mage_diffsim.draws import Draws, draw
from mage_diffsim.dynamics import Dynamics, HybridDynamics, LearnedDynamics, OracleDynamics
from mage_diffsim.envs.batched import BatchedEnv, rollout
from mage_diffsim.envs.physics import Physics, backends_of, make_physics
from mage_diffsim.envs.spot_check import Cut, Transitions, draw_transitions, find_cuts, refuse, require_values
from mage_diffsim.envs.task import Task
from mage_diffsim.errors import InputError
from mage_diffsim.gradients import gradient_error, true_action_gradients
from mage_diffsim.methods import GRADIENT_FREE, METHODS
from mage_diffsim.models import GaussianEnsemble, RewardModel, batch_step, train_model
from mage_diffsim.modes import in_ordinary_modes
from mage_diffsim.normalizer import Normalizer
from mage_diffsim.randomness import Streams
from mage_diffsim.shapes import Float, Tensor
from mage_diffsim.validation import validate


class Trainer:
    """One training process. ``step()`` is one environment step of Algorithm 2 for every run.

    Args:
        config: what to train.
        task: the task object; made from the configuration if None.
        check: look at the task's functions first (see :mod:`~mage_diffsim.envs.spot_check`).

    Raises:
        InputError: the configuration cannot be trained, or names a backend or device that is not there; or, with
            ``check``, a function of the task gives what cannot be trained on.
        MissingExtra: the oracle's backend is not installed.
    """

    @in_ordinary_modes
    def __init__(self, config: TrainConfig, task: Task | None = None, *, check: bool = False) -> None:
        validate(config)
        self.config, self.hyper = config, config.hyper
        self.device = torch_device(config.device)
        self.dtype = torch.float64 if config.float64 else torch.float32
        self.task = task or config.make_task()
        self.streams = Streams([seed for seed, _ in config.runs], self.device, self.dtype)
        runs = len(config.runs)

        # the real environment, and what its true gradients are taken of; both are kept, as a backend may compile anew
        # for every new physics
        real = environment_of(config, self.task)
        self.truth_physics = self._physics(real, dtype=torch.float64)
        same = torch.float64 in (self.dtype, self.truth_physics.environment_dtype)
        self.physics = self.truth_physics if same else self._physics(real)
        self.env = BatchedEnv(self.task, self.physics, runs, self.streams.generators["environment"])
        try:
            self.buffer = ReplayBuffer(
                runs,
                config.steps,
                self.task.obs_dim,
                self.task.action_dim,
                self.task.state_dim,
                self.device,
                self.dtype,
            )
        except torch.OutOfMemoryError:  # of a GPU, which fewer runs may fit into
            raise
        except (RuntimeError, MemoryError) as error:
            raise InputError(
                f"steps is {config.steps}, for which the replay buffer of {runs} runs does not fit into the memory of "
                f"{self.device}; give fewer"
            ) from error
        self.ensemble: GaussianEnsemble | None = None
        self.reward_model: RewardModel | None = None
        dynamics, reward = self._make_dynamics(), self._make_reward()
        self.agent = Agent(self.task, config, self.streams, dynamics, reward)
        models = {"loss/model": self.ensemble, "loss/reward_model": self.reward_model}
        self.batch_steps = {k: batch_step(m, self.buffer, config) for k, m in models.items() if m is not None}
        self.action_statistics = Normalizer(runs, self.task.action_dim, self.device, self.dtype)
        self.delta_statistics = Normalizer(runs, self.task.obs_dim, self.device, self.dtype)
        self.reward_statistics = Normalizer(runs, 1, self.device, self.dtype)
        self.losses: dict[str, Float[Tensor, " R"]] = {}
        self.env_divergences = torch.zeros(runs, dtype=torch.int64, device=self.device)
        self.env_step = 0
        self._said_unmeasurable = False
        if check:
            self._check_task()
        self.env.reset()

    def _physics(self, backend: str | None, *, dtype: torch.dtype | None = None, **source: Any) -> Physics:
        where: dict[str, Any] = dict(dtype=dtype or self.dtype, device=self.device)
        return make_physics(self.task, backend, solver=self.config.solver, **where, **source)

    def _make_dynamics(self) -> Dynamics:
        """What ``config.dynamics`` names; creates the ensemble if it takes part."""
        name = self.config.dynamics
        if not METHODS[self.config.method].imagines:
            return OracleDynamics(self.physics)  # never stepped by a model-free critic
        learned = oracle = None
        if name != "oracle":
            self.ensemble = GaussianEnsemble(self.task.obs_dim, self.task.action_dim, self.hyper, self.streams)
            learned = LearnedDynamics(self.ensemble)
        if name != "learned":
            derivative, residuals = self.config.derivative, self.config.residuals
            physics = self._physics(self.config.backend, derivative=derivative, residuals=residuals)
            oracle = OracleDynamics(physics)
        if learned and oracle:
            pair = (learned, oracle) if name == "hybrid-oracle-gradients" else (oracle, learned)
            return HybridDynamics(values=pair[0], jacobians=pair[1])
        return learned or oracle  # type: ignore[return-value]  # one of the two exists

    def _make_reward(self) -> RewardFunction:
        if self.config.reward == "task":
            return self.task.reward
        self.reward_model = RewardModel(self.task.obs_dim, self.task.action_dim, self.hyper, self.streams)
        return self.reward_model

    @property
    def cuda_graphs_used(self) -> bool:
        """Whether the updates are replayed as CUDA graphs, which ``config.graphs`` = auto leaves to the dynamics."""
        return self.agent.cuda_graphs is not None

    @property
    def used(self) -> dict[str, str]:
        """What the settings came to that say how, and not what, is trained: name to text, for ``versions.json``."""
        config, cuda = self.config, self.device.type == "cuda"
        captured = self.cuda_graphs_used or (cuda and config.graphs != "off" and bool(self.batch_steps))
        return {
            "device": device_text(config.device),
            "environment": environment_text(config, self.task),
            "solver": config.solver,
            "compile": config.compile,
            "graphs": "on" if self.cuda_graphs_used else "model batches only" if captured else "off",
            "matmul": config.matmul,
        }

    # --- the task's functions --------------------------------------------------------------------------------------

    def _check_task(self) -> None:
        require_values(self.task, self._transitions, self.physics)
        needed = self._needed_derivatives()
        for cut in self._cuts if needed else ():
            if (cut.function, cut.wrt) in needed:
                raise refuse(self.task, cut)

    @functools.cached_property
    def _transitions(self) -> Transitions:
        return draw_transitions(self.task, self.physics, len(self.config.runs))

    @functools.cached_property
    def _cuts(self) -> tuple[Cut, ...]:
        """Derivatives of the task's functions that autograd does not give."""
        torch_step = "torch" in (self.truth_physics.backend, self._gradient_backend())
        return find_cuts(self.task, self._transitions, step=torch_step)

    def _gradient_backend(self) -> str | None:
        """The backend that imagined gradients come from; None if they come from the ensemble, or none are used."""
        config = self.config
        gradients = METHODS[config.method].imagines and config.critic_loss not in GRADIENT_FREE
        if not gradients or config.dynamics not in ("oracle", "hybrid-oracle-gradients"):
            return None
        return config.backend or backends_of(self.task)[0]

    def _needed_derivatives(self) -> set[tuple[str, str]]:
        """(function, input) of the derivatives that the critic's loss is made of."""
        config, needed = self.config, set()
        if not METHODS[config.method].imagines or config.critic_loss in GRADIENT_FREE:
            return needed
        start = config.critic_loss == "sobolev"
        if config.reward == "task":
            needed |= {("reward", "action"), ("reward", "next_obs")} | ({("reward", "obs")} if start else set())
        if self._gradient_backend() is not None:
            needed |= {("observe", "state"), ("step", "action")} | ({("step", "state")} if start else set())
        if self._gradient_backend() != "torch":
            needed -= {("step", "action"), ("step", "state")}
        return needed

    def _unmeasurable(self) -> str | None:
        """Why the true action-gradients cannot be taken, if they cannot."""
        torch_step = self.truth_physics.backend == "torch"
        return next((f"{c.function}() {c.detail}" for c in self._cuts if c.function != "step" or torch_step), None)

    # --- Algorithm 2 -------------------------------------------------------------------------------------------

    @in_ordinary_modes
    def step(self) -> None:
        """One environment step: collect a transition, train the models when due, improve critic and actor.

        Raises:
            InputError: all ``config.steps`` of them are done, for which the replay buffer has room.
        """
        if self.buffer.size >= self.config.steps:
            raise InputError(
                f"all {self.config.steps} environment steps are done, and the replay buffer holds no more: go on by "
                "resume(run_dir, steps=...) with more of them"
            )
        self.env_step += 1
        with matmul_precision(self.config.matmul):
            self._collect()
            if self.env_step % self.hyper.model_every == 0:
                self._train_models()
            if self.env_step >= self.hyper.warmup_steps:
                self._improve()

    def _collect(self) -> None:
        """(s, a, s') ~ exploratory policy; B <- B + {(s, a, s')}."""
        obs = self.env.obs.to(self.dtype)
        if self.env_step <= self.hyper.warmup_steps:
            action = 2.0 * self.streams.uniform("explore", self.task.action_dim) - 1.0
        else:
            with torch.no_grad():
                action = self.agent.policy(obs.unsqueeze(1)).squeeze(1)
            action = action + self.hyper.exploration_noise * self.streams.normal("explore", self.task.action_dim)
        action = action.clamp(-1.0, 1.0)
        moved = self.env.step(action.to(self.physics.dtype))
        next_obs, reward, state = (x.to(self.dtype) for x in (moved.next_obs, moved.reward, moved.state))
        valid = ~moved.diverged
        self.buffer.add(obs, action, next_obs, reward, moved.terminated, state, valid)
        self.env_divergences += moved.diverged
        self.agent.obs.update(obs)
        self.action_statistics.update(action, valid)
        self.delta_statistics.update(next_obs - obs, valid)
        self.reward_statistics.update(reward.unsqueeze(-1), valid)

    def _train_models(self) -> None:
        """The model learning steps: omega <- omega - alpha_p grad l(s, a, s'; omega)."""
        if self.ensemble is not None:
            self.ensemble.adopt_statistics(self.agent.obs, self.action_statistics, self.delta_statistics)
            self._train("loss/model", self.ensemble)
        if self.reward_model is not None:
            self.reward_model.adopt_statistics(self.agent.obs, self.reward_statistics)
            self._train("loss/reward_model", self.reward_model)

    def _train(self, loss: str, model: GaussianEnsemble | RewardModel) -> None:
        step = self.batch_steps[loss]
        self.losses[loss] = train_model(model, self.buffer, self.hyper, self.streams, step)

    def _improve(self) -> None:
        """The policy optimisation steps."""
        self.agent.improve(self.buffer, self.draw(self.config.updates_per_step))

    def draw(self, updates: int) -> list[Draws]:
        """The random numbers of the next ``updates`` critic updates."""
        return draw(self.streams, self.config, self.task, self.buffer.size, updates)

    # --- evaluation --------------------------------------------------------------------------------------------

    @matmul_precision("highest")
    @in_ordinary_modes
    def evaluate(self) -> dict[str, Float[Tensor, " R"]]:
        """Deterministic episodes of every run in the real environment, and Eq. 14 along some; values of shape [R].

        Keys: ``return/mean``, ``return/std`` and ``length/mean`` over ``eval_episodes``; over ``gradient_episodes``, if
        that is not 0, ``gradient/error`` (Eq. 14: the mean over trajectories), ``gradient/error_median`` (the median,
        which one trajectory with an exploding true gradient does not move), ``gradient/cosine``, and
        ``gradient/nonfinite``, the number of trajectories left out because their truth is not finite. All four are
        NaN for a task whose functions cut the gradient, which is logged once.
        """
        runs, episodes = len(self.config.runs), self.config.eval_episodes
        generators = self.streams.evaluation(self.env_step)
        result = rollout(self.physics, self.policy, self.initial_states(episodes, generators))
        returns = result.returns.view(runs, episodes).to(self.dtype)
        metrics = {
            "return/mean": returns.mean(dim=1),
            "return/std": returns.std(dim=1, correction=0),
            "length/mean": result.lengths.view(runs, episodes).to(self.dtype).mean(dim=1),
        }
        if self.config.gradient_episodes:
            initial = self.initial_states(self.config.gradient_episodes, generators)
            metrics |= self._gradient_error(initial)
        return metrics

    def policy(self, obs: Float[Tensor, "N O"]) -> Float[Tensor, "N A"]:
        """The deterministic actions of all runs, without exploration; N is a multiple of R, run-major."""
        by_run = obs.to(self.dtype).view(len(self.config.runs), -1, obs.shape[-1])
        return self.agent.policy(by_run).flatten(0, 1).to(obs.dtype)

    def initial_states(self, episodes: int, generators: list[torch.Generator]) -> Float[Tensor, "N S"]:
        """``episodes`` initial states per run, float64, run-major."""
        return torch.cat([self.task.reset(episodes, g) for g in generators])

    @property
    def gradient_steps(self) -> int:
        """Steps of the trajectories whose return is differentiated: the configuration's, else the task's."""
        return min(self.config.gradient_horizon or self.task.gradient_horizon or self.task.horizon, self.task.horizon)

    def _gradient_error(self, initial_state: Float[Tensor, "N S"]) -> dict[str, Float[Tensor, " R"]]:
        """Eq. 14 and the cosine of grad_a min_i Q_i, the gradient that the actor follows. Truth is in float64."""
        runs, episodes = len(self.config.runs), self.config.gradient_episodes
        if reason := self._unmeasurable():
            if not self._said_unmeasurable:
                logging.getLogger(__name__).warning(
                    f"{self.task.name}: the gradient error of Eq. 14 and the cosine are left empty, as {reason}"
                )
            self._said_unmeasurable = True
            nothing = torch.full((runs,), torch.nan, dtype=self.dtype, device=self.device)
            return dict.fromkeys((f"gradient/{x}" for x in ("error", "error_median", "cosine", "nonfinite")), nothing)
        horizon = self.gradient_steps
        true = true_action_gradients(self.truth_physics, self.policy, initial_state, self.hyper.gamma, horizon)

        def by_run(x: Tensor) -> Tensor:  # [T, R*E, D] -> [R, T*E, D]
            return x.unflatten(1, (runs, episodes)).transpose(0, 1).flatten(1, 2).to(self.dtype)

        action = by_run(true.actions).requires_grad_()
        (gradient,) = torch.autograd.grad(self.agent.min_q(by_run(true.obs), action).sum(), action)
        gradient = gradient.unflatten(1, (-1, episodes)).transpose(0, 1).flatten(1, 2).to(torch.float64)
        compared = gradient_error(true, gradient, self.hyper.gamma)
        finite = compared.error.isfinite().view(runs, episodes)
        error = torch.where(finite, compared.error.view(runs, episodes), torch.nan)
        return {
            "gradient/error": error.nanmean(dim=1),
            "gradient/error_median": error.nanmedian(dim=1).values,
            "gradient/cosine": compared.cosine.view(runs, episodes).nanmean(dim=1),
            "gradient/nonfinite": (~finite).sum(dim=1),
        }

    @matmul_precision("highest")
    @in_ordinary_modes
    def diagnose(self) -> dict[str, Float[Tensor, " R"]]:
        """Losses and sizes of values and gradients at this moment, each of shape [R].

        It draws from copies of the random streams, so looking does not change what is trained.
        """
        if self.env_step < self.hyper.warmup_steps:
            return dict(self.losses)
        saved = self.streams.state_dict()
        (draws,) = self.draw(1)
        probe = self.streams.normal("control", self.hyper.batch_size, self.task.obs_dim)
        self.streams.load_state_dict(saved)
        metrics = diagnose(self.agent, self.buffer.gather(draws.index), draws, probe)
        return (
            self.losses
            | metrics
            | {
                "grad/nonfinite": self.agent.nonfinite,
                "agent/restarts": self.agent.restarts,
                "env/divergences": self.env_divergences,
            }
        )

    # --- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit, as plain dicts, lists and tensors."""
        return {
            "env_step": self.env_step,
            "env": self.env.state_dict(),
            "buffer": self.buffer.state_dict(),
            "streams": self.streams.state_dict(),
            "agent": self.agent.state_dict(),
            "ensemble": None if self.ensemble is None else self.ensemble.state_dict(),
            "reward_model": None if self.reward_model is None else self.reward_model.state_dict(),
            "action_statistics": self.action_statistics.state_dict(),
            "delta_statistics": self.delta_statistics.state_dict(),
            "reward_statistics": self.reward_statistics.state_dict(),
            "losses": self.losses,
            "env_divergences": self.env_divergences,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`, in place."""
        self.env_step = state["env_step"]
        self.losses = {name: value.to(self.device) for name, value in state["losses"].items()}
        self.env_divergences.copy_(state["env_divergences"])
        self.env.load_state_dict(state["env"])
        self.buffer.load_state_dict(state["buffer"])
        self.agent.load_state_dict(state["agent"])
        if self.ensemble is not None:
            self.ensemble.load_state_dict(state["ensemble"])
        if self.reward_model is not None:
            self.reward_model.load_state_dict(state["reward_model"])
        self.action_statistics.load_state_dict(state["action_statistics"])
        self.delta_statistics.load_state_dict(state["delta_statistics"])
        self.reward_statistics.load_state_dict(state["reward_statistics"])
        self.streams.load_state_dict(state["streams"])  # last: the environment's generators are streams too
