"""Lossless packing of tensors: the bytes of equal significance together, deflated where that makes them smaller."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
import torch

from mage_diffsim.shapes import Tensor

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)
}
"""Name to dtype of the tensors that can be packed."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}

BLOCK_BYTES = 2**22
"""Bytes of a tensor that are packed together."""

_PLANE = struct.Struct("<?I")
"""What stands before every plane: whether it is deflated, and its bytes."""
_SAMPLE_BYTES = 2**14
_WORTH = 0.95
"""The share below which a sample must be deflated for its plane to be."""


def blocks_of(tensor: Tensor) -> Iterator[Tensor]:
    """The bytes of a tensor in pieces of at most BLOCK_BYTES, each [elements, bytes of an element] and on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    size = flat.element_size()
    yield from flat.view(torch.uint8).view(flat.numel(), size).split(max(BLOCK_BYTES // size, 1))


def pack(block: Tensor) -> bytes:
    """Pack a block (:func:`blocks_of`): one plane per byte of an element, the least significant first.

    The upper bytes of floats, sign and exponent, take a third when deflated; the others are random and stay as they
    are.
    """
    packed = []
    for plane in block.numpy().T:
        data = np.ascontiguousarray(plane)
        middle = data[len(data) // 2 :][:_SAMPLE_BYTES].tobytes()
        shrinks = len(_deflate(middle)) < _WORTH * len(middle)
        content = _deflate(data.tobytes()) if shrinks else data.tobytes()
        packed += [_PLANE.pack(shrinks, len(content)), content]
    return b"".join(packed)


def unpack(packed: list[bytes], dtype: torch.dtype, shape: list[int]) -> Tensor:
    """The tensor whose blocks were packed.

    Raises:
        ValueError, struct.error, zlib.error: they are not of such a tensor.
    """
    size = torch.empty(0, dtype=dtype).element_size()
    blocks = []
    for data in packed:
        planes, at = [], 0
        while at < len(data):
            deflated, length = _PLANE.unpack_from(data, at)
            at += _PLANE.size + length
            content = data[at - length : at]
            planes.append(np.frombuffer(zlib.decompress(content) if deflated else content, np.uint8))
        blocks.append(np.stack(planes, axis=1) if planes else np.empty((0, size), np.uint8))
    joined = torch.from_numpy(np.concatenate(blocks)) if blocks else torch.empty(0, size, dtype=torch.uint8)
    if joined.shape[1] != size or joined.shape[0] != np.prod(shape, dtype=int):
        raise ValueError(f"{joined.shape[0]} elements of {joined.shape[1]} bytes are no {dtype} of shape {shape}")
    return joined.reshape(-1).view(dtype).view(shape)


def _deflate(data: bytes) -> bytes:
    # Runs and frequencies only: several times faster than to look for repeats, which floats have not, and smaller.
    compressor = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    return compressor.compress(data) + compressor.flush()
