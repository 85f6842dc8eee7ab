"""Stage 4, collisions of convex geoms: the contact that the features of :mod:`.convex_search` make.

Two geoms touch along the normal that separates them most or, if they overlap, that takes the least to separate them.
MuJoCo C looks for it with the algorithms GJK and EPA, to its ``ccd_tolerance``. The contact here is exact.
"""

from __future__ import annotations

from typing import Any

from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.convex_search import FEATURES
from mage_diffsim.envs.warp.compiler.geoms import Found, Geom, turned
from mage_diffsim.envs.warp.compiler.graph import add, div, less, mul, sub, where

SMOOTH = (
    ("sphere", "ellipsoid"),
    ("capsule", "ellipsoid"),
    ("ellipsoid", "ellipsoid"),
    ("ellipsoid", "cylinder"),
    ("ellipsoid", "box"),
)
"""Kinds of two geoms of which one is an ellipsoid; they have one contact."""
THRESHOLDS = {
    "double": {
        "tiny": "real(1e-12)",
        "rounding": "real(1e-14)",
        "settled": "real(1e-10)",
        "tilt": "real(1e-7)",
        "flat": "real(1e-6)",
        "enough": "real(1e-4)",
        "parallel": "real(1e-12)",
    },
    "float": {
        "tiny": "real(1e-6)",
        "rounding": "real(1e-6)",
        "settled": "real(1e-5)",
        "tilt": "real(1e-4)",
        "flat": "real(1e-3)",
        "enough": "real(1e-3)",
        "parallel": "real(1e-6)",
    },
}
"""What counts as 0 in the search: squares of sines (``parallel``), curvature relative to the geoms' size (``flat``), a
Newton step (``settled``), other numbers relative to what they are made of."""


def contact(kinds: tuple[str, str], features: al.Vector, first: Geom, second: Geom, noise: float) -> Found:
    """The contact that the features make of two geoms of :data:`SMOOTH`."""
    del noise
    f = dict(zip(FEATURES, features, strict=True))

    def vector(name: str) -> al.Vector:
        return [f[f"{name}{k}"] for k in range(3)]

    geoms, sides = (first, second), (1.0, -1.0)
    places, rounds = (vector("place1_"), vector("place2_")), (f["round1"], f["round2"])
    radius = [geom.size[0] if kind in ("sphere", "capsule") else 0.0 for kind, geom in zip(kinds, geoms, strict=True)]

    def witnesses(normal: al.Vector) -> list[al.Vector]:
        """The points of both geoms farthest along the normal, and against it."""
        every = zip(kinds, geoms, sides, places, rounds, strict=True)
        return [_farthest(kind, geom, al.times(normal, side), place, turn) for kind, geom, side, place, turn in every]

    start = vector("normal")
    # In lanes without a contact, any normal does.
    start[2] = where(less(f["present"], 0.5), 1.0, start[2])
    apart = al.minus(*reversed(witnesses(start)))
    flats, normal = [], start
    for j in (1, 2):
        of_second = less(0.5, f[f"of_second{j}"])
        flats.append(turned(second, first, of_second, vector(f"flat{j}_")))
        residual = add(al.dot(start, flats[-1]), al.dot(apart, vector(f"across{j}_")))
        normal = al.plus(normal, al.times(vector(f"lift{j}_"), residual))
    normal = al.direction(normal, al.IDENTITY[2])
    one, other = witnesses(normal)
    apart = al.minus(other, one)
    distance = sub(al.dot(normal, apart), sum(radius))
    # Where lines are nearest.
    towards = al.cross(normal, flats[1])
    crossing = less(0.5, f["crossing"])
    slope = where(crossing, al.dot(flats[0], towards), 1.0)
    one = al.plus(one, al.times(flats[0], where(crossing, div(al.dot(apart, towards), slope), 0.0)))
    by_second = less(0.5, f["by_second"])
    half = mul(0.5, distance)
    of_first = al.plus(one, al.times(normal, add(half, radius[0])))
    of_second = al.minus(other, al.times(normal, add(half, radius[1])))
    return Found(distance, al.choose(by_second, of_second, of_first), normal)


def _farthest(kind: str, geom: Geom, normal: al.Vector, place: al.Vector, turn: Any) -> al.Vector:
    """The point of a geom without its radius that is farthest along a normal, given its features."""
    if kind == "sphere":
        return geom.centre
    if kind == "ellipsoid":
        inside = geom.inside(normal)
        scaled = [mul(size, x) for size, x in zip(geom.size, inside, strict=True)]
        length = al.guarded_norm(scaled)[1]
        place = [div(mul(size, x), length) for size, x in zip(geom.size, scaled, strict=True)]
    elif kind == "cylinder":
        x, y, _ = geom.inside(normal)
        round_ = less(0.0, turn)
        _, length = al.guarded_norm([where(round_, x, 1.0), where(round_, y, 0.0), 0.0])
        out = div(turn, length)
        place = [add(place[0], mul(out, x)), add(place[1], mul(out, y)), place[2]]
    return al.plus(geom.centre, al.apply(geom.frame, place))
