"""The same functions, captured: ``--graphs on`` replays whole env steps' updates as CUDA graphs, without launch costs.

Random numbers are drawn before and copied into a graph's inputs, and step counts live on the device, so a graph holds
nothing but tensor operations on memory that stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from mage_diffsim.bridges.types import Tensor

WARM_UPS = 3
"""Runs before a capture, in which libraries allocate and compile what they need."""


class Captured:
    """A function that updates tensors in place, recorded as a CUDA graph on its first call and replayed from then on.

    Args:
        function: of tensors whose shapes never change; may return one tensor, which the next call overwrites. It must
            neither wait for the device nor draw random numbers.
        state: gives what the function updates, nested in dicts and lists; the warm-ups' effects on it are undone.
    """

    def __init__(self, function: Callable[..., Tensor | None], state: Callable[[], Any]) -> None:
        self.function, self.state = function, state
        self.inputs: tuple[Tensor, ...] = ()
        self.output: Any = None
        self.graph: Any = None

    def __call__(self, *inputs: Tensor) -> Any:
        with torch.cuda.device(inputs[0].device):  # streams and graphs are those of the current device
            if self.graph is None:
                self.inputs = tuple(x.clone() for x in inputs)
                self.graph = self._record()
            else:
                torch._foreach_copy_(self.inputs, inputs)  # pyright: ignore[reportPrivateImportUsage]
            self.graph.replay()
        return self.output

    def _record(self) -> Any:
        tensors = list(tensors_of(self.state()))
        before = [x.clone() for x in tensors]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    self.function(*self.inputs)
        finally:
            torch.cuda.current_stream().wait_stream(stream)
            torch._foreach_copy_(tensors, before)  # pyright: ignore[reportPrivateImportUsage]
        graph = torch.cuda.CUDAGraph()
        # Other threads (JAX's, say) may use the device meanwhile: only this one's mistakes are to fail a capture.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.output = self.function(*self.inputs)
        return graph


def tensors_of(state: Any) -> Iterator[Tensor]:
    """The tensors in nested dicts, lists and tuples."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from tensors_of(value)
    elif isinstance(state, Sequence) and not isinstance(state, str):
        for value in state:
            yield from tensors_of(value)
