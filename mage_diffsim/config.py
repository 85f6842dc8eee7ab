"""Every knob of a training run, with its unit, the paper's symbol and where its value comes from.

Three presets fill the hyper-parameters: ``paper`` (appendix D.2, the default), ``authors`` (what the published code
does where it differs) and ``cpu`` (a reduced budget for a laptop, ours). docs/deviations.md compares the paper with the
published code.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, get_args

import tyro

from mage_diffsim.choices import require_choices
from mage_diffsim.envs.identity import (
    absolute,
    format_options,
    is_elsewhere,
    options_of,
    parse_options,
    plain,
    reference_of,
    require_reproducible,
)
from mage_diffsim.envs.physics import Residuals, Solver
from mage_diffsim.envs.task import Task
from mage_diffsim.errors import InputError, unknown_name

MethodName = Literal["mage-td3", "mage-ddpg", "dyna-td3", "dyna-ddpg", "td3", "ddpg", "data-efficient-td3"]
Preset = Literal["paper", "authors", "cpu"]
CriticLoss = Literal["mage", "dyna", "squared", "taylor", "sobolev", "shuffled", "random"]
LossWeights = Literal["paper", "authors"]
DynamicsName = Literal["learned", "oracle", "hybrid-oracle-gradients", "hybrid-learned-gradients"]
EnsembleName = Literal["full", "small", "smaller"]
RewardName = Literal["task", "learned"]
OnOff = Literal["off", "on"]
Graphs = Literal["auto", "on", "off"]
Matmul = Literal["highest", "high"]

WITHOUT_LAMBDA: frozenset[str] = frozenset({"dyna", "taylor"})
"""Critic losses whose terms lambda does not weigh."""


@dataclass(frozen=True)
class Method:
    """One row of the method table: a setting of the one agent, not a class of its own."""

    loss: CriticLoss
    """Critic loss (see :mod:`.critic`)."""
    imagines: bool
    """Whether the critic's transitions come from the dynamics (else from the replay buffer)."""
    critics: int
    """1 for DDPG, 2 for TD3."""
    policy_delay: int
    """Critic updates per actor update, d; 1 for DDPG."""
    update_every_step_once: bool = False
    """Plain model-free methods do one update per environment step, whatever ``updates_per_step`` says."""


METHODS: dict[str, Method] = {
    "mage-td3": Method("mage", imagines=True, critics=2, policy_delay=2),
    "mage-ddpg": Method("mage", imagines=True, critics=1, policy_delay=1),
    "dyna-td3": Method("dyna", imagines=True, critics=2, policy_delay=2),
    "dyna-ddpg": Method("dyna", imagines=True, critics=1, policy_delay=1),
    "td3": Method("dyna", imagines=False, critics=2, policy_delay=2, update_every_step_once=True),
    "ddpg": Method("dyna", imagines=False, critics=1, policy_delay=1, update_every_step_once=True),
    "data-efficient-td3": Method("dyna", imagines=False, critics=2, policy_delay=2),
}
"""The methods of the paper by name."""


@dataclass(frozen=True)
class Hyper:
    """Hyper-parameters of learner, ensemble and loop. ``Hyper.preset(...)`` gives the documented sets."""

    gamma: float = 0.99
    """Discount factor, gamma [D.2]."""
    batch_size: int = 1024
    """States per critic update, uniform over the whole buffer; 512 for Pendulum and CartPole [D.2]."""
    updates_per_step: int = 10
    """Critic updates per environment step [published code; not stated in the paper]."""
    warmup_steps: int = 1000
    """Environment steps with uniformly random actions before the first update; 100 for Pendulum, CartPole [D.2]."""
    actor_hidden: tuple[int, ...] = (384, 384)
    """Hidden layers of the actor (D.2's 284 is a typo for the code's 384); (128, 128) for small tasks [D.2]."""
    critic_hidden: tuple[int, ...] = (384, 384)
    """Hidden layers of each critic [D.2]; (128, 128) for small tasks, ours: D.2 names 128 only for their actor."""
    learning_rate: float = 1e-4
    """RAdam step size of actor and critic, alpha_pi = alpha_Q [D.2]."""
    clip_value: float = 5.0
    """Every gradient component is clipped to +- this, on every network [published code]."""
    polyak: float = 0.005
    """Share of the online network a target network takes per update; D.2's tau = 0.995 is the share kept."""
    exploration_noise: float = 0.1
    """Standard deviation of the Gaussian added to executed actions, sigma, in action units [D.2]."""
    target_noise: float = 0.2
    """Standard deviation of the Gaussian on target actions, sigma-bar, in action units [D.2]."""
    target_noise_clip: float = 0.5
    """Bound of that noise, c [D.2]."""
    loss_weights: LossWeights = "paper"
    """Weights of the critic's gradient and TD terms: paper, 1 and lambda [Algorithm 2]; authors, 0.5 / lambda and 0.5
    [published code, which weighs its terms 5 = 1 / lambda and 1 and halves both]. A loss without lambda: 1 or 0.5."""
    taylor_variance: float = 0.25
    """Action variance of the ``taylor`` loss, weight of its gradient term [ours; Taylor TD tunes it per task]."""
    max_dynamics_gradient: float = 0.0
    """Bound on the 2-norm of each gradient of the target, per sample; 0 is no bound [ours]."""
    diverged_critic_loss: float = 100.0
    """A run gets a fresh agent when half the sum over its critics of the mean Huber TD error exceeds this in an update,
    whatever loss and weights are [published code], or is not finite, or a parameter is not finite [ours]."""
    diverged_actor_loss: float = 1e5
    """The same for the absolute value of the actor loss [published code]."""

    ensemble_members: int = 8
    """Members of the dynamics ensemble [D.2]; 2 for -small, 1 for -smaller [B.3]."""
    ensemble_hidden: tuple[int, ...] = (512, 512, 512, 512)
    """Hidden layers of each member; (128, 128) for small tasks [D.2]."""
    model_every: int = 25
    """Environment steps between two trainings of the model [D.2]."""
    model_batches: int = 120
    """Batches per training of the model, and of the reward model [D.2]."""
    model_batch_size: int = 256
    """Transitions per member and batch [D.2]."""
    model_epochs: bool = False
    """True: whole epochs over the buffer until at least ``model_batches`` batches have run [published code]."""
    model_learning_rate: float = 1e-4
    """RAdam step size of the model, alpha_p [D.2]."""
    model_weight_decay: float = 1e-4
    """Decoupled weight decay of the model [D.2] and of the reward model [published code]."""
    log_var_low: float = -5.0
    """Lower bound of the predicted log-variance of normalised deltas [published code]."""
    log_var_high: float = -1.0
    """Upper bound of the same [published code]."""
    reward_hidden: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of the learned reward model; (128,) for small tasks [D.2]."""

    @staticmethod
    def preset(name: Preset, size: Literal["small", "full"], ensemble: EnsembleName = "full") -> Hyper:
        """The documented hyper-parameters.

        Args:
            name: ``paper``, ``authors`` or ``cpu``.
            size: the task's ``network_size``: ``small`` are the paper's Pendulum and CartPole sizes.
            ensemble: ``full``, ``small`` or ``smaller`` (appendix B.3's capacities).

        Raises:
            InputError: an unknown preset or ensemble.
        """
        if name not in get_args(Preset):
            raise unknown_name("preset", name, get_args(Preset))
        if ensemble not in get_args(EnsembleName):
            raise unknown_name("ensemble", ensemble, get_args(EnsembleName))
        hyper = Hyper()
        if name == "authors":  # the published code has one size for all tasks
            hyper = replace(hyper, loss_weights="authors", model_epochs=True)
        elif size == "small":
            hyper = replace(
                hyper,
                batch_size=512,
                warmup_steps=100,
                actor_hidden=(128, 128),
                critic_hidden=(128, 128),
                ensemble_hidden=(128, 128),
                reward_hidden=(128,),
            )
        if name == "cpu":
            hyper = replace(hyper, **(_CPU_SMALL if size == "small" else _CPU_FULL))
        if ensemble == "small":
            hyper = replace(hyper, ensemble_members=2, ensemble_hidden=_narrow(hyper.ensemble_hidden, 4))
        elif ensemble == "smaller":
            hyper = replace(hyper, ensemble_members=1, ensemble_hidden=_narrow(hyper.ensemble_hidden, 2))
        return hyper


# The cpu preset keeps what an environment step does to the learner: learning rate x updates and Polyak share x updates
# are twice and about the same as the paper's 1e-4 x 10 and 0.005 x 10, with a fifth of the updates.
_CPU_SMALL: dict[str, Any] = {
    "batch_size": 256,
    "updates_per_step": 2,
    "warmup_steps": 500,
    "learning_rate": 1e-3,
    "polyak": 0.02,
    "exploration_noise": 0.3,
    "actor_hidden": (64, 64),
    "critic_hidden": (64, 64),
    "ensemble_members": 4,
    "ensemble_hidden": (64, 64),
    "model_learning_rate": 1e-3,
    "model_batches": 30,
    "reward_hidden": (64,),
}
_CPU_FULL: dict[str, Any] = {
    "batch_size": 256,
    "updates_per_step": 2,
    "learning_rate": 5e-4,
    "polyak": 0.02,
    "actor_hidden": (256, 256),
    "critic_hidden": (256, 256),
    "ensemble_members": 4,
    "ensemble_hidden": (200, 200, 200),
    "model_learning_rate": 1e-3,
    "model_batches": 30,
}


def _narrow(hidden: tuple[int, ...], layers: int) -> tuple[int, ...]:
    """Appendix B.3's smaller models: half the width (512 to 256), ``layers`` layers at most."""
    return (hidden[0] // 2,) * min(layers, len(hidden))


TASK_OPTIONS = tyro.constructors.PrimitiveConstructorSpec(
    nargs="*",
    metavar="[NAME=VALUE ...]",
    instance_from_str=parse_options,
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=format_options,
)
"""How a command line takes a task's options; annotate a ``dict[str, Any]`` with it."""


@dataclass(frozen=True)
class TrainConfig:
    """One training process: a task, a method, a dynamics, and the runs (seeds x lambdas) that share it."""

    task: str = "Pendulum"
    """Registered task, ``path/to/file.py:Class`` or ``module:Class``."""
    task_options: Annotated[dict[str, Any], TASK_OPTIONS] = field(default_factory=dict, hash=False)
    """Options of the task's constructor, such as mass=20: numbers, text, true, false, null, JSON lists and objects."""
    method: MethodName = "mage-td3"
    """Which transitions the critic sees, how many critics there are, and how they are fitted."""
    dynamics: DynamicsName = "learned"
    """What imagines s'. hybrid-oracle-gradients takes values from the ensemble and Jacobians from the simulator;
    hybrid-learned-gradients the other way round."""
    backend: str | None = None
    """Physics backend of the oracle: one that the task has (see ``mage-diffsim list-tasks``); None is its first."""
    derivative: str | None = None
    """Derivative source of that backend; None is its default."""
    residuals: Residuals = "recompute"
    """recompute: that derivative computes the step anew; keep: it holds the step's intermediate values (jax, mjx)."""
    environment: str | None = None
    """Physics backend of the real environment, its evaluations and true gradients; None is the task's first."""
    solver: Solver = "converged"
    """Of the constraints of MuJoCo models, in environment and oracle alike: converged, or model: as far as the model's
    own iterations and tolerances go, as in Gymnasium's environments (backends mujoco and mujoco-warp)."""
    reward: RewardName = "task"
    """task: the task's own reward; learned: a reward model r_hat(s, a, s') [B.2]."""
    loss: CriticLoss | None = None
    """Critic loss; None is the method's own. shuffled and random are negative controls."""
    preset: Preset = "paper"
    """Hyper-parameter set: the paper's, the published code's, or a reduced one for a laptop."""
    ensemble: EnsembleName = "full"
    """Capacity of the ensemble [B.3]."""
    seeds: tuple[int, ...] = (0,)
    """One run per seed (and lambda); they train together on the run axis."""
    lambdas: tuple[float, ...] = (0.2,)
    """Weight(s) of the TD error against the gradient term, lambda: 0.2 in Fig. 2, 0.05 in the paper's other figures."""
    steps: int = 100_000
    """Environment steps per run [D.2]."""
    eval_every: int = 1000
    """Environment steps between evaluations [D.2]."""
    eval_episodes: int = 10
    """Deterministic episodes per evaluation [D.2]."""
    gradient_episodes: int = 10
    """Trajectories for the Eq. 14 gradient error at each evaluation; 0 turns it off [D.2]."""
    gradient_horizon: int = 0
    """Steps of these trajectories; 0 is the task's ``gradient_horizon``: all, or 50 for MuJoCo tasks (HalfCheetah
    10), as the true gradient explodes through long contact."""
    freeze_actor: bool = False
    """Train the critic only, as the gradient-error experiment does [D.2]."""
    checkpoint_every: int = 1000
    """Environment steps between checkpoints, which is the most that a killed run loses; one is written at the end."""
    device: str = "cpu"
    """Torch device of the whole run: cpu, cuda, cuda:1, ..."""
    float64: bool = False
    """Train in double precision (tests do)."""
    compile: OnOff = "off"
    """on: fuse whole updates and model batches with torch.compile, up to a few minutes at the start; off."""
    graphs: Graphs = "auto"
    """on: replay the updates of an environment step, and each model batch, as CUDA graphs (CUDA devices, learned
    dynamics or an oracle on backend torch or warp); off; auto: on wherever that is possible."""
    matmul: Matmul = "highest"
    """Float32 matrix products of training: highest, or high: TF32 (10 bits of mantissa, faster; CUDA devices).
    Evaluations are at highest."""
    hyper: Hyper = field(default_factory=Hyper)
    """Hyper-parameters; the chosen preset fills them, flags override single ones."""

    @property
    def runs(self) -> tuple[tuple[int, float], ...]:
        """(seed, lambda) of every run, in run-axis order."""
        return tuple((seed, lam) for lam in self.lambdas for seed in self.seeds)

    @property
    def critic_loss(self) -> CriticLoss:
        """The critic loss in force: the chosen one, or the method's own."""
        return self.loss or METHODS[self.method].loss

    @property
    def updates_per_step(self) -> int:
        """Critic updates per environment step of this method."""
        return 1 if METHODS[self.method].update_every_step_once else self.hyper.updates_per_step

    def make_task(self) -> Task:
        """The task of this configuration, made with its options.

        Raises:
            InputError: see :func:`~mage_diffsim.envs.registry.make_task`.
        """
        from mage_diffsim.envs.registry import make_task

        if is_elsewhere(self.task):
            try:
                return make_task(self.task, **self.task_options)
            except InputError as error:
                raise InputError(
                    f"task {self.task} was defined in a notebook, a script or a function, or in a module that is not "
                    "installed here, and this process does not find it: from Python, give the object as task="
                ) from error
        return make_task(self.task, **self.task_options)

    def to_dict(self) -> dict:
        """Plain nested dict, as config.json holds it."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(data: dict) -> TrainConfig:
        """The inverse of :meth:`to_dict`.

        Raises:
            InputError: a field is unknown, as in a file written by another version.
        """
        try:
            if not isinstance(data.get("hyper", {}), dict):
                raise TypeError(f"hyper is {data['hyper']!r}, and an object of hyper-parameters is what it takes")
            hyper = _with_tuples(data.get("hyper", {}))
            settings = _with_tuples(data)
            if isinstance(settings.get("task_options"), dict):
                settings["task_options"] = plain(settings["task_options"])
            _refuse_unknown(hyper, Hyper)
            _refuse_unknown(settings, TrainConfig)
            settings["hyper"] = Hyper(**_typed(hyper, Hyper()))
            return TrainConfig(**_typed(settings, TrainConfig()))
        except (TypeError, AttributeError, InputError) as error:
            raise InputError(f"the configuration does not fit this version of mage_diffsim: {error}") from error


def _typed(settings: dict[str, Any], defaults: TrainConfig | Hyper) -> dict[str, Any]:
    """The settings, each of its field's kind: whole numbers may be given as floats, as a spreadsheet writes them.

    Unknown names are left to the constructor.

    Raises:
        TypeError: a value of another kind; names the field.
        InputError: a value that is not among its field's choices.
    """

    def number(value: Any, like: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError
        if isinstance(like, int) and isinstance(value, float):
            if not value.is_integer():
                raise TypeError
            return int(value)
        return value

    found = {}
    for name, value in settings.items():
        default = getattr(defaults, name, value)
        try:
            if isinstance(default, bool) or not isinstance(default, int | float | tuple):
                if not isinstance(value, (str, type(None)) if default is None else type(default)):
                    raise TypeError
                found[name] = value
            elif isinstance(default, tuple):
                if not isinstance(value, tuple):
                    raise TypeError
                found[name] = tuple(number(entry, default[0] if default else entry) for entry in value)
            else:
                found[name] = number(value, default)
        except TypeError:
            raise TypeError(f"{name} is {value!r}, and {default!r} is the kind of value it takes") from None
    require_choices(type(defaults), found)
    return found


def _with_tuples(data: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples they were."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}


def make_config(
    task: str | Task = "Pendulum", *, shared: Mapping[str, Any] | None = None, **settings: Any
) -> TrainConfig:
    """A :class:`TrainConfig` whose hyper-parameters come from its preset, task and ensemble.

    Args:
        task: a task's name, or the object itself, whose options are recorded.
        shared: settings of a whole sweep, which may have no effect in this one of its configurations; those in
            ``settings`` stand before them.
        **settings: other fields of :class:`TrainConfig`; ``hyper`` may be a dict of single overrides.

    Raises:
        InputError: an unknown task, preset, method, dynamics, loss, ensemble or setting, a value out of range, one that
            has no effect beside the others (see :data:`USES`), or a task object that its options do not make again.
    """
    from mage_diffsim.envs.physics import backends_of
    from mage_diffsim.envs.registry import make_task

    if not isinstance(task, str | Task):
        shown = f"the class {task.__name__}" if isinstance(task, type) else repr(task)
        raise InputError(f"task is {shown}; accepted is a task's name, or a task object, as make_task gives it")
    given = [name for name, value in settings.items() if value is not None]
    given += settings["hyper"] if isinstance(settings.get("hyper"), Mapping) else []
    settings = dict(shared or {}) | settings
    overrides = settings.pop("hyper", {})
    _refuse_unknown(settings, TrainConfig)
    if not isinstance(overrides, Mapping | Hyper):
        raise InputError(f"hyper is {overrides!r}; accepted is a dict from hyper-parameters to values, or a Hyper")
    if isinstance(overrides, Mapping):
        _refuse_unknown(overrides, Hyper)
    try:
        options = settings["task_options"] = plain(settings.get("task_options", {}))
    except TypeError as error:
        raise InputError(f"task_options cannot be recorded with a run: {error}") from error
    if not isinstance(options, dict):
        raise InputError(f"task_options is {options!r}; accepted is a dict from names to values")
    if isinstance(task, str):
        name, made = absolute(task), make_task(task, **options)
        settings["task_options"] = options_of(made)  # without those that are the default anyway
    else:
        name, made = reference_of(type(task)), task
        settings["task_options"] = recorded_options(task, options)
    try:
        config = TrainConfig(task=name, **_typed(_with_tuples(settings), TrainConfig()))
        if isinstance(overrides, Mapping):
            overrides = _typed(_with_tuples(dict(overrides)), Hyper())
    except TypeError as error:
        raise InputError(f"the settings are not a training's: {error}") from error
    hyper = Hyper.preset(config.preset, made.network_size, config.ensemble)
    if isinstance(overrides, Hyper):
        hyper = overrides
    elif overrides:
        hyper = replace(hyper, **overrides)
    config = replace(config, hyper=hyper, backend=config.backend or backends_of(made)[0])
    validate(config)
    for unused, reason in require_effect(config, given, MISLEADING - LABELS).items():
        _warn_once(f"{unused} was given and has no effect, as {reason}")
    return config


def _refuse_unknown(names: Iterable[str], kind: type[TrainConfig | Hyper]) -> None:
    """Refuse names that are no fields, and say which was meant.

    Raises:
        InputError: names the first of them, and what is accepted.
    """
    settings = [f.name for f in dataclasses.fields(TrainConfig) if f.name != "hyper"]
    hyper = [f.name for f in dataclasses.fields(Hyper)]
    own, other = (hyper, settings) if kind is Hyper else (settings, hyper)
    what, others = ("hyper-parameter", "a setting") if kind is Hyper else ("setting", "a hyper-parameter")
    place = "{}=... beside hyper" if kind is Hyper else 'hyper={{"{}": ...}}'
    for name in names:
        if name in own or (name == "hyper" and kind is TrainConfig):
            continue
        if name in other:
            raise InputError(f"{name} is {others}: give {place.format(name)}")
        close = difflib.get_close_matches(str(name), own)
        elsewhere = [place.format(x) for x in difflib.get_close_matches(str(name), other)]
        meant = " or ".join(close + ([] if close else elsewhere))
        raise InputError(
            f"unknown {what} {name!r}: " + (f"did you mean {meant}?" if meant else f"choose one of {', '.join(own)}")
        )


def recorded_options(task: Task, options: dict[str, Any]) -> dict[str, Any]:
    """The options that a task object was made with, which a configuration's own ``options`` must not contradict.

    Raises:
        InputError: they do; or its options do not make the task again (see :func:`.require_reproducible`).
    """
    require_reproducible(task)
    own = options_of(task)
    if options and options != own:
        try:
            same = options_of(type(task)(**options)) == own  # a default may have been spelt out
        except TypeError:
            same = False
        if not same:
            raise InputError(
                f"task_options are {options}, and the task object given beside them was made with {own or 'none'}: "
                "leave task_options out"
            )
    return own


def _imagines(config: TrainConfig) -> bool:
    return METHODS[config.method].imagines


def _simulates(config: TrainConfig) -> bool:
    return _imagines(config) and config.dynamics != "learned"


def _takes_derivatives(config: TrainConfig) -> bool:
    return _simulates(config) and config.dynamics != "hybrid-learned-gradients"


def _models(config: TrainConfig) -> bool:
    return _imagines(config) and config.dynamics != "oracle"


def _fits(config: TrainConfig) -> bool:
    return _models(config) or config.reward == "learned"


def _has_lambda(config: TrainConfig) -> bool:
    return config.critic_loss not in ("dyna", "taylor")


_NO_DERIVATIVE = "no simulator is differentiated with dynamics {dynamics!r}: add --dynamics oracle"
_NO_MODEL = "no ensemble is trained with dynamics {dynamics!r}: add --dynamics learned"
_NO_FIT = "no model is trained with dynamics {dynamics!r} and reward {reward!r}: add --dynamics learned"

USES: dict[str, tuple[Callable[[TrainConfig], bool], str]] = {
    "dynamics": (
        _imagines,
        "method {method} learns from the replay buffer alone and imagines nothing; use a mage-* or dyna-* method",
    ),
    "backend": (_simulates, "nothing is simulated with dynamics {dynamics!r}: add --dynamics oracle"),
    "derivative": (_takes_derivatives, _NO_DERIVATIVE),
    "residuals": (_takes_derivatives, _NO_DERIVATIVE),
    "ensemble": (_models, _NO_MODEL),
    "lambdas": (_has_lambda, "the loss {critic_loss} has no lambda"),
    "gradient_horizon": (lambda c: c.gradient_episodes > 0, "gradient_episodes is 0"),
    "updates_per_step": (
        lambda c: not METHODS[c.method].update_every_step_once,
        "method {method} makes one update per step; take data-efficient-td3",
    ),
    "taylor_variance": (lambda c: c.critic_loss == "taylor", "the loss is {critic_loss}; add --loss taylor"),
    "max_dynamics_gradient": (
        lambda c: c.critic_loss != "dyna",
        "the loss {critic_loss} uses no gradient of the target",
    ),
    "target_noise_clip": (lambda c: c.hyper.target_noise > 0.0, "target_noise is 0"),
    "diverged_actor_loss": (lambda c: not c.freeze_actor, "freeze_actor is on"),
    "reward_hidden": (lambda c: c.reward == "learned", "reward is {reward!r}; add --reward learned"),
    **{name: (_models, _NO_MODEL) for name in ("ensemble_members", "ensemble_hidden", "log_var_low", "log_var_high")},
    **{
        name: (_fits, _NO_FIT)
        for name in (
            "model_every",
            "model_batches",
            "model_batch_size",
            "model_epochs",
            "model_learning_rate",
            "model_weight_decay",
        )
    },
}
"""Fields that matter in some configurations only: when, and what to say where they do not. All others always do."""

MISLEADING = frozenset({"dynamics", "backend", "derivative", "residuals", "ensemble", "lambdas", "gradient_horizon"})
"""Of these, the ones by which an experiment is named: given where they have no effect, they are refused."""


LABELS = frozenset({"dynamics", "lambdas", "gradient_horizon"})
"""Of these, the ones that Python callers give to every run of a comparison: :func:`make_config` only warns."""


def without_effect(config: TrainConfig, given: Iterable[str]) -> dict[str, str]:
    """Which of the fields that were given (of :class:`TrainConfig` or :class:`Hyper`) change nothing, and why."""
    values = vars(config.hyper) | vars(config) | {"critic_loss": config.critic_loss}
    neutral = {"gradient_horizon": 0, "max_dynamics_gradient": 0.0}  # say that the default is wanted
    found = {}
    for name in given:
        if name not in USES or values[name] is None or (name in neutral and values[name] == neutral[name]):
            continue
        matters, reason = USES[name]
        if not matters(config):
            if not _imagines(config) and matters in (_simulates, _takes_derivatives, _models, _fits):
                reason = USES["dynamics"][1]
            found[name] = reason.format(**values)
    return found


def require_effect(
    config: TrainConfig, given: Iterable[str], misleading: frozenset[str] = MISLEADING
) -> dict[str, str]:
    """Refuse what was given for another experiment than this.

    Returns:
        name to reason of what was given, has no effect, and misleads nobody: for a note.

    Raises:
        InputError: one of ``misleading`` was given and has no effect.
    """
    unused = without_effect(config, given)
    for name, reason in unused.items():
        if name in misleading:
            value = getattr(config, name)
            raise InputError(f"{name} {value!r} was given and has no effect, as {reason}")
    return unused


@functools.cache
def _warn_once(text: str) -> None:
    logging.getLogger(__name__).warning(text)


HARMLESS = frozenset({"steps", "checkpoint_every", "compile", "graphs", "device"})
"""Fields that may change while a run goes on: they decide how long and where it trains, not what."""


def differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The fields in which two configurations (:meth:`TrainConfig.to_dict`) differ, as ``name X and not Y``."""

    def flat(data: dict[str, Any]) -> dict[str, Any]:
        rest = {k: v for k, v in data.items() if k != "hyper"}
        return plain(rest | {f"hyper.{k}": v for k, v in data.get("hyper", {}).items()})

    old, new = flat(was), flat(now)
    return [f"{k} {old.get(k)} and not {new.get(k)}" for k in {**new, **old} if old.get(k) != new.get(k)]


def validate(config: TrainConfig) -> None:
    """Refuse what cannot be trained, in one sentence.

    Raises:
        InputError: names the field, what was given and what is accepted.
    """
    require_choices(TrainConfig, vars(config))
    require_choices(Hyper, vars(config.hyper))
    if config.residuals == "keep" and config.dynamics == "learned":
        raise InputError("residuals 'keep' is about an oracle, and dynamics is 'learned': leave it at 'recompute'")
    if config.graphs == "on" and not config.device.startswith("cuda"):
        raise InputError(
            f"graphs is 'on', which needs a CUDA device, and device is {config.device!r}: use graphs 'off'"
        )
    if config.matmul == "high" and (config.float64 or not config.device.startswith("cuda")):
        kind = "float64" if config.float64 else "float32"
        raise InputError(
            f"matmul is 'high', which is about float32 products on a CUDA device, and this trains in {kind} on "
            f"{config.device!r}: use matmul 'highest'"
        )
    method, hyper = METHODS[config.method], config.hyper
    if not method.imagines:
        drawn = f"method {config.method} draws transitions from the replay buffer"
        if config.loss not in (None, "dyna"):
            raise InputError(f"loss {config.loss!r} needs an imagined next state, and {drawn}: use a mage-* method")
        if config.reward != "task":
            raise InputError(f"reward {config.reward!r} is for imagined transitions, and {drawn}: leave it at 'task'")
        if config.dynamics != "learned":
            raise InputError(f"dynamics {config.dynamics!r} was given, and {drawn}: leave it at its default")
    if config.critic_loss in WITHOUT_LAMBDA and len(config.lambdas) > 1:
        raise InputError(f"lambdas are {config.lambdas}, and the loss {config.critic_loss} has no lambda: give one")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds) or min(config.seeds) < 0:
        raise InputError(f"seeds are {config.seeds}; accepted is one or more different integers of 0 or more")
    if (
        not config.lambdas
        or len(set(config.lambdas)) < len(config.lambdas)
        or not all(0.0 <= lam < math.inf for lam in config.lambdas)
    ):
        raise InputError(f"lambdas are {config.lambdas}; accepted is one or more different finite numbers of 0 or more")
    if hyper.loss_weights == "authors" and config.critic_loss not in WITHOUT_LAMBDA and 0.0 in config.lambdas:
        raise InputError(
            f"lambdas are {config.lambdas}, and loss_weights 'authors' (the preset 'authors') weighs the gradient term "
            "by 0.5 / lambda: give numbers above 0, or loss_weights 'paper'"
        )
    for name, least in (
        ("steps", 1),
        ("eval_every", 1),
        ("eval_episodes", 1),
        ("gradient_episodes", 0),
        ("gradient_horizon", 0),
        ("checkpoint_every", 1),
    ):
        if getattr(config, name) < least:
            raise InputError(f"{name} is {getattr(config, name)}; accepted is {least} or more")
    for name, (low, high) in _RANGES.items():
        value = getattr(hyper, name)
        values = value if isinstance(value, tuple) else (value,)
        if not all(low <= v <= high and v < math.inf for v in values):
            bound = f"{low} or more" if high == math.inf else f"{low} to {high}"
            raise InputError(f"{name} is {value}; accepted is {bound}")
    if hyper.log_var_low >= hyper.log_var_high:
        raise InputError(f"log_var_low is {hyper.log_var_low}; accepted is below log_var_high ({hyper.log_var_high})")
    if hyper.batch_size % hyper.ensemble_members:
        raise InputError(
            f"batch_size is {hyper.batch_size}; accepted is a multiple of ensemble_members "
            f"({hyper.ensemble_members}), as each member imagines an equal share of the batch"
        )


_SMALLEST = 1e-12
"""Stands for "above 0"."""

_RANGES: dict[str, tuple[float, float]] = {
    "gamma": (0.0, 1.0),
    "batch_size": (1, math.inf),
    "updates_per_step": (1, math.inf),
    "warmup_steps": (1, math.inf),
    "actor_hidden": (1, math.inf),
    "critic_hidden": (1, math.inf),
    "learning_rate": (0.0, math.inf),
    "clip_value": (_SMALLEST, math.inf),
    "polyak": (_SMALLEST, 1.0),
    "exploration_noise": (0.0, math.inf),
    "target_noise": (0.0, math.inf),
    "target_noise_clip": (0.0, math.inf),
    "taylor_variance": (0.0, math.inf),
    "max_dynamics_gradient": (0.0, math.inf),
    "diverged_critic_loss": (_SMALLEST, math.inf),
    "diverged_actor_loss": (_SMALLEST, math.inf),
    "ensemble_members": (1, math.inf),
    "ensemble_hidden": (1, math.inf),
    "model_every": (1, math.inf),
    "model_batches": (1, math.inf),
    "model_batch_size": (1, math.inf),
    "model_learning_rate": (0.0, math.inf),
    "model_weight_decay": (0.0, math.inf),
    "log_var_low": (-100.0, 100.0),
    "log_var_high": (-100.0, 100.0),
    "reward_hidden": (1, math.inf),
}
"""Least and greatest value of every number in :class:`Hyper`; a tuple's entries each obey it."""
