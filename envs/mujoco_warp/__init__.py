"""MuJoCo Warp (DeepMind's and NVIDIA's port of MuJoCo to Warp) as physics, to compare with: it has no gradients."""

from __future__ import annotations

import collections
import threading
from typing import Any, final

import torch

from mage_diffsim.bridges.fd import FiniteDifference
from mage_diffsim.bridges.warp import check_device, load_warp, quiet
from mage_diffsim.envs.mujoco.convergence import name_gap, with_solver
from mage_diffsim.envs.mujoco.model import FIELDS, CentreOfMass, CentreOfMassVelocity, Simulation, load_mujoco
from mage_diffsim.envs.mujoco.task import with_unit_quaternions
from mage_diffsim.envs.physics import Physics, implementation
from mage_diffsim.errors import InputError, import_extra
from mage_diffsim.shapes import Float, Tensor

KEPT = 4
"""Different numbers of worlds whose memory is kept at once."""
STEP = 5e-3
"""Step of differences over the action and the state: the cube root of float32's precision."""


@final
class MujocoWarpPhysics(Physics):
    """A task whose ``physics["mujoco-warp"]`` is ``implementation(task) -> Simulation``, stepped by MuJoCo Warp.

    It is there for comparison, on a GPU: on a CPU its kernels take a minute to compile and are slow. It has float32
    only, and derivatives by finite differences only, which take 2 A further worlds a step. Over the action they are
    usable (errors of 1e-3 and less); over the state float32 leaves errors of percents, and of more in stiff contacts.

    Derivative sources: ``fd`` takes central differences, ``fd-forward`` forward differences over the action.

    Raises:
        InputError: a dtype other than float32, a device that Warp does not see, or a model that MuJoCo Warp refuses.
        MissingExtra: mujoco-warp, mujoco or warp is not installed.
    """

    backend = "mujoco-warp"
    derivatives = ("fd", "fd-forward")
    solvers = ("converged", "model")
    dtypes = (torch.float32,)
    accuracy = {"fd": 0.05, "fd-forward": 0.05}  # noqa: RUF012  (the base class declares it a ClassVar)

    def _build(self) -> None:
        load_warp()
        load_mujoco()
        _load()
        check_device(self.device, str(self))
        self.simulation: Simulation = implementation(self.task, self.backend)
        name_gap(self.simulation, self.solver)
        self._op = FiniteDifference(
            _Stepper(self.simulation, self.solver, self.device, str(self)),
            step=STEP,
            one_sided=(4,) if self.derivative == "fd-forward" else (),
            name=str(self),
        )

    def _advance(self, state: Float[Tensor, "N S"], action: Float[Tensor, "N A"]) -> Float[Tensor, "N S"]:
        state, control = with_unit_quaternions(self.simulation, state), self.task.scale_action(action)
        return self._op(*self.simulation.split(state), control)


def _load() -> Any:
    return import_extra("mujoco_warp", "mujoco-warp", "mujoco-warp")


class _Stepper:
    """``(qpos, qvel, act, mocap, control) -> next state``, float32 rows on one device."""

    def __init__(self, simulation: Simulation, solver: str, device: torch.device, name: str) -> None:
        mujoco, mujoco_warp, warp = load_mujoco(), _load(), load_warp()
        self.simulation = simulation
        self._host = with_solver(simulation.model, solver)
        # Contacts are looked for in float32, in arrays that grow with the iterations.
        own = simulation.model.opt
        self._host.opt.ccd_tolerance, self._host.opt.ccd_iterations = own.ccd_tolerance, own.ccd_iterations
        # MuJoCo Warp has no automatic reset to disable, and refuses the flag.
        self._host.opt.disableflags &= ~int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
        self._device = warp.device_from_torch(device)
        try:
            with quiet(), warp.ScopedDevice(self._device):
                self._model = mujoco_warp.put_model(self._host)
        except NotImplementedError as error:
            raise InputError(f"{name}: MuJoCo Warp does not support the model: {error}; use backend mujoco") from error
        self._data: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._lock = threading.Lock()  # a backward pass on a CUDA device runs in a thread of its own

    def __call__(self, qpos: Tensor, qvel: Tensor, act: Tensor, mocap: Tensor, control: Tensor) -> Tensor:
        mujoco_warp, warp = _load(), load_warp()
        rows = len(qpos)
        if rows == 0:
            return qpos.new_empty(0, len(self.simulation.state_names))
        stream = warp.stream_from_torch(qpos.device) if qpos.device.type == "cuda" else None
        with quiet(), self._lock, warp.ScopedDevice(self._device), warp.ScopedStream(stream):
            if rows not in self._data:
                self._data[rows] = mujoco_warp.make_data(self._host, nworld=rows)
            self._data.move_to_end(rows)
            while len(self._data) > KEPT:
                self._data.popitem(last=False)
            data = self._data[rows]
            views = {
                n: warp.to_torch(getattr(data, n))
                for n in (
                    *("qpos", "qvel", "act", "mocap_pos", "mocap_quat", "ctrl"),
                    *(*FIELDS.values(), "qacc_warmstart"),
                )
            }
            poses = mocap.reshape(rows, -1, 7)
            views["qpos"].copy_(qpos)
            views["qvel"].copy_(qvel)
            views["act"].copy_(act)
            views["mocap_pos"].copy_(poses[..., :3])
            views["mocap_quat"].copy_(poses[..., 3:])
            views["ctrl"].copy_(control)
            views["qacc_warmstart"].zero_()
            warp.to_torch(data.time).zero_()
            for _ in range(self.simulation.frame_skip):
                mujoco_warp.step(self._model, data)
            stages = ["kinematics"] if self.simulation.reads_places else []
            stages += ["com_pos"] if self.simulation.reads(CentreOfMass, CentreOfMassVelocity) else []
            stages += ["com_vel", "subtree_vel"] if self.simulation.reads(CentreOfMassVelocity) else []
            for stage in stages:  # else places are those before the last simulator step
                getattr(mujoco_warp, stage)(self._model, data)
            end, found = (views["qpos"], views["qvel"], views["act"]), {k: views[field] for k, field in FIELDS.items()}
            return self.simulation.assemble(*end, mocap, found, qpos, torch.cat)
