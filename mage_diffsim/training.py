"""Algorithm 2: collect, train the model, improve critic and actor, evaluate; all runs of a process in step."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

from mage_diffsim.agent import Agent
from mage_diffsim.buffer import ReplayBuffer
from mage_diffsim.capturable import captures_of
from mage_diffsim.captured_rollout import CapturedRollout
from mage_diffsim.compiling import compiled
from mage_diffsim.config import TrainConfig
from mage_diffsim.critic import RewardFunction
from mage_diffsim.cuda_graphs import Captured, GraphMemory
from mage_diffsim.devices import device_text, environment_of, environment_text, matmul_precision, torch_device
from mage_diffsim.diagnosis import diagnose
from mage_diffsim.draws import Draws, draw
from mage_diffsim.dynamics import Dynamics, HybridDynamics, LearnedDynamics, OracleDynamics
from mage_diffsim.envs.batched import Transition
from mage_diffsim.envs.physics import Physics, make_physics
from mage_diffsim.envs.rollouts import rollout
from mage_diffsim.envs.task import Task
from mage_diffsim.errors import InputError
from mage_diffsim.gradients import gradient_errors_of_runs, true_action_gradients
from mage_diffsim.methods import METHODS
from mage_diffsim.models import GaussianEnsemble, ModelTraining, RewardModel
from mage_diffsim.modes import in_ordinary_modes
from mage_diffsim.normalizer import Normalizer
from mage_diffsim.randomness import Step, Streams, normal, normal_words, uniform
from mage_diffsim.real_environment import LOOK_EVERY, RealEnvironment
from mage_diffsim.shapes import Float, Tensor
from mage_diffsim.task_functions import TaskFunctions
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
        self.env = RealEnvironment(self.physics, self.streams)
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
        self.clock = torch.zeros((), dtype=torch.int64, device=self.device)
        """The environment step, as the device knows it."""
        self.captures = captures_of(config, self.task, self.physics, dynamics)
        self._graph_memory = GraphMemory()
        self.model_trainings = {
            k: ModelTraining(m, self.buffer, config, self.streams, self._graph_memory if self.captures.models else None)
            for k, m in {"loss/model": self.ensemble, "loss/reward_model": self.reward_model}.items()
            if m is not None
        }
        self.action_statistics = Normalizer(runs, self.task.action_dim, self.device, self.dtype)
        self.delta_statistics = Normalizer(runs, self.task.obs_dim, self.device, self.dtype)
        self.reward_statistics = Normalizer(runs, 1, self.device, self.dtype)
        self.env_divergences = torch.zeros(runs, dtype=torch.int64, device=self.device)
        self.env_step = 0
        self._said_unmeasurable = False
        if config.compile == "on":
            self._act, self._record, self._draw = map(compiled, (self._act, self._record, self._draw))
        self._rollout = (
            CapturedRollout(self.physics, self.policy, self._graph_memory)
            if self.captures.collection
            else functools.partial(rollout, self.physics, self.policy)
        )
        self._graphs: dict[tuple[str, int], Captured] = {}
        """Captured parts of an environment step, by name and variant."""
        self._functions = TaskFunctions(config, self.task, self.physics, self.truth_physics)
        if check:
            self._functions.check()
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
    def used(self) -> dict[str, str]:
        """What the settings came to that say how, and not what, is trained: name to text, for ``versions.json``."""
        config = self.config
        return {
            "device": device_text(config.device),
            "environment": environment_text(config, self.task),
            "solver": config.solver,
            "compile": config.compile,
            "graphs": str(self.captures),
            "matmul": config.matmul,
        }

    # --- Algorithm 2 -------------------------------------------------------------------------------------------

    @in_ordinary_modes
    def step(self) -> None:
        """One environment step: collect a transition, train the models when due, improve critic and actor.

        Raises:
            InputError: all ``config.steps`` of them are done, for which the replay buffer has room; or an action was
                not finite (see :meth:`.RealEnvironment.look`).
        """
        if self.env_step >= self.config.steps:
            raise InputError(
                f"all {self.config.steps} environment steps are done, and the replay buffer holds no more: go on by "
                "resume(run_dir, steps=...) with more of them"
            )
        self.env_step += 1
        with matmul_precision(self.config.matmul):
            self.collect()
            if self.env_step % self.hyper.model_every == 0:
                self.train_models()
            if self.env_step >= self.hyper.warmup_steps:
                self.improve()
        if self.env_step == self.config.steps:
            self.env.require_finite_actions()
        elif self.env_step % LOOK_EVERY == 0:
            self.env.look()

    def collect(self) -> None:
        """(s, a, s') ~ exploratory policy; B <- B + {(s, a, s')}. In the warm-up actions are uniform."""
        warm_up = self.env_step <= self.hyper.warmup_steps
        self._run("collect", self._collect, int(warm_up), self.captures.collection)

    def train_models(self) -> None:
        """The model learning steps: omega <- omega - alpha_p grad l(s, a, s'; omega)."""
        if self.ensemble is not None:
            self.ensemble.adopt_statistics(self.agent.obs, self.action_statistics, self.delta_statistics)
        if self.reward_model is not None:
            self.reward_model.adopt_statistics(self.agent.obs, self.reward_statistics)
        for training in self.model_trainings.values():
            training.round(self.clock, self.env_step)

    def improve(self) -> None:
        """The policy optimisation steps."""
        done = (self.env_step - self.hyper.warmup_steps) * self.config.updates_per_step
        self._run("improve", self._improve, done % self.agent.method.policy_delay, self.captures.updates)

    def _run(self, name: str, function: Callable[[int, Step], None], variant: int, captured: bool) -> None:
        """Call a part of an environment step, or replay it as the CUDA graph of this variant.

        The part gets the step as a number, or, where it is recorded or traced, as the device knows it.
        """
        if not captured:
            function(variant, self.clock if self.config.compile == "on" else self.env_step)
            return
        if (name, variant) not in self._graphs:
            part = functools.partial(function, variant, self.clock)
            self._graphs[name, variant] = Captured(part, self._changing, self._graph_memory)
        self._graphs[name, variant]()

    def _changing(self) -> list[Any]:
        """What collection and updates change, but for the row of the buffer that comes next."""
        statistics = (self.action_statistics, self.delta_statistics, self.reward_statistics)
        own = [self.clock, self.env_divergences, self.buffer.filled, self.env.changing()]
        return [*own, self.agent.state_dict(), *(x.state_dict() for x in statistics)]

    def _collect(self, warm_up: int, step: Step) -> None:
        self.clock += 1
        obs = self.env.obs.to(self.dtype, copy=True)
        action = self._act(warm_up, step, obs)
        self._record(obs, action, self.env.step(action.to(self.physics.dtype)))

    def _act(self, warm_up: int, step: Step, obs: Float[Tensor, "R O"]) -> Float[Tensor, "R A"]:
        """Exploratory actions."""
        actions = self.task.action_dim
        words = self.streams.words(step, {"explore": normal_words(actions)})["explore"]
        if warm_up:
            return 2.0 * uniform(words[:, :actions], self.dtype, actions) - 1.0
        with torch.no_grad():
            action = self.agent.policy(obs.unsqueeze(1)).squeeze(1)
        return (action + self.hyper.exploration_noise * normal(words, self.dtype, actions)).clamp(-1.0, 1.0)

    def _record(self, obs: Float[Tensor, "R O"], action: Float[Tensor, "R A"], moved: Transition) -> None:
        """A row of the buffer, and the statistics."""
        next_obs, reward, state = (x.to(self.dtype) for x in (moved.next_obs, moved.reward, moved.state))
        valid = ~moved.diverged
        self.buffer.add(obs, action, next_obs, reward, moved.terminated, state, valid)
        self.env_divergences += moved.diverged
        self.agent.obs.update(obs)
        self.action_statistics.update(action, valid)
        self.delta_statistics.update(next_obs - obs, valid)
        self.reward_statistics.update(reward.unsqueeze(-1), valid)

    def _improve(self, done: int, step: Step) -> None:
        """``done`` critic updates were done since an actor update was due."""
        draws = self._draw(step, self.config.updates_per_step)
        self.agent.improve(self.buffer, draws, done)

    def _draw(self, step: Step, updates: int) -> list[Draws]:
        return draw(self.streams, self.config, self.task, step, self.buffer.filled, updates)

    def draw(self, updates: int, ahead: int = 1) -> list[Draws]:
        """The random numbers of critic updates ``ahead`` environment steps from now."""
        return self._draw(self.clock + ahead, updates)

    @property
    def losses(self) -> dict[str, Float[Tensor, " R"]]:
        """The mean loss of each model in its last round, by the name of its measure."""
        return {name: training.loss for name, training in self.model_trainings.items() if training.begun}

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
        generators = self.streams.generators("evaluate", self.env_step)
        result = self._rollout(self.initial_states(episodes, generators))
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
        return torch.cat([self.task.reset(episodes, g) for g in generators]).to(self.device)

    @property
    def gradient_steps(self) -> int:
        """Steps of the trajectories whose return is differentiated: the configuration's, else the task's."""
        return min(self.config.gradient_horizon or self.task.gradient_horizon or self.task.horizon, self.task.horizon)

    def _gradient_error(self, initial_state: Float[Tensor, "N S"]) -> dict[str, Float[Tensor, " R"]]:
        """Eq. 14 and the cosine of grad_a min_i Q_i, the gradient that the actor follows. Truth is in float64."""
        runs = len(self.config.runs)
        if reason := self._functions.unmeasurable():
            if not self._said_unmeasurable:
                logging.getLogger(__name__).warning(
                    f"{self.task.name}: the gradient error of Eq. 14 and the cosine are left empty, as {reason}"
                )
            self._said_unmeasurable = True
            nothing = torch.full((runs,), torch.nan, dtype=self.dtype, device=self.device)
            return dict.fromkeys((f"gradient/{x}" for x in ("error", "error_median", "cosine", "nonfinite")), nothing)
        horizon = self.gradient_steps
        true = true_action_gradients(self.truth_physics, self.policy, initial_state, self.hyper.gamma, horizon)
        found = gradient_errors_of_runs(true, self.agent.min_q, runs, self.hyper.gamma, self.dtype)
        return {f"gradient/{name}": value for name, value in found.items()}

    @matmul_precision("highest")
    @in_ordinary_modes
    def diagnose(self) -> dict[str, Float[Tensor, " R"]]:
        """Losses and sizes of values and gradients at this moment, each of shape [R].

        It looks at a batch of transitions that is drawn as an update's is.
        """
        if self.env_step < self.hyper.warmup_steps:
            return dict(self.losses)
        (draws,) = self.draw(1)
        shape = (self.hyper.batch_size, self.task.obs_dim)
        words = self.streams.words(self.clock, {"probe": normal_words(*shape)})["probe"]
        probe = normal(words, self.dtype, *shape)
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
            "agent": self.agent.state_dict(),
            "ensemble": None if self.ensemble is None else self.ensemble.state_dict(),
            "reward_model": None if self.reward_model is None else self.reward_model.state_dict(),
            "action_statistics": self.action_statistics.state_dict(),
            "delta_statistics": self.delta_statistics.state_dict(),
            "reward_statistics": self.reward_statistics.state_dict(),
            "model_losses": {name: training.state_dict() for name, training in self.model_trainings.items()},
            "env_divergences": self.env_divergences,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`, in place."""
        self.env_step = state["env_step"]
        self.clock.fill_(self.env_step)
        for name, training in self.model_trainings.items():
            training.load_state_dict(state["model_losses"][name])
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
