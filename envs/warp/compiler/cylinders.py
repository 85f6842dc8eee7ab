"""Contacts of cylinders, as MuJoCo C makes them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.geoms import Found, Geom, on_plane, shortest
from mage_diffsim.envs.warp.compiler.graph import absolute, add, div, less, minimum, mul, neg, sqrt, sub, where


def plane_cylinder(plane: Geom, cylinder: Geom, noise: float) -> Iterator[Found]:
    """The lowest points of both rims, then two more points of the lower rim, which make an equilateral triangle.

    The triangle of a cylinder on end begins at the cylinder's x axis.
    """
    radius, half = cylinder.size[:2]
    x, y, slope = cylinder.inside(plane.axis)
    x, y, _ = al.times(al.direction([neg(x), neg(y), 0.0], al.IDENTITY[0], noise), radius)
    above = less(0.0, slope)
    for end in (half, -half):
        yield on_plane(plane, cylinder, [x, y, where(above, -end, end)])
    for sine in (math.sqrt(0.75), -math.sqrt(0.75)):
        rim = [add(mul(-0.5, x), mul(sine, y)), sub(mul(-0.5, y), mul(sine, x))]
        yield on_plane(plane, cylinder, [*rim, where(above, -half, half)])


def sphere_cylinder(sphere: Geom, cylinder: Geom, noise: float) -> Iterator[Found]:
    """The contact with the side, a cap or a rim; a centre inside is pushed out of the nearer of side and cap."""
    radius, half = cylinder.size[:2]
    apart = al.minus(sphere.centre, cylinder.centre)
    height = al.dot(cylinder.axis, apart)
    outwards = al.minus(apart, al.times(cylinder.axis, height))
    short = shortest(noise, sphere, cylinder)
    from_axis, safe = al.guarded_norm(outwards, short)
    # In the half plane of the sphere's centre and the axis, distances from cap and side.
    beyond, beside = sub(absolute(height), half), sub(from_axis, radius)
    at_cap, at_side = less(beside, minimum(beyond, 0.0)), less(beyond, 0.0)
    square = add(mul(beyond, beyond), mul(beside, beside))
    on_rim = less(square, short**2)
    from_rim = sqrt(where(on_rim, 1.0, square))
    along = where(at_cap, 1.0, where(at_side, 0.0, div(beyond, from_rim)))
    across = where(at_cap, 0.0, where(at_side, 1.0, div(beside, from_rim)))
    inwards = al.times(cylinder.axis, where(less(0.0, height), neg(along), along))
    normal = al.minus(inwards, al.times(outwards, div(across, safe)))
    # MuJoCo's direction of two points in one place.
    known = where(at_cap, 1.0, where(at_side, from_axis, where(on_rim, 0.0, from_rim)))
    otherwise = al.direction(al.cross(sphere.axis, cylinder.axis), al.IDENTITY[0], noise)
    normal = al.choose(less(known, short), otherwise, normal)
    gap = where(at_cap, beyond, where(at_side, beside, where(on_rim, 0.0, from_rim)))
    distance = sub(gap, sphere.size[0])
    yield Found(distance, al.plus(sphere.centre, al.times(normal, add(sphere.size[0], mul(0.5, distance)))), normal)
