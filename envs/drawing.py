"""Draws a state with numpy alone, well enough to see what a policy does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DARK = (40, 44, 52)
RED = (204, 77, 77)
BLUE = (66, 120, 200)


class Line(NamedTuple):
    """A thick line with round ends; coordinates lie in [-1, 1], x to the right and y up."""

    start: tuple[float, float]
    end: tuple[float, float]
    radius: float
    color: tuple[int, int, int]


def draw_lines(lines: Sequence[Line], size: int = 240) -> np.ndarray:
    """The lines on white, later ones on top; uint8 [size, size, 3]."""
    axis = (np.arange(size) + 0.5) / size * 2.0 - 1.0
    pixels = np.stack(np.meshgrid(axis, -axis), axis=-1)
    image = np.full((size, size, 3), 255.0)
    for line in lines:
        start, along = np.array(line.start), np.subtract(line.end, line.start)
        # The nearest point of the segment; a segment of length 0 is a disc.
        t = np.clip((pixels - start) @ along / max(float(along @ along), 1e-12), 0.0, 1.0)
        distance = np.linalg.norm(pixels - start - t[..., None] * along, axis=-1)
        cover = np.clip((line.radius - distance) * size / 2.0 + 0.5, 0.0, 1.0)[..., None]  # soft edge, one pixel wide
        image = image * (1.0 - cover) + cover * np.array(line.color)
    return image.round().astype(np.uint8)


def draw_bars(values: Sequence[float], size: int = 240) -> np.ndarray:
    """One vertical bar per value, up for positive ones, squashed by x / (1 + |x|); uint8 [size, size, 3]."""
    width = 2.0 / len(values)
    bars = [Line((-1.0, 0.0), (1.0, 0.0), 0.006, DARK)]
    for i, value in enumerate(np.nan_to_num(np.asarray(values, dtype=np.float64))):
        x = -1.0 + (i + 0.5) * width
        bars.append(Line((x, 0.0), (x, 0.9 * float(value / (1.0 + abs(value)))), min(0.3 * width, 0.04), BLUE))
    return draw_lines(bars, size)
