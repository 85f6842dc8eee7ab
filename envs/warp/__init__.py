"""Physics as Warp kernels: written by hand, or compiled from a MuJoCo model."""

from __future__ import annotations

from typing import Any, final

import torch

from mage_diffsim.bridges.fd import FiniteDifference
from mage_diffsim.bridges.op import Op
from mage_diffsim.bridges.warp import WarpOp, check_device, load_warp
from mage_diffsim.envs.mujoco.convergence import name_gap
from mage_diffsim.envs.mujoco.model import Simulation
from mage_diffsim.envs.mujoco.task import MujocoTask, with_unit_quaternions
from mage_diffsim.envs.physics import Physics, implementation
from mage_diffsim.envs.task import Task
from mage_diffsim.envs.warp.compiler import cost, parameters
from mage_diffsim.envs.warp.compiler.intake import read
from mage_diffsim.shapes import Float, Tensor


@final
class WarpPhysics(Physics):
    """A task whose ``physics["warp"]`` is an ``implementation(task)`` that returns a model or hand-written kernels.

    * A model (``Simulation``, of every :class:`.MujocoTask`) is compiled to one fused kernel per environment step (see
      :mod:`.compiler`). On a CPU a kernel steps a SIMD vector of environments at a time, on as many threads as torch
      uses; on a GPU one environment a thread. A state whose constraint solver does not converge gives NaN, which the
      learner's guards report.
    * Hand-written kernels are ``(dtype) -> WarpOp``, from (state, action) to state. They get the action within [-1, 1]
      and scale it.

    The constructor compiles and loads the kernels, so that steps can be captured in a CUDA graph at once.

    Derivative sources: ``adjoint`` is the adjoint kernel. Models also have ``jvp``, a sweep of tangents per component;
    hand-written kernels also have ``fd``, central differences.

    Raises:
        InputError: Warp does not see the device; the dtype is neither float32 nor float64; or the compiler does not
            cover the model, or would take too long for it (:mod:`.compiler.cost`).
        MissingExtra: warp is not installed.
    """

    backend = "warp"
    derivatives = ("adjoint", "fd")
    capturable = True
    dtypes = (torch.float32, torch.float64)

    def _build(self) -> None:
        load_warp()
        check_device(self.device, str(self))
        made: Any = implementation(self.task, self.backend)
        self.simulation: Simulation | None = None
        kernels: Op
        if isinstance(made, Simulation):
            from mage_diffsim.envs.warp.model import ModelOp

            name_gap(made, self.solver)
            self.simulation = made
            kernels = ModelOp(made, self.dtype, self.device, self.derivative == "jvp", self.parameter_names)
            own = {name: parameters.numbers(made.model, name) for name in self.parameter_names}
            self._numbers = {name: torch.tensor(x, dtype=self.dtype, device=self.device) for name, x in own.items()}
        else:
            kernels = written = made(self.dtype)
            assert isinstance(written, WarpOp)
            written.load(self.device)
        self._op = FiniteDifference(kernels.forward, name=str(self)) if self.derivative == "fd" else kernels

    @classmethod
    def derivatives_of(cls, task: Task) -> tuple[str, ...]:
        return ("adjoint", "jvp") if _of_model(task) else cls.derivatives

    @classmethod
    def parameters_of(cls, task: Task) -> tuple[str, ...]:
        return parameters.NAMES if _of_model(task) else ()

    @classmethod
    def check_covers(cls, task: Task) -> None:
        if _of_model(task):
            cost.check(read(implementation(task, cls.backend)))

    def _advance(self, state: Float[Tensor, "N S"], action: Float[Tensor, "N A"]) -> Float[Tensor, "N S"]:
        if self.simulation is None:
            return self._op(state, action)
        return self._op(with_unit_quaternions(self.simulation, state), self.task.scale_action(action))

    def _advance_with(
        self, state: Float[Tensor, "N S"], action: Float[Tensor, "N A"], parameters: Float[Tensor, "N P"]
    ) -> Float[Tensor, "N S"]:
        assert self.simulation is not None
        given = torch.cat([self.task.scale_action(action), parameters], dim=1)
        return self._op(with_unit_quaternions(self.simulation, state), given)


def _of_model(task: Task) -> bool:
    """Whether the kernels are compiled from a MuJoCo model."""
    return task.physics["warp"] == MujocoTask.physics["warp"]
