"""Stage 3, spatial tendons: their paths through sites, around spheres and cylinders, and over pulleys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mage_diffsim.envs.mujoco.mixing import SMALLEST
from mage_diffsim.envs.mujoco.model import load_mujoco
from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics, Spatial, at_point
from mage_diffsim.envs.warp.compiler.graph import absolute, add, div, is_constant, less, mul, number, sqrt, sub, where
from mage_diffsim.envs.warp.compiler.rigid import Place, geom_place, site_place
from mage_diffsim.envs.warp.compiler.wrapping import Bend, Point, around, every, inside, negated


class Span(NamedTuple):
    """A part of a tendon between two sites, straight or around a geom."""

    length: Any
    loads: list[tuple[int, Spatial]]
    """(torque about the origin, force) that a unit force along the tendon makes on each body; their sum is 0."""
    share: float
    """What part of the length counts: 1 / divisor of the pulley before."""


def spans(kinematics: Kinematics, tendon: int) -> Iterator[Span]:
    """Yields the parts of a spatial tendon (MuJoCo's mj_tendon)."""
    for ends, geom, share in _path(kinematics.model.model, tendon):
        length, loads = _straight(kinematics, ends) if geom is None else _wrapped(kinematics, ends, geom)
        yield Span(length, loads, share)


def second(kinematics: Kinematics, tendon: int, velocity: Sequence[Spatial], acceleration: Sequence[Spatial]) -> Any:
    """The second derivative by time of the length of a spatial tendon that touches no geom, from the bodies' spatial
    motions: J a + dJ/dt v."""
    total: Any = 0.0
    for ends, _, share in _path(kinematics.model.model, tendon):
        (first, _), (last, _) = ends
        if first == last:
            continue
        apart, rates, changes = _apart(kinematics, ends), [], []
        for body, place in ends:
            point, (spin, _) = kinematics.point(body, al.constant(place.position)), velocity[body]
            rates.append(at_point(velocity[body], point))
            changes.append(al.plus(at_point(acceleration[body], point), al.cross(spin, rates[-1])))
        rate, change = al.minus(rates[1], rates[0]), al.minus(changes[1], changes[0])
        length, along = _norm(apart), al.direction(apart, al.IDENTITY[0])
        across = al.minus(rate, al.times(along, al.dot(along, rate)))
        none = less(length, SMALLEST)
        turning = where(none, 0.0, div(al.dot(across, across), where(none, 1.0, length)))
        total = add(total, mul(share, add(al.dot(along, change), turning)))
    return total


def _path(m: Any, tendon: int) -> Iterator[tuple[tuple[_Site, _Site], int | None, float]]:
    """Yields (sites at the ends, place of the geom between in the path, share) of the parts of a spatial tendon."""
    wrap = load_mujoco().mjtWrap
    first, share = int(m.tendon_adr[tendon]), 1.0
    path = range(first, first + int(m.tendon_num[tendon]))
    before: int | None = None
    geom: int | None = None
    for i in path:
        kind, element = int(m.wrap_type[i]), int(m.wrap_objid[i])
        if kind == wrap.mjWRAP_PULLEY:
            before, share = None, 1.0 / float(m.wrap_prm[i])
        elif kind == wrap.mjWRAP_SITE:
            if before is not None:
                yield (site_place(m, before), site_place(m, element)), geom, share
            before, geom = element, None
        else:
            geom = i


_Site = tuple[int, Place]
"""The body that carries a site, and the site's place there."""
_Part = tuple[Any, list[tuple[int, Spatial]]]


def _at(kinematics: Kinematics, body: int, place: Place, origin: int) -> al.Vector:
    """The position of a place on a body, relative to the origin of another body's tree."""
    return kinematics.relative(body, kinematics.point(body, al.constant(place.position)), origin)


def _norm(v: al.Vector) -> Any:
    return al.guarded_norm(v)[0]


def _straight(kinematics: Kinematics, ends: tuple[_Site, _Site]) -> _Part:
    (first, start), (last, end) = ends
    if first == last:
        return float(np.linalg.norm(end.position - start.position)), []
    apart = _apart(kinematics, ends)
    along = al.direction(apart, al.IDENTITY[0])
    loads = [_pulled(kinematics, ends[0], al.times(along, -1.0)), _pulled(kinematics, ends[1], along)]
    return _norm(apart), loads


def _apart(kinematics: Kinematics, ends: tuple[_Site, _Site]) -> al.Vector:
    """From the first site to the second."""
    origin = ends[1][0]
    return al.minus(_at(kinematics, *ends[1], origin), _at(kinematics, *ends[0], origin))


def _pulled(kinematics: Kinematics, site: _Site, force: al.Vector) -> tuple[int, Spatial]:
    body, place = site
    return body, (al.cross(kinematics.point(body, al.constant(place.position)), force), force)


def _wrapped(kinematics: Kinematics, ends: tuple[_Site, _Site], wrap: int) -> _Part:
    """A span that may touch a geom. The geom bears what both ends' forces leave."""
    m = kinematics.model.model
    body, place = geom_place(m, int(m.wrap_objid[wrap]))
    radius, side = number(m.geom_size[int(m.wrap_objid[wrap]), 0]), round(float(m.wrap_prm[wrap]))
    if is_constant(radius) and radius < SMALLEST:
        return _straight(kinematics, ends)
    frame = al.product(kinematics.rotation[body], al.constant_rotation(place.rotation))
    centre = kinematics.point(body, al.constant(place.position))

    def local(site: _Site) -> al.Vector:
        if site[0] == body:
            return al.constant(place.rotation.T @ (site[1].position - place.position))
        return al.apply(al.transpose(frame), al.minus(_at(kinematics, *site, body), centre))

    sphere = int(m.wrap_type[wrap]) == load_mujoco().mjtWrap.mjWRAP_SPHERE
    points = [local(site) for site in ends]
    beside = None if side < 0 else local(site_place(m, side))
    touches, touched, turn = (_around_sphere if sphere else _around_cylinder)(points, radius, beside)
    reached, left = (al.plus(centre, al.apply(frame, x)) for x in touched)
    start, end = (_at(kinematics, *site, body) for site in ends)
    there = al.minus(al.choose(touches, reached, end), start)
    onwards = al.minus(end, al.choose(touches, left, start))
    forces = al.times(al.direction(there, al.IDENTITY[0]), -1.0), al.direction(onwards, al.IDENTITY[0])
    loads = [_pulled(kinematics, site, force) for site, force in zip(ends, forces, strict=True)]
    torque = al.plus(al.cross(start, forces[0]), al.cross(end, forces[1]))
    loads.append((body, (al.times(torque, -1.0), al.times(al.plus(*forces), -1.0))))
    return add(_norm(there), where(touches, add(turn, _norm(onwards)), 0.0)), loads


_Touched = tuple[Any, tuple[al.Vector, al.Vector], Any]
"""(whether a path touches a geom, where it reaches and leaves the geom, the length between)."""


def _around_sphere(points: Sequence[al.Vector], radius: Any, side: al.Vector | None) -> _Touched:
    """The path between two points in the frame of a sphere, in the plane of the points and the centre."""
    x = al.direction(points[0], al.IDENTITY[0])
    a, b, c = (absolute(component) for component in x)
    second, third = every(less(a, b), less(c, b)), every(less(a, c), less(b, c))
    beside = [where(second, 1.0, where(third, 1.0, 0.0)), where(second, 0.0, 1.0), where(third, 0.0, 1.0)]
    otherwise = al.direction(al.cross(x, beside), al.IDENTITY[2])
    y = al.cross(al.direction(al.cross(*points), otherwise), x)
    ends = [_norm(points[0]), 0.0], [al.dot(points[1], x), al.dot(points[1], y)]
    bend = _bend(ends, points, radius, side, None if side is None else [al.dot(side, x), al.dot(side, y)])
    first, second = (al.plus(al.times(x, at[0]), al.times(y, at[1])) for at in (bend.first, bend.second))
    return bend.touches, (first, second), bend.length


def _around_cylinder(points: Sequence[al.Vector], radius: Any, side: al.Vector | None) -> _Touched:
    """The path between two points in the frame of a cylinder along z, of a constant slope."""
    ends = [point[:2] for point in points]
    bend = _bend(ends, points, radius, side, None if side is None else side[:2])
    before, after = (
        _norm([*(sub(p, q) for p, q in zip(end, at, strict=True)), 0.0])
        for end, at in zip(ends, (bend.first, bend.second), strict=True)
    )
    total = add(before, add(bend.length, after))
    slope = div(sub(points[1][2], points[0][2]), where(less(total, SMALLEST), 1.0, total))
    heights = [add(points[0][2], mul(slope, way)) for way in (before, add(before, bend.length))]
    touched = [*bend.first, heights[0]], [*bend.second, heights[1]]
    return bend.touches, touched, mul(bend.length, sqrt(add(1.0, mul(slope, slope))))


def _bend(
    ends: Sequence[Point], points: Sequence[al.Vector], radius: Any, side: al.Vector | None, flat: Point | None
) -> Bend:
    """How the path bends in the plane; ``flat`` is the side site's place there."""
    away = [negated(less(al.dot(point, point), SMALLEST**2)) for point in points]
    if side is None or flat is None:
        bend = around(ends, radius, None)
    else:
        within = less(al.dot(side, side), radius**2)
        way = al.direction([*flat, 0.0], al.IDENTITY[0])[:2]
        bend = inside(ends, radius) if within is True else around(ends, radius, way)
        if within is not True and within is not False:
            bend = _chosen(within, inside(ends, radius), bend)
    return bend._replace(touches=every(bend.touches, *away))


def _chosen(condition: Any, a: Bend, b: Bend) -> Bend:
    touches = less(0.5, where(condition, where(a.touches, 1.0, 0.0), where(b.touches, 1.0, 0.0)))
    first, second = al.choose(condition, a.first, b.first), al.choose(condition, a.second, b.second)
    return Bend(touches, first, second, where(condition, a.length, b.length))
