"""Memory on the CPU that is used again.

The C library gives memory of many megabytes back to the system when it is freed, and the system clears it anew. Of a
step of gymnasium's humanoid with its tape, that is half of the time.
"""

from __future__ import annotations

import weakref

import numpy as np
import torch

from mage_diffsim.shapes import Tensor

LEAST = 1 << 20
"""Bytes from which a block is kept."""
ALIGNED = 64
"""Bytes of a vector, of which a block's address is a multiple."""
KEPT = 2
"""Free blocks that are kept at most."""


def aligned(length: int) -> np.ndarray:
    """Bytes [length] of unknown numbers at a multiple of :data:`ALIGNED`, of numpy, which asks for huge pages."""
    memory = np.empty(length + ALIGNED, np.uint8)
    begin = -memory.ctypes.data % ALIGNED
    return memory[begin : begin + length]


class Blocks:
    """Tensors of one dtype whose memory goes to the next ones when they are freed.

    Blocks come back at any time, also while this thread looks for one, so there is no lock: every change of the list is
    atomic.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self.free: list[Tensor] = []

    def empty(self, *shape: int) -> Tensor:
        """A tensor of unknown numbers on the CPU."""
        size = torch.Size(shape).numel()
        if size * self._dtype.itemsize < LEAST:
            return torch.empty(shape, dtype=self._dtype)
        block = self._taken(size)
        view = block.numpy()[:size]
        weakref.finalize(view, self._give_back, block)  # torch holds the view as long as any tensor has its memory
        return torch.from_numpy(view).view(shape)

    def _taken(self, size: int) -> Tensor:
        """A free block that is not much too large, or a new one."""
        unfit: list[Tensor] = []
        try:
            while True:
                block = self.free.pop()
                if size <= block.numel() <= 2 * size:
                    return block
                unfit.append(block)
        except IndexError:
            return torch.from_numpy(aligned(size * self._dtype.itemsize)).view(self._dtype)
        finally:
            self.free[:0] = unfit

    def _give_back(self, block: Tensor) -> None:
        self.free.append(block)
        del self.free[:-KEPT]
