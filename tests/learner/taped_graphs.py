"""CUDA graphs on the CPU: what torch does while a graph is captured is taped, and done again on the same memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mage_diffsim.cuda_graphs import Captured, NothingForTheHost, NothingFromPython, tensors_of


class Tape(TorchDispatchMode):
    """Keeps every operation with its arguments and results: numbers of Python as they are then."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, results))
        return results

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, results in self.operations:
            pairs = zip(tree_leaves(results), tree_leaves(func(*args, **kwargs)), strict=True)
            for old, new in pairs:
                is_new = isinstance(new, torch.Tensor) and new.data_ptr() != old.data_ptr()
                if is_new:  # not a view, nor the result of an operation in place
                    old.copy_(new)


class TapedGraph:
    """Stands for :class:`torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.tape = Tape()
        self.pool: object = None
        self.stream: object = None

    def replay(self) -> None:
        self.tape.replay()


class Stream:
    """Stands for :class:`torch.cuda.Stream`."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device

    def wait_stream(self, other: Stream) -> None:
        pass


def tape_graphs(monkeypatch: pytest.MonkeyPatch) -> list[Captured]:
    """Let CUDA graphs be taped. Gives all that are made from now on.

    Kernels of other frameworks are not torch's operations and are not taped.
    """
    made: list[Captured] = []

    @contextlib.contextmanager
    def capture(graph: TapedGraph, pool: object, stream: object, capture_error_mode: str) -> Iterator[None]:
        graph.pool, graph.stream = pool, stream
        tensors = [x for captured in made for x in tensors_of(captured.state())]
        before = [x.clone() for x in tensors]
        with NothingForTheHost(), NothingFromPython(), graph.tape:
            yield
        for x, old in zip(tensors, before, strict=True):  # what is captured is not done
            x.copy_(old)

    def init(self: Captured, *arguments: Any, init: Callable[..., None] = Captured.__init__) -> None:
        init(self, *arguments)
        made.append(self)

    monkeypatch.setattr(Captured, "__init__", init)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", TapedGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())
    return made
