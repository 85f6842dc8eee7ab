"""Physics written as Warp kernels."""

from __future__ import annotations

from typing import final

import torch

from mage_diffsim.bridges.errors import InputError
from mage_diffsim.bridges.fd import FiniteDifference
from mage_diffsim.bridges.op import Op
from mage_diffsim.bridges.types import Float, Tensor
from mage_diffsim.bridges.warp import WarpOp, load_warp
from mage_diffsim.envs.physics import Physics, load
from mage_diffsim.envs.task import Task


@final
class WarpPhysics(Physics):
    """A task whose ``physics["warp"]`` is ``implementation(task)(dtype) -> WarpOp`` from (state, action) to state.

    The kernels get the action within [-1, 1] and scale it. They are compiled and loaded for the device here, so that
    steps can be captured in a CUDA graph at once.

    Derivative sources: ``adjoint`` the hand-written adjoint kernel, ``fd`` central differences.

    Raises:
        InputError: Warp does not see the device, or the dtype is not float32 or float64.
        MissingExtra: warp is not installed.
    """

    backend = "warp"
    derivatives = ("adjoint", "fd")

    def __init__(
        self,
        task: Task,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        derivative: str | None = None,
        residuals: str = "recompute",
    ) -> None:
        super().__init__(task, dtype=dtype, device=device, derivative=derivative, residuals=residuals)
        warp = load_warp()
        if self.device.type == "cuda" and not warp.is_cuda_available():
            raise InputError(
                f"{self}: device {self.device} was asked for, but Warp sees no CUDA device; use device cpu"
            )
        if dtype not in (torch.float32, torch.float64):
            raise InputError(f"{self}: dtype {dtype} was asked for; accepted are torch.float32 and torch.float64")
        kernels: WarpOp = load(task.physics["warp"])(task)(dtype)
        kernels.load(self.device)
        self._op: Op = kernels
        if self.derivative == "fd":
            self._op = FiniteDifference(kernels.forward, name=str(self))

    def _advance(self, state: Float[Tensor, "N S"], action: Float[Tensor, "N A"]) -> Float[Tensor, "N S"]:
        return self._op(state, action)
