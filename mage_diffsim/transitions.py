"""Rows of the replay buffer with every column stored once: next observations, and what states and observations share.

Columns are compared by their bits, whatever the task is. The next observation of a row is the observation of the row
after it, but at the ends of episodes; those few elements are stored as exceptions.
"""

from __future__ import annotations

from typing import Any

import torch

from mage_diffsim.shapes import Float, Int, Tensor

_BITS = {4: torch.int32, 8: torch.int64}
_SAMPLES = 64
"""Rows that columns are compared at before they are compared whole."""

Source = tuple[int, int]
"""The column whose elements a column repeats, and from how many rows further down."""


def shared(rows: Float[Tensor, "R T W"]) -> dict[str, Any]:
    """The rows without what repeats, as tensors and plain containers; the inverse of :func:`unshared`.

    Args:
        rows: on the CPU, T of one row or more.
    """
    bits = rows.contiguous().view(_BITS[rows.element_size()])
    sources = _sources(bits)
    at = _exceptions(bits, sources)
    if at.numel() > bits.numel() // 8:  # the samples were no samples of the whole
        sources = list[Source | None]([None] * bits.shape[2])
        at = _exceptions(bits, sources)
    return {
        "shape": list(rows.shape),
        "sources": [source and list(source) for source in sources],
        "columns": _plain(bits, sources).view(rows.dtype),
        "exceptions_at": at,
        "exceptions": bits.view(-1)[at].view(rows.dtype),
    }


def unshared(stored: dict[str, Any]) -> Float[Tensor, "R T W"]:
    """The rows that :func:`shared` stored."""
    columns, exceptions = stored["columns"], stored["exceptions"]
    dtype = _BITS[columns.element_size()]
    sources = [source and (source[0], source[1]) for source in stored["sources"]]
    bits = _repeated(columns.view(dtype), sources, stored["shape"])
    bits.view(-1)[stored["exceptions_at"]] = exceptions.view(dtype)
    return bits.view(columns.dtype)


def _plain(bits: Int[Tensor, "R T W"], sources: list[Source | None]) -> Int[Tensor, "P R T"]:
    """The columns that repeat no other; by column, as the elements of one are of similar size."""
    return bits.permute(2, 0, 1)[[c for c, source in enumerate(sources) if source is None]].contiguous()


def _repeated(plain: Int[Tensor, "P R T"], sources: list[Source | None], shape: list[int]) -> Int[Tensor, "R T W"]:
    bits = torch.empty(shape, dtype=plain.dtype)
    bits[..., [c for c, source in enumerate(sources) if source is None]] = plain.permute(1, 2, 0)
    for column, source in enumerate(sources):
        if source is not None:
            bits[..., column] = bits[..., source[0]].roll(-source[1], dims=1)
    return bits


def _exceptions(bits: Int[Tensor, "R T W"], sources: list[Source | None]) -> Int[Tensor, " E"]:
    """Where the rows are not what the sources make of them."""
    repeated = _repeated(_plain(bits, sources), sources, list(bits.shape))
    return (repeated != bits).view(-1).nonzero().squeeze(1)


def _sources(bits: Int[Tensor, "R T W"]) -> list[Source | None]:
    """For every column, the earlier column that most of its elements repeat, if there is one that repeats none."""
    count = bits.shape[1]
    at = torch.linspace(0, max(count - 2, 0), min(_SAMPLES, count)).long()
    samples = {shift: bits[:, (at + shift) % count] for shift in (0, 1)}
    sources: list[Source | None] = []
    for column in range(bits.shape[2]):
        candidates = [c for c, source in enumerate(sources) if source is None]
        best, found = 0.5, None
        for shift, sample in samples.items() if candidates else ():
            share = (sample[..., candidates] == samples[0][..., [column]]).float().mean(dim=(0, 1))
            if share.max().item() > best:
                best, found = share.max().item(), (candidates[int(share.argmax())], shift)
        sources.append(found)
    return sources
