"""Derivatives that torch.compile can trace, and that are autograd's own where nothing is compiled.

``torch.func`` can be traced inside a compiled function by every version of torch that this package supports, where
``requires_grad_`` cannot. Eagerly it refuses what ``torch.autograd`` takes: operations bridged to other frameworks, and
any ``autograd.Function`` written like them. So a function to differentiate is written once, and these take either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from mage_diffsim.shapes import Tensor


def values_and_pull_back(
    function: Callable[..., tuple[Tensor, ...]], *at: Tensor
) -> tuple[tuple[Tensor, ...], Callable[[Sequence[Tensor]], tuple[Tensor, ...]]]:
    """A function's values, detached, and what maps a cotangent of each value to one of each argument.

    The latter may be called once. An argument that no value depends on has cotangent zero.
    """
    if torch.compiler.is_compiling():
        traced: Any = lambda *x: function(*_tracked(x))  # noqa: E731  (the shape checks must not wrap it)
        values, pull, *_ = torch.func.vjp(traced, *at)
        return values, lambda cotangents: pull(tuple(cotangents))
    leaves = tuple(x.detach().requires_grad_() for x in at)
    with torch.enable_grad():
        recorded = function(*leaves)

    def pull_eagerly(cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        # of a constant autograd takes no derivative
        kept = [(v, c) for v, c in zip(recorded, cotangents, strict=True) if v.requires_grad]
        if not kept:
            return tuple(torch.zeros_like(x) for x in at)
        outputs, cotangents = zip(*kept, strict=True)
        return torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True, materialize_grads=True)

    return tuple(value.detach() for value in recorded), pull_eagerly


def value_and_gradients(function: Callable[..., Tensor], *at: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A function's value, of any shape, and the gradients of the value's sum with respect to each argument.

    Both come detached. An argument that the value does not depend on, be it on none, has gradient zero.
    """
    (value,), pull = values_and_pull_back(lambda *x: (function(*x),), *at)
    return value, pull([torch.ones_like(value)])


def pull_back(function: Callable[[Tensor], Tensor], at: Tensor, cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The vector-Jacobian product v^T df/dx at ``at`` for each cotangent v, differentiable with respect to v."""
    if torch.compiler.is_compiling():
        pullback = torch.func.vjp(lambda x: function(*_tracked((x,))), at)[1]
        return tuple(pullback(cotangent)[0] for cotangent in cotangents)
    leaf = at.detach().requires_grad_()
    with torch.enable_grad():
        value = function(leaf)
        return tuple(torch.autograd.grad(value, leaf, cotangent, create_graph=True)[0] for cotangent in cotangents)


def _tracked(at: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The same, saying ``requires_grad``: traced, an argument of torch.func denies it, and what is made of it does not.

    A task may ask before it registers a hook on a gradient.
    """
    return tuple(x.view_as(x) for x in at)
