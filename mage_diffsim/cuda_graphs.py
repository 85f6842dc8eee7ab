"""CUDA graphs (``--graphs``): the parts of an environment step are recorded once and replayed without launch costs.

Random numbers are functions of the environment step, and step counts live on the device, so a graph holds nothing but
tensor operations on memory that stays where it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mage_diffsim.shapes import Tensor

WARM_UPS = 3
"""Runs before a capture, in which libraries allocate and compile what they need."""


class CannotBeCaptured(RuntimeError):
    """An operation that no CUDA graph can hold; the message names it."""


class NothingForTheHost(TorchDispatchMode):
    """Raises CannotBeCaptured at an operation whose result or size the host would wait for, at a copy from or to
    another device, and at a draw of random numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        unfit = bool({torch.Tag.data_dependent_output, torch.Tag.nondeterministic_seeded} & set(func.tags))
        if func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default):
            unfit |= any(x is not None and x.dtype == torch.bool for x in args[1])
        elif func is torch.ops.aten._to_copy.default:
            unfit |= kwargs.get("device") not in (None, args[0].device)
        elif func is torch.ops.aten.copy_.default:
            unfit |= args[0].device != args[1].device
        else:
            unfit |= torch.Tag.dynamic_output_shape in func.tags
        if unfit:
            raise CannotBeCaptured(f"{func} waits for the host, moves data between devices or draws random numbers")
        return func(*args, **kwargs)


class NothingFromPython(TorchFunctionMode):
    """Raises CannotBeCaptured where a device's tensor is made of Python numbers: torch copies them out of its modes'
    sight."""

    MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in self.MAKERS and made.device.type != "cpu" and not any(isinstance(x, Tensor) for x in args[-1:]):
            raise CannotBeCaptured(f"{func.__name__} copies numbers of Python to the device")
        return made


class Captured:
    """A function that updates tensors in place, recorded as a CUDA graph on its first call and replayed from then on.

    All graphs of a device share memory for what they compute in between, so what is to stay must be part of the state.

    Args:
        function: without arguments and result. It must neither wait for the device nor draw random numbers.
        state: gives what the function updates, nested in dicts and lists; the warm-ups' effects on it are undone.
    """

    def __init__(self, function: Callable[[], None], state: Callable[[], Any]) -> None:
        self.function, self.state = function, state
        self.graph: Any = None

    def __call__(self) -> None:
        device = next(tensors_of(self.state())).device if self.graph is None else self.device
        with torch.cuda.device(device):  # streams and graphs are those of the current device
            if self.graph is None:
                self.device, self.graph = device, self._record(device)
            self.graph.replay()

    def _record(self, device: torch.device) -> Any:
        tensors = list(tensors_of(self.state()))
        before = [x.clone() for x in tensors]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    self.function()
        finally:
            torch.cuda.current_stream().wait_stream(stream)
            torch._foreach_copy_(tensors, before)  # pyright: ignore[reportPrivateImportUsage]
        graph = torch.cuda.CUDAGraph()
        # Other threads (JAX's, say) may use the device meanwhile: only this one's mistakes are to fail a capture.
        with torch.cuda.graph(graph, pool=_pool(device), capture_error_mode="thread_local"):
            self.function()
        return graph


@functools.cache
def _pool(device: torch.device) -> Any:
    """The memory pool of a device's graphs: they are replayed one after the other."""
    return torch.cuda.graph_pool_handle()


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
