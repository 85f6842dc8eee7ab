"""MuJoCo's equations in JAX (MJX): any MJCF, on CPU and GPU, with derivatives by the implicit function theorem."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.util
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import torch

from mage_diffsim.bridges.cache import usable_folder, user_cache
from mage_diffsim.bridges.jax import RESIDUALS, check_device, from_jax, load_jax
from mage_diffsim.bridges.op import Op
from mage_diffsim.envs.mujoco.convergence import name_gap
from mage_diffsim.envs.mujoco.model import Simulation, load_mujoco
from mage_diffsim.envs.mujoco.task import with_unit_quaternions
from mage_diffsim.envs.physics import Physics, implementation
from mage_diffsim.envs.task import Task
from mage_diffsim.errors import missing_extra
from mage_diffsim.shapes import Float, Tensor

_logger = logging.getLogger("mage_diffsim")


@final
class MjxPhysics(Physics):
    """A task whose ``physics["mjx"]`` is ``implementation(task) -> Simulation``, stepped by MJX.

    In float64 a step differs from converged MuJoCo C by rounding only: kinematics and smooth dynamics are MJX's;
    contacts, limits, integrators and a constraint solver that converges are this package's own. MJX's custom numbers in
    a model are ignored. Where MuJoCo C counts a state as diverged (a position, velocity or acceleration beyond 1e10)
    the next state and its derivative are NaN.

    The step is compiled for each number of environments, once for values and once for derivatives. Each compilation
    takes tens of seconds, is logged at level INFO and is kept on disk (see :func:`kept_on_disk`). Physics of equal
    models share what was compiled in a process.

    Derivative sources: ``implicit`` is reverse mode, with the implicit function theorem at the solver's solution;
    ``jvp`` is forward mode by columns, through the solver's iterations. ``jvp`` with residuals ``keep`` calls JAX once
    for the step and its derivative.

    Raises:
        InputError: MJX does not support the model, or steps it otherwise than MuJoCo C (the message says what, as that
            of :meth:`check_covers` does); JAX does not see the device; or the dtype is neither float32 nor float64.
        MissingExtra: jax or mujoco-mjx is not installed.
        ImportError: the installed mujoco-mjx lacks a private name that is used here.
    """

    backend = "mjx"
    derivatives = ("implicit", "jvp")
    residual_policies = RESIDUALS
    dtypes = (torch.float32, torch.float64)

    def _build(self) -> None:
        load_mujoco()
        load_jax()
        _load_step()
        check_device(self.device, str(self))
        self.simulation: Simulation = implementation(self.task, self.backend)
        name_gap(self.simulation, self.solver)
        self._op = _shared_op(self.simulation, self.derivative, self.residuals)

    @classmethod
    def check_covers(cls, task: Task) -> None:
        load_jax()
        _load_step().check_supported(implementation(task, cls.backend))

    def _advance(self, state: Float[Tensor, "N S"], action: Float[Tensor, "N A"]) -> Float[Tensor, "N S"]:
        moving = with_unit_quaternions(self.simulation, state)[:, : self.simulation.moving]
        return self._op(moving, self.task.scale_action(action))


_keeping = threading.Lock()
_inside = 0
"""Number of callers inside :func:`kept_on_disk` that found no folder of JAX's own."""


@contextlib.contextmanager
def kept_on_disk() -> Iterator[None]:
    """A context in which JAX keeps what it compiles in ``mage_diffsim/jax`` of the user's cache folder.

    A folder named by ``JAX_COMPILATION_CACHE_DIR`` or by JAX's own configuration comes first. JAX decides what is worth
    keeping: by default what took more than a second.
    """
    global _inside
    with _keeping:
        named = os.environ.get("JAX_COMPILATION_CACHE_DIR") or load_jax().config.jax_compilation_cache_dir
        ours = _inside > 0 or not named
        if ours:
            if not _inside:
                _keep_in(str(_folder()))
            _inside += 1
    try:
        yield
    finally:
        if ours:
            with _keeping:
                _inside -= 1
                if not _inside:
                    _keep_in(None)


def _folder() -> Path:
    base = user_cache()
    wanted = None if base is None else base / "mage_diffsim" / "jax"
    return usable_folder(wanted, "what JAX compiles", "JAX_COMPILATION_CACHE_DIR")


def _keep_in(folder: str | None) -> None:
    from jax.experimental.compilation_cache import compilation_cache

    load_jax().config.update("jax_compilation_cache_dir", folder)
    # JAX decides on first use, which may have been before.
    compilation_cache.reset_cache()


@functools.cache
def _load_step() -> Any:
    """The module with the step; importing it needs mujoco-mjx.

    Raises:
        MissingExtra: mujoco-mjx is not installed.
        ImportError: it lacks a private name.
    """
    if importlib.util.find_spec("mujoco.mjx") is None:
        raise missing_extra("mujoco-mjx", "mjx")
    from mage_diffsim.envs.mjx import private, step

    missing = private.missing_names()
    if missing:
        raise ImportError(missing[0])
    return step


def forget_compilations() -> None:
    """Drop all compiled steps from memory; on disk they stay.

    Every compiled function maps pieces of memory, and the operating system limits their number per process. A process
    that goes through a dozen models reaches the limit, and compilation then fails for want of memory.
    """
    with _ops_lock:
        _ops.clear()
    load_jax().clear_caches()
    gc.collect()


_ops: dict[tuple[Any, ...], Op] = {}
_ops_lock = threading.Lock()


def _shared_op(simulation: Simulation, derivative: str, residuals: str) -> Op:
    """The operation of an equal model, made once per process: JAX compiles again for every function object.

    Raises:
        InputError: the model is not supported.
    """
    key = (simulation.fingerprint, derivative, residuals)
    with _ops_lock:
        if key not in _ops:
            _ops[key] = _CompilingOp(simulation, derivative, residuals)
        return _ops[key]


@final
class _CompilingOp(Op):
    """``(state without readouts [N, moving], control [N, nu]) -> next state [N, S]``; says when it compiles."""

    def __init__(self, simulation: Simulation, derivative: str, residuals: str) -> None:
        self.name = f"MJX {simulation.name}"
        self._derivative = derivative
        self._op = from_jax(
            _load_step().checked_step(simulation, implicit=derivative == "implicit"),
            derivative="vjp" if derivative == "implicit" else "jvp",
            residuals=residuals,
            name=self.name,
        )
        self.keeps = self._op.keeps
        self._compiled: set[tuple[Any, ...]] = set()

    def forward(self, *inputs: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        with self._compiling("forward", inputs):
            return self._op.forward(*inputs)

    def vjp(
        self, inputs: tuple[Float[Tensor, "..."], ...], cotangent: Float[Tensor, "..."], needs: tuple[bool, ...]
    ) -> tuple[Float[Tensor, "..."] | None, ...]:
        with self._compiling(f"{self._derivative} derivative", inputs, needs):
            return self._op.vjp(inputs, cotangent, needs)

    def forward_keeping(
        self, inputs: tuple[Float[Tensor, "..."], ...], needs: tuple[bool, ...]
    ) -> tuple[Float[Tensor, "..."], Any]:
        kept = "jvp derivative" if self._derivative == "jvp" else "residuals"
        with self._compiling(f"forward with {kept}", inputs, needs):
            return self._op.forward_keeping(inputs, needs)

    def vjp_kept(
        self, kept: Any, cotangent: Float[Tensor, "..."], needs: tuple[bool, ...]
    ) -> tuple[Float[Tensor, "..."] | None, ...]:
        if self._derivative == "jvp":  # a product in torch
            return self._op.vjp_kept(kept, cotangent, needs)
        with self._compiling("implicit derivative from residuals", (cotangent,), needs):
            return self._op.vjp_kept(kept, cotangent, needs)

    def _compiling(
        self, what: str, inputs: tuple[Tensor, ...], needs: tuple[bool, ...] = ()
    ) -> contextlib.AbstractContextManager[None]:
        """The context of a call: the first of its kind compiles, says so, and leaves on disk what it compiled."""
        rows, device = len(inputs[0]), inputs[0].device
        key = (what, rows, inputs[0].dtype, device, needs)
        if key in self._compiled:
            return contextlib.nullcontext()
        self._compiled.add(key)
        _logger.info(
            "compiling %s (%s, batch of %d, %s on %s): about a minute the first time",
            self.name,
            what,
            rows,
            str(inputs[0].dtype).removeprefix("torch."),
            device.type,
        )
        return kept_on_disk()
