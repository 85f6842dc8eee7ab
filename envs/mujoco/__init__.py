"""MuJoCo C as physics: the reference for the other backends, the real environment, and a correct oracle on a CPU."""

from __future__ import annotations

import threading
from typing import Any, final

import numpy as np
import torch

from mage_diffsim.bridges.fd import FiniteDifference
from mage_diffsim.envs.mujoco.convergence import inexactness, name_gap, with_solver
from mage_diffsim.envs.mujoco.model import FIELDS, LARGEST, CentreOfMassVelocity, Simulation, load_mujoco, quiet
from mage_diffsim.envs.mujoco.task import MujocoTask, with_unit_quaternions
from mage_diffsim.envs.physics import Physics, implementation
from mage_diffsim.errors import InputError
from mage_diffsim.shapes import Float, Tensor

ROWS = 1024
"""Environments stepped by one call into MuJoCo; more are stepped in turn."""
SUSPECT = 1e3, 1e6
"""Velocity and acceleration (SI units) beyond which an environment step is done again, to see whether it passed
LARGEST on the way."""


@final
class MujocoPhysics(Physics):
    """A task whose ``physics["mujoco"]`` is ``implementation(task) -> Simulation``, stepped by MuJoCo C.

    It computes in float64 on the CPU, on as many threads as torch uses; float32 tensors and CUDA tensors are converted
    on the way in and out. With solver ``converged`` a step is that of the other backends; with ``model`` it is that of
    Gymnasium's environment, to 1e-12. A warning names a model whose own settings are far from the converged solution.
    A row that C warns of as unstable (a component of qpos, qvel or qacc that is not finite or beyond 1e10) is NaN.

    Derivative sources: ``fd`` takes central differences over action and state; ``fd-forward`` takes forward differences
    over the action, for half the price. Their steps are :attr:`.task.MujocoTask.difference_steps`.

    Raises:
        InputError: a dtype other than float32 and float64, an unknown solver, or a model that a task cannot use.
        MissingExtra: mujoco is not installed.
    """

    backend = "mujoco"
    derivatives = ("fd", "fd-forward")
    solvers = ("converged", "model")
    accuracy = {"fd": 1e-5, "fd-forward": 1e-3}  # noqa: RUF012  (the base class declares it a ClassVar)
    dtypes = (torch.float32, torch.float64)
    environment_dtype = torch.float64

    def _build(self) -> None:
        load_mujoco()
        self.simulation: Simulation = implementation(self.task, self.backend)
        steps = getattr(self.task, "difference_steps", MujocoTask.difference_steps)
        if not isinstance(steps, tuple) or len(steps) != 3 or not all(isinstance(h, float) and h > 0 for h in steps):
            raise InputError(f"{self}: difference_steps is {steps!r}; accepted are three positive numbers")
        name_gap(self.simulation, self.solver)
        pose, velocity, control = steps
        self._op = FiniteDifference(
            _Stepper(self.simulation, self.solver),
            step=(pose, velocity, control, pose, control),
            one_sided=(4,) if self.derivative == "fd-forward" else (),
            name=str(self),
        )

    def _advance(self, state: Float[Tensor, "N S"], action: Float[Tensor, "N A"]) -> Float[Tensor, "N S"]:
        exact, control = state.to("cpu", torch.float64), self.task.scale_action(action.to("cpu", torch.float64))
        exact = with_unit_quaternions(self.simulation, exact)
        return self._op(*self.simulation.split(exact), control).to(state)

    def inexactness(self, state: Float[Tensor, "N S"], action: Float[Tensor, "N A"]) -> Float[Tensor, "N S"]:
        if self.solver != "converged":
            return super().inexactness(state, action)
        mujoco, model = load_mujoco(), with_solver(self.simulation.model, self.solver)
        data, rows, found = mujoco.MjData(model), state.double().cpu().numpy(), state.new_zeros(len(state))
        with quiet():
            for i, (row, control) in enumerate(zip(rows, self.task.scale_action(action).tolist(), strict=True)):
                mujoco.mj_resetData(model, data)
                self.simulation.put(data, row)
                data.ctrl[:] = control
                found[i] = inexactness(model, data, self.simulation.frame_skip)
        return found[:, None] * state.abs().clamp(min=1.0)


class _Stepper:
    """``(qpos, qvel, act, mocap, control) -> next state``, float64 rows on the CPU."""

    def __init__(self, simulation: Simulation, solver: str) -> None:
        from mujoco.batch import Batch

        mujoco = load_mujoco()
        self.simulation = simulation
        self._model = with_solver(simulation.model, solver)
        self._data = mujoco.MjData(self._model)
        self._batch: Any = Batch(self._model, ROWS, torch.get_num_threads())
        self._bound = {
            name: self._batch.bind(name)
            for name in (
                *("qpos", "qvel", "act", "mocap_pos", "mocap_quat", "ctrl", "qacc_warmstart", "time"),
                *("qacc", "xpos", "site_xpos", "xipos", "subtree_com", "cvel"),
            )
        }
        # Positions of bodies are those before the last simulator step unless they are computed again.
        stages = mujoco.mjtStage
        self._stage = stages.mjSTAGE_POS if simulation.reads_places else stages.mjSTAGE_NONE
        if simulation.reads(CentreOfMassVelocity):
            self._stage = stages.mjSTAGE_VEL
        self._lock = threading.Lock()  # a backward pass on a CUDA device runs in a thread of its own

    def __call__(self, *inputs: Tensor) -> Tensor:
        chunks = zip(*(x.split(ROWS) for x in inputs), strict=True)
        with self._lock, quiet():
            rows = [self._step(*(x.numpy() for x in chunk)) for chunk in chunks]
        return torch.from_numpy(np.concatenate(rows))

    def _step(
        self, start: np.ndarray, velocity: np.ndarray, act: np.ndarray, mocap: np.ndarray, control: np.ndarray
    ) -> np.ndarray:
        from mujoco.batch import SimulationError

        simulation, bound, n = self.simulation, self._bound, len(start)
        bound["qpos"][:n], bound["qvel"][:n], bound["act"][:n] = start, velocity, act
        poses = mocap.reshape(n, simulation.nmocap, 7)
        bound["mocap_pos"][:n], bound["mocap_quat"][:n] = poses[..., :3], poses[..., 3:]
        bound["ctrl"][:n] = control
        bound["qacc_warmstart"][:n] = 0.0
        bound["time"][:n] = 0.0
        failed, calm = np.zeros(n, bool), np.ones(n, bool)
        for left in reversed(range(simulation.frame_skip)):
            try:
                self._batch.step(np.arange(n), nstep=1, stage=0 if left else int(self._stage))
            except SimulationError as error:
                failed[error.ids] = True
            # Not finite compares false.
            calm &= np.abs(bound["qacc"][:n]).max(axis=1) <= SUSPECT[1]
        qpos, qvel, end = (bound[k][:n] for k in ("qpos", "qvel", "act"))
        found = {kind: bound[field][:n] for kind, field in FIELDS.items() if field in bound}
        if simulation.reads(CentreOfMassVelocity):
            found[CentreOfMassVelocity] = self._centre_velocities(n)
        state = simulation.assemble(qpos, qvel, end, mocap, found, start, np.concatenate)
        state[failed] = np.nan
        for x, most in ((qpos, LARGEST), (velocity, SUSPECT[0]), (qvel, SUSPECT[0])):
            calm &= np.abs(x).max(axis=1) <= most
        for i in np.flatnonzero(~calm):
            if self._warns(np.concatenate([x[i] for x in (start, velocity, act, mocap)]), control[i], qpos[i], qvel[i]):
                state[i] = np.nan
        # MuJoCo sets all controls to 0 where one is not finite.
        state[~np.isfinite(control).all(axis=1)] = np.nan
        return state

    def _centre_velocities(self, n: int) -> np.ndarray:
        """``subtree_linvel`` of the first n environments, [n, nbody, 3], which MuJoCo computes for sensors alone."""
        model = self._model
        xipos, com, cvel = (self._bound[k][:n] for k in ("xipos", "subtree_com", "cvel"))
        arm = xipos - com[:, model.body_rootid]
        momentum = model.body_mass[:, None] * (cvel[..., 3:] + np.cross(cvel[..., :3], arm))
        for body in reversed(range(1, model.nbody)):
            momentum[:, model.body_parentid[body]] += momentum[:, body]
        return momentum / np.maximum(model.body_subtreemass, load_mujoco().mjMINVAL)[:, None]

    def _warns(self, state: np.ndarray, control: np.ndarray, *end: np.ndarray) -> bool:
        """Whether MuJoCo warns of this row's step, or would of the next one, as unstable."""
        if not all((np.abs(x) <= LARGEST).all() for x in end):
            return True
        mujoco, model, data = load_mujoco(), self._model, self._data
        mujoco.mj_resetData(model, data)
        self.simulation.put(data, state)
        data.ctrl[:] = control
        mujoco.mj_step(model, data, self.simulation.frame_skip)
        kinds = mujoco.mjtWarning
        bad = (kinds.mjWARN_BADQPOS, kinds.mjWARN_BADQVEL, kinds.mjWARN_BADQACC)
        return any(data.warning[int(kind)].number for kind in bad)
