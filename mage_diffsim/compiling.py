"""The same functions, compiled: ``--compile on`` wraps whole update steps, derivatives and optimiser included.

The compiled functions call :func:`torch.autograd.grad` themselves, so that a target, its action-gradient, the critic
gradient and the optimiser step become one graph; torch traces this since 2.11.
"""

from __future__ import annotations

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
        InputError: this torch cannot trace derivatives inside a compiled function.
    """
    import torch._dynamo.config as dynamo  # takes seconds to import

    if not hasattr(dynamo, CAPABILITY):
        raise InputError(
            f"compile is 'on', which needs torch 2.11 or newer, and this is {torch.__version__}: use compile 'off'"
        )
    setattr(dynamo, CAPABILITY, True)
    # A copy of the code per call: torch counts and looks up compilations by code object, and the many trainers of a
    # sweep must neither exhaust its limit nor search through each other's.
    code = method.__func__.__code__.replace()
    own = types.FunctionType(code, method.__globals__, method.__name__, method.__defaults__, method.__closure__)
    return torch.compile(types.MethodType(own, method.__self__), fullgraph=True, dynamic=False)
