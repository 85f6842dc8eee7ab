"""The matrix products of a function: their number of operations, their traffic, and the products again on their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = [getattr(torch.ops.aten, name) for name in ("mm", "bmm", "addmm", "baddbmm", "addmm_", "baddbmm_")]


class Product(NamedTuple):
    """One call of a matrix product."""

    function: Callable[..., object]
    arguments: tuple
    keywords: dict[str, Any]

    @property
    def flop(self) -> int:
        """Floating-point operations: a multiplication and an addition per term."""
        a, b = self.arguments[-2:]
        return 2 * a.numel() * b.shape[-1]

    @property
    def bytes(self) -> int:
        """Size of both operands and of the result, which a product reads and writes at least."""
        a, b = self.arguments[-2:]
        return (a.numel() + b.numel() + a.numel() // a.shape[-1] * b.shape[-1]) * a.itemsize


def products_of(function: Callable[[], object]) -> list[Product]:
    """Calls the function and returns its matrix products in their order."""
    calls: list[Product] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> object:
            if func.overloadpacket in PRODUCTS:
                calls.append(Product(func, args, kwargs or {}))
            return func(*args, **(kwargs or {}))

    with Record():
        function()
    return calls


def again(products: list[Product]) -> Callable[[], None]:
    """Returns a function that repeats the products. Unlike in the call itself, no operand is still in a cache."""

    def run() -> None:
        with torch.no_grad():
            for product in products:
                product.function(*product.arguments, **product.keywords)

    return run
