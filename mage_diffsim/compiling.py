"""The same functions, compiled: ``--compile on`` wraps whole update steps, derivatives and optimiser included.

The compiled functions call :func:`torch.autograd.grad` themselves, so that a target, its action-gradient, the critic
gradient and the optimiser step become one graph; torch traces this since 2.11.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch

from mage_diffsim.bridges.errors import InputError

CAPABILITY = "trace_autograd_ops"
"""torch's setting without which derivatives inside a compiled function cannot be traced; new in 2.11."""


def compiled(method: Any) -> Callable[..., Any]:
    """A bound method fused by torch.compile into one graph, for static shapes; compiled on its first call.

    Args:
        method: of tensors (and containers of them), without anything that has to leave the graph: host reads, random
            numbers, calls into other frameworks.

    Raises:
        InputError: this torch cannot trace derivatives inside a compiled function; when called, that something in it
            (say, a task's own reward) cannot be compiled.
    """
    import torch._dynamo.config as dynamo  # takes seconds to import
    from torch._dynamo.exc import TorchDynamoException

    if not hasattr(dynamo, CAPABILITY):
        raise InputError(
            f"compile is 'on', which needs torch 2.11 or newer, and this is {torch.__version__}: use compile 'off'"
        )
    # A copy of the code per call: torch counts and looks up compilations by code object, and the many trainers of a
    # sweep must neither exhaust its limit nor search through each other's.
    of = method.__func__
    own = types.FunctionType(of.__code__.replace(), of.__globals__, of.__name__, of.__defaults__, of.__closure__)
    own.__kwdefaults__ = of.__kwdefaults__
    fused = torch.compile(types.MethodType(own, method.__self__), fullgraph=True, dynamic=False)

    @functools.wraps(of)
    def call(*arguments: Any) -> Any:
        try:
            with dynamo.patch({CAPABILITY: True}):  # for each call, as the setting belongs to a thread
                return fused(*arguments)
        except TorchDynamoException as error:
            cause = next(line.strip() for line in str(error).splitlines() if line.strip())
            raise InputError(
                f"compile is 'on', and {of.__qualname__} with this task cannot be compiled ({cause}): use compile 'off'"
            ) from error

    return call
