"""Stage 4, collisions: where two geoms touch, one function per pair of kinds (:data:`COLLISIONS`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mage_diffsim.envs.mujoco.mixing import PARALLEL, SMALLEST
from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.boxes import plane_box, sphere_box
from mage_diffsim.envs.warp.compiler.cylinders import plane_cylinder, sphere_cylinder
from mage_diffsim.envs.warp.compiler.geoms import Found, Geom, clip, on_plane, shortest
from mage_diffsim.envs.warp.compiler.graph import (
    absolute,
    add,
    div,
    is_constant,
    less,
    maximum,
    mul,
    neg,
    sqrt,
    sub,
    where,
)


def _plane_sphere(plane: Geom, sphere: Geom, noise: float) -> Iterator[Found]:
    del noise
    yield _plane_ball(plane, sphere.centre, sphere.size[0])


def _plane_capsule(plane: Geom, capsule: Geom, noise: float) -> Iterator[Found]:
    """The contacts of both ends, whose first tangent lies along the capsule."""
    del noise
    for end in (1.0, -1.0):
        centre = al.plus(capsule.centre, al.times(capsule.axis, end * capsule.size[1]))
        yield _plane_ball(plane, centre, capsule.size[0])._replace(hint=capsule.axis)


def _plane_ball(plane: Geom, centre: al.Vector, radius: Any) -> Found:
    distance = sub(al.dot(plane.axis, al.minus(centre, plane.centre)), radius)
    return Found(distance, al.minus(centre, al.times(plane.axis, add(radius, mul(0.5, distance)))), plane.axis)


def _plane_ellipsoid(plane: Geom, ellipsoid: Geom, noise: float) -> Iterator[Found]:
    """The contact at the lowest point."""
    del noise
    scaled = [mul(size, x) for size, x in zip(ellipsoid.size, ellipsoid.inside(plane.axis), strict=True)]
    length = sqrt(al.dot(scaled, scaled))
    yield on_plane(plane, ellipsoid, [mul(-s, div(x, length)) for s, x in zip(ellipsoid.size, scaled, strict=True)])


def _spheres(first: Geom, second: Geom, noise: float) -> Iterator[Found]:
    yield from _round(first, second, noise, [(first.centre, second.centre, False, False)])


def _sphere_capsule(sphere: Geom, capsule: Geom, noise: float) -> Iterator[Found]:
    """The contact with the nearest point of the segment."""
    along = al.dot(capsule.axis, al.minus(sphere.centre, capsule.centre))
    nearest = al.plus(capsule.centre, al.times(capsule.axis, clip(along, capsule.size[1])))
    yield from _round(sphere, capsule, noise, [(sphere.centre, nearest, False, False)])


def _capsules(first: Geom, second: Geom, noise: float) -> Iterator[Found]:
    """The contacts at :func:`_capsule_points`."""
    yield from _round(first, second, noise, _capsule_points((first, second)))


COLLISIONS: dict[tuple[str, str], Callable[[Geom, Geom, float], Iterator[Found]]] = {
    ("plane", "sphere"): _plane_sphere,
    ("plane", "capsule"): _plane_capsule,
    ("plane", "ellipsoid"): _plane_ellipsoid,
    ("plane", "cylinder"): plane_cylinder,
    ("plane", "box"): plane_box,
    ("sphere", "sphere"): _spheres,
    ("sphere", "capsule"): _sphere_capsule,
    ("sphere", "cylinder"): sphere_cylinder,
    ("sphere", "box"): sphere_box,
    ("capsule", "capsule"): _capsules,
}
"""Kinds of two geoms to the function that yields the contacts that MuJoCo's would find, near or far.

It is given the two geoms and a length: a vector of unit vectors shorter than that has no direction.
"""


_Place = tuple[al.Vector, al.Vector, Any, Any]
"""(point on the first segment, point on the second, whether they are the nearest points of two lines that are not
parallel, whether this place does not count)."""


def _round(first: Geom, second: Geom, noise: float, places: Sequence[_Place]) -> Iterator[Found]:
    """Contacts of spheres around points of two segments, whose radii are the geoms' first sizes."""
    radius, short = first.size[0], shortest(noise, first, second)
    # Two centres in one place have no direction; MuJoCo takes one orthogonal to both axes.
    across = al.direction(al.cross(first.axis, second.axis), al.IDENTITY[0], noise)
    for start, end, crossing, absent in places:
        apart = al.minus(end, start)
        length, safe = al.guarded_norm(apart, short)
        touching = less(length, short)
        normal = [where(touching, b, div(a, safe)) for a, b in zip(apart, across, strict=True)]
        # The nearest points of two lines differ by a vector orthogonal to both lines. Where the lines almost meet, as
        # all do in a planar model, the computed difference is a rounding error without direction.
        gap = al.dot(apart, across)
        sign = where(less(gap, -short), -1.0, 1.0)
        normal = [where(crossing, mul(sign, b), a) for a, b in zip(normal, across, strict=True)]
        distance = sub(where(crossing, absolute(gap), length), radius + second.size[0])
        yield Found(distance, al.plus(start, al.times(normal, add(radius, mul(0.5, distance)))), normal, absent=absent)


def _capsule_points(geoms: tuple[Geom, Geom]) -> list[_Place]:
    """The places at which MuJoCo puts spheres on the segments centre +- half axis.

    They are the nearest points. Parallel axes have two places: the ends of the first segment, or of its part beside the
    second, and the points of the second beside them.
    """
    centres, axes, halves = [g.centre for g in geoms], [g.axis for g in geoms], [g.size[1] for g in geoms]
    apart = al.minus(centres[0], centres[1])
    cosine, along = al.dot(axes[0], axes[1]), [neg(al.dot(axes[0], apart)), al.dot(axes[1], apart)]
    across = al.cross(axes[0], axes[1])
    # The squared sine, without the cancellation of 1 - cosine^2.
    square = al.dot(across, across)
    skew = less(PARALLEL**2, square)
    ends = [is_constant(h) and (2.0 * h) ** 2 <= SMALLEST for h in halves]

    def place(x1: Any) -> tuple[al.Vector, al.Vector, Any]:
        """The point of the second segment nearest to x1 on the first; if that is an end, the first's nearest to it.

        Last, how far beyond its end the second point would be; negative within the segment.
        """
        if ends[1]:
            x1, x2, beyond = x1 if ends[0] else clip(sub(along[0], mul(cosine, halves[1])), halves[0]), -halves[1], 1.0
        else:
            x2 = add(along[1], mul(cosine, x1))
            beyond, x2 = sub(absolute(x2), halves[1]), clip(x2, halves[1])
            if not ends[0]:
                x1 = where(less(0.0, beyond), clip(add(along[0], mul(cosine, x2)), halves[0]), x1)
        first, second = (al.plus(c, al.times(a, x)) for c, a, x in zip(centres, axes, (x1, x2), strict=True))
        return first, second, beyond

    if any(ends):  # MuJoCo: a segment without length is one of its ends
        return [(*place(-halves[0])[:2], False, False)]
    nearest = div(al.dot(across, al.cross(axes[1], apart)), where(skew, square, 1.0))
    nearest = where(skew, nearest, -2.0 * halves[0])
    *points, beyond = place(clip(nearest, halves[0]))
    crossing = less(maximum(sub(absolute(nearest), halves[0]), beyond), 0.0)
    return [(*points, crossing, False), (*place(halves[0])[:2], False, skew)]  # type: ignore[list-item]
