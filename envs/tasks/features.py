"""Parts of observations that several tasks share."""

from __future__ import annotations

import torch

from mage_diffsim.shapes import Float, Tensor


def rotation(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation matrix of a unit quaternion: the frame's axes in columns."""
    w, x, y, z = quaternion.unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def names(**widths: int) -> tuple[str, ...]:
    """``name0``, ``name1``, ... for every name and its number of components; the name itself for one."""
    return tuple(f"{name}{i}" if width > 1 else name for name, width in widths.items() for i in range(width))
