"""The tasks as Gymnasium environments; importing this module registers them.

>>> import gymnasium
>>> import mage_diffsim.envs.gymnasium_env
>>> env = gymnasium.make("mage_diffsim/Pendulum-v0")
>>> envs = gymnasium.make_vec("mage_diffsim/Pendulum-v0", num_envs=8, vectorization_mode="vector_entry_point")

Without an import statement: ``gymnasium.make("mage_diffsim.envs.gymnasium_env:mage_diffsim/Pendulum-v0")``.
"""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from mage_diffsim.bridges.errors import InputError, unknown_name
from mage_diffsim.envs.batched import BatchedEnv
from mage_diffsim.envs.physics import BACKENDS, Physics, backends_of, load, make_physics
from mage_diffsim.envs.registry import make_task, task_class, task_names
from mage_diffsim.envs.task import Task

NAMESPACE = "mage_diffsim"
DTYPES = {"float32": torch.float32, "float64": torch.float64}

Array = np.ndarray


def register_gymnasium() -> tuple[str, ...]:
    """Register every task as ``mage_diffsim/<Name>-v0``; call it again after registering a task of your own.

    A task of an installed package that cannot be imported is left out with a warning.

    Returns:
        the identifiers registered by this call.
    """
    registered = []
    for name in task_names():
        identifier = f"{NAMESPACE}/{name}-v0"
        if identifier in gymnasium.registry:
            continue
        try:
            horizon = task_class(name).horizon
        except (InputError, ImportError) as error:
            warnings.warn(f"task {name} is not available in Gymnasium: {error}", stacklevel=2)
            continue
        gymnasium.register(
            identifier,
            entry_point=f"{__name__}:GymEnv",
            vector_entry_point=f"{__name__}:GymVectorEnv",
            max_episode_steps=horizon,
            kwargs={"task": name},
        )
        registered.append(identifier)
    return tuple(registered)


class GymEnv(gymnasium.Env[Array, Array]):
    """One environment of a task, in numpy.

    Actions lie in [-1, 1] per component and are clipped; the horizon is applied by the ``TimeLimit`` wrapper that
    ``gymnasium.make`` adds. ``reset(options={"state": s})`` starts from a given simulator state [S].
    ``render_mode="rgb_array"`` draws the state.

    Args:
        task: a task, or a name for :func:`make_task`.
        backend: the task's physics backend; its first one by default.
        dtype: ``"float32"`` or ``"float64"``, of the physics and of the observations; by default what the backend
            prefers, float64 for MuJoCo C and float32 for the others.
        device: where the physics runs.
        render_mode: None or ``"rgb_array"``.
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
        **task_options: object,
    ) -> None:
        self.task, self.physics = _make(task, backend, dtype, device, render_mode, task_options)
        self.render_mode = render_mode
        self.observation_space, self.action_space = _spaces(self.physics)
        self.metadata = self.metadata | {"render_fps": max(1, round(1.0 / self.task.dt))}
        self._generator = torch.Generator()
        self._state: torch.Tensor | None = None

    @property
    def state(self) -> Array:
        """A copy of the simulator state, [S]."""
        return self._running()[0].cpu().numpy().copy()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self._state is None:
            self._generator.manual_seed(int(self.np_random.integers(2**63)))
        given = (options or {}).get("state")
        if given is None:
            state = self.task.reset(1, self._generator)
        else:
            state = torch.as_tensor(np.array(given))[None]
            if tuple(state.shape) != (1, self.task.state_dim) or not state.isfinite().all():
                raise InputError(
                    f"{self.task.name}: options['state'] is {given!r}; accepted are {self.task.state_dim} finite "
                    "numbers"
                )
        self._state = state.to(self.physics.device, self.physics.dtype)
        return self._observe(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        given = _actions(action, (self.task.action_dim,), self.physics)[None]
        state = self._running()
        with torch.no_grad():
            obs = self.task.observe(state)
            next_state = self.physics.step(state, given)
            if not next_state.isfinite().all():
                return self._observe(), 0.0, False, True, {"diverged": True}
            next_obs = self.task.observe(next_state)
            reward = float(self.task.reward(obs, given, next_obs))
            terminated = bool(self.task.terminated(next_obs))
        self._state = next_state
        return self._observe(), reward, terminated, False, {}

    def render(self) -> Array | None:  # type: ignore[override]
        return None if self.render_mode is None else self.task.render(self._running()[0].cpu())

    def _running(self) -> torch.Tensor:
        if self._state is None:
            raise InputError(f"{self.task.name}: no state before reset(); call reset() first")
        return self._state

    def _observe(self) -> Array:
        with torch.no_grad():
            return self.task.observe(self._running())[0].cpu().numpy().copy()


class GymVectorEnv(VectorEnv[Array, Array, Array]):
    """``num_envs`` environments of a task as one :class:`BatchedEnv`, seen through Gymnasium's vector interface.

    Environments are reset in the step that ends them (``AutoresetMode.SAME_STEP``): the returned observation is the
    new episode's first, the old one's last is ``infos["final_obs"]``.

    Args:
        num_envs: number of environments.
        max_episode_steps: steps after which an episode is truncated; the task's horizon by default.
        task, backend, dtype, device, render_mode, task_options: see :class:`GymEnv`.

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
        **task_options: object,
    ) -> None:
        self.task, self.physics = _make(task, backend, dtype, device, render_mode, task_options)
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.single_observation_space, self.single_action_space = _spaces(self.physics)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = self.metadata | {"render_fps": max(1, round(1.0 / self.task.dt))}
        self._generator = torch.Generator()
        self._seeded = False
        self.batch = BatchedEnv(self.task, self.physics, num_envs, [self._generator], horizon=max_episode_steps)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or not self._seeded:
            self._generator.manual_seed(int(self.np_random.integers(2**63)))
            self._seeded = True
        return _numpy(self.batch.reset()), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        given = _actions(actions, (self.num_envs, self.task.action_dim), self.physics)
        t = self.batch.step(given)
        terminated, truncated, last = _numpy(t.terminated), _numpy(t.truncated), _numpy(t.next_obs)
        infos: dict[str, Any] = {}
        for i in np.flatnonzero(terminated | truncated).tolist():
            infos = self._add_info(infos, {"final_obs": last[i].copy(), "final_info": {}}, i)
        return _numpy(self.batch.obs), _numpy(t.reward).astype(np.float64), terminated, truncated, infos

    def render(self) -> tuple[Array, ...] | None:  # type: ignore[override]
        return None if self.render_mode is None else tuple(self.task.render(s) for s in self.batch.state.cpu())


def _make(
    task: Task | str,
    backend: str | None,
    dtype: str | None,
    device: str,
    render_mode: str | None,
    task_options: dict[str, object],
) -> tuple[Task, Physics]:
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
    return task, make_physics(task, backend, dtype=preferred if dtype is None else DTYPES[dtype], device=device)


def _spaces(physics: Physics) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]:
    dtype = next(name for name, value in DTYPES.items() if value == physics.dtype)
    task = physics.task
    observations = gymnasium.spaces.Box(-np.inf, np.inf, (task.obs_dim,), dtype=np.dtype(dtype).type)
    return observations, gymnasium.spaces.Box(-1.0, 1.0, (task.action_dim,), dtype=np.float32)


def _actions(action: Array, shape: tuple[int, ...], physics: Physics) -> torch.Tensor:
    given = np.array(action, dtype=np.float64)
    if given.shape != shape or not np.isfinite(given).all():
        raise InputError(f"{physics.task.name}: action is {action!r}; accepted are finite numbers of shape {shape}")
    return torch.as_tensor(given).to(physics.device, physics.dtype)


def _numpy(x: torch.Tensor) -> Array:
    """A copy the caller may keep and change."""
    return x.detach().cpu().numpy().copy()


register_gymnasium()
