"""Physics: ``step(state, action) -> next_state`` of one task in one backend, as a torch operation with gradients."""

from __future__ import annotations

import abc
import importlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, Literal, get_args

import torch

from mage_diffsim.bridges.op import indexed
from mage_diffsim.envs.definition import require_task
from mage_diffsim.envs.files import import_beside
from mage_diffsim.envs.task import Task, require_generator
from mage_diffsim.errors import InputError, described, unknown_name
from mage_diffsim.shapes import Float, Tensor

BACKENDS: dict[str, str] = {
    "torch": "mage_diffsim.envs.physics:TorchPhysics",
    "jax": "mage_diffsim.envs.jax:JaxPhysics",
    "warp": "mage_diffsim.envs.warp:WarpPhysics",
    "mujoco": "mage_diffsim.envs.mujoco:MujocoPhysics",
    "mjx": "mage_diffsim.envs.mjx:MjxPhysics",
    "mujoco-warp": "mage_diffsim.envs.mujoco_warp:MujocoWarpPhysics",
}
"""Backend name to the class that implements it, imported on first use."""
Solver = Literal["converged", "model"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)
"""How far a solver of constraints goes, see :attr:`Physics.solvers`."""
Residuals = Literal["recompute", "keep"]
"""What a backward pass may start from, see :attr:`Physics.residual_policies`."""


def load(reference: str) -> Any:
    """The object that ``"module:attribute"`` names."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def implementation(task: Task, backend: str) -> Any:
    """What a backend steps: the result of calling what the task lists in ``physics``, with the task.

    Raises:
        NoImplementation: what is listed is text and not of the form module:attribute, or there is no such module or
            attribute.
    """
    return _listed(task, backend)(task)


def _listed(task: Task, backend: str) -> Any:
    """What a task lists in ``physics`` for a backend. A module named there may lie beside the task's own file."""
    reference = task.physics[backend]
    if not isinstance(reference, str):
        return reference
    where = f"task {task.name}: physics[{backend!r}] is {reference!r}"
    name, _, attribute = reference.partition(":")
    if not name or not attribute:
        raise NoImplementation(f"{where}; accepted is module:attribute, or the callable itself")
    classes = type(task).__mro__
    if "physics" not in vars(task):  # the class that lists it knows where its modules are
        classes = classes[next(i for i, cls in enumerate(classes) if "physics" in vars(cls)) :]
    try:
        module = import_beside(classes, name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, and something it imports is not
        raise NoImplementation(
            f"{where}, and there is no module {name!r}; accepted is a module beside the task's file or on the path"
        ) from error
    if not hasattr(module, attribute):
        own = [k for k, v in vars(module).items() if callable(v) and getattr(v, "__module__", None) == module.__name__]
        raise NoImplementation(
            f"{where}, and module {name!r} has no {attribute!r}; it has: {', '.join(own) or 'nothing'}"
        )
    return getattr(module, attribute)


class NoImplementation(InputError):
    """What a task lists in ``physics`` for a backend leads to nothing: the task is at fault, on every machine."""


class Physics(abc.ABC):
    """One task's dynamics in one backend.

    A physics keeps nothing from one step to the next. ``copy.deepcopy`` and ``pickle`` make it again from a copy of the
    task, so that kernels are compiled where it is unpickled.

    ``step`` checks its input, clips the action to [-1, 1] *in torch* (simulators disagree about the derivative at the
    bound: torch passes the gradient there) and hands both to :meth:`_advance`.

    A backend is a subclass that sets the class attributes below and writes two methods: :meth:`_build`, which the
    constructor calls last, and :meth:`_advance`.
    """

    backend: ClassVar[str]
    """The backend's name in :data:`BACKENDS`."""
    derivatives: ClassVar[tuple[str, ...]]
    """Derivative sources this backend offers, its default first (see :meth:`derivatives_of`)."""
    accuracy: ClassVar[Mapping[str, float]] = {}
    """Relative error that a derivative source makes by design, for the sources that are approximations."""
    residual_policies: ClassVar[tuple[str, ...]] = ("recompute",)
    """Residual policies this backend offers: ``recompute`` computes the forward again in the backward pass, ``keep``
    holds the forward's residuals until then."""
    capturable: ClassVar[bool] = False
    """Whether a CUDA graph can hold a step and its derivative: kernels run on torch's stream, the host never waits."""
    solvers: ClassVar[tuple[str, ...]] = ("converged",)
    """Solver policies this backend offers. ``converged`` solves a model's constraints to the solution, so that all
    backends of a task are one function; ``model`` stops at the model's own iterations and tolerance. A physics without
    constraints is ``converged``."""
    dtypes: ClassVar[tuple[torch.dtype, ...] | None] = None
    """Precisions this backend computes in; None where the task's own code decides."""
    environment_dtype: ClassVar[torch.dtype] = torch.float32
    """Default precision of this backend as the real environment."""

    def __init__(
        self,
        task: Task,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        derivative: str | None = None,
        residuals: str = "recompute",
        solver: str = "converged",
        parameters: Collection[str] = (),
    ) -> None:
        offered = self.derivatives_of(task)
        if derivative is not None and derivative not in offered:
            raise unknown_name(f"derivative source of backend {self.backend}", derivative, offered)
        if residuals not in self.residual_policies:
            raise unknown_name(f"residual policy of backend {self.backend}", residuals, self.residual_policies)
        if solver not in SOLVERS:
            raise unknown_name("solver", solver, SOLVERS)
        if solver not in self.solvers:
            others = " or ".join(b for b in backends_of(task) if solver in load(BACKENDS[b]).solvers)
            raise InputError(
                f"solver {solver!r} was asked for, and backend {self.backend} of task {task.name} has only "
                f"{', '.join(self.solvers)}: "
                + (f"use backend {others}, or " if others else "use ")
                + f"solver {self.solvers[0]!r}"
            )
        self._check_names(task, parameters)
        self.task = task
        self.parameter_names = tuple(name for name in self.parameters_of(task) if name in parameters)
        """The numbers of the model that :meth:`step` takes as inputs, in the order of :meth:`parameters_of`."""
        self._numbers: dict[str, Tensor] = {}
        """The model's own, by name; set by :meth:`_build`."""
        self.dtype = dtype
        self.device = indexed(device)
        self.derivative = derivative or offered[0]
        self.residuals = residuals
        self.solver = solver
        if self.dtypes is not None and dtype not in self.dtypes:
            accepted = " and ".join(str(accepted) for accepted in self.dtypes)
            verb = "is" if len(self.dtypes) == 1 else "are"
            raise InputError(f"{self}: dtype {dtype} was asked for; accepted {verb} {accepted}")
        self._build()

    def _build(self) -> None:  # noqa: B027  torch needs nothing
        """Load the backend's package and make what :meth:`_advance` uses; the constructor's arguments are attributes.

        Raises:
            InputError: the backend does not see the device, or does not cover the task.
            MissingExtra: a package is not installed.
        """

    def step(
        self,
        state: Float[Tensor, "N S"],
        action: Float[Tensor, "N A"],
        parameters: Mapping[str, Any] | None = None,
    ) -> Float[Tensor, "N S"]:
        """The state one ``task.dt`` later.

        Args:
            state: simulator states, shape [N, S], this physics' dtype and device.
            action: actions, shape [N, A], clipped to [-1, 1] here.
            parameters: numbers of the model by name, of :attr:`parameter_names`: tensors in the units and shapes of
                :meth:`parameters`, or with an axis of N before. Those that are not given are the model's own.

        Returns:
            next states, shape [N, S], differentiable with respect to all inputs.

        Raises:
            InputError: no tensor was given, or a name, shape, dtype or device is not this physics' own.
        """
        self._check("state", state, self.task.state_dim)
        self._check("action", action, self.task.action_dim)
        if state.shape[0] != action.shape[0]:
            raise InputError(
                f"{self}: {state.shape[0]} states but {action.shape[0]} actions; give one action per state"
            )
        action = action.clamp(-1.0, 1.0)
        if parameters or self.parameter_names:
            return self._advance_with(state, action, self._row(parameters or {}, len(state)))
        return self._advance(state, action)

    def parameters(self) -> dict[str, Float[Tensor, "..."]]:
        """The model's own numbers that :meth:`step` takes as inputs, by name: copies, in MuJoCo's shapes and units."""
        return {name: x.clone() for name, x in self._numbers.items()}

    def reset(self, n: int, generator: torch.Generator) -> Float[Tensor, "n S"]:
        """Draws ``n`` initial states by :meth:`.Task.reset`, in this physics' dtype and on its device.

        Raises:
            InputError: ``generator`` is not a torch.Generator.
        """
        require_generator(generator)
        return self.task.reset(n, generator).to(self.device, self.dtype)

    def inexactness(self, state: Float[Tensor, "N S"], action: Float[Tensor, "N A"]) -> Float[Tensor, "N S"]:
        """Errors of the next states that the simulator itself may make where it finds contacts; 0 if it is exact."""
        del action
        return torch.zeros_like(state)

    @classmethod
    def derivatives_of(cls, task: Task) -> tuple[str, ...]:
        """The derivative sources this backend offers for a task, its default first."""
        return cls.derivatives

    @classmethod
    def parameters_of(cls, task: Task) -> tuple[str, ...]:
        """The names of the model's numbers that this backend can take as inputs of a step."""
        return ()

    @classmethod  # noqa: B027  most cover every task that names them
    def check_covers(cls, task: Task) -> None:
        """Check that this backend can simulate the task, without compiling anything.

        Raises:
            InputError: it cannot; the message names what it does not cover.
            MissingExtra: a package that is needed to tell is not installed.
        """

    @abc.abstractmethod
    def _advance(self, state: Float[Tensor, "N S"], action: Float[Tensor, "N A"]) -> Float[Tensor, "N S"]:
        """The backend's step; the action lies within [-1, 1]."""

    def _advance_with(
        self, state: Float[Tensor, "N S"], action: Float[Tensor, "N A"], parameters: Float[Tensor, "N P"]
    ) -> Float[Tensor, "N S"]:
        """The step of a backend that has :meth:`parameters_of`; parameters are in a row, name by name."""
        raise NotImplementedError

    def _row(self, given: Mapping[str, Any], rows: int) -> Float[Tensor, "N P"]:
        """The parameters of each environment in a row."""
        for name in given:
            if name not in self.parameter_names:
                remedy = "name it in make_physics(..., parameters=...)"
                raise unknown_name(f"parameter of {self}", name, self.parameter_names, remedy=remedy)
        parts = []
        for name, own in self._numbers.items():
            x = given.get(name, own)
            if not isinstance(x, Tensor):
                raise InputError(f"{self}: parameter {name} is {described(x)}; accepted is a torch tensor")
            if x.shape not in (own.shape, (rows, *own.shape)):
                accepted = f"{tuple(own.shape)} and {(rows, *own.shape)}"
                raise InputError(f"{self}: parameter {name} has shape {tuple(x.shape)}; accepted are {accepted}")
            self._check_kind(f"parameter {name}", x)
            parts.append(x.expand(rows, *own.shape).flatten(1))
        return torch.cat(parts, dim=1)

    @classmethod
    def _check_names(cls, task: Task, parameters: Collection[str]) -> None:
        """Check that the constructor's parameters are names that the backend offers."""
        offered = cls.parameters_of(task)
        if isinstance(parameters, str) or not isinstance(parameters, Collection):
            raise InputError(f"parameters is {described(parameters)}; accepted are several names, as in a tuple")
        for name in parameters:
            if name not in offered:
                what, remedy = f"parameter of backend {cls.backend}", "use backend warp with a MuJoCo task"
                raise unknown_name(f"{what} of task {task.name}", name, offered, remedy=remedy)

    def _check(self, what: str, x: Any, width: int) -> None:
        if not isinstance(x, Tensor):  # every step comes here, so no sentence is written before it is needed
            raise InputError(f"{self}: {what} is {described(x)}; accepted is a torch tensor")
        if x.ndim != 2 or x.shape[1] != width:
            raise InputError(f"{self}: {what} has shape {tuple(x.shape)}; accepted is (N, {width})")
        self._check_kind(what, x)

    def _check_kind(self, what: str, x: Tensor) -> None:
        if x.dtype != self.dtype or x.device != self.device:
            raise InputError(
                f"{self}: {what} is {x.dtype} on {x.device}; this physics takes {self.dtype} on {self.device}"
            )

    def _options(self) -> dict[str, Any]:
        """The constructor's arguments besides the task."""
        return {
            "dtype": self.dtype,
            "device": self.device,
            "derivative": self.derivative,
            "residuals": self.residuals,
            "solver": self.solver,
            "parameters": self.parameter_names,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are made from task and options: kernels, buffers and locks cannot be copied."""
        return _made_anew, (type(self), self.task, self._options())

    def __repr__(self) -> str:
        solver = "" if self.solver == "converged" else f", solver {self.solver}"
        return f"{self.task.name} physics (backend {self.backend}, derivative {self.derivative}{solver})"


def _made_anew(physics: type[Physics], task: Task, options: dict[str, Any]) -> Physics:
    return physics(task, **options)


class TorchPhysics(Physics):
    """Analytic physics written in torch: :meth:`Task.step`, differentiated by autograd."""

    backend = "torch"
    derivatives = ("autograd",)
    capturable = True

    def _advance(self, state: Tensor, action: Tensor) -> Tensor:
        return self.task.step(state, action)


def backends_of(task: Task) -> tuple[str, ...]:
    """The names of the backends this task has, ``torch`` first."""
    analytic = type(task).step is not Task.step
    return (("torch",) if analytic else ()) + tuple(name for name in task.physics if name != "torch")


def require_backend(task: Task, backend: str) -> None:
    """Check that the task has the backend.

    Raises:
        InputError: it has not; the message lists those it has.
    """
    known = backends_of(task)
    if backend not in known:
        remedy = "define step(state, action) in torch or list a backend in physics"
        raise unknown_name(f"backend of task {task.name}", backend, known, remedy=remedy)


def make_physics(
    task: Task,
    backend: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    derivative: str | None = None,
    residuals: str = "recompute",
    solver: str = "converged",
    parameters: Collection[str] = (),
) -> Physics:
    """Makes the physics of ``task``, whose ``step`` is a torch operation with gradients for state and action.

    Settings of the backend's package stay the caller's: JAX has 64-bit types during a call and not after it. The
    exceptions, which leave results as they are, are in :func:`.bridges.jax.load_jax`.

    Args:
        task: the task, of :func:`.make_task` or of a class of your own.
        backend: one of :func:`backends_of`; by default the first.
        dtype: precision of states, actions and gradients.
        device: where states and actions lie.
        derivative: one of the backend's derivative sources; by default its first (:meth:`Physics.derivatives_of`).
        residuals: ``recompute`` or ``keep``, see :attr:`Physics.residual_policies`.
        solver: ``converged`` makes all backends of a task one function. ``model`` stops the solver of a model's
            constraints where the model says, as Gymnasium's environments do; see :attr:`Physics.solvers`.
        parameters: numbers of a MuJoCo model that are to be inputs of a step, by their names in MuJoCo's ``mjModel``
            (:meth:`Physics.parameters_of`); backend ``warp`` alone has any.

    Raises:
        InputError: ``task`` is not a task object whose class is complete; it has no such backend, or the backend no
            such derivative source, residual policy, solver or parameter.
        MissingExtra: the backend's package is not installed.
    """
    require_task(task)
    if backend is None:
        backend = next(iter(backends_of(task)), "torch")
    require_backend(task, backend)
    options: dict[str, Any] = dict(dtype=dtype, device=device, derivative=derivative, residuals=residuals)
    return load(BACKENDS[backend])(task, solver=solver, parameters=parameters, **options)


def step_of(physics: Physics, *, observed: bool = False) -> Callable[[Tensor], Tensor]:
    """The step as a function of ``state | action`` [N, S + A]; ``observed`` gives the next observation instead."""
    width = physics.task.state_dim

    def step(x: Tensor) -> Tensor:
        next_state = physics.step(x[:, :width], x[:, width:])
        return physics.task.observe(next_state) if observed else next_state

    return step
