"""Why contacts that warp finds are not those of MuJoCo C."""

from __future__ import annotations

import numpy as np

from contact_pairs.finding import Judge, same

REACHES = {
    "sphere": lambda size, way: size[0],
    "capsule": lambda size, way: size[0] + size[1] * abs(way[2]),
    "ellipsoid": lambda size, way: np.linalg.norm(size * way),
    "cylinder": lambda size, way: size[0] * np.hypot(way[0], way[1]) + size[1] * abs(way[2]),
    "box": lambda size, way: size @ abs(way),
}
"""How far a geom extends along a direction, given in its frame."""
OUTSIDE = {
    "sphere": lambda size, x: np.linalg.norm(x) - size[0],
    "capsule": lambda size, x: np.linalg.norm([x[0], x[1], max(abs(x[2]) - size[1], 0.0)]) - size[0],
    "ellipsoid": lambda size, x: (np.linalg.norm(x / size) - 1.0) * size.min(),
    "cylinder": lambda size, x: max(np.hypot(x[0], x[1]) - size[0], abs(x[2]) - size[1]),
    "box": lambda size, x: (abs(x) - size).max(),
}
"""How far a point is outside a geom, in its frame; negative inside."""
EXACT = ("plane", "sphere", "capsule", "box")
"""Kinds between which MuJoCo C has closed forms or a search for features; so has it for a plane or sphere with any
kind but a sphere with an ellipsoid."""
NUDGE, NUDGES = 1e-13, 60
"""How far poses are moved [m], and how often, to see whether a contact is ill-posed."""
ALIKE = 1e-4
"""Ways out of each other count as equally short if they differ by less than this share of the smallest size."""
VERDICTS = (
    "equal",
    "ill-posed",
    "C inexact",
    "same distance",
    "equally short",
    "rest",
)
"""What becomes of a state, see :func:`verdict`."""


def is_exact(kinds: tuple[str, str]) -> bool:
    """Whether MuJoCo C finds the contacts of two kinds to rounding; the others it iterates for."""
    first, second = kinds
    if first in ("plane", "sphere"):
        return kinds != ("sphere", "ellipsoid")
    return first in EXACT and second in EXACT


def gap(normal: np.ndarray, kinds: tuple[str, str], sizes: np.ndarray, places: np.ndarray) -> float:
    """How far two geoms, none of them a plane, are apart along a normal."""
    reaches = zip(kinds, sizes, places, strict=True)
    reach = sum(REACHES[kind](size, place[3:].reshape(3, 3).T @ normal) for kind, size, place in reaches)
    return normal @ (places[1][:3] - places[0][:3]) - reach


def unfit(contact: np.ndarray, kinds: tuple[str, str], sizes: np.ndarray, places: np.ndarray) -> float:
    """How far the surface points of a contact are from being of their geoms, and farthest along the normal."""
    worst, (distance, point, normal) = 0.0, (contact[0], contact[1:4], contact[4:])
    for kind, size, place, sign in zip(kinds, sizes, places, (1.0, -1.0), strict=True):
        frame, way = place[3:].reshape(3, 3), sign * normal
        x = point - 0.5 * distance * way - place[:3]
        short = REACHES[kind](size, frame.T @ way) - way @ x
        worst = max(worst, abs(short), OUTSIDE[kind](size, frame.T @ x))
    return worst


def verdict(
    ours: np.ndarray,
    theirs: np.ndarray,
    judge: Judge,
    poses: np.ndarray,
    places: np.ndarray,
    rng: np.random.Generator,
) -> str:
    """One of :data:`VERDICTS` on the contacts [k, 7] that warp and MuJoCo C find.

    They are *equal* to 1e-9 where C is exact (:func:`is_exact`), else to 1e-6, and single ones in their distance to
    1e-10. *Ill-posed*: other contacts of C when the poses move by 1e-13. *C inexact*: C's distance is off by 1e-10
    along C's normal, or C finds none of two geoms that touch; warp's contact is one of both geoms. *Same distance*:
    the same to 1e-10 along both normals. *Equally short*: two ways out, see :data:`ALIKE`.
    """
    kinds, sizes, margin = judge.kinds, judge.sizes, judge.margin
    bound = 1e-9 if is_exact(kinds) else 1e-6
    if same(ours, theirs, bound) and (len(ours) != 1 or same(ours[:, :1], theirs[:, :1], 1e-10)):
        return "equal"
    if judge.wavers(poses, rng, bound, NUDGE, NUDGES):
        return "ill-posed"
    if is_exact(kinds):
        return "rest"
    along = [gap(x[0, 4:], kinds, sizes, places) if len(x) else np.inf for x in (ours, theirs)]
    fits = bool(len(ours)) and (len(ours) > 1 or unfit(ours[0], kinds, sizes, places) <= 1e-10)
    if len(theirs) == 1 and abs(along[1] - theirs[0, 0]) > 1e-10 and along[0] > along[1] - 1e-10:
        return "C inexact"
    if not len(theirs) and fits and along[0] < margin:
        return "C inexact"
    if len(ours) and len(theirs):
        if len(ours) == len(theirs) and fits and abs(along[0] - along[1]) <= 1e-10:
            return "same distance"
        if 1e-10 < abs(along[0] - along[1]) < ALIKE * min(x for size in sizes for x in size if x):
            return "equally short"
    return "rest"
