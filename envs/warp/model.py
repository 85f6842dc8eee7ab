"""MuJoCo models as fused Warp kernels: Warp compiles the emitted code, and a torch operation launches it."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import inspect
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

import torch

from mage_diffsim.bridges.fd import check_rows
from mage_diffsim.bridges.op import Op, indexed
from mage_diffsim.bridges.stack import fits, workers
from mage_diffsim.bridges.warp import OWN_STACK, kernel, launch, load_module, load_warp
from mage_diffsim.envs.mujoco.model import Simulation, load_mujoco
from mage_diffsim.envs.warp.blocks import Blocks, aligned
from mage_diffsim.envs.warp.compiler import cost
from mage_diffsim.envs.warp.compiler.emit import array_bytes, operations
from mage_diffsim.envs.warp.compiler.intake import read
from mage_diffsim.envs.warp.compiler.parameters import NAMES
from mage_diffsim.envs.warp.compiler.program import Program
from mage_diffsim.envs.warp.compiler.searches import search_of
from mage_diffsim.errors import InputError, TooLarge
from mage_diffsim.shapes import Float, Tensor

_logger = logging.getLogger("mage_diffsim")

VECTOR = 64
"""Bytes of a lane vector on a CPU: 8 float64 or 16 float32 environments at once."""
MEMORY = {"cpu": 256 << 20, "cuda": 400 << 10}
"""Bytes that a thread's kernel may use for contact records, and for arrays: on a GPU, of the thread's 512 KiB of local
memory, which also hold what does not fit registers."""
TAPE = 4 << 20
"""Bytes that an environment's tape may take, which lives from a step to its derivative."""
LEAST_ROWS = 64
"""Number of environments from which another CPU thread pays."""


def build(code: str, which: str, real: Any) -> Any:
    """One of a program's kernels as a Warp kernel, not yet compiled.

    Args:
        code: the program's code for this kernel.
        which: "forward", "adjoint" or "tangent".
        real: ``warp.float32`` or ``warp.float64``, as in the program.
    """
    warp = load_warp()
    kinds = {"thread": int, "tape": warp.uint64, "scratch": warp.uint64}

    def declared(function: Any) -> Any:
        """The function with its arguments' types, under a name of its own, by which Warp tells functions apart."""
        function = inspect.unwrap(function)  # Warp reads source and closure: no type-checking wrapper
        names, rows = inspect.signature(function).parameters, warp.array2d(dtype=real)
        function.__annotations__ = {name: kinds.get(name, rows) for name in names}
        function.__name__ = function.__qualname__ = f"{which}_{hashlib.sha256(code.encode()).hexdigest()[:16]}"
        return function

    if which == "forward":

        def forward(thread, state, control, next_state, tape, scratch): ...

        native = warp.func_native(code)(declared(forward))

        def forward_kernel(state, control, next_state, tape, scratch):
            native(warp.tid(), state, control, next_state, tape, scratch)

        return kernel(declared(forward_kernel))

    if which == "adjoint":

        def adjoint(thread, state, control, cotangent, state_gradient, control_gradient, tape, scratch): ...

        native = warp.func_native(code)(declared(adjoint))

        def adjoint_kernel(state, control, cotangent, state_gradient, control_gradient, tape, scratch):
            native(warp.tid(), state, control, cotangent, state_gradient, control_gradient, tape, scratch)

        return kernel(declared(adjoint_kernel))

    def tangent(thread, state, control, state_tangent, control_tangent, next_tangent, tape, scratch): ...

    native = warp.func_native(code)(declared(tangent))

    def tangent_kernel(state, control, state_tangent, control_tangent, next_tangent, tape, scratch):
        native(warp.tid(), state, control, state_tangent, control_tangent, next_tangent, tape, scratch)

    return kernel(declared(tangent_kernel))


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A kernel that is ready to be launched."""

    kernel: Any
    scratch: int
    """Bytes of memory that a launch on a CPU needs."""
    stack: int
    """Bytes of stack that are enough for a launch on a CPU."""

    def launch(self, threads: int, arrays: Sequence[Tensor], tape: Tensor | None) -> None:
        """Launch the kernel over arrays. On a CPU, Warp runs its threads in the calling thread, one after the other."""
        scratch = _scratch.at_least(self.scratch) if self.scratch else 0
        launch(self.kernel, threads, (*arrays, 0 if tape is None else tape.data_ptr(), scratch))


class _Scratch(threading.local):
    """Memory of the calling thread, which it keeps for its next launch."""

    bytes = 0
    address = 0

    def at_least(self, n: int) -> int:
        """The address of ``n`` bytes or more, a multiple of a vector's size."""
        if self.bytes < n:
            self._memory = aligned(n)
            self.bytes, self.address = n, self._memory.ctypes.data
        return self.address


_scratch = _Scratch()


class ModelKernels:
    """The kernels of one model in one dtype on one kind of device; each is compiled when first asked for."""

    def __init__(
        self, simulation: Simulation, dtype: torch.dtype, device: torch.device, parameters: tuple[str, ...] = ()
    ) -> None:
        self.name = f"Warp {simulation.name}"
        self.lanes = VECTOR // dtype.itemsize if device.type == "cpu" else 1
        self._dtype, self._memory = dtype, MEMORY[device.type]
        self._model = read(simulation, parameters)
        cost.check(self._model)
        self._check_parameters()
        with _uncollected():
            self._program = Program(self._model, "double" if dtype == torch.float64 else "float", self.lanes)
        self.controls = self._program.step.controls
        self.tile = self._program.tile
        self._check_memory(simulation)
        self._blocks = Blocks(dtype)
        self._codes: dict[str, str] = {}
        self._stack: dict[str, int] = {}
        self._built: dict[str, Any] = {}
        self._loaded: dict[tuple[str, torch.device], Loaded] = {}
        self._lock = threading.RLock()

    def _check_parameters(self) -> None:
        """Refuse parameters that the code for this model does not take."""
        model, adhesion = self._model.model, load_mujoco().mjtTrn.mjTRN_BODY
        for beyond, what in (
            (self._model.noslip, "noslip iterations"),
            ((model.actuator_trntype == adhesion).any(), "actuators on bodies"),
        ):
            if self._model.parameters and beyond:
                raise InputError(
                    f"task {self._model.simulation.name}: a model with {what} takes no parameters; accepted are models "
                    "without"
                )
        searched = next((p.kinds for p in self._model.pairs if search_of(p.kinds, self._model.noslip)), None)
        if searched and "geom_size" in self._model.parameters:
            others = ", ".join(name for name in NAMES if name != "geom_size")
            raise InputError(
                f"task {self._model.simulation.name}: geom_size cannot be a parameter of a model with contacts of "
                f"{searched[0]} with {searched[1]}; accepted are {others}"
            )

    @property
    def _records(self) -> int:
        """Bytes of a thread's contact records."""
        return self._program.memory * self._program.vector

    def _check_memory(self, simulation: Simulation) -> None:
        p = self._program
        contacts = sum(n for n, _ in p.arrays.values())
        fewer, steps, tape = "let fewer geoms collide", simulation.frame_skip, p.tape * self._dtype.itemsize
        self._check(f"records of {contacts} possible contacts", self._records, self._memory, fewer)
        self._check(f"a tape of {steps} simulator steps per action", tape, TAPE, f"lower frame_skip, {fewer}")

    def _check(self, what: str, needed: int, available: int, advice: str) -> None:
        if needed > available:
            raise TooLarge(
                f"task {self._model.simulation.name}: the Warp kernels would keep {needed >> 10} KiB for {what}, and "
                f"{available >> 10} are to be had: {advice}, or use backend mujoco or mjx"
            )

    def tape(self, rows: int, device: torch.device) -> Tensor:
        """Memory for the tapes of so many environments; a row has those of environments that are interleaved."""
        shape = -(-rows // self.tile), self.tile * self._program.tape
        if device.type != "cpu":
            return torch.empty(*shape, dtype=self._dtype, device=device)
        return self._blocks.empty(*shape)

    def prepare(self, *which: str) -> None:
        """Emit the code of kernels.

        Raises:
            TooLarge: compiling them together would take too much.
        """
        with self._lock, _uncollected():
            for name in which:
                if name not in self._codes:
                    self._codes[name] = getattr(self._program, name)()
            cost.check(self._model, [self._codes[name] for name in which])

    def build(self, which: str) -> tuple[Any, int]:
        """The Warp kernel, not yet compiled, and an upper bound of the bytes of its frame.

        Raises:
            TooLarge: its arrays take more memory than a thread has.
        """
        self.prepare(which)
        code, vector = self._codes[which], self._program.vector
        arrays = array_bytes(code, vector)
        self._check(f"arrays of {which}", arrays, self._memory, "use a model with fewer joints")
        # As if every computed vector lived through the kernel. Measured frames are a tenth of that.
        return build(code, which, load_warp().dtype_from_torch(self._dtype)), arrays + operations(code) * vector

    def load(self, which: str, device: torch.device) -> Loaded:
        """The kernel, compiled and loaded for the device; Warp keeps compilations on disk."""
        if (which, device) in self._loaded:
            return self._loaded[which, device]
        warp = load_warp()
        with self._lock:
            if which not in self._built:
                built, frame = self.build(which)
                # Warp's cache has a folder of this name if the kernel, whose name ends in a hash, was compiled before.
                if not any(Path(warp.config.kernel_cache_dir).glob(f"wp_{built.module.name}_*")):
                    kind = str(self._dtype).removeprefix("torch.")
                    needed = cost.of_code(self._codes[which])
                    minutes = needed.seconds / 60
                    long = "some seconds" if minutes < 0.5 else f"some {minutes:.0f} min and {needed.gib:.1f} GiB"
                    _logger.info("compiling %s (%s, %s on %s): %s", self.name, which, kind, device.type, long)
                self._built[which] = built
                self._stack[which] = OWN_STACK + frame
            load_module(self._built[which], device)
            scratch = self._records if self._program.arrays_of(which) and not self._program.local else 0
            self._loaded[which, device] = Loaded(self._built[which], scratch, self._stack[which])
            return self._loaded[which, device]


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """A context without garbage collection, which takes half of the time in which millions of expressions are made."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


_shared: dict[tuple[Any, ...], ModelKernels] = {}
_shared_lock = threading.Lock()


def _kernels_of(
    simulation: Simulation, dtype: torch.dtype, device: torch.device, parameters: tuple[str, ...]
) -> ModelKernels:
    """The kernels of an equal model, made once per process."""
    key = (simulation.fingerprint, dtype, device.type, parameters)
    with _shared_lock:
        if key not in _shared:
            _shared[key] = ModelKernels(simulation, dtype, device, parameters)
        return _shared[key]


@final
class ModelOp(Op):
    """``(state [N, S], control [N, nu + P]) -> next state [N, S]``, quaternions of unit length in and out.

    The last P columns of control are the parameters, one field's numbers after the other.

    Readouts in the given state are ignored and have derivative 0. A state whose constraint solver does not converge
    gives NaN in its row of value and derivative; a state that is not finite gives a row that is not finite.

    Args:
        simulation: the model.
        dtype: torch.float32 or torch.float64.
        device: where the kernels run.
        tangents: whether derivatives come from tangents, one forward sweep per component wanted, instead of the
            adjoint.
        parameters: the fields of the model that are inputs, in the order of :data:`.parameters.NAMES`.

    Raises:
        InputError: the compiler does not cover the model.
    """

    def __init__(
        self,
        simulation: Simulation,
        dtype: torch.dtype,
        device: torch.device,
        tangents: bool,
        parameters: tuple[str, ...] = (),
    ) -> None:
        self._kernels = _kernels_of(simulation, dtype, device, parameters)
        self._dtype, self._tangents, self.keeps = dtype, tangents, not tangents
        self._moving = simulation.moving
        self.name = self._kernels.name
        self.load(device)

    def load(self, device: torch.device | str) -> None:
        """Compile and load the kernels for a device now: a CUDA graph cannot be captured while one is loading."""
        both = "forward", "tangent" if self._tangents else "adjoint"
        self._kernels.prepare(*both)
        for which in both:
            self._kernels.load(which, indexed(device))

    def forward(self, *inputs: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        self._check(inputs)
        output = torch.empty_like(inputs[0])
        self._launch("forward", *inputs, output)
        return output

    def forward_keeping(
        self, inputs: tuple[Float[Tensor, "..."], ...], needs: tuple[bool, ...]
    ) -> tuple[Float[Tensor, "..."], Any]:
        self._check(inputs)
        output, tape = torch.empty_like(inputs[0]), self._kernels.tape(len(inputs[0]), inputs[0].device)
        self._launch("forward", *inputs, output, tape=tape)
        return output, (inputs, tape)

    def vjp_kept(
        self, kept: Any, cotangent: Float[Tensor, "..."], needs: tuple[bool, ...]
    ) -> tuple[Float[Tensor, "..."] | None, ...]:
        inputs, tape = kept
        gradients = tuple(torch.empty_like(x) for x in inputs)
        self._launch("adjoint", *inputs, cotangent, *gradients, tape=tape)
        return tuple(g if needed else None for g, needed in zip(gradients, needs, strict=True))

    def vjp(
        self, inputs: tuple[Float[Tensor, "..."], ...], cotangent: Float[Tensor, "..."], needs: tuple[bool, ...]
    ) -> tuple[Float[Tensor, "..."] | None, ...]:
        if self._tangents:
            return self._vjp_by_columns(inputs, cotangent, needs)
        return self.vjp_kept(self.forward_keeping(inputs, needs)[1], cotangent, needs)

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

    def _check(self, inputs: tuple[Tensor, ...]) -> None:
        check_rows(self, inputs)
        if inputs[0].dtype != self._dtype:
            raise InputError(f"{self.name}: inputs are {inputs[0].dtype}; accepted is {self._dtype}")

    def _launch(self, which: str, *arrays: Tensor, tape: Tensor | None = None) -> None:
        device, rows, lanes = arrays[0].device, arrays[0].shape[0], self._kernels.lanes
        if rows == 0:
            return
        loaded = self._kernels.load(which, device)
        if device.type != "cpu":
            loaded.launch(-(-rows // lanes), arrays, tape)
            return
        threads, here = min(torch.get_num_threads(), -(-rows // LEAST_ROWS)), fits(loaded.stack)
        if here and threads == 1:
            loaded.launch(-(-rows // lanes), arrays, tape)
            return
        tile = self._kernels.tile
        share = tile * -(-rows // (tile * threads))
        parts = list(zip(*(x.split(share) for x in arrays), strict=True))
        tapes = [None] * len(parts) if tape is None else tape.split(share // tile)

        def run(part: tuple[Tensor, ...], tape: Tensor | None) -> None:
            loaded.launch(-(-part[0].shape[0] // lanes), part, tape)

        work = list(zip(parts, tapes, strict=True))
        mine = work.pop(0) if here else None
        pool = workers(len(work), loaded.stack) if work else None
        waiting = [] if pool is None else [pool.submit(run, *part) for part in work]
        if mine is not None:
            run(*mine)
        for future in waiting:
            future.result()
