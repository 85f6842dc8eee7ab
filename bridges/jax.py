"""JAX functions as torch functions: arrays cross as DLPack views, forward and pull-back are jitted."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, final

import torch

from mage_diffsim.bridges.columns import pull_back_columns
from mage_diffsim.bridges.fd import check_rows
from mage_diffsim.bridges.forking import check_not_forked
from mage_diffsim.bridges.op import Op
from mage_diffsim.errors import InputError, import_extra, unknown_name
from mage_diffsim.shapes import Float, Tensor

DERIVATIVES = ("vjp", "jvp")
"""How a JAX function can be differentiated here: reverse mode, or forward mode column by column."""
RESIDUALS = ("recompute", "keep")
"""What a backward pass starts from: ``recompute`` from the inputs, ``keep`` from what the forward kept: intermediate
values of ``vjp``, Jacobian columns of ``jvp``."""

XLA_GPU_ALIGNMENT = 16
"""Bytes that the addresses of a GPU program's inputs must be multiples of: ``kEntryParameterAlignBytes`` of XLA."""


@functools.cache
def load_jax() -> Any:
    """The ``jax`` module, imported on the first call.

    It makes two settings for the whole process, because JAX reads them once, when it first computes. Neither changes
    results, and an environment variable of the same name wins:

    * ``JAX_CPU_ENABLE_ASYNC_DISPATCH`` is off: a call on the CPU returns when it has computed.
    * ``XLA_PYTHON_CLIENT_PREALLOCATE`` is false where torch sees a GPU: JAX leaves torch its share of the memory.

    Raises:
        ForkedJax: this process was forked from one in which JAX was running.
        MissingExtra: jax is not installed.
    """
    check_not_forked()
    if torch.cuda.is_available():
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax = import_extra("jax", "jax", "mjx", "jaxlib")
    if "JAX_CPU_ENABLE_ASYNC_DISPATCH" not in os.environ:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    return jax


def x64() -> contextlib.AbstractContextManager[Any]:
    """A context in which JAX has 64-bit types; the caller's ``jax_enable_x64`` is the same afterwards.

    It holds for the thread that enters it. Every call into JAX enters it, because torch runs backward passes in threads
    of its own.
    """
    return load_jax().enable_x64(True)


@contextlib.contextmanager
def jax_compilations() -> Iterator[list[str]]:
    """Fills a list with one entry for everything that JAX meanwhile compiles and keeps on disk."""
    kept: list[str] = []

    def listen(event: str, **_: Any) -> None:
        if event.endswith("/compilation_cache/cache_misses"):
            kept.append(event)

    monitoring = load_jax().monitoring
    monitoring.register_event_listener(listen)
    try:
        yield kept
    finally:
        monitoring.unregister_event_listener(listen)


def check_device(device: torch.device, name: str) -> None:
    """Refuse a CUDA device where JAX has none; ``name`` begins the message.

    Raises:
        InputError: a CUDA device, and JAX sees none.
    """
    # Asking starts JAX's threads, and a process may fork after it has made physics and before it steps any.
    if device.type == "cuda" and (seen := load_jax().default_backend()) != "gpu":
        raise InputError(
            f"{name}: device {device} was asked for, but JAX sees only {seen} devices; "
            "use device cpu or install JAX with CUDA"
        )


def to_jax(x: Float[Tensor, "..."]) -> Any:
    """A JAX array that shares the memory of a row-major torch tensor, without its graph.

    Memory that XLA takes for unaligned (an offset view) is copied: on a CPU at other than multiples of 64 bytes, on
    CUDA of 16.

    Raises:
        InputError: JAX has no such device, or would change the dtype: float64 needs :func:`x64` around it.
    """
    quick = None if x.is_cuda else _cpu_calls()
    if quick is not None:
        array = quick.to_jax(x.detach())
    else:
        jax = load_jax()
        if x.is_cuda and jax.default_backend() != "gpu":
            raise InputError(
                f"a tensor is on {x.device} but JAX sees only {jax.default_backend()} devices: use device cpu"
            )
        with _current_device(x):
            aligned = not x.is_cuda or x.data_ptr() % XLA_GPU_ALIGNMENT == 0
            array = jax.dlpack.from_dlpack(x.detach() if aligned else x.detach().clone())
    if x.itemsize == 8 and (array.dtype.itemsize != 8 or not load_jax().config.jax_enable_x64):
        single = str(x.dtype).removeprefix("torch.").replace("64", "32")
        raise InputError(f"a {x.dtype} tensor would reach JAX as {single}: call it with jax_enable_x64 on")
    return array


class _CpuCalls(NamedTuple):
    """The native calls behind ``jax.dlpack.from_dlpack`` and ``torch.from_dlpack`` for CPU memory, which take an eighth
    and a fifth of their time."""

    to_jax: Callable[[Tensor], Any]
    to_torch: Callable[[Any], Tensor]


@functools.cache
def _cpu_calls() -> _CpuCalls | None:
    """The native calls, or None where one is missing or does not give a view of the same numbers: they are private."""
    try:
        from jaxlib import _jax  # pyright: ignore[reportAttributeAccessIssue]
        from torch._C import _from_dlpack, _to_dlpack  # pyright: ignore[reportAttributeAccessIssue]

        cpu = load_jax().local_devices(backend="cpu")[0]

        def to_jax(x: Tensor) -> Any:
            return _jax.dlpack_managed_tensor_to_buffer(_to_dlpack(x), cpu, None)

        def to_torch(array: Any) -> Tensor:
            return _from_dlpack(_jax.buffer_to_dlpack_managed_tensor(array, stream=None))

        with x64():
            for dtype in (torch.float32, torch.float64):
                sample = torch.arange(64, dtype=dtype).view(8, 8)
                array, expected = to_jax(sample), load_jax().dlpack.from_dlpack(sample)
                same = (array.shape, array.dtype, array.devices()) == (
                    expected.shape,
                    expected.dtype,
                    expected.devices(),
                )
                back = to_torch(array)
                same = same and (back.shape, back.dtype, back.device) == (sample.shape, sample.dtype, sample.device)
                if not same or back.data_ptr() != sample.data_ptr() or array[7, 7] != 63:
                    return None
    except Exception:  # whatever a later version does to its internals
        return None
    return _CpuCalls(to_jax, to_torch)


def to_torch(array: Any, device: torch.device) -> Float[Tensor, "..."]:
    """A torch tensor of a JAX array that nothing else refers to: a view on CPU, a device-side copy on CUDA.

    On a CPU the call returns when the array is computed. On CUDA torch's current stream waits for it, and the host only
    until JAX has put it in its queue. In both cases what torch does next comes after JAX has read its inputs: they may
    be edited, and torch's allocator may hand out their memory again.

    On CUDA the copy is needed because XLA may hand out a view's memory again as soon as torch drops the view, while
    kernels on torch's stream still read it.
    """
    if device.type == "cpu":
        quick = _cpu_calls()
        return torch.from_dlpack(array) if quick is None else quick.to_torch(array)
    with torch.cuda.device(device):
        view = torch.from_dlpack(array)
        copy = view.clone()
        _release_when_read(view)
    return copy


def from_jax(
    function: Callable[..., Any], *, derivative: str = "vjp", residuals: str = "recompute", name: str | None = None
) -> Op:
    """Makes a JAX function of arrays a torch function with gradients for all inputs.

    The function is traced and called with JAX's 64-bit types on, whatever the caller's ``jax_enable_x64`` is. Arrays
    that it makes itself (``jnp.ones(3)``) are float64 unless it says otherwise, also where the inputs are float32.

    Args:
        function: pure and jittable, arrays in, one array out, all of one float dtype. Compiled once per input shape.
        derivative: ``"vjp"`` is reverse mode, for any shapes. ``"jvp"`` is forward mode, one pass per column of the
            inputs that need a gradient; it works where JAX has no reverse mode (while loops). ``"jvp"`` is for
            functions of rows, [N, K1], [N, K2], ... -> [N, D], where row n of the output depends on row n of the inputs
            only.
        residuals: ``"recompute"`` saves the inputs and computes the forward again in the backward pass. ``"keep"``
            computes it once. With ``"vjp"`` it holds the intermediate values until the output is gone. With ``"jvp"``
            the forward pass computes the Jacobian [N, D, K] with the output, in one call of JAX, and the backward pass
            is a product in torch. Nothing is held where no input needs a gradient.
        name: what error messages call the operation; the function's own name by default.

    Raises:
        InputError: an unknown derivative or residual policy; when called, what :class:`Op` refuses.
        MissingExtra: jax is not installed.
    """
    if derivative not in DERIVATIVES:
        raise unknown_name("derivative of a JAX function", derivative, DERIVATIVES)
    if residuals not in RESIDUALS:
        raise unknown_name("residual policy of a JAX function", residuals, RESIDUALS)
    return _JaxOp(function, derivative, residuals, name or getattr(function, "__name__", "JAX function"))


@final
class _JaxOp(Op):
    float64_advice = (
        "JAX's 64-bit types are on inside, so jnp.zeros(n) is float64: give a dtype, as jnp.zeros(n, x.dtype) does"
    )

    def __init__(self, function: Callable[..., Any], derivative: str, residuals: str, name: str) -> None:
        jax = load_jax()
        self.name = name
        self.keeps = residuals == "keep"
        self._made_of = (function, derivative, residuals, name)
        self._by_columns = derivative == "jvp"
        pull_back, keeping = _columns_pull_back, _output_and_columns
        if not self._by_columns:
            pull_back, keeping = _reverse_pull_back, _output_and_pull_back
        self._call = jax.jit(function)
        self._pull_back = jax.jit(functools.partial(pull_back, function), static_argnums=0)
        self._call_keeping = jax.jit(functools.partial(keeping, function), static_argnums=0)
        self._apply = jax.jit(lambda pull_back, cotangent: pull_back(cotangent))

    def forward(self, *inputs: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if self._by_columns:
            check_rows(self, inputs)
        with x64():
            output = self._call(*(to_jax(x) for x in inputs))
            return to_torch(self._one_array(output, inputs), inputs[0].device)

    def vjp(
        self, inputs: tuple[Float[Tensor, "..."], ...], cotangent: Float[Tensor, "..."], needs: tuple[bool, ...]
    ) -> tuple[Float[Tensor, "..."] | None, ...]:
        with x64():
            gradients = iter(self._pull_back(needs, to_jax(cotangent), *(to_jax(x) for x in inputs)))
            return tuple(to_torch(next(gradients), x.device) if n else None for x, n in zip(inputs, needs, strict=True))

    def forward_keeping(
        self, inputs: tuple[Float[Tensor, "..."], ...], needs: tuple[bool, ...]
    ) -> tuple[Float[Tensor, "..."], Any]:
        if self._by_columns:
            check_rows(self, inputs)
        with x64():
            output, kept = self._call_keeping(needs, *(to_jax(x) for x in inputs))
            output = _to_torch_copy(self._one_array(output, inputs), inputs[0].device)
            if self._by_columns:
                kept = to_torch(kept, output.device), [x.shape[1] for x, n in zip(inputs, needs, strict=True) if n]
            return output, kept

    def vjp_kept(
        self, kept: Any, cotangent: Float[Tensor, "..."], needs: tuple[bool, ...]
    ) -> tuple[Float[Tensor, "..."] | None, ...]:
        if self._by_columns:
            jacobian, widths = kept
            parts = iter(pull_back_columns(cotangent, jacobian).split(widths, dim=1))
            return tuple(next(parts) if n else None for n in needs)
        with x64():
            gradients = iter(self._apply(kept, to_jax(cotangent)))
            return tuple(_to_torch_copy(next(gradients), cotangent.device) if n else None for n in needs)

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle holds the function, which pickle must be able to find by its name."""
        return _JaxOp, self._made_of

    def _one_array(self, output: Any, inputs: tuple[Tensor, ...]) -> Any:
        if not isinstance(output, load_jax().Array):
            raise InputError(f"{self.name}: the JAX function returned a {type(output).__name__}; accepted is one array")
        if self._by_columns and (output.ndim != 2 or output.shape[0] != inputs[0].shape[0]):
            raise InputError(
                f"{self.name}: the JAX function returned shape {output.shape}; derivative 'jvp' accepts (N, D) of "
                f"inputs (N, K), and N is {inputs[0].shape[0]}"
            )
        return output


def _to_torch_copy(array: Any, device: torch.device) -> Tensor:
    """A torch tensor that the caller may edit, of a JAX array whose memory residuals may share."""
    y = to_torch(array, device)
    return y.clone() if device.type == "cpu" else y


def _restrict(function: Callable[..., Any], needs: tuple[bool, ...], inputs: tuple[Any, ...]) -> tuple[Any, list[Any]]:
    """``function`` of the needed inputs alone, and those inputs."""

    def restricted(*needed: Any) -> Any:
        values = iter(needed)
        return function(*(next(values) if n else x for x, n in zip(inputs, needs, strict=True)))

    return restricted, [x for x, n in zip(inputs, needs, strict=True) if n]


def _reverse_pull_back(function: Callable[..., Any], needs: tuple[bool, ...], cotangent: Any, *inputs: Any) -> Any:
    restricted, needed = _restrict(function, needs, inputs)
    return load_jax().vjp(restricted, *needed)[1](cotangent)


def _output_and_pull_back(function: Callable[..., Any], needs: tuple[bool, ...], *inputs: Any) -> tuple[Any, Any]:
    """The output and its pull-back, a pytree of residuals that leaves a jitted function and enters another."""
    restricted, needed = _restrict(function, needs, inputs)
    return load_jax().vjp(restricted, *needed)


def _columns_pull_back(function: Callable[..., Any], needs: tuple[bool, ...], cotangent: Any, *inputs: Any) -> Any:
    gradient, ends = _along_columns(function, needs, inputs, lambda output, column: (cotangent * column).sum(-1))
    return load_jax().numpy.split(gradient, ends, axis=-1)


def _output_and_columns(function: Callable[..., Any], needs: tuple[bool, ...], *inputs: Any) -> tuple[Any, Any]:
    """The output [N, D], and its Jacobian [N, D, K] by all columns of the needed inputs."""
    (outputs, jacobian), _ = _along_columns(function, needs, inputs, lambda output, column: (output, column))
    # It is the same along every column, and computed once.
    return load_jax().tree.map(lambda y: y[..., 0], outputs), jacobian


def _along_columns(
    function: Callable[..., Any], needs: tuple[bool, ...], inputs: tuple[Any, ...], use: Callable[[Any, Any], Any]
) -> tuple[Any, list[int]]:
    """``use(output, Jacobian column)`` of every column of the needed inputs, stacked on a last axis, and where the
    columns of each input but the last end."""
    jax = load_jax()
    restricted, needed = _restrict(function, needs, inputs)
    *ends, total = itertools.accumulate(x.shape[1] for x in needed)

    def along(direction: Any) -> Any:
        parts = jax.numpy.split(direction, ends)
        tangents = [jax.numpy.broadcast_to(part, x.shape) for part, x in zip(parts, needed, strict=True)]
        return use(*jax.jvp(restricted, tuple(needed), tuple(tangents)))

    return jax.vmap(along, out_axes=-1)(jax.numpy.eye(total, dtype=needed[0].dtype)), ends


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


if hasattr(os, "register_at_fork"):
    # A forked child asks for both again, and may be refused them.
    os.register_at_fork(after_in_child=lambda: (load_jax.cache_clear(), _cpu_calls.cache_clear()))
