"""Compilation of whole updates by torch.compile (``--compile on``), derivatives and optimiser included.

The compiled functions take derivatives themselves (see :mod:`.autodiff`), so that a target, its action-gradient, the
critic gradient and the optimiser step become one graph.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import re
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from mage_diffsim.errors import InputError


def compiled(method: Any) -> Callable[..., Any]:
    """A bound method fused by torch.compile into one graph, for static shapes; compiled on its first call.

    Args:
        method: of tensors (and containers of them), without anything that has to leave the graph: host reads, random
            numbers, calls into other frameworks.

    Raises:
        InputError: when called, that something in it (say, a task's own reward) cannot be compiled.
    """
    from torch._dynamo.exc import TorchDynamoException  # takes seconds to import

    # A copy of the code per call: torch counts and looks up compilations by code object, and the many trainers of a
    # sweep must neither exhaust its limit nor search through each other's.
    of = method.__func__
    own = types.FunctionType(of.__code__.replace(), of.__globals__, of.__name__, of.__defaults__, of.__closure__)
    own.__kwdefaults__ = of.__kwdefaults__
    fused = torch.compile(types.MethodType(own, method.__self__), fullgraph=True, dynamic=False)

    calls = itertools.count()

    @functools.wraps(of)
    def call(*arguments: Any) -> Any:
        first = next(calls) == 0
        if first:
            logging.getLogger(__name__).info(f"compiling {of.__qualname__}: this may take a minute or more")
        try:
            with _no_advice() if first else contextlib.nullcontext():
                return fused(*arguments)
        except TorchDynamoException as error:
            cause = next(line.strip() for line in str(error).splitlines() if line.strip())
            # The last frame of the code that was traced: a task's own function, if it is at fault.
            frames = re.findall(r'^ *File "(.+)", line (\d+), in (\w+)', str(error), re.MULTILINE)
            cause += "".join(f"; {file}, line {line}, in {function}" for file, line, function in frames[-1:])
            raise InputError(
                f"compile is 'on', and {of.__qualname__} with this task cannot be compiled ({cause}): use compile 'off'"
            ) from error

    return call


@contextlib.contextmanager
def _no_advice() -> Iterator[None]:
    """Silences the compiler's advice to use TF32 products: the configuration decides that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")
        yield
