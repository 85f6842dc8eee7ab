"""Stage 3, wrapping: how a tendon passes a circle in a plane (mju_wrap in engine_util_misc.c)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from mage_diffsim.envs.mujoco.mixing import SMALLEST
from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.graph import (
    absolute,
    add,
    atan2,
    cos,
    div,
    less,
    maximum,
    minimum,
    mul,
    neg,
    reflection,
    sin,
    sqrt,
    sub,
    where,
)

Point = Sequence[Any]
"""(x, y) in the circle's plane, from its centre."""


class Bend(NamedTuple):
    """How a path from one point to another passes a circle."""

    touches: Any
    """Condition: whether it touches the circle; otherwise it is straight."""
    first: Point
    """Where it reaches the circle."""
    second: Point
    """Where it leaves the circle."""
    length: Any
    """Length along the circle between them."""


def every(*conditions: Any) -> Any:
    """The condition that all of some conditions hold."""
    flag: Any = 1.0
    for condition in reversed(conditions):
        flag = where(condition, flag, 0.0)
    return less(0.5, flag)


def negated(condition: Any) -> Any:
    """The condition that another does not hold."""
    return less(where(condition, 1.0, 0.0), 0.5)


def around(ends: Sequence[Point], radius: Any, side: Point | None) -> Bend:
    """The shortest path on the outside of the circle.

    With ``side``, and if that lies between the directions away from both ends, it is the path around that side. This
    is MuJoCo's rule from 4.0 on.
    """
    apart = _minus(ends[1], ends[0])
    square = _dot(apart, apart)
    distinct = negated(less(square, SMALLEST))
    share = maximum(minimum(_nearest(ends, where(distinct, square, 1.0)), 1.0), 0.0)
    nearest = [add(mul(share, d), a) for d, a in zip(apart, ends[0], strict=True)]
    meets = negated(less(radius**2, _dot(nearest, nearest)))
    clockwise = less(_cross(*ends), 0.0)
    if side is not None:
        sense = where(clockwise, -1.0, 1.0)
        turns = mul(sense, _cross(ends[0], side)), mul(sense, _cross(side, ends[1]))
        behind = every(*(less(turn, 0.0) for turn in turns))
        meets = negated(every(negated(meets), negated(behind)))
        clockwise = less(where(behind, neg(sense), sense), 0.0)
    outside = (negated(less(_dot(end, end), radius**2)) for end in ends)
    possible = every(*outside, distinct, meets)
    ends = _where_possible(possible, ends, radius)
    sign = where(clockwise, 1.0, -1.0)
    first, second = _tangent(ends[0], radius, sign), _tangent(ends[1], radius, neg(sign))
    turn = mul(sign, neg(atan2(_cross(first, second), _dot(first, second))))
    return Bend(possible, first, second, mul(radius, where(less(turn, 0.0), add(2.0 * math.pi, turn), turn)))


def inside(ends: Sequence[Point], radius: Any) -> Bend:
    """The path that touches the circle in one point, as that of a tendon in a ring."""
    apart = _minus(ends[1], ends[0])
    square = _dot(apart, apart)
    distinct = less(SMALLEST, square)
    share = _nearest(ends, where(distinct, square, 1.0))
    nearest = [add(mul(share, d), a) for d, a in zip(apart, ends[0], strict=True)]
    blocked = every(distinct, less(0.0, share), less(share, 1.0), negated(less(radius**2, _dot(nearest, nearest))))
    outside = [less(radius**2, _dot(end, end)) for end in ends]
    cosine = div(_dot(*ends), sqrt(mul(_dot(ends[0], ends[0]), _dot(ends[1], ends[1]))))
    possible = every(*outside, negated(blocked), negated(less(cosine, SMALLEST - 1.0)))
    middle = _unit([add(a, b) for a, b in zip(*ends, strict=True)])
    apart_seen = every(possible, negated(less(1.0 - SMALLEST, cosine)))
    ends = _where_possible(apart_seen, ends, radius)
    cross = _cross(*ends)
    a, b = (div(radius, sqrt(_dot(end, end))) for end in ends)
    angle = reflection(a, b, atan2(absolute(cross), _dot(*ends)))
    found = every(apart_seen, less(0.0, angle))
    ahead = less(0.0, cross)
    start = al.choose(ahead, *([mul(x, share) for x in end] for end, share in zip(ends, (a, b), strict=True)))
    turn = sub(angle, _arcsine(mul(sin(angle), where(ahead, a, b))))
    s, c = sin(turn), cos(turn)
    touch = [sub(mul(c, start[0]), mul(s, start[1])), add(mul(s, start[0]), mul(c, start[1]))]
    point = al.choose(found, touch, [mul(radius, x) for x in middle])
    return Bend(possible, point, point, 0.0)


def _dot(a: Point, b: Point) -> Any:
    return add(mul(a[0], b[0]), mul(a[1], b[1]))


def _cross(a: Point, b: Point) -> Any:
    return sub(mul(a[0], b[1]), mul(a[1], b[0]))


def _minus(a: Point, b: Point) -> Point:
    return [sub(x, y) for x, y in zip(a, b, strict=True)]


def _unit(a: Point) -> Point:
    """a / |a|; x where a is shorter than mjMINVAL."""
    square = _dot(a, a)
    short = less(square, SMALLEST**2)
    return al.choose(short, (1.0, 0.0), [div(x, sqrt(where(short, 1.0, square))) for x in a])


def _nearest(ends: Sequence[Point], square: Any) -> Any:
    """The share of the way between the ends at which their line is nearest to the centre, given its squared length."""
    return neg(div(_dot(_minus(ends[1], ends[0]), ends[0]), square))


def _where_possible(possible: Any, ends: Sequence[Point], radius: Any) -> list[Point]:
    """The ends; where no path around them is possible, others for which everything is finite."""
    others = (2.0 * radius, 0.0), (0.5 * radius, 2.0 * radius)
    return [al.choose(possible, end, other) for end, other in zip(ends, others, strict=True)]


def _tangent(end: Point, radius: Any, sign: Any) -> Point:
    """One of the two points in which a line from a point outside touches the circle."""
    square = _dot(end, end)
    rest = sub(square, radius**2)
    root = where(less(0.0, rest), sqrt(where(less(0.0, rest), rest, 1.0)), 0.0)
    across = mul(mul(radius, sign), root)
    numerators = add(mul(radius**2, end[0]), mul(across, end[1])), sub(mul(radius**2, end[1]), mul(across, end[0]))
    return [div(x, square) for x in numerators]


def _arcsine(x: Any) -> Any:
    return atan2(x, sqrt(sub(1.0, mul(x, x))))
