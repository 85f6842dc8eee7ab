"""CUDA graphs (``--graphs``): the parts of an environment step are recorded once and replayed without launch costs.

Random numbers are functions of the environment step, and step counts live on the device, so a graph holds nothing but
tensor operations on memory that stays where it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mage_diffsim.shapes import Tensor

WARM_UPS = 3
"""Runs before a capture, in which libraries allocate and compile what they need."""


class CannotBeCaptured(RuntimeError):
    """An operation that no CUDA graph can hold; the message names it."""


_INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)
_WAITING = (torch.ops.aten._linalg_check_errors.default, torch.ops.aten.linalg_matrix_exp.default)
"""Operations that wait for the host without a tag that says so; the former is part of solve, inv and cholesky."""


class NothingForTheHost(TorchDispatchMode):
    """Raises CannotBeCaptured at an operation whose result or size the host would wait for, at a copy from or to
    another device, and at a draw of random numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        unfit = bool({torch.Tag.data_dependent_output, torch.Tag.nondeterministic_seeded} & set(func.tags))
        if func in _INDEXED:
            given = [x for x in args[1] if x is not None]
            unfit |= any(x.dtype in (torch.bool, torch.uint8) or x.device != args[0].device for x in given)
        elif func is torch.ops.aten._to_copy.default:
            unfit |= kwargs.get("device") not in (None, args[0].device)
        elif func is torch.ops.aten.copy_.default:
            unfit |= args[0].device != args[1].device
        else:
            unfit |= func in _WAITING or torch.Tag.dynamic_output_shape in func.tags
        if unfit:
            raise CannotBeCaptured(f"{func} waits for the host, moves data between devices or draws random numbers")
        return func(*args, **kwargs)


class NothingFromPython(TorchFunctionMode):
    """Raises CannotBeCaptured where numbers go between Python and a tensor's device out of the sight of torch's modes:
    where a device's tensor is made of numbers or indexed by them, and where a tensor becomes numbers."""

    MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)
    INDEXERS = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)
    READERS = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.READERS:
            raise CannotBeCaptured(f"{func.__name__} waits for the host")
        if func in self.INDEXERS and args[0].device.type != "cpu":
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(x, Sequence | np.ndarray) for x in index):
                raise CannotBeCaptured("an index of several numbers copies numbers of Python to the device")
        made = func(*args, **(kwargs or {}))
        if func in self.MAKERS and made.device.type != "cpu" and not any(isinstance(x, Tensor) for x in args[-1:]):
            raise CannotBeCaptured(f"{func.__name__} copies numbers of Python to the device")
        return made


class GraphMemory:
    """What the graphs of one training share: the memory of what they compute in between.

    They are replayed one after the other. The memory is given back with the last of them, and torch takes no handle
    whose graphs are all gone, so another training has another.
    """

    @functools.cached_property
    def handle(self) -> Any:
        """As :class:`torch.cuda.graph` takes it; made when it is first needed, where there is a GPU."""
        return torch.cuda.graph_pool_handle()


class Captured:
    """A function that is recorded as a CUDA graph on its first call and replayed from then on.

    What is to stay must be part of the state, as other graphs use the memory of all else.

    Args:
        function: without arguments and result. It must neither wait for the device nor draw random numbers.
        state: gives what the function updates, nested in dicts and lists; the warm-ups' effects on it are undone.
        memory: of the training's graphs.
    """

    def __init__(self, function: Callable[[], None], state: Callable[[], Any], memory: GraphMemory) -> None:
        self.function, self.state, self.memory = function, state, memory
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
        stream = _stream(device)
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    try:
                        self.function()
                    finally:  # each begins where the first replay will
                        torch._foreach_copy_(tensors, before)  # pyright: ignore[reportPrivateImportUsage]
        finally:
            torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads (JAX's, say) may use the device meanwhile: only this one's mistakes are to fail a capture.
        with torch.cuda.graph(graph, self.memory.handle, stream, capture_error_mode="thread_local"):
            self.function()
        return graph


@functools.cache
def _stream(device: torch.device) -> Any:
    """Where a device's graphs are warmed up and captured: libraries keep workspaces by stream, which must be there."""
    return torch.cuda.Stream(device)


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
