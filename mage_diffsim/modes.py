"""Torch's global modes: what is trained does not depend on those that the caller is in."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


@contextlib.contextmanager
def ordinary_modes() -> Iterator[None]:
    """Inside, gradients are recorded, tensors are ordinary, float32 and on the CPU by default, and nothing is cast.

    Outside may be ``torch.no_grad()``, ``torch.inference_mode()``, ``torch.autocast(...)``, another default dtype or
    another default device.
    """
    dtype = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def in_ordinary_modes(function: Callable[P, T]) -> Callable[P, T]:
    """The function, run in :func:`ordinary_modes` whatever the caller's are."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with ordinary_modes():
            return function(*args, **kwargs)

    return wrapped
