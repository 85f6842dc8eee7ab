"""Print, as JSON, how far values and derivatives of functions as a task may write them are apart, eager and traced.

A process of its own (see test_autodiff.py): the test suite's shape checks wrap functions in code that cannot be traced.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable

import torch

from mage_diffsim.autodiff import pull_back, value_and_gradients
from mage_diffsim.shapes import Tensor


class HalfGradient(torch.autograd.Function):
    """sin(x) with half its derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 0.5 * gradient * x.cos()


def asks(x: Tensor) -> Tensor:
    return x.square() * (2.0 if x.requires_grad else 1.0)


def hooks(x: Tensor) -> Tensor:
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient.clamp(-1.0, 1.0))
    return x.square()


def in_place(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y += x.square()
    y[..., 0] = 3.0 * x[..., 1]
    return y


def cuts(x: Tensor) -> Tensor:
    with torch.no_grad():
        weight = x.sin()
    return weight * x + x.detach()


FUNCTIONS: list[Callable[[Tensor], Tensor]] = [asks, hooks, in_place, cuts, HalfGradient.apply, torch.ones_like]


def main() -> None:
    warnings.simplefilter("ignore")
    generator = torch.Generator().manual_seed(0)
    x, v, w = (3.0 * torch.randn(2, 3, dtype=torch.float64, generator=generator) for _ in range(3))
    apart = {}
    for function in FUNCTIONS:

        def everything(x: Tensor, v: Tensor, w: Tensor, function=function) -> list[Tensor]:
            value, gradients = value_and_gradients(function, x)
            found = [value, *gradients]
            if function is not torch.ones_like:
                found += pull_back(function, x, (v, w))
            return found

        torch.compiler.reset()
        traced = torch.compile(everything, fullgraph=True, dynamic=False, backend="eager")(x, v, w)
        pairs = zip(everything(x, v, w), traced, strict=True)
        apart[getattr(function, "__name__", str(function))] = max(float((a - b).abs().max()) for a, b in pairs)
    print(json.dumps(apart))


if __name__ == "__main__":
    main()
