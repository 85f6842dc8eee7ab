"""MuJoCo C: what the other backends are compared with, the real environment, and a correct oracle on a CPU."""

from __future__ import annotations

import copy
import threading
from typing import Any, final

import numpy as np
import torch

from mage_diffsim.bridges.errors import InputError
from mage_diffsim.bridges.fd import FiniteDifference
from mage_diffsim.bridges.types import Float, Tensor
from mage_diffsim.envs.mujoco.model import Simulation, load_mujoco, quiet
from mage_diffsim.envs.mujoco.task import MujocoTask, with_unit_quaternions
from mage_diffsim.envs.physics import Physics, implementation
from mage_diffsim.envs.task import Task

ROWS = 1024
"""Environments stepped by one call into MuJoCo; more are stepped in turn."""
CONVERGED = 1e-14
"""Solver tolerance for differences and for comparisons: a looser one leaves 1e-7 of noise in rare states."""


@final
class MujocoPhysics(Physics):
    """A task whose ``physics["mujoco"]`` is ``implementation(task) -> Simulation``, stepped by MuJoCo C.

    Everything inside is float64 on the CPU, on as many threads as torch uses; float32 tensors and CUDA tensors are
    converted on the way in and out. Values take the model's own solver tolerance, so they are those of Gymnasium's
    environment (to 1e-12); differences are taken of the converged solution.

    Derivative sources: ``fd`` central differences over action and state; ``fd-forward`` forward differences over the
    action, for half the price, and central ones over the state; steps: :attr:`.task.MujocoTask.difference_steps`.

    Raises:
        InputError: a dtype other than float32 and float64, or a model that a task cannot use.
        MissingExtra: mujoco is not installed.
    """

    backend = "mujoco"
    derivatives = ("fd", "fd-forward")
    accuracy = {"fd": 1e-5, "fd-forward": 1e-3}  # noqa: RUF012  (the base class declares it a ClassVar)
    environment_dtype = torch.float64

    def __init__(
        self,
        task: Task,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        derivative: str | None = None,
        residuals: str = "recompute",
        converged: bool = False,
    ) -> None:
        super().__init__(task, dtype=dtype, device=device, derivative=derivative, residuals=residuals)
        self._converged = converged
        load_mujoco()
        if dtype not in (torch.float32, torch.float64):
            raise InputError(f"{self}: dtype {dtype} was asked for; accepted are torch.float32 and torch.float64")
        self.simulation: Simulation = implementation(task, "mujoco")(task)
        steps = getattr(task, "difference_steps", MujocoTask.difference_steps)
        if not isinstance(steps, tuple) or len(steps) != 3 or not all(isinstance(h, float) and h > 0 for h in steps):
            raise InputError(f"{self}: difference_steps is {steps!r}; accepted are three positive numbers")
        self._differenced = _Stepper(self.simulation, CONVERGED)
        self._value = self._differenced if converged else _Stepper(self.simulation, None)
        self._op = FiniteDifference(
            self._differenced,
            value=self._value,
            step=steps,
            one_sided=(2,) if self.derivative == "fd-forward" else (),
            name=str(self),
        )

    def reference(self) -> MujocoPhysics:
        """The same in float64 with the constraint solver converged: what the other backends are compared with."""
        return MujocoPhysics(
            self.task, dtype=torch.float64, device=self.device, derivative=self.derivative, converged=True
        )

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"converged": self._converged}

    def _advance(self, state: Float[Tensor, "N S"], action: Float[Tensor, "N A"]) -> Float[Tensor, "N S"]:
        exact, control = state.to("cpu", torch.float64), self.task.scale_action(action.to("cpu", torch.float64))
        nq, nv = self.simulation.nq, self.simulation.nv
        exact = with_unit_quaternions(self.simulation, exact)
        return self._op(exact[:, :nq], exact[:, nq : nq + nv], control).to(state)


class _Stepper:
    """``(qpos [N, nq], qvel [N, nv], control [N, nu]) -> next state [N, S]``, all float64 on the CPU."""

    def __init__(self, simulation: Simulation, tolerance: float | None) -> None:
        from mujoco.batch import Batch

        mujoco = load_mujoco()
        self.simulation = simulation
        model = copy.copy(simulation.model)
        if tolerance is not None:
            # The problem is convex: Newton's method finds the solution that slower solvers approach.
            model.opt.tolerance, model.opt.solver = tolerance, mujoco.mjtSolver.mjSOL_NEWTON
            # A model made for speed may allow itself a handful of each.
            model.opt.iterations = max(model.opt.iterations, 200)
            model.opt.ls_iterations = max(model.opt.ls_iterations, 100)
        self._batch: Any = Batch(model, ROWS, torch.get_num_threads())
        self._bound = {
            name: self._batch.bind(name)
            for name in ("qpos", "qvel", "ctrl", "qacc_warmstart", "time", "xpos", "site_xpos")
        }
        # Positions of bodies lag one substep behind the state unless they are computed anew.
        positions = bool(simulation.bodies or simulation.sites)
        self._stage = mujoco.mjtStage.mjSTAGE_POS if positions else mujoco.mjtStage.mjSTAGE_NONE
        self._lock = threading.Lock()  # a backward pass on a CUDA device runs in a thread of its own

    def __call__(self, qpos: Tensor, qvel: Tensor, control: Tensor) -> Tensor:
        chunks = zip(*(x.split(ROWS) for x in (qpos, qvel, control)), strict=True)
        with self._lock, quiet():
            rows = [self._step(*(x.numpy() for x in chunk)) for chunk in chunks]
        return torch.from_numpy(np.concatenate(rows))

    def _step(self, start: np.ndarray, velocity: np.ndarray, control: np.ndarray) -> np.ndarray:
        from mujoco.batch import SimulationError

        simulation, bound, n = self.simulation, self._bound, len(start)
        bound["qpos"][:n], bound["qvel"][:n], bound["ctrl"][:n] = start, velocity, control
        bound["qacc_warmstart"][:n] = 0.0
        bound["time"][:n] = 0.0
        failed: Any = []
        try:
            self._batch.step(np.arange(n), nstep=simulation.frame_skip, stage=int(self._stage))
        except SimulationError as error:
            failed = error.ids
        qpos, qvel, xpos, site_xpos = (bound[name][:n] for name in ("qpos", "qvel", "xpos", "site_xpos"))
        state = simulation.assemble(qpos, qvel, xpos, site_xpos, start, np.concatenate)
        state[failed] = np.nan
        # MuJoCo takes a control that is not finite for none at all.
        state[~np.isfinite(control).all(axis=1)] = np.nan
        return state
