"""The tasks as Gymnasium environments; importing this module registers them.

>>> import gymnasium
>>> import mage_diffsim.envs.gymnasium_env
>>> env = gymnasium.make("mage_diffsim/Pendulum-v0")
>>> envs = gymnasium.make_vec("mage_diffsim/Pendulum-v0", num_envs=8, vectorization_mode="vector_entry_point")

Without an import statement: ``gymnasium.make("mage_diffsim.envs.gymnasium_env:mage_diffsim/Pendulum-v0")``.

Call :func:`register_gymnasium` after registering a task of your own. The worker processes of
``make_vec(..., vectorization_mode="async")`` know it too, whatever their start method. Backends that run on JAX need
``vector_kwargs={"context": "spawn"}`` once JAX has computed something in the process that starts the workers.

``info["diverged"]`` of every step says whether the episode was cut because a state, an observation or a reward was not
finite. Such a step leaves the state as it was, and returns reward 0, ``truncated`` and not ``terminated``.
"""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from mage_diffsim.bridges.forking import ForkedJax
from mage_diffsim.envs.batched import BatchedEnv, advance
from mage_diffsim.envs.identity.options import short
from mage_diffsim.envs.physics import BACKENDS, Physics, backends_of, load, make_physics
from mage_diffsim.envs.registry import adopt, definition_of, is_of_this_process, make_task, task_class, task_names
from mage_diffsim.envs.task import Task
from mage_diffsim.errors import InputError, unknown_name

NAMESPACE = "mage_diffsim"
DTYPES = {"float32": torch.float32, "float64": torch.float64}

Array = np.ndarray


def register_gymnasium() -> tuple[str, ...]:
    """Register every task as ``mage_diffsim/<Name>-v0``; call it again after registering a task of your own.

    Episodes end at the horizon of the task made without options; pass ``max_episode_steps`` with options that change
    it. A task that cannot be imported, or has no horizon without options, is left out with a warning.

    Returns:
        the identifiers registered by this call: new ones, and those of tasks whose horizon has changed.
    """
    registered = []
    for name in task_names():
        identifier = f"{NAMESPACE}/{name}-v0"
        known = gymnasium.registry.get(identifier)
        if known is not None and not isinstance(known.kwargs.get("task"), RegisteredTask):
            continue
        try:
            horizon = _horizon(name)
        except (InputError, ImportError) as error:
            warnings.warn(f"task {name} is not available in Gymnasium: {error}", stacklevel=2)
            continue
        if known is not None:
            if known.max_episode_steps == horizon:
                continue
            del gymnasium.registry[identifier]
        gymnasium.register(
            identifier,
            entry_point=f"{__name__}:GymEnv",
            vector_entry_point=f"{__name__}:GymVectorEnv",
            max_episode_steps=horizon,
            kwargs={"task": RegisteredTask(name) if is_of_this_process(name) else name},
        )
        registered.append(identifier)
    return tuple(registered)


def _horizon(name: str) -> int:
    """The horizon of the named task without options.

    Raises:
        InputError: it is not one, or only an instance has it and the task cannot be made without options.
        ImportError: the task's module cannot be imported.
    """
    cls = task_class(name)
    horizon: Any = cls.horizon
    if not isinstance(horizon, int):  # a property, which an instance has
        try:
            horizon = cls().horizon
        except Exception as error:
            raise InputError(f"its horizon cannot be read from {cls.__name__}(): {error}") from error
    if type(horizon) is not int or horizon < 1:
        raise InputError(f"its horizon is {horizon!r}; accepted is a whole number of steps, at least 1")
    return horizon


class RegisteredTask(str):
    """The name of a task that this process registered; a pickle brings the definition to processes without it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> RegisteredTask:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (str(self), definition_of(self))


def _arrive(name: str, definition: Any) -> RegisteredTask:
    adopt(name, definition)
    return RegisteredTask(name)


class GymEnv(gymnasium.Env[Array, Array]):
    """One environment of a task, in numpy.

    Actions lie in [-1, 1] per component and are clipped; the horizon is applied by the ``TimeLimit`` wrapper that
    ``gymnasium.make`` adds. ``reset(options={"state": s})`` starts from a given simulator state [S].
    ``step`` gives ``info["diverged"]``, see the module. ``render_mode="rgb_array"`` draws the state.

    Args:
        task: a task, or a name for :func:`make_task`.
        backend: the task's physics backend; its first one by default.
        dtype: ``"float32"`` or ``"float64"``, of the physics and of the observations; by default float64 for backend
            ``mujoco`` and float32 for the others.
        device: where the physics runs.
        render_mode: None or ``"rgb_array"``.
        solver: how far the constraints of MuJoCo models are solved: ``"converged"``, or ``"model"`` for the model's own
            settings, as in Gymnasium's environments; see :attr:`.Physics.solvers`.
        task_options: options of the named task.

    Raises:
        InputError: an unknown name or option, or an action of another shape or not finite.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012  (Gymnasium's name and type)

    def __init__(
        self,
        task: Task | str,
        backend: str | None = None,
        dtype: str | None = None,
        device: str = "cpu",
        render_mode: str | None = None,
        solver: str = "converged",
        **task_options: object,
    ) -> None:
        self.task, backend, torch_dtype = _make(task, backend, dtype, render_mode, task_options)
        self._refusal: ForkedJax | None = None
        try:
            self.physics = make_physics(self.task, backend, dtype=torch_dtype, device=device, solver=solver)
        except ForkedJax as error:
            # Gymnasium passes on only those errors of a worker process that reset and step raise.
            self._refusal = error
        self.render_mode = render_mode
        self.observation_space, self.action_space = _spaces(self.task, torch_dtype)
        self.metadata = self.metadata | {"render_fps": max(1, round(1.0 / self.task.dt))}
        self._generator = torch.Generator()
        self._state: torch.Tensor | None = None
        self._obs: torch.Tensor

    @property
    def state(self) -> Array:
        """A copy of the simulator state, [S]."""
        return self._running()[0].cpu().numpy().copy()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        if self._refusal is not None:
            raise self._refusal
        given = _options(options, ("state",), self.task).get("state")
        start = None if given is None else _start(given, self.physics, [(self.task.state_dim,)])[None]
        super().reset(seed=seed)
        if seed is not None or self._state is None:
            self._generator.manual_seed(int(self.np_random.integers(2**63)))
        with torch.no_grad():
            state = self.task.reset(1, self._generator) if start is None else start
            self._state = state.to(self.physics.device, self.physics.dtype, copy=True)
            self._obs = self.task.observe(self._state).clone()
        return _numpy(self._obs[0]), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        if self._refusal is not None:
            raise self._refusal
        given = _actions(action, (self.task.action_dim,), self.physics)[None]
        with torch.no_grad():
            moved = advance(self.physics, self._running(), self._obs, given)
        self._state, self._obs = moved.next_state, moved.next_obs
        terminated, diverged = bool(moved.terminated), bool(moved.diverged)
        return _numpy(self._obs[0]), float(moved.reward), terminated, diverged, {"diverged": diverged}

    def render(self) -> Array | None:  # type: ignore[override]
        return None if self.render_mode is None else self.task.render(self._running()[0].cpu().clone())

    def _running(self) -> torch.Tensor:
        if self._state is None:
            raise InputError(f"{self.task.name}: no state before reset(); call reset() first")
        return self._state


class GymVectorEnv(VectorEnv[Array, Array, Array]):
    """``num_envs`` environments of a task as one :class:`BatchedEnv`, seen through Gymnasium's vector interface.

    Environments are reset in the step that ends them (``AutoresetMode.SAME_STEP``): the returned observation is the
    new episode's first, the old one's last is ``infos["final_obs"]``. ``infos["diverged"]`` belongs to the step, also
    where an episode ended, and is in ``infos["final_info"]`` too.

    ``reset`` takes two options: ``state``, the simulator states [N, S] to start from or one [S] for all; and
    ``reset_mask``, a boolean array [N] of the environments to reset, as in Gymnasium's own vector environments.

    Args:
        num_envs: number of environments.
        max_episode_steps: steps after which an episode is truncated; the task's horizon by default.
        task, backend, dtype, device, render_mode, solver, task_options: see :class:`GymEnv`.

    Raises:
        InputError: see :class:`GymEnv`.
    """

    metadata = {  # noqa: RUF012  (Gymnasium's name and type)
        "render_modes": ["rgb_array"],
        "render_fps": 30,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        task: Task | str,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        backend: str | None = None,
        dtype: str | None = None,
        device: str = "cpu",
        render_mode: str | None = None,
        solver: str = "converged",
        **task_options: object,
    ) -> None:
        self.task, backend, torch_dtype = _make(task, backend, dtype, render_mode, task_options)
        self.physics = make_physics(self.task, backend, dtype=torch_dtype, device=device, solver=solver)
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.single_observation_space, self.single_action_space = _spaces(self.task, torch_dtype)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = self.metadata | {"render_fps": max(1, round(1.0 / self.task.dt))}
        self._generator = torch.Generator()
        self._seeded = False
        self.batch = BatchedEnv(self.task, self.physics, num_envs, [self._generator], horizon=max_episode_steps)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        given = _options(options, ("state", "reset_mask"), self.task)
        mask = _mask(given["reset_mask"], self.num_envs, self.task) if "reset_mask" in given else None
        start = None
        if given.get("state") is not None:
            width = self.task.state_dim
            start = _start(given["state"], self.physics, [(self.num_envs, width), (width,)], mask)
            start = start.expand(self.num_envs, width)
        if seed is not None and not isinstance(seed, (int, np.integer)):
            raise InputError(
                f"{self.task.name}: seed is {seed!r}; accepted is one whole number, of the random stream that all "
                "environments draw from"
            )
        super().reset(seed=seed)
        if seed is not None or not self._seeded:
            self._generator.manual_seed(int(self.np_random.integers(2**63)))
            self._seeded = True
        return _numpy(self.batch.reset(state=start, mask=mask)), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        given = _actions(actions, (self.num_envs, self.task.action_dim), self.physics)
        t = self.batch.step(given)
        terminated, truncated, last = _numpy(t.terminated), _numpy(t.truncated), _numpy(t.next_obs)
        diverged = _numpy(t.diverged)
        infos: dict[str, Any] = {"diverged": diverged, "_diverged": np.ones(self.num_envs, dtype=np.bool_)}
        for i in np.flatnonzero(terminated | truncated).tolist():
            final = {"final_obs": last[i].copy(), "final_info": {"diverged": bool(diverged[i])}}
            infos = self._add_info(infos, final, i)
        return _numpy(self.batch.obs), _numpy(t.reward).astype(np.float64), terminated, truncated, infos

    def render(self) -> tuple[Array, ...] | None:  # type: ignore[override]
        return None if self.render_mode is None else tuple(self.task.render(s) for s in self.batch.state.cpu())


def _make(
    task: Task | str, backend: str | None, dtype: str | None, render_mode: str | None, task_options: dict[str, object]
) -> tuple[Task, str, torch.dtype]:
    """The task, the backend's name and the physics' dtype."""
    if dtype is not None and dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    if render_mode not in (None, "rgb_array"):
        raise InputError(f"unknown render_mode {render_mode!r}: choose None or 'rgb_array'")
    if isinstance(task, str):
        task = make_task(task, **task_options)
    elif task_options:
        raise InputError(f"options {sorted(task_options)} were given with a task object: give them to its constructor")
    backend = backend or backends_of(task)[0]
    # An unknown backend is left to make_physics, whose error lists the valid ones.
    preferred = load(BACKENDS[backend]).environment_dtype if backend in BACKENDS else torch.float32
    return task, backend, preferred if dtype is None else DTYPES[dtype]


def _spaces(task: Task, torch_dtype: torch.dtype) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]:
    dtype = next(name for name, value in DTYPES.items() if value == torch_dtype)
    observations = gymnasium.spaces.Box(-np.inf, np.inf, (task.obs_dim,), dtype=np.dtype(dtype).type)
    return observations, gymnasium.spaces.Box(-1.0, 1.0, (task.action_dim,), dtype=np.float32)


def _options(options: Any, accepted: tuple[str, ...], task: Task) -> dict[str, Any]:
    """The options of a reset.

    Raises:
        InputError: they are not a dict, or one of them is not known.
    """
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise InputError(
            f"{task.name}: options is {short(options)}; accepted are None or a dict of {', '.join(accepted)}"
        )
    for option in options:
        if option not in accepted:
            raise InputError(f"{task.name}: reset has no option {option!r}; accepted are: {', '.join(accepted)}")
    return options


def _mask(given: Any, n: int, task: Task) -> torch.Tensor:
    mask = np.asarray(given.cpu() if isinstance(given, torch.Tensor) else given)
    if mask.shape != (n,) or mask.dtype != np.bool_ or not mask.any():
        raise InputError(
            f"{task.name}: options['reset_mask'] is {short(given)}; accepted is a boolean array of shape ({n},), at "
            "least one entry true"
        )
    return torch.as_tensor(mask.copy())


def _start(
    given: Any, physics: Physics, shapes: list[tuple[int, ...]], mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Simulator states to start from, on the CPU; rows outside the mask may hold anything."""
    state = _floats(given)
    accepted = " or ".join(str(shape) for shape in shapes)
    if state is not None and state.shape in shapes:
        converted = torch.as_tensor(state).to(physics.dtype)
        asked = converted if mask is None or converted.ndim == 1 else converted[mask]
        if asked.isfinite().all():
            return converted
    raise InputError(
        f"{physics.task.name}: options['state'] is {short(given)}; accepted are {physics.task.state_dim} finite "
        f"numbers for each state, of shape {accepted}"
    )


def _actions(action: Any, shape: tuple[int, ...], physics: Physics) -> torch.Tensor:
    given = _floats(action)
    if given is None or given.shape != shape or not np.isfinite(given).all():
        raise InputError(
            f"{physics.task.name}: action is {short(action)}; accepted are finite numbers of shape {shape}"
        )
    return torch.as_tensor(given).to(physics.device, physics.dtype)


def _floats(given: Any) -> Array | None:
    """A float64 copy; None if these are not numbers."""
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu()
    try:
        return np.array(given, dtype=np.float64)
    except (TypeError, ValueError):
        return None


def _numpy(x: torch.Tensor) -> Array:
    """A copy that the caller may keep and change."""
    return x.detach().cpu().numpy().copy()


register_gymnasium()
