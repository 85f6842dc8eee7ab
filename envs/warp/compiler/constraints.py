"""Stage 4, constraints: joint limits and contacts as expressions, in MuJoCo's terms (efc_J, efc_aref, efc_D).

A row with acceleration J a pushes with the force -D (J a - aref) where that is positive. A contact with friction has
four rows, the edges of MuJoCo's pyramid: normal +- friction x tangent.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics, Spatial, at_point
from mage_diffsim.envs.warp.compiler.graph import (
    absolute,
    add,
    div,
    is_zero,
    less,
    maximum,
    minimum,
    mul,
    neg,
    power,
    sub,
    where,
)
from mage_diffsim.envs.warp.compiler.intake import SMALLEST, Impedance, Limit, Pair

EDGES = 4
"""Rows of a contact; one without friction has them all along the normal, and a quarter of the weight on each."""


@dataclasses.dataclass(frozen=True)
class LimitRow:
    """One row that pushes a joint away from the end of its range."""

    dof: int
    sign: Any
    """J: +1 at the lower end, -1 at the upper."""
    weight: Any
    """D; 0 where the row is not there."""
    offset: Any
    """-aref."""


@dataclasses.dataclass(frozen=True)
class Contact:
    """One possible contact of two geoms; ``present`` says whether it is one."""

    pair: Pair
    present: Any
    """Condition: closer than the margin."""
    weight: Any
    """D of each of the :data:`EDGES` rows; 0 where the contact is not present."""
    push: Any
    """k d(r) r, the part of -aref of every row that does not come from velocity."""
    points: tuple[al.Vector, al.Vector]
    """The point of contact relative to the origin of either body's tree."""
    normal: al.Vector
    """From the first geom to the second."""
    tangents: tuple[al.Vector, ...]
    """Times the friction; without those along which nothing can move."""
    normal_row: list[Any]
    tangent_rows: tuple[list[Any], ...]

    def relative(self, motions: Sequence[Spatial]) -> al.Vector:
        """The motion of the second body relative to the first at the contact."""
        first, second = self.pair.bodies
        return al.minus(at_point(motions[second], self.points[1]), at_point(motions[first], self.points[0]))


def impedance(parameters: Impedance, depth: Any) -> Any:
    """MuJoCo's d(r), given how far inside the margin the row is, 0 or more."""
    low, high = parameters.smallest, parameters.largest
    if low == high or parameters.width <= SMALLEST:
        return 0.5 * (low + high)
    x = minimum(div(depth, parameters.width), 1.0)
    if parameters.power == 1.0:
        curve = x
    else:
        p, middle = parameters.power, parameters.midpoint
        rising = mul(power(x, p), 1.0 / middle ** (p - 1.0))
        falling = sub(1.0, mul(power(sub(1.0, x), p), 1.0 / (1.0 - middle) ** (p - 1.0)))
        curve = where(less(middle, x), falling, rising)
    return add(low, mul(high - low, curve))


def _row(parameters: Impedance, distance: Any, inverse_weight: float) -> tuple[Any, Any]:
    """(D, k d(r) r) of a row at the (negative) distance from its margin; both 0 at a distance of 0 and more."""
    inside = less(distance, 0.0)
    depth = where(inside, neg(distance), 0.0)
    d = impedance(parameters, depth)
    resistance = maximum(div(mul(inverse_weight, sub(1.0, d)), d), SMALLEST)
    return where(inside, div(1.0, resistance), 0.0), mul(-parameters.stiffness, mul(d, depth))


def limit_rows(kinematics: Kinematics, q: Sequence[Any], v: Sequence[Any]) -> list[LimitRow]:
    """The rows of all joint limits."""
    m, rows = kinematics.model.model, []
    for limit in kinematics.model.limits:
        position, d = q[int(m.jnt_qposadr[limit.joint])], int(m.jnt_dofadr[limit.joint])
        for distance, sign in _ends(limit, position):
            weight, push = _row(limit.impedance, sub(distance, limit.margin), limit.inverse_weight)
            rows.append(LimitRow(d, sign, weight, add(mul(limit.impedance.damping, mul(sign, v[d])), push)))
    return rows


def _ends(limit: Limit, position: Any) -> Iterator[tuple[Any, Any]]:
    """(distance to the end, direction away from it) of the nearer end, or of both if both can push at once."""
    low, high = sub(position, limit.low), sub(limit.high, position)
    if math.isinf(limit.low) or math.isinf(limit.high):
        if math.isfinite(limit.low):
            yield low, 1.0
        if math.isfinite(limit.high):
            yield high, -1.0
    elif limit.high - limit.low > 2.0 * limit.margin:
        nearer = less(low, high)
        yield where(nearer, low, high), where(nearer, 1.0, -1.0)
    else:
        yield low, 1.0
        yield high, -1.0


def contacts(kinematics: Kinematics) -> list[Contact]:
    """All possible contacts of the model's pairs, in MuJoCo's order within a pair."""
    pairs = kinematics.model.pairs
    every = (_contact(kinematics, pair, *found) for pair in pairs for found in _collide(kinematics, pair))
    return [c for c in every if c.present is not False]


def _contact(
    kinematics: Kinematics, pair: Pair, origin: int, distance: Any, point: al.Vector, normal: al.Vector, hint: Any
) -> Contact:
    first, second = pair.bodies
    there = al.plus(kinematics.origin(origin), point)
    points = tuple(
        point if kinematics.tree[b] == kinematics.tree[origin] else al.minus(there, kinematics.origin(b))
        for b in pair.bodies
    )
    mu = pair.friction
    inverse_weight = pair.inverse_weight
    if mu:
        ratio = float(kinematics.model.model.opt.impratio)
        inverse_weight *= (1.0 + mu * mu) * 2.0 * mu * mu / ratio
    weight, push = _row(pair.impedance, sub(distance, pair.margin), inverse_weight)

    def row(along: al.Vector) -> list[Any]:
        values: list[Any] = [0.0] * kinematics.model.model.nv
        for body, at, sign in ((second, points[1], 1.0), (first, points[0], -1.0)):
            for d in kinematics.chain(body):
                values[d] = add(values[d], mul(sign, al.dot(along, at_point(kinematics.axes[d], at))))
        return values

    tangents = [al.times(t, mu) for t in _tangents(normal, hint)] if mu else []
    with_rows = [(t, row(t)) for t in tangents]
    moving = [(t, r) for t, r in with_rows if not all(is_zero(x) for x in r)]
    return Contact(
        pair=pair,
        present=less(distance, pair.margin),
        weight=weight if mu else mul(1.0 / EDGES, weight),
        push=push,
        points=points,  # type: ignore[arg-type]
        normal=normal,
        tangents=tuple(t for t, _ in moving),
        normal_row=row(normal),
        tangent_rows=tuple(r for _, r in moving),
    )


def _tangents(normal: al.Vector, hint: al.Vector | None) -> tuple[al.Vector, al.Vector]:
    """MuJoCo's contact frame: the hint (or y, or z) made orthogonal to the normal, and what is orthogonal to both."""
    if hint is None:
        beside = less(absolute(normal[1]), 0.5)
        hint = [0.0, where(beside, 1.0, 0.0), where(beside, 0.0, 1.0)]
    # The pyramid is the same for a tangent and its opposite.
    first = al.line_direction(al.minus(hint, al.times(normal, al.dot(normal, hint))), al.IDENTITY[0])
    return first, al.cross(normal, first)


_Found = tuple[int, Any, al.Vector, al.Vector, Any]
"""(body whose tree's origin the point is relative to, distance, point, normal, hint for the first tangent)."""


def _collide(kinematics: Kinematics, pair: Pair) -> Iterator[_Found]:
    """The contacts that MuJoCo's collision function of this pair of geoms would find, near or far."""
    m = kinematics.model.model
    origin = pair.bodies[1] or pair.bodies[0]
    centres, axes, sizes = [], [], []
    for geom, body in zip(pair.geoms, pair.bodies, strict=True):
        at = kinematics.point(body, al.constant(m.geom_pos[geom]))
        if kinematics.tree[body] != kinematics.tree[origin]:
            at = al.minus(al.plus(kinematics.origin(body), at), kinematics.origin(origin))
        centres.append(at)
        frame = al.product(kinematics.rotation[body], al.constant_rotation(m.geom_quat[geom]))
        axes.append(al.column(frame, 2))
        sizes.append([float(x) for x in m.geom_size[geom]])
    if pair.kinds[0] == "plane":
        radius = sizes[1][0]
        capsule = pair.kinds[1] == "capsule"
        for end in (1.0, -1.0) if capsule else (0.0,):
            centre = al.plus(centres[1], al.times(axes[1], end * sizes[1][1]))
            distance = sub(al.dot(axes[0], al.minus(centre, centres[0])), radius)
            point = al.minus(centre, al.times(axes[0], add(radius, mul(0.5, distance))))
            yield origin, distance, point, axes[0], axes[1] if capsule else None
        return
    if pair.kinds == ("capsule", "capsule"):
        places = _capsule_points(centres, [al.times(a, s[1]) for a, s in zip(axes, sizes, strict=True)])
    elif pair.kinds == ("sphere", "capsule"):
        along = al.dot(axes[1], al.minus(centres[0], centres[1]))
        nearest = al.plus(centres[1], al.times(axes[1], _clip(along, sizes[1][1])))
        places = [(centres[0], nearest, 1.0)]
    else:
        places = [(centres[0], centres[1], 1.0)]
    for first, second, there in places:
        apart = al.minus(second, first)
        length, safe = al.guarded_norm(apart)
        # Two centres in one place have no direction; MuJoCo takes one orthogonal to both axes.
        fallback = al.direction(al.cross(axes[0], axes[1]), al.IDENTITY[0])
        touching = less(length, SMALLEST)
        normal = [where(touching, b, div(a, safe)) for a, b in zip(apart, fallback, strict=True)]
        distance = sub(length, sizes[0][0] + sizes[1][0])
        point = al.plus(first, al.times(normal, add(sizes[0][0], mul(0.5, distance))))
        yield origin, where(less(there, 0.5), pair.margin + 1.0, distance), point, normal, None


def _clip(x: Any, bound: Any) -> Any:
    return maximum(minimum(x, bound), -bound)


_Point = tuple[al.Vector, al.Vector, Any]
"""(point on the first segment, point on the second, 1 if there is such a pair of points and 0 if not)."""


def _capsule_points(centres: Sequence[al.Vector], halves: Sequence[al.Vector]) -> list[_Point]:
    """Where MuJoCo puts spheres on the segments centre +- half: the nearest points, or, of parallel segments, the first
    two ends that lie beside the other segment."""
    apart = al.minus(centres[0], centres[1])
    ma, mb, mc = al.dot(halves[0], halves[0]), neg(al.dot(halves[0], halves[1])), al.dot(halves[1], halves[1])
    u, w = neg(al.dot(halves[0], apart)), al.dot(halves[1], apart)
    determinant = sub(mul(ma, mc), mul(mb, mb))
    parallel = less(absolute(determinant), SMALLEST)
    safe = where(parallel, 1.0, determinant)
    x1, x2 = div(sub(mul(mc, u), mul(mb, w)), safe), div(sub(mul(ma, w), mul(mb, u)), safe)
    above, below = less(1.0, x1), less(x1, -1.0)
    x2 = where(above, div(sub(w, mb), mc), where(below, div(add(w, mb), mc), x2))
    x1 = _clip(x1, 1.0)
    above, below = less(1.0, x2), less(x2, -1.0)
    x1 = where(above, _clip(div(sub(u, mb), ma), 1.0), where(below, _clip(div(add(u, mb), ma), 1.0), x1))
    x2 = _clip(x2, 1.0)

    ends: list[tuple[Any, Any]] = [
        (1.0, div(sub(w, mb), mc)),
        (-1.0, div(add(w, mb), mc)),
        (div(sub(u, mb), ma), 1.0),
        (div(add(u, mb), ma), -1.0),
    ]
    beside = [where(less(1.0, absolute(b if isinstance(a, float) else a)), 0.0, 1.0) for a, b in ends]
    found = []
    for place in range(2):
        # The end with exactly `place` others before it in the list.
        chosen: tuple[Any, Any, Any] = (0.0, 0.0, 0.0)
        for i in reversed(range(4)):
            before: Any = 0.0
            for other in beside[:i]:
                before = add(before, other)
            here = where(less(beside[i], 0.5), 0.0, where(less(absolute(sub(before, float(place))), 0.5), 1.0, 0.0))
            chosen = tuple(where(less(here, 0.5), old, new) for old, new in zip(chosen, (*ends[i], 1.0), strict=True))  # type: ignore[assignment]
        found.append(chosen)
    first = tuple(where(parallel, b, a) for a, b in zip((x1, x2, 1.0), found[0], strict=True))
    second = tuple(where(parallel, b, 0.0) for b in found[1])
    return [
        (al.plus(centres[0], al.times(halves[0], a)), al.plus(centres[1], al.times(halves[1], b)), there)
        for a, b, there in (first, second)
    ]
