"""Pairs of Warp kernels as torch functions: torch owns every buffer, kernels run on torch's current stream."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, final

import torch

from mage_diffsim.bridges.cache import usable_folder, user_cache
from mage_diffsim.bridges.fd import check_rows
from mage_diffsim.bridges.op import Op, indexed
from mage_diffsim.bridges.stack import on_stack
from mage_diffsim.errors import InputError, import_extra
from mage_diffsim.shapes import Float, Tensor

OWN_STACK = 384 << 10
"""Bytes of stack that a launch on a CPU takes besides the kernel's own: Warp puts 256 KiB for tiles there, used or
not."""
BLOCK = 32
"""Threads of a block on a GPU: one warp. A few environments so spread over many multiprocessors, and a warp whose
solver takes long holds up no others."""
COMPILER_STACK = 32 << 20
"""Bytes of stack for the compiler, which recurses into expressions."""


@functools.cache
def load_warp() -> Any:
    """The ``warp`` module, imported and started on the first call, without its banner.

    Where the folder for its compiled kernels cannot be written, Warp gets a temporary one, and a warning is logged.

    Raises:
        MissingExtra: warp is not installed.
    """
    warp = import_extra("warp", "warp-lang", "warp")
    with quiet():
        _start(warp)
    return warp


def _start(warp: Any) -> None:
    def usable(folder: Path | None) -> str:
        return str(usable_folder(folder, "what Warp compiles", "WARP_CACHE_PATH"))

    def start() -> None:
        # Without CUDA in torch, Warp's native message about a missing CUDA driver tells the user nothing.
        with contextlib.nullcontext() if torch.cuda.is_available() else _native_stderr_closed():
            warp.init()

    config = warp.config
    if not config.kernel_cache_dir and "WARP_CACHE_PATH" not in os.environ and user_cache() is None:
        config.kernel_cache_dir = usable(None)
    try:
        start()
    except OSError:  # Warp's configuration names the folder that it could not make
        config.kernel_cache_dir = usable(Path(config.kernel_cache_dir))
        start()
    config.kernel_cache_dir = usable(Path(config.kernel_cache_dir))


_level = threading.Lock()
_before: list[int] = []
"""Warp's own log level, once for every caller inside :func:`quiet`."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A context in which Warp loads modules without messages, in all threads; warnings are shown."""
    import warp

    with _level:
        _before.append(_before[0] if _before else warp.config.log_level)
        warp.config.log_level = max(warp.config.log_level, warp.LOG_WARNING)
    try:
        yield
    finally:
        with _level:
            before = _before.pop()
            if not _before:
                warp.config.log_level = before


@contextlib.contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """A context that drops what native code writes to file descriptor 2, which no Python setting reaches."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def check_device(device: torch.device, name: str) -> None:
    """Refuse a CUDA device that Warp does not see.

    Raises:
        InputError: it does not see it; ``name`` begins the message.
    """
    if device.type == "cuda" and not load_warp().is_cuda_available():
        raise InputError(f"{name}: device {device} was asked for, but Warp sees no CUDA device; use device cpu")


def kernel(function: Callable[..., None]) -> Any:
    """Decorator that makes a function a Warp kernel in a module of its own, without the adjoint that Warp generates.

    A closure over a dtype gives one kernel per dtype. Each is compiled when it is first loaded, and cached on disk.
    Under ``from __future__ import annotations`` the body must use the dtype too, or Warp cannot resolve the
    annotations.
    """
    # Warp reads the source and the closure of the function: it must not get a type-checking wrapper.
    return load_warp().kernel(inspect.unwrap(function), enable_backward=False, module="unique")


def load_module(kernel: Any, device: torch.device | str) -> None:
    """Compile the kernel and load it for a device now."""
    warp, device = load_warp(), indexed(device)

    def load() -> None:
        with quiet():
            block = BLOCK if device.type == "cuda" else None
            warp.load_module(kernel.module, device=warp.device_from_torch(device), block_dim=block)

    on_stack(COMPILER_STACK, load)


def launch(kernel: Any, threads: int, arguments: Sequence[Tensor | float | int]) -> None:
    """Launch a kernel on the tensors' device and torch's current stream; the tensors are passed without a copy."""
    warp = load_warp()
    device = next(x.device for x in arguments if isinstance(x, torch.Tensor))
    warp.launch(
        kernel,
        dim=threads,
        inputs=[
            warp.from_torch(x, requires_grad=False, return_ctype=True) if isinstance(x, torch.Tensor) else x
            for x in arguments
        ],
        device=warp.device_from_torch(device),
        # Given explicitly: Warp's current stream is one per process, and torch's backward threads would share it.
        stream=warp.stream_from_torch(device) if device.type == "cuda" else None,
        record_tape=False,
        block_dim=BLOCK if device.type == "cuda" else None,
    )


def from_warp(
    forward: Any,
    adjoint: Any,
    *,
    dtype: torch.dtype,
    output_dim: int,
    constants: Sequence[float | int] = (),
    name: str | None = None,
) -> WarpOp:
    """Makes two Warp kernels over rows a torch function ``([N, K1], [N, K2], ...) -> [N, output_dim]`` with gradients.

    Args:
        forward: kernel launched over N threads with (inputs..., constants..., output).
        adjoint: kernel launched over N threads with (inputs..., constants..., cotangent, gradients...). It writes one
            gradient per input, which arrives as zeros. Warp's tape is not used.
        dtype: the dtype both kernels are compiled for; every array is 2-D of it.
        output_dim: columns of the output.
        constants: scalars passed to both kernels.
        name: what error messages call the operation; the forward kernel's by default.

    Raises:
        MissingExtra: warp is not installed.
    """
    return WarpOp(forward, adjoint, dtype, output_dim, tuple(constants), name or forward.key)


@final
class WarpOp(Op):
    """See :func:`from_warp`."""

    def __init__(
        self,
        forward: Any,
        adjoint: Any,
        dtype: torch.dtype,
        output_dim: int,
        constants: tuple[float | int, ...],
        name: str,
    ) -> None:
        self.name = name
        self._forward = forward
        self._adjoint = adjoint
        self._dtype = dtype
        self._output_dim = output_dim
        self._constants = constants
        self._loaded: set[torch.device] = set()

    def load(self, device: torch.device | str) -> None:
        """Compile and load both kernels for a device now: a CUDA graph cannot be captured while one is loading."""
        for kernel in (self._forward, self._adjoint):
            load_module(kernel, device)
        self._loaded.add(indexed(device))

    def forward(self, *inputs: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        check_rows(self, inputs)
        if inputs[0].dtype != self._dtype:
            raise InputError(f"{self.name}: inputs are {inputs[0].dtype}; accepted is {self._dtype}")
        output = inputs[0].new_empty(inputs[0].shape[0], self._output_dim)
        self._launch(self._forward, (*inputs,), (output,))
        return output

    def vjp(
        self, inputs: tuple[Float[Tensor, "..."], ...], cotangent: Float[Tensor, "..."], needs: tuple[bool, ...]
    ) -> tuple[Float[Tensor, "..."] | None, ...]:
        gradients = tuple(torch.zeros_like(x) for x in inputs)
        self._launch(self._adjoint, inputs, (cotangent, *gradients))
        return tuple(g if needed else None for g, needed in zip(gradients, needs, strict=True))

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(f"{self.name}: Warp kernels cannot be pickled; pickle what they are made from")

    def _launch(self, kernel: Any, inputs: tuple[Tensor, ...], rest: tuple[Tensor, ...]) -> None:
        if inputs[0].device not in self._loaded:
            self.load(inputs[0].device)
        needed = OWN_STACK if inputs[0].device.type == "cpu" else 0
        on_stack(needed, lambda: launch(kernel, inputs[0].shape[0], (*inputs, *self._constants, *rest)))
