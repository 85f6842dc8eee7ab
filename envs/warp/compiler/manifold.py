"""Positions and their tangents: how a velocity moves q, and how derivatives by q become nv components.

The tangent of a quaternion is a rotation in the body's frame, as MuJoCo's angular velocities are; every other
coordinate is its own tangent. All derivative sweeps work in tangents, so that none leaves the unit sphere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.graph import add, cos, div, less, mul, sin, sqrt, sub, where
from mage_diffsim.envs.warp.compiler.intake import Model

SERIES = 1e-2
"""Squared angles [rad^2] below which the functions of a rotation are summed as series, to double precision."""


def coordinates(model: Model) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The pairs (place in qpos, place in qvel) of plain coordinates, and those of the starts of rotations."""
    m = model.model
    plain, rotations = [], []
    for j, kind in enumerate(model.joint_kinds):
        at, d = int(m.jnt_qposadr[j]), int(m.jnt_dofadr[j])
        if kind == "free":
            plain += [(at + i, d + i) for i in range(3)]
            rotations.append((at + 3, d + 3))
        elif kind == "ball":
            rotations.append((at, d))
        else:
            plain.append((at, d))
    return plain, rotations


def moved(model: Model, q: Sequence[Any], by: Sequence[Any]) -> list[Any]:
    """The positions (nq) that the displacement ``by`` (nv: velocity times time) leads to from q."""
    plain, rotations = coordinates(model)
    result: list[Any] = list(q)
    for at, d in plain:
        result[at] = add(q[at], by[d])
    for at, d in rotations:
        angle = list(by[d : d + 3])
        square, small, safe = _angle(angle)
        half = mul(0.5, sqrt(safe))
        sine = where(small, _series(square, 4.0, 1.0, 0.5), div(sin(half), sqrt(safe)))
        cosine = where(small, _series(square, 4.0, 0.0, 1.0), cos(half))
        step = [cosine, *al.times(angle, sine)]
        result[at : at + 4] = al.quaternion_product(list(q[at : at + 4]), step)
    return result


def moved_vjp(model: Model, by: Sequence[Any], cotangent: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Derivatives by (start, displacement) of :func:`moved`, given that by its result; all in tangents (nv)."""
    start, displacement = list(cotangent), list(cotangent)
    for _, d in coordinates(model)[1]:
        angle, c = list(by[d : d + 3]), list(cotangent[d : d + 3])
        once, twice = _crossed(angle, c)
        a, b, third = _rodrigues(angle)
        start[d : d + 3] = al.plus(c, al.plus(al.times(once, a), al.times(twice, b)))
        displacement[d : d + 3] = al.plus(c, al.plus(al.times(once, b), al.times(twice, third)))
    return start, displacement


def moved_jvp(model: Model, by: Sequence[Any], start: Sequence[Any], displacement: Sequence[Any]) -> list[Any]:
    """The tangent of :func:`moved`'s result, given those of start and displacement."""
    result = [add(x, y) for x, y in zip(start, displacement, strict=True)]
    for _, d in coordinates(model)[1]:
        angle = list(by[d : d + 3])
        a, b, third = _rodrigues(angle)
        s, t = list(start[d : d + 3]), list(displacement[d : d + 3])
        (s1, s2), (t1, t2) = _crossed(angle, s), _crossed(angle, t)
        turned = al.plus(s, al.minus(al.times(s2, b), al.times(s1, a)))
        result[d : d + 3] = al.plus(turned, al.plus(t, al.minus(al.times(t2, third), al.times(t1, b))))
    return result


def rates(model: Model, way: Sequence[Any], v: Sequence[Any]) -> list[Any]:
    """The rate at which ``way``, the displacement since a step's start, grows at velocities v (all nv).

    It is the velocity, except for rotations, whose rotation vector grows at dexp^-1 of the angular velocity
    (Munthe-Kaas, as in MuJoCo's RK4 from 4.0 on).
    """
    result: list[Any] = list(v)
    for _, d in coordinates(model)[1]:
        angle, velocity = list(way[d : d + 3]), list(v[d : d + 3])
        square, small, safe = _angle(angle)
        half = mul(0.5, sqrt(safe))
        series: Any = 1.0 / 12.0
        x: Any = 1.0
        for coefficient in (1.0 / 720.0, 1.0 / 30240.0, 1.0 / 1209600.0, 1.0 / 47900160.0):
            x = mul(x, square)
            series = add(series, mul(coefficient, x))
        exact = div(sub(1.0, div(mul(half, cos(half)), sin(half))), safe)
        once, twice = _crossed(angle, velocity)
        bent = al.plus(al.times(once, 0.5), al.times(twice, where(small, series, exact)))
        result[d : d + 3] = al.plus(velocity, bent)
    return result


def to_tangent(model: Model, q: Sequence[Any], gradient: Sequence[Any]) -> list[Any]:
    """Derivatives by the nv tangent components from those by the nq positions."""
    plain, rotations = coordinates(model)
    result: list[Any] = [0.0] * model.model.nv
    for at, d in plain:
        result[d] = gradient[at]
    for at, d in rotations:
        for i, tangent in enumerate(al.quaternion_tangents(list(q[at : at + 4]))):
            result[d + i] = al.dot(tangent, list(gradient[at : at + 4]))
    return result


def from_tangent(model: Model, q: Sequence[Any], gradient: Sequence[Any]) -> list[Any]:
    """Derivatives by positions (nq), tangent to the sphere of quaternions, from those by tangent components."""
    return pushed(model, q, _rotations_times(model, 4.0, gradient))  # a quaternion's tangents have length 1/2


def pulled(model: Model, q: Sequence[Any], tangent: Sequence[Any]) -> list[Any]:
    """The tangent vector (nv) that a tangent of the positions (nq) stands for: the inverse of :func:`pushed`."""
    return _rotations_times(model, 4.0, to_tangent(model, q, tangent))


def pushed(model: Model, q: Sequence[Any], tangent: Sequence[Any]) -> list[Any]:
    """The tangent of the positions (nq) that a tangent vector (nv) stands for."""
    plain, rotations = coordinates(model)
    result: list[Any] = [0.0] * model.model.nq
    for at, d in plain:
        result[at] = tangent[d]
    for at, d in rotations:
        for i, direction in enumerate(al.quaternion_tangents(list(q[at : at + 4]))):
            step = al.times(direction, tangent[d + i])
            result[at : at + 4] = [add(x, y) for x, y in zip(result[at : at + 4], step, strict=True)]
    return result


def _rotations_times(model: Model, factor: float, x: Sequence[Any]) -> list[Any]:
    """A vector (nv) with its rotations' components scaled."""
    result = list(x)
    for _, d in coordinates(model)[1]:
        result[d : d + 3] = al.times(result[d : d + 3], factor)
    return result


def _angle(angle: al.Vector) -> tuple[Any, Any, Any]:
    """(|angle|^2, whether that is small, |angle|^2 with 1 in place of small ones)."""
    square = al.dot(angle, angle)
    small = less(square, SERIES)
    return square, small, where(small, 1.0, square)


def _series(square: Any, divisor: float, odd: float, scale: float) -> Any:
    """scale * sum over n of (-square/divisor)^n / (2n + odd)!, six terms: a cosine (odd 0) or a sine over its angle."""
    term = coefficient = scale
    result: Any = term
    x: Any = 1.0
    for n in range(1, 6):
        coefficient /= -divisor * (2 * n - 1 + odd) * (2 * n + odd)
        x = mul(x, square)
        result = add(result, mul(coefficient, x))
    return result


def _rodrigues(angle: al.Vector) -> tuple[Any, Any, Any]:
    """sin t / t, (1 - cos t) / t^2, (t - sin t) / t^3 of the angle's length t."""
    square, small, safe = _angle(angle)
    t = sqrt(safe)
    return (
        where(small, _series(square, 1.0, 1.0, 1.0), div(sin(t), t)),
        where(small, _series(square, 1.0, 2.0, 0.5), div(sub(1.0, cos(t)), safe)),
        where(small, _series(square, 1.0, 3.0, 1.0 / 6.0), div(sub(t, sin(t)), mul(safe, t))),
    )


def _crossed(angle: al.Vector, x: al.Vector) -> tuple[al.Vector, al.Vector]:
    """angle x X and angle x (angle x X)."""
    once = al.cross(angle, x)
    return once, al.cross(angle, once)
