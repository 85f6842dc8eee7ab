"""The base class of tasks: observation, reward, termination and reset, written once in torch for every backend."""

from __future__ import annotations

import abc
import copyreg
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from mage_diffsim.envs.drawing import draw_bars
from mage_diffsim.envs.files import reduce_class
from mage_diffsim.errors import require_kind
from mage_diffsim.shapes import Bool, Float, Tensor

GIVEN = "_options_given"
"""Name of the attribute in which a task keeps the arguments it was made with, so that copies have them too."""


class TaskType(abc.ABCMeta):
    """The type of task classes: every task remembers the arguments it was made with (see :mod:`.identity`)."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = python_numbers(args), python_numbers(kwargs)  # as config.json gives them back
        task = super().__call__(*args, **kwargs)
        if isinstance(task, cls):
            vars(task)[GIVEN] = _arguments(cls, args, kwargs)
        return task

    @property
    def __signature__(cls) -> inspect.Signature:
        """The constructor's signature, which :meth:`__call__` would hide."""
        if cls.__init__ is object.__init__:
            return inspect.Signature()
        parameters = list(inspect.signature(cls.__init__).parameters.values())
        return inspect.Signature(parameters[1:])


copyreg.pickle(TaskType, reduce_class)  # pyright: ignore[reportArgumentType]


def python_numbers(value: Any) -> Any:
    """The value with NumPy's numbers and text replaced by Python's, in lists, tuples and dicts too."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)(python_numbers(entry) for entry in value)
    if type(value) is dict:
        return {key: python_numbers(entry) for key, entry in value.items()}
    return value


def _arguments(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor by name; those of ``*names`` stand under ``"*names"``."""
    signature = inspect.signature(cls)
    bound = signature.bind(*args, **kwargs).arguments
    found: dict[str, Any] = {}
    for name, value in bound.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            found |= value
        else:
            found[f"*{name}" if kind is inspect.Parameter.VAR_POSITIONAL else name] = value
    return found


class Task(metaclass=TaskType):
    """One control problem. Subclass it, fill in the class attributes and five functions, and register it.

    A *state* is the simulator's whole state as one flat float vector per environment; an *obs* is what actor and
    critic see, a torch function of the state; an *action* lies in [-1, 1] per component, and the physics scales it
    to physical units with :meth:`scale_action`.

    Every function below takes any number of leading batch axes, treats each row on its own (a test says so), keeps
    dtype and device, and is differentiable wherever the mathematics is.
    """

    name: ClassVar[str]
    """Unique name, used on the command line and in every result."""
    state_names: ClassVar[tuple[str, ...]]
    """One name per state component; their number is ``state_dim``."""
    obs_names: ClassVar[tuple[str, ...]]
    """One name per observation component; their number is ``obs_dim``."""
    action_names: ClassVar[tuple[str, ...]]
    """One name per action component; their number is ``action_dim``."""
    action_low: ClassVar[tuple[float, ...]]
    """Physical value that action -1 stands for, per component, in the actuator's unit."""
    action_high: ClassVar[tuple[float, ...]]
    """Physical value that action +1 stands for, per component, in the actuator's unit."""
    dt: ClassVar[float]
    """Time between two actions [s]."""
    horizon: ClassVar[int]
    """Steps after which an episode is truncated; truncation never masks a bootstrap."""
    source: ClassVar[str]
    """Where the equations and constants come from."""
    network_size: ClassVar[Literal["small", "full"]] = "full"
    """Which of the paper's two sets of network and batch sizes (appendix D.2) the presets use."""
    gradient_horizon: ClassVar[int | None] = None
    """Steps over which true gradients of the return (Eq. 14) are taken by default; None is the whole horizon."""
    solved_return: ClassVar[float | None] = None
    """Mean evaluation return that counts as solved, if the field has one."""
    physics: ClassVar[Mapping[str, str | Callable[..., object]]] = {}
    """Backend name to implementation: ``"module:attribute"`` (imported on first use) or the callable itself.

    Each is called as ``implementation(task)`` and returns what that backend needs (see :mod:`..physics`). A task that
    defines :meth:`step` has the ``torch`` backend without being listed here.
    """

    @property
    def state_dim(self) -> int:
        """Length S of the state vector."""
        return len(self.state_names)

    @property
    def obs_dim(self) -> int:
        """Length O of the observation."""
        return len(self.obs_names)

    @property
    def action_dim(self) -> int:
        """Length A of the action."""
        return len(self.action_names)

    @abc.abstractmethod
    def observe(self, state: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch O"]:
        """The observation, which actor and critic see."""

    @abc.abstractmethod
    def reward(
        self,
        obs: Float[Tensor, "*batch O"],
        action: Float[Tensor, "*batch A"],
        next_obs: Float[Tensor, "*batch O"],
    ) -> Float[Tensor, "*batch"]:
        """r(s, a, s'); the action is in [-1, 1]."""

    @abc.abstractmethod
    def terminated(self, next_obs: Float[Tensor, "*batch O"]) -> Bool[Tensor, "*batch"]:
        """Whether the episode ends for good in s' (a time limit is not termination)."""

    @abc.abstractmethod
    def reset(self, n: int, generator: torch.Generator) -> Float[Tensor, "n S"]:
        """``n`` initial states in float64 on the generator's device (see :func:`uniform`)."""

    def step(self, state: Float[Tensor, "*batch S"], action: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch S"]:
        """Analytic physics in torch, if the task has them: the next state. The action is already within [-1, 1]."""
        raise NotImplementedError(f"task {self.name} has no analytic torch physics")

    def scale_action(self, action: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch A"]:
        """From [-1, 1] to physical units."""
        bounds = list(zip(self.action_low, self.action_high, strict=True))
        # Python numbers instead of constant tensors: no copy to the device per call, so a CUDA graph can hold it.
        if len(set(bounds)) == 1:
            low, high = bounds[0]
            return low + (action + 1.0) * (0.5 * (high - low))
        columns = zip(action.unbind(-1), bounds, strict=True)
        return torch.stack([low + (a + 1.0) * (0.5 * (high - low)) for a, (low, high) in columns], dim=-1)

    def render(self, state: Float[Tensor, " S"]) -> np.ndarray:
        """A picture of one state, uint8 [height, width, 3]; by default one bar per state component."""
        return draw_bars(state.tolist())

    def __repr__(self) -> str:
        given = vars(self).get(GIVEN, {})
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"


def require_generator(generator: object) -> None:
    """Check that this is a random stream of torch.

    Raises:
        InputError: it is something else, such as a seed.
    """
    require_kind("generator", generator, torch.Generator, "a torch.Generator, such as torch.Generator().manual_seed(0)")


def uniform(n: int, low: Sequence[float], high: Sequence[float], generator: torch.Generator) -> Float[Tensor, "n S"]:
    """Draws ``n`` vectors uniform in a box, float64, on the generator's device; most resets are made of these.

    Raises:
        InputError: ``generator`` is not a torch.Generator.
    """
    require_generator(generator)
    low_t = torch.tensor(low, dtype=torch.float64, device=generator.device)
    high_t = torch.tensor(high, dtype=torch.float64, device=generator.device)
    draw = torch.rand(n, len(low), dtype=torch.float64, device=generator.device, generator=generator)
    return low_t + (high_t - low_t) * draw


def norm(x: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    """||x||_2 over the last axis; its derivative is 0 where x is 0."""
    return torch.linalg.vector_norm(x, dim=-1)
