"""Every setting of a training run, with its unit, the paper's symbol and where its value comes from."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from mage_diffsim.choices import require_choices
from mage_diffsim.envs.identity.options import format_options, parse_options, plain
from mage_diffsim.envs.identity.reference import is_elsewhere
from mage_diffsim.envs.physics import Residuals, Solver
from mage_diffsim.envs.task import Task
from mage_diffsim.errors import InputError
from mage_diffsim.hyper import EnsembleName, Hyper, Preset
from mage_diffsim.methods import METHODS, CriticLoss, MethodName

DynamicsName = Literal["learned", "oracle", "hybrid-oracle-gradients", "hybrid-learned-gradients"]
RewardName = Literal["task", "learned"]
OnOff = Literal["off", "on"]
CudaGraphs = Literal["auto", "on", "off"]
Matmul = Literal["highest", "high"]


def _or_none(default: str) -> str:
    """How the help shows a default that may be empty."""
    return f"(default: {default.strip() or 'none'})"


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
    task_options: Annotated[dict[str, Any], TASK_OPTIONS, tyro.conf.arg(help_behavior_hint=_or_none)] = field(
        default_factory=dict, hash=False
    )
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
    """recompute: that derivative computes the step anew; keep: it holds the step's intermediate values, or its
    Jacobian with derivative jvp (jax, mjx)."""
    environment: str | None = None
    """Physics backend of the real environment, its evaluations and true gradients. None is the task's first; on a CUDA
    device warp instead of MuJoCo C, where it covers the model. A run keeps the one that it began with."""
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
    graphs: CudaGraphs = "auto"
    """on: replay collection, model rounds and updates of an environment step as CUDA graphs (CUDA devices, learned
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
            hyper = with_tuples(data.get("hyper", {}))
            settings = with_tuples(data)
            if isinstance(settings.get("task_options"), dict):
                settings["task_options"] = plain(settings["task_options"])
            refuse_unknown(hyper, Hyper)
            refuse_unknown(settings, TrainConfig)
            settings["hyper"] = Hyper(**typed(hyper, Hyper()))
            return TrainConfig(**typed(settings, TrainConfig()))
        except (TypeError, AttributeError, InputError) as error:
            raise InputError(f"the configuration does not fit this version of mage_diffsim: {error}") from error


def typed(settings: dict[str, Any], defaults: TrainConfig | Hyper) -> dict[str, Any]:
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


def with_tuples(data: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples they were."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}


def refuse_unknown(names: Iterable[str], kind: type[TrainConfig | Hyper]) -> None:
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
