"""JAX functions as torch functions: DLPack views in and out, jitted forward, jitted recompute-and-pull-back."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, final

import torch

from mage_diffsim.bridges.errors import InputError, missing_extra, unknown_name
from mage_diffsim.bridges.fd import check_rows
from mage_diffsim.bridges.op import Op
from mage_diffsim.bridges.types import Float, Tensor

DERIVATIVES = ("vjp", "jvp")
"""How a JAX function can be differentiated here: reverse mode, or forward mode column by column."""


@functools.cache
def load_jax() -> Any:
    """The ``jax`` module, imported and configured on the first call.

    64-bit types are switched on for the whole process (``jax.enable_x64`` would be thread-local, and CUDA backward
    passes run in a thread of their own), JAX does not seize the GPU's memory, and CPU calls are synchronous.

    Raises:
        MissingExtra: jax is not installed.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        import jax
    except ModuleNotFoundError as error:
        if error.name not in ("jax", "jaxlib"):
            raise
        raise missing_extra("jax", "mjx") from error
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return jax


def check_device(device: torch.device, name: str) -> None:
    """Raise unless JAX has devices of this kind; ``name`` is what the message calls the asker.

    Raises:
        InputError: a CUDA device, and JAX sees none.
    """
    seen = load_jax().default_backend()
    if device.type == "cuda" and seen != "gpu":
        raise InputError(
            f"{name}: device {device} was asked for, but JAX sees only {seen} devices; "
            "use device cpu or install JAX with CUDA"
        )


def to_jax(x: Float[Tensor, "..."]) -> Any:
    """A JAX array of a row-major torch tensor, without its graph.

    It is a view, except that JAX copies CPU memory that is not 64-byte aligned (an offset view).

    Raises:
        InputError: JAX has no such device, or would change the dtype.
    """
    jax = load_jax()
    if x.is_cuda and jax.default_backend() != "gpu":
        raise InputError(f"a tensor is on {x.device} but JAX sees only {jax.default_backend()} devices: use device cpu")
    quick = None if x.is_cuda else _cpu_importer()
    if quick is not None:
        array = quick(x.detach())
    else:
        with _current_device(x):
            array = jax.dlpack.from_dlpack(x.detach())
    if array.dtype.name != str(x.dtype).removeprefix("torch."):
        raise InputError(f"a {x.dtype} tensor would reach JAX as {array.dtype}: leave jax_enable_x64 on")
    return array


@functools.cache
def _cpu_importer() -> Callable[[Tensor], Any] | None:
    """``jax.dlpack.from_dlpack`` for CPU tensors by the native call that it ends in, at an eighth of its time.

    The call is not public: where it is missing, or does not give a view of the same numbers, the answer is None.
    """
    try:
        from jaxlib import _jax  # pyright: ignore[reportAttributeAccessIssue]
        from torch._C import _to_dlpack

        cpu = load_jax().local_devices(backend="cpu")[0]

        def importer(x: Tensor) -> Any:
            return _jax.dlpack_managed_tensor_to_buffer(_to_dlpack(x), cpu, None)

        for dtype in (torch.float32, torch.float64):
            sample = torch.arange(64, dtype=dtype).view(8, 8)
            array = importer(sample)
            expected = load_jax().dlpack.from_dlpack(sample)
            same = (array.shape, array.dtype, array.devices()) == (expected.shape, expected.dtype, expected.devices())
            if not same or torch.from_dlpack(array).data_ptr() != sample.data_ptr() or array[7, 7] != 63:
                return None
    except Exception:  # whatever a later version does to its internals
        return None
    return importer


def to_torch(array: Any, device: torch.device) -> Float[Tensor, "..."]:
    """A torch tensor of a JAX array that nothing else refers to: a view on CPU, a device-side copy on CUDA.

    On CUDA the copy is needed because XLA may hand out a view's memory again as soon as torch drops the view, while
    kernels on torch's stream still read it.
    """
    if device.type == "cpu":
        return torch.from_dlpack(array)
    with torch.cuda.device(device):
        view = torch.from_dlpack(array)
        copy = view.clone()
        _release_when_read(view)
    return copy


def from_jax(function: Callable[..., Any], *, derivative: str = "vjp", name: str | None = None) -> Op:
    """A JAX function of arrays as a torch function with gradients for all inputs.

    Args:
        function: pure and jittable, arrays in, one array out, all of one float dtype. Compiled once per input shape.
        derivative: ``"vjp"`` is reverse mode, for any shapes. ``"jvp"`` is forward mode, one pass per column of the
            inputs that need a gradient, for a function of rows: [N, K1], [N, K2], ... -> [N, D], where row n of the
            output depends on row n of the inputs only. It also works where JAX has no reverse mode (while loops).
        name: what error messages call the operation; the function's own name by default.

    Raises:
        InputError: an unknown derivative; when called, what :class:`Op` refuses.
        MissingExtra: jax is not installed.
    """
    if derivative not in DERIVATIVES:
        raise unknown_name("derivative of a JAX function", derivative, DERIVATIVES)
    return _JaxOp(function, derivative, name or getattr(function, "__name__", "JAX function"))


@final
class _JaxOp(Op):
    def __init__(self, function: Callable[..., Any], derivative: str, name: str) -> None:
        jax = load_jax()
        pull_back = _columns_pull_back if derivative == "jvp" else _reverse_pull_back
        self.name = name
        self._rows_only = derivative == "jvp"
        self._call = jax.jit(function)
        self._pull_back = jax.jit(functools.partial(pull_back, function), static_argnums=0)

    def forward(self, *inputs: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if self._rows_only:
            check_rows(self, inputs)
        output = self._call(*(to_jax(x) for x in inputs))
        if not isinstance(output, load_jax().Array):
            raise InputError(f"{self.name}: the JAX function returned a {type(output).__name__}; accepted is one array")
        # Exporting the output waits for the computation, so the caller may edit the inputs afterwards.
        return to_torch(output, inputs[0].device)

    def vjp(
        self, inputs: tuple[Float[Tensor, "..."], ...], cotangent: Float[Tensor, "..."], needs: tuple[bool, ...]
    ) -> tuple[Float[Tensor, "..."] | None, ...]:
        gradients = iter(self._pull_back(needs, to_jax(cotangent), *(to_jax(x) for x in inputs)))
        return tuple(to_torch(next(gradients), x.device) if n else None for x, n in zip(inputs, needs, strict=True))


def _restrict(function: Callable[..., Any], needs: tuple[bool, ...], inputs: tuple[Any, ...]) -> tuple[Any, list[Any]]:
    """``function`` of the needed inputs alone, and those inputs."""

    def restricted(*needed: Any) -> Any:
        values = iter(needed)
        return function(*(next(values) if n else x for x, n in zip(inputs, needs, strict=True)))

    return restricted, [x for x, n in zip(inputs, needs, strict=True) if n]


def _reverse_pull_back(function: Callable[..., Any], needs: tuple[bool, ...], cotangent: Any, *inputs: Any) -> Any:
    restricted, needed = _restrict(function, needs, inputs)
    return load_jax().vjp(restricted, *needed)[1](cotangent)


def _columns_pull_back(function: Callable[..., Any], needs: tuple[bool, ...], cotangent: Any, *inputs: Any) -> Any:
    jax = load_jax()
    restricted, needed = _restrict(function, needs, inputs)

    def component(index: int, direction: Any) -> Any:
        """The gradient's component along one column of one input, for all rows at once."""
        tangents = [jax.numpy.zeros_like(x) for x in needed]
        tangents[index] = jax.numpy.broadcast_to(direction, needed[index].shape)
        _, column = jax.jvp(restricted, tuple(needed), tuple(tangents))
        return (cotangent * column).sum(-1)

    return tuple(
        jax.vmap(functools.partial(component, index), out_axes=-1)(jax.numpy.eye(x.shape[1], dtype=x.dtype))
        for index, x in enumerate(needed)
    )


def _current_device(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


_held: deque[tuple[torch.cuda.Event, Tensor]] = deque()
_held_lock = threading.Lock()


def _release_when_read(view: Tensor) -> None:
    """Keep a view of XLA's memory alive until the torch stream has passed this point."""
    event = torch.cuda.Event()
    event.record()
    with _held_lock:
        _held.append((event, view))
        while _held and _held[0][0].query():
            _held.popleft()
