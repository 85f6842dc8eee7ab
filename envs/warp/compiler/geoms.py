"""Geoms and their contacts, as expressions: what the collision functions take and yield."""

from __future__ import annotations

from typing import Any, NamedTuple

from mage_diffsim.envs.mujoco.mixing import SMALLEST
from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.graph import add, div, less, maximum, minimum, mul, sub, where


class Geom(NamedTuple):
    """Where one of two geoms is, and its size."""

    centre: al.Vector
    """Relative to an origin that both share [m]."""
    frame: al.Matrix
    """The geom's axes in columns."""
    size: tuple[Any, ...]
    """As in MJCF, 0 where its kind has fewer than three [m]."""

    @property
    def axis(self) -> al.Vector:
        """The z axis: a plane's normal, the line of a capsule or cylinder."""
        return al.column(self.frame, 2)

    def inside(self, v: al.Vector) -> al.Vector:
        """A vector in the geom's frame."""
        return [al.dot(al.column(self.frame, k), v) for k in range(3)]


class Found(NamedTuple):
    """One contact that two geoms can have."""

    distance: Any
    """Of the surfaces [m]; negative where they overlap."""
    point: al.Vector
    """Halfway between the surfaces, relative to the geoms' origin."""
    normal: al.Vector
    """From the first geom to the second."""
    hint: Any = None
    """Direction of the first tangent where MuJoCo gives one, else None."""
    absent: Any = False
    """Condition: the geoms have no such contact where they are, however close."""


def turned(first: Geom, second: Geom, by_first: Any, v: al.Vector) -> al.Vector:
    """A vector that is given in the first geom's frame, or in the second's where the condition fails."""
    return al.apply(al.choose(by_first, first.frame, second.frame), v)


def meeting(start: al.Vector, way: al.Vector, normal: al.Vector, bound: Any) -> al.Vector:
    """Where a line meets the plane {normal . x = bound}; ``start`` where it is parallel to that, as without a way."""
    slope = al.dot(normal, way)
    meets = less(SMALLEST * SMALLEST, mul(slope, slope))
    length = div(sub(bound, al.dot(normal, start)), where(meets, slope, 1.0))
    return al.plus(start, al.times(way, where(meets, length, 0.0)))


def on_plane(plane: Geom, geom: Geom, lowest: al.Vector) -> Found:
    """The contact of a plane with a point of a geom, given in the geom's frame."""
    height = al.dot(plane.axis, al.minus(geom.centre, plane.centre))
    distance = add(height, al.dot(geom.inside(plane.axis), lowest))
    surface = al.plus(geom.centre, al.apply(geom.frame, lowest))
    return Found(distance, al.minus(surface, al.times(plane.axis, mul(0.5, distance))), plane.axis)


def clip(x: Any, bound: Any) -> Any:
    """x between -bound and bound."""
    return maximum(minimum(x, bound), -bound)


def shortest(noise: float, first: Geom, second: Geom) -> Any:
    """The length [m] below which a vector between points of two geoms has no direction."""
    return noise if noise == SMALLEST else noise * sum((*first.size, *second.size))
