"""Contacts of boxes, as MuJoCo C makes them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.convex_shapes import ON_PLANE
from mage_diffsim.envs.warp.compiler.geoms import Found, Geom, clip, on_plane, shortest
from mage_diffsim.envs.warp.compiler.graph import absolute, add, div, less, mul, sub, where


def plane_box(plane: Geom, box: Geom, noise: float) -> Iterator[Found]:
    """Of two opposite corners the lower one, which makes four contacts.

    MuJoCo takes the first four corners that are not above the centre. These are other ones where a corner is exactly as
    high as the centre.
    """
    del noise
    # A sum's terms are in the order of their making. All products come first, so that all corners have the same form.
    heights = [(mul(-size, x), mul(size, x)) for size, x in zip(box.size, box.inside(plane.axis), strict=True)]
    for corner in itertools.product((0, 1), (0, 1), (0,)):
        x, y, z = (height[side] for height, side in zip(heights, corner, strict=True))
        above = less(0.0, add(add(x, y), z))
        place = [size if side else -size for size, side in zip(box.size, corner, strict=True)]
        yield on_plane(plane, box, [where(above, -x, x) for x in place])


IN_ORDER = (
    ON_PLANE
    + """
        const real* size = given + 24;
        int n = 0;
        for (int corner = 0; corner < 8 && n < 4; ++corner) {
            real to[3], along = 0;
            for (int k = 0; k < 3; ++k) to[k] = corner >> k & 1 ? 1 : -1;
            for (int k = 0; k < 3; ++k) along += up[k] * to[k] * size[k];
            if (along > 0 || height + along > given[27]) continue;
            real* feature = found + 4 * n++;
            feature[0] = 1;
            for (int k = 0; k < 3; ++k) feature[k + 1] = to[k];
        }
        return n;
"""
)
"""The search for the corners of a box on a plane, in MuJoCo's order; features are 1 and the corner's signs."""


def corner_on_plane(features: al.Vector, plane: Geom, box: Geom, noise: float) -> Found:
    """The contact of a corner that :data:`IN_ORDER` found."""
    del noise
    return on_plane(plane, box, [mul(size, sign) for size, sign in zip(box.size, features[1:], strict=True)])


def sphere_box(sphere: Geom, box: Geom, noise: float) -> Iterator[Found]:
    """The contact at the box's nearest point. A sphere whose centre is inside is pushed out of the nearest face."""
    centre = box.inside(al.minus(sphere.centre, box.centre))
    towards = [sub(clip(x, size), x) for x, size in zip(centre, box.size, strict=True)]
    short = shortest(noise, sphere, box)
    length, safe = al.guarded_norm(towards, short)
    depth, face = _nearest_face(centre, box.size)
    inside = less(length, short)
    normal = [where(inside, a, div(b, safe)) for a, b in zip(face, towards, strict=True)]
    normal = al.apply(box.frame, normal)
    distance = sub(where(inside, -depth, length), sphere.size[0])
    yield Found(distance, al.plus(sphere.centre, al.times(normal, add(sphere.size[0], mul(0.5, distance)))), normal)


def _nearest_face(centre: al.Vector, size: tuple[Any, ...]) -> tuple[Any, al.Vector]:
    """How deep a point of a box is below its nearest face, and that face's normal, inwards.

    Of faces that are equally near it is the first in the order -x, x, -y, y, -z, z.
    """
    depth, *others = [sub(s, absolute(x)) for s, x in zip(size, centre, strict=True)]
    inwards = [where(less(0.0, x), -1.0, 1.0) for x in centre]
    normal = [inwards[0], 0.0, 0.0]
    for k, other in enumerate(others, 1):
        nearer = less(other, depth)
        depth = where(nearer, other, depth)
        normal = [where(nearer, inwards[k] if i == k else 0.0, x) for i, x in enumerate(normal)]
    return depth, normal
