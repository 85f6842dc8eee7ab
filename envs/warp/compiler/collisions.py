"""Stage 4, collisions: where two geoms touch, one branch of :func:`collide` per pair of kinds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mage_diffsim.envs.mujoco.mixing import PARALLEL, SMALLEST
from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics
from mage_diffsim.envs.warp.compiler.graph import absolute, add, div, less, maximum, minimum, mul, neg, sub, where
from mage_diffsim.envs.warp.compiler.intake import Pair


class Found(NamedTuple):
    """One contact that two geoms can have."""

    origin: int
    """The body whose tree's origin the point is relative to."""
    distance: Any
    """Of the surfaces [m]; negative where they overlap."""
    point: al.Vector
    """Halfway between the surfaces."""
    normal: al.Vector
    """From the first geom to the second."""
    hint: Any = None
    """Direction of the first tangent where MuJoCo gives one, else None."""
    absent: Any = False
    """Condition: the geoms have no such contact where they are, however close."""


def collide(kinematics: Kinematics, pair: Pair, noise: float) -> Iterator[Found]:
    """Yields the contacts that MuJoCo's collision function of this pair of geoms would find, near or far.

    Args:
        kinematics: where the bodies are.
        pair: one of :data:`.intake.COLLISIONS`.
        noise: a vector of unit vectors shorter than this has no direction.
    """
    m = kinematics.model.model
    origin = pair.bodies[1] or pair.bodies[0]
    centres, axes, sizes = [], [], []
    for side, (geom, body) in enumerate(zip(pair.geoms, pair.bodies, strict=True)):
        at, frame = kinematics.geom(pair, side)
        centres.append(kinematics.relative(body, at, origin))
        axes.append(al.column(frame, 2))
        sizes.append([float(x) for x in m.geom_size[geom]])
    if pair.kinds[0] == "plane":
        radius = sizes[1][0]
        capsule = pair.kinds[1] == "capsule"
        for end in (1.0, -1.0) if capsule else (0.0,):
            centre = al.plus(centres[1], al.times(axes[1], end * sizes[1][1]))
            distance = sub(al.dot(axes[0], al.minus(centre, centres[0])), radius)
            point = al.minus(centre, al.times(axes[0], add(radius, mul(0.5, distance))))
            yield Found(origin, distance, point, axes[0], axes[1] if capsule else None)
        return
    if pair.kinds == ("capsule", "capsule"):
        places = _capsule_points(centres, axes, [s[1] for s in sizes])
    elif pair.kinds == ("sphere", "capsule"):
        along = al.dot(axes[1], al.minus(centres[0], centres[1]))
        nearest = al.plus(centres[1], al.times(axes[1], _clip(along, sizes[1][1])))
        places = [(centres[0], nearest, False, False)]
    else:
        places = [(centres[0], centres[1], False, False)]
    short = noise if noise == SMALLEST else noise * sum(sizes[0][:2] + sizes[1][:2])
    # Two centres in one place have no direction; MuJoCo takes one orthogonal to both axes.
    across = al.direction(al.cross(axes[0], axes[1]), al.IDENTITY[0], noise)
    for first, second, crossing, absent in places:
        apart = al.minus(second, first)
        length, safe = al.guarded_norm(apart, short)
        touching = less(length, short)
        normal = [where(touching, b, div(a, safe)) for a, b in zip(apart, across, strict=True)]
        # The nearest points of two lines differ by a vector orthogonal to both lines. Where the lines almost meet, as
        # all do in a planar model, the computed difference is a rounding error without direction.
        gap = al.dot(apart, across)
        sign = where(less(gap, -short), -1.0, 1.0)
        normal = [where(crossing, mul(sign, b), a) for a, b in zip(normal, across, strict=True)]
        distance = sub(where(crossing, absolute(gap), length), sizes[0][0] + sizes[1][0])
        point = al.plus(first, al.times(normal, add(sizes[0][0], mul(0.5, distance))))
        yield Found(origin, where(absent, pair.margin + 1.0, distance), point, normal, absent=absent)


def _clip(x: Any, bound: Any) -> Any:
    return maximum(minimum(x, bound), -bound)


_Place = tuple[al.Vector, al.Vector, Any, Any]
"""(point on the first segment, point on the second, whether they are the nearest points of two lines that are not
parallel, whether this place does not count)."""


def _capsule_points(centres: Sequence[al.Vector], axes: Sequence[al.Vector], halves: Sequence[float]) -> list[_Place]:
    """The places at which MuJoCo puts spheres on the segments centre +- half axis.

    They are the nearest points. Parallel axes have two places: the ends of the first segment, or of its part beside the
    second, and the points of the second beside them.
    """
    apart = al.minus(centres[0], centres[1])
    cosine, along = al.dot(axes[0], axes[1]), [neg(al.dot(axes[0], apart)), al.dot(axes[1], apart)]
    across = al.cross(axes[0], axes[1])
    # The squared sine, without the cancellation of 1 - cosine^2.
    square = al.dot(across, across)
    skew = less(PARALLEL**2, square)
    ends = [(2.0 * h) ** 2 <= SMALLEST for h in halves]

    def place(x1: Any) -> tuple[al.Vector, al.Vector, Any]:
        """The point of the second segment nearest to x1 on the first; if that is an end, the first's nearest to it.

        Last, how far beyond its end the second point would be; negative within the segment.
        """
        if ends[1]:
            x1, x2, beyond = x1 if ends[0] else _clip(sub(along[0], mul(cosine, halves[1])), halves[0]), -halves[1], 1.0
        else:
            x2 = add(along[1], mul(cosine, x1))
            beyond, x2 = sub(absolute(x2), halves[1]), _clip(x2, halves[1])
            if not ends[0]:
                x1 = where(less(0.0, beyond), _clip(add(along[0], mul(cosine, x2)), halves[0]), x1)
        first, second = (al.plus(c, al.times(a, x)) for c, a, x in zip(centres, axes, (x1, x2), strict=True))
        return first, second, beyond

    if any(ends):  # MuJoCo: a segment without length is one of its ends
        return [(*place(-halves[0])[:2], False, False)]
    nearest = div(al.dot(across, al.cross(axes[1], apart)), where(skew, square, 1.0))
    nearest = where(skew, nearest, -2.0 * halves[0])
    *points, beyond = place(_clip(nearest, halves[0]))
    crossing = less(maximum(sub(absolute(nearest), halves[0]), beyond), 0.0)
    return [(*points, crossing, False), (*place(halves[0])[:2], False, skew)]  # type: ignore[list-item]
