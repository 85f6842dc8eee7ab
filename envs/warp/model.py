"""MuJoCo models as fused Warp kernels: what the compiler emits, compiled by Warp and wrapped as a torch operation."""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, final

import torch

from mage_diffsim.bridges.errors import InputError
from mage_diffsim.bridges.fd import check_rows
from mage_diffsim.bridges.op import Op, indexed
from mage_diffsim.bridges.types import Float, Tensor
from mage_diffsim.bridges.warp import kernel, launch, load_module, load_warp
from mage_diffsim.envs.mujoco.model import Simulation
from mage_diffsim.envs.warp.compiler.intake import read
from mage_diffsim.envs.warp.compiler.program import Program

_logger = logging.getLogger("mage_diffsim")

VECTOR = 64
"""Bytes of a lane vector on a CPU: 8 float64 or 16 float32 environments at once."""
LOCAL_MEMORY = {"cpu": 4 << 20, "cuda": 400 << 10}
"""Bytes of stack that a thread's kernel may use for its tape."""
LEAST_ROWS = 64
"""Environments for which another CPU thread pays."""


def build(program: Program, which: str, real: Any) -> Any:
    """One of a program's kernels as a Warp kernel, not yet compiled.

    Args:
        program: of the model.
        which: "forward", "adjoint" or "tangent", the program's method.
        real: ``warp.float32`` or ``warp.float64``, as the program's.
    """
    warp = load_warp()
    rows = warp.array2d(dtype=real)
    code = getattr(program, which)()

    def declared(function: Any) -> Any:
        """The function with its arrays' types, under a name of its own: Warp tells native functions apart by name."""
        function = inspect.unwrap(function)  # Warp reads source and closure: no type-checking wrapper
        function.__annotations__ = dict.fromkeys(inspect.signature(function).parameters, rows)
        if "thread" in function.__annotations__:
            function.__annotations__["thread"] = int
        function.__name__ = function.__qualname__ = f"{which}_{hashlib.sha256(code.encode()).hexdigest()[:16]}"
        return function

    if which == "forward":

        def forward(thread, state, control, next_state): ...

        native = warp.func_native(code)(declared(forward))

        def forward_kernel(state, control, next_state):
            native(warp.tid(), state, control, next_state)

        return kernel(declared(forward_kernel))

    if which == "adjoint":

        def adjoint(thread, state, control, cotangent, state_gradient, control_gradient): ...

        native = warp.func_native(code)(declared(adjoint))

        def adjoint_kernel(state, control, cotangent, state_gradient, control_gradient):
            native(warp.tid(), state, control, cotangent, state_gradient, control_gradient)

        return kernel(declared(adjoint_kernel))

    def tangent(thread, state, control, state_tangent, control_tangent, next_tangent): ...

    native = warp.func_native(code)(declared(tangent))

    def tangent_kernel(state, control, state_tangent, control_tangent, next_tangent):
        native(warp.tid(), state, control, state_tangent, control_tangent, next_tangent)

    return kernel(declared(tangent_kernel))


class ModelKernels:
    """The kernels of one model in one dtype on one kind of device; each is compiled when first asked for."""

    def __init__(self, simulation: Simulation, dtype: torch.dtype, device: torch.device) -> None:
        self.name = f"Warp {simulation.name}"
        self.controls = int(simulation.model.nu)
        self.lanes = VECTOR // dtype.itemsize if device.type == "cpu" else 1
        self._dtype = dtype
        self._program = Program(read(simulation), "double" if dtype == torch.float64 else "float", self.lanes)
        needed, available = self._program.tape * self.lanes * dtype.itemsize, LOCAL_MEMORY[device.type]
        if needed > available:
            raise InputError(
                f"task {simulation.name}: the Warp kernels would keep {needed // 1024} KiB for {simulation.frame_skip} "
                f"simulator steps per action on a stack of {available // 1024} KiB: lower frame_skip or use backend "
                "mujoco or mjx"
            )
        self._built: dict[str, Any] = {}
        self._loaded: dict[tuple[str, torch.device], Any] = {}
        self._lock = threading.Lock()

    def load(self, which: str, device: torch.device) -> Any:
        """The kernel, compiled and loaded for the device; compilations are kept on disk by Warp."""
        if (which, device) in self._loaded:
            return self._loaded[which, device]
        warp = load_warp()
        with self._lock:
            if which not in self._built:
                built = build(self._program, which, warp.dtype_from_torch(self._dtype))
                # Warp keeps what it compiled in folders named so; the kernel's own name ends in a hash of its code.
                if not any(Path(warp.config.kernel_cache_dir).glob(f"wp_{built.module.name}_*")):
                    kind = str(self._dtype).removeprefix("torch.")
                    _logger.info("compiling %s (%s, %s on %s): some seconds", self.name, which, kind, device.type)
                self._built[which] = built
            load_module(self._built[which], device)
            self._loaded[which, device] = self._built[which]
            return self._built[which]


_shared: dict[tuple[Any, ...], ModelKernels] = {}
_shared_lock = threading.Lock()


def _kernels_of(simulation: Simulation, dtype: torch.dtype, device: torch.device) -> ModelKernels:
    """Those of an equal model, made once per process."""
    key = (simulation.fingerprint, dtype, device.type)
    with _shared_lock:
        if key not in _shared:
            _shared[key] = ModelKernels(simulation, dtype, device)
        return _shared[key]


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="mage_diffsim_warp")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads


@final
class ModelOp(Op):
    """``(state [N, S], control [N, nu]) -> next state [N, S]``, quaternions of unit length in and out.

    Readouts in the given state are not looked at, and have derivative 0. A state whose constraint solver does not
    converge gives NaN in its row of value and derivative; one that is not finite gives what arithmetic makes of it,
    which is not finite either.

    Args:
        simulation: the model.
        dtype: torch.float32 or torch.float64.
        device: where the kernels run.
        tangents: whether derivatives come from tangents, one forward sweep per component wanted, instead of the
            adjoint.

    Raises:
        InputError: the compiler does not cover the model.
    """

    def __init__(self, simulation: Simulation, dtype: torch.dtype, device: torch.device, tangents: bool) -> None:
        self._kernels = _kernels_of(simulation, dtype, device)
        self._dtype, self._tangents = dtype, tangents
        self._moving = int(simulation.nq + simulation.nv)
        self.name = self._kernels.name
        self.load(device)

    def load(self, device: torch.device | str) -> None:
        """Compile and load the kernels for a device now: a CUDA graph cannot be captured while one is loading."""
        for which in ("forward", "tangent" if self._tangents else "adjoint"):
            self._kernels.load(which, indexed(device))

    def forward(self, *inputs: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        check_rows(self, inputs)
        if inputs[0].dtype != self._dtype:
            raise InputError(f"{self.name}: inputs are {inputs[0].dtype}; accepted is {self._dtype}")
        output = torch.empty_like(inputs[0])
        self._launch("forward", *inputs, output)
        return output

    def vjp(
        self, inputs: tuple[Float[Tensor, "..."], ...], cotangent: Float[Tensor, "..."], needs: tuple[bool, ...]
    ) -> tuple[Float[Tensor, "..."] | None, ...]:
        if self._tangents:
            return self._vjp_by_columns(inputs, cotangent, needs)
        gradients = tuple(torch.empty_like(x) for x in inputs)
        self._launch("adjoint", *inputs, cotangent, *gradients)
        return tuple(g if needed else None for g, needed in zip(gradients, needs, strict=True))

    def _vjp_by_columns(
        self, inputs: tuple[Tensor, ...], cotangent: Tensor, needs: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        gradients: list[Tensor | None] = []
        for place, needed in enumerate(needs):
            if not needed:
                gradients.append(None)
                continue
            gradient = torch.zeros_like(inputs[place])
            for column in range(self._moving if place == 0 else self._kernels.controls):
                seeds = [torch.zeros_like(x) for x in inputs]
                seeds[place][:, column] = 1.0
                tangent = torch.empty_like(inputs[0])
                self._launch("tangent", *inputs, *seeds, tangent)
                gradient[:, column] = (tangent * cotangent).sum(1)
            gradients.append(gradient)
        return tuple(gradients)

    def _launch(self, which: str, *arrays: Tensor) -> None:
        device, rows, lanes = arrays[0].device, arrays[0].shape[0], self._kernels.lanes
        if rows == 0:
            return
        loaded = self._kernels.load(which, device)
        threads = min(torch.get_num_threads(), -(-rows // LEAST_ROWS)) if device.type == "cpu" else 1

        def run(part: tuple[Tensor, ...]) -> None:
            launch(loaded, -(-part[0].shape[0] // lanes), part)

        if threads == 1:
            run(arrays)
            return
        share = lanes * -(-rows // (lanes * threads))
        parts = list(zip(*(x.split(share) for x in arrays), strict=True))
        waiting = [_pool(threads - 1).submit(run, part) for part in parts[1:]]
        run(parts[0])
        for future in waiting:
            future.result()
