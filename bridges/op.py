"""The base of every bridge: an operation computed outside torch, and the autograd Functions that call it."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, final

import torch

from mage_diffsim.errors import InputError
from mage_diffsim.shapes import Float, Tensor

_DTYPES = (torch.float32, torch.float64)
_DEVICES = ("cpu", "cuda")


def indexed(device: torch.device | str) -> torch.device:
    """A CPU or CUDA device with its number, as tensors name it: "cuda" is the current CUDA device.

    Raises:
        InputError: it is no device name, or a device of another kind.
    """
    try:
        device = torch.device(device)
    except RuntimeError:
        raise InputError(f"unknown device {device!r}: choose cpu, cuda or cuda:N") from None
    if device.type not in _DEVICES:
        raise InputError(f"device '{device}' is not supported: choose cpu, cuda or cuda:N")
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device


class Op(abc.ABC):
    """``op(*inputs) -> output``, a first-order differentiable torch function of float tensors.

    A subclass writes :meth:`forward` and :meth:`vjp` on plain tensors (no autograd graph, contiguous, all of one dtype
    and device) and is called like a function. Autograd saves the inputs, and refuses a backward pass after one of them
    was edited in place; the backward pass computes the forward again. A subclass that sets ``keeps`` also writes
    :meth:`forward_keeping` and :meth:`vjp_kept`, which save that second forward: what they keep of a call lives until
    the output is gone. The object itself keeps nothing of a call.

    Second derivatives raise; ``torch.func`` transforms and forward-mode differentiation are refused by torch.
    """

    name: str
    """What error messages call this operation."""
    keeps: bool = False
    """Whether a call that needs a gradient keeps residuals for the backward pass instead of recomputing there."""
    float64_advice: str = ""
    """What the error for a float64 output of float32 inputs adds: why it may be and what helps."""

    @abc.abstractmethod
    def forward(self, *inputs: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Returns the output, of the inputs' dtype and device."""

    @abc.abstractmethod
    def vjp(
        self, inputs: tuple[Float[Tensor, "..."], ...], cotangent: Float[Tensor, "..."], needs: tuple[bool, ...]
    ) -> tuple[Float[Tensor, "..."] | None, ...]:
        """Returns the cotangent times the Jacobian of the output, for each input.

        Args:
            inputs: what :meth:`forward` was given.
            cotangent: derivative of a scalar by the output, the output's shape.
            needs: which inputs need a gradient; at least one does.

        Returns:
            one tensor of the input's shape for every needed input, None for the others.
        """

    def forward_keeping(
        self, inputs: tuple[Float[Tensor, "..."], ...], needs: tuple[bool, ...]
    ) -> tuple[Float[Tensor, "..."], Any]:
        """Returns the output and the residuals for :meth:`vjp_kept`; called where an input needs a gradient.

        The residuals may share memory with the inputs, whose edits autograd detects, but not with the output.
        """
        raise NotImplementedError

    def vjp_kept(
        self, kept: Any, cotangent: Float[Tensor, "..."], needs: tuple[bool, ...]
    ) -> tuple[Float[Tensor, "..."] | None, ...]:
        """:meth:`vjp` from residuals. It must not change them: a graph may be differentiated again."""
        raise NotImplementedError

    @final
    def __call__(self, *inputs: Any) -> Float[Tensor, "..."]:
        """Returns the output, with gradients for every input that requires one.

        Args:
            inputs: float32 or float64 tensors of any layout.

        Raises:
            InputError: no input, a dtype other than float32 and float64, a device other than CPU and CUDA, or inputs
                that differ in either.
        """
        if torch.compiler.is_compiling():
            return _outside_compiler()(self, inputs)
        return _run(self, inputs)

    def __copy__(self) -> Op:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Op:
        """Returns the same object, which keeps nothing of a call: compiled functions cannot be copied."""
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name})"


def _run(op: Op, inputs: tuple[Any, ...]) -> Tensor:
    _check_inputs(op, inputs)
    # Inside the Function gradients are always off, so whether there will be a backward pass is decided here.
    keeps = op.keeps and torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    return _Forward.apply(op, keeps, *inputs)


_hidden: list[Any] = []


def _outside_compiler() -> Any:
    """:func:`_run` behind a graph break. Made on first use, as torch takes seconds to import its compiler."""
    if not _hidden:
        _hidden.append(torch.compiler.disable(_run))
    return _hidden[0]


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: Op, keeps: bool, *inputs: Tensor) -> Tensor:
        ctx.op = op
        ctx.set_materialize_grads(False)
        # Saved by autograd, not kept by hand: reading them back after an in-place edit raises. This guards residuals,
        # which may be views of them, as well.
        ctx.save_for_backward(*inputs)
        plain = tuple(map(_plain, inputs))
        if keeps:
            output, ctx.kept = op.forward_keeping(plain, ctx.needs_input_grad[2:])
        else:
            output, ctx.kept = op.forward(*plain), None
        return _own_memory(_check_result(op, "output", output, like=plain[0]), plain)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        (cotangent,) = cotangents
        inputs = ctx.saved_tensors
        if cotangent is None:
            return (None,) * (2 + len(inputs))
        arguments = (ctx.op, ctx.needs_input_grad[2:], ctx.kept, cotangent, *inputs)
        # Only with create_graph can anyone ask for a second derivative.
        return None, None, *(_Vjp.apply if torch.is_grad_enabled() else _pull_back)(*arguments)


def _pull_back(
    op: Op, needs: tuple[bool, ...], kept: Any, cotangent: Tensor, *inputs: Tensor
) -> tuple[Tensor | None, ...]:
    plain, cotangent = tuple(map(_plain, inputs)), _plain(cotangent)
    gradients = op.vjp_kept(kept, cotangent, needs) if op.keeps else op.vjp(plain, cotangent, needs)
    if len(gradients) != len(inputs):
        raise InputError(f"{op.name}: vjp returned {len(gradients)} gradients; accepted is one per input")
    owned: list[Tensor | None] = []
    others = [*plain, cotangent]
    for x, gradient, needed in zip(plain, gradients, needs, strict=True):
        if needed:
            gradient = _check_result(op, f"gradient of input {len(owned)}", gradient, like=x, shape=x.shape)
            gradient = _own_memory(gradient, others)
            others.append(gradient)
        owned.append(gradient if needed else None)
    return tuple(owned)


class _Vjp(torch.autograd.Function):
    """The first derivative as a Function of its own: torch's ``once_differentiable`` lets wrong second ones through."""

    @staticmethod
    def forward(ctx: Any, op: Op, needs: tuple[bool, ...], kept: Any, cotangent: Tensor, *inputs: Tensor) -> tuple:
        ctx.op = op
        return _pull_back(op, needs, kept, cotangent, *inputs)

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            f"{ctx.op.name}: second derivatives are not available, its first one is computed outside torch; "
            "detach the gradient, or drop create_graph=True"
        )


def _check_inputs(op: Op, inputs: tuple[Any, ...]) -> None:
    if not inputs:
        raise InputError(f"{op.name}: no input was given; accepted is at least one tensor")
    first = inputs[0]
    for index, x in enumerate(inputs):
        if not isinstance(x, Tensor):
            raise InputError(f"{op.name}: input {index} is a {type(x).__name__}; accepted is a torch tensor")
        if x.dtype not in _DTYPES or not (x.is_cpu or x.is_cuda) or x.layout is not torch.strided:
            raise InputError(
                f"{op.name}: input {index} is {x.dtype} on {x.device} ({x.layout}); "
                "accepted are dense float32 and float64 tensors on cpu or cuda"
            )
        if x is not first and (x.dtype != first.dtype or x.device != first.device):
            raise InputError(
                f"{op.name}: input {index} is {x.dtype} on {x.device} but input 0 is {first.dtype} on "
                f"{first.device}; accepted is one dtype and one device for all"
            )


def _check_result(op: Op, what: str, y: object, *, like: Tensor, shape: torch.Size | None = None) -> Tensor:
    """Returns ``y`` if its shape, dtype and device are those torch would have returned: nothing is cast or moved."""
    if not isinstance(y, Tensor):
        raise InputError(f"{op.name}: {what} is a {type(y).__name__}; accepted is one array")
    if y.dtype != like.dtype or y.device != like.device:
        advice = op.float64_advice if (y.dtype, like.dtype) == (torch.float64, torch.float32) else ""
        raise InputError(
            f"{op.name}: {what} is {y.dtype} on {y.device}; the inputs are {like.dtype} on {like.device} "
            f"and accepted is the same{advice and f' ({advice})'}"
        )
    if shape is not None and y.shape != shape:
        raise InputError(f"{op.name}: {what} has shape {tuple(y.shape)}; accepted is {tuple(shape)}")
    return y


def _plain(x: Tensor) -> Tensor:
    """The values of ``x`` without its graph, in row-major layout: a view where ``x`` has that layout."""
    x = x.detach().contiguous()
    if 1 in x.shape:
        # torch calls any stride of a size-1 axis contiguous; another framework would compile again for each.
        x = x.view(-1).view(x.shape)
    return x


def _own_memory(y: Tensor, others: Sequence[Tensor]) -> Tensor:
    """``y`` in row-major layout, copied if it overlaps one of the row-major ``others``: an in-place edit of one must
    not change another."""
    y = y.contiguous()
    begin = y.data_ptr()
    end = begin + y.nbytes
    for x in others:
        other = x.data_ptr()
        if other < end and begin < other + x.nbytes:
            return y.clone()
    return y
