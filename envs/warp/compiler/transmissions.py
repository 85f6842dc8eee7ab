"""Stage 3, transmissions: the coordinates along which actuators act (MuJoCo's mj_transmission)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mage_diffsim.envs.mujoco.model import load_mujoco
from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.adhesion import adhesion, given_row
from mage_diffsim.envs.warp.compiler.coordinates import Coordinate, Coordinates, between, combination
from mage_diffsim.envs.warp.compiler.dynamics import REST, Kinematics, Spatial
from mage_diffsim.envs.warp.compiler.graph import add, div, less, mul, number, sqrt, sub, where
from mage_diffsim.envs.warp.compiler.rigid import site_place


def transmission(coordinates: Coordinates, actuator: int) -> Coordinate:
    """The coordinate of an actuator; its rate is MuJoCo's actuator_velocity, which may not be that of its length."""
    m, kinds = coordinates.model, load_mujoco().mjtTrn
    kind, target = int(m.actuator_trntype[actuator]), int(m.actuator_trnid[actuator, 0])
    gear = [number(x) for x in m.actuator_gear[actuator]]
    if kind == kinds.mjTRN_TENDON:
        return combination([(gear[0], coordinates.tendon(target))], m.nv)
    if kind == kinds.mjTRN_SITE:
        return _site(coordinates.kinematics, coordinates.q, target, int(m.actuator_trnid[actuator, 1]), gear)
    if kind == kinds.mjTRN_SLIDERCRANK:
        slider, rod = int(m.actuator_trnid[actuator, 1]), float(m.actuator_cranklength[actuator])
        return combination([(gear[0], _slider_crank(coordinates.kinematics, target, slider, rod))], m.nv)
    if kind == kinds.mjTRN_BODY:
        if coordinates.looped:
            return given_row(coordinates.kinematics, coordinates.q[0].graph, target)
        return adhesion(coordinates.kinematics, target, coordinates.noise)
    return _joint(coordinates, target, gear, kind == kinds.mjTRN_JOINTINPARENT)


def _joint(coordinates: Coordinates, joint: int, gear: list[Any], in_parent: bool) -> Coordinate:
    m = coordinates.model
    kind = coordinates.kinematics.model.joint_kinds[joint]
    if kind in ("hinge", "slide"):
        return combination([(gear[0], coordinates.joint(joint))], m.nv)
    at, dof = int(m.jnt_qposadr[joint]), int(m.jnt_dofadr[joint])
    free = kind == "free"
    quaternion = list(coordinates.q[at + 3 * free : at + 3 * free + 4])
    axis: al.Vector = list(gear[3:] if free else gear[:3])
    if in_parent:
        axis = al.apply(al.transpose(al.matrix_of(quaternion)), axis)
    length = 0.0 if free else al.dot(al.rotation_vector(quaternion), axis)
    row: list[Any] = [0.0] * m.nv
    row[dof : dof + 3 + 3 * free] = [*gear[:3], *axis] if free else axis
    return Coordinate(length, row)


def _site(kinematics: Kinematics, q: Sequence[Any], site: int, reference: int, gear: list[Any]) -> Coordinate:
    """A force and a torque (gear) on a site, in its axes or, relative to a reference site, in that site's axes."""
    m = kinematics.model.model
    body, place = site_place(m, site)
    point = kinematics.point(body, al.constant(place.position))
    if reference < 0:
        force, torque = (al.apply(_frame(kinematics, site), gear[i : i + 3]) for i in (0, 3))
        return between(kinematics, 0.0, [(body, (al.plus(torque, al.cross(point, force)), force)), (0, REST)])
    other, there = site_place(m, reference)
    frame = _frame(kinematics, reference)
    force, torque = (al.apply(frame, gear[i : i + 3]) for i in (0, 3))
    start = kinematics.point(other, al.constant(there.position))
    apart = al.minus(kinematics.relative(body, point, other), start)
    loads = [
        (body, (al.plus(torque, al.cross(point, force)), force)),
        (other, _opposite((al.plus(torque, al.cross(start, force)), force))),
    ]
    # What moves both sites together does not count: the body up to which their chains agree bears the rest.
    loads.append((_shared(kinematics, body, other), (al.times(al.cross(apart, force), -1.0), al.ZERO)))
    length = al.dot(al.apply(al.transpose(frame), apart), gear[:3])
    if any(gear[3:]):
        of_site, of_reference = (
            al.quaternion_product(kinematics.quaternion(q, int(m.site_bodyid[s])), _constant(m.site_quat[s]))
            for s in (site, reference)
        )
        turned = al.quaternion_product(al.conjugate(of_reference), of_site)
        length = add(length, al.dot(al.rotation_vector(turned), gear[3:]))
    return between(kinematics, length, loads)


def _slider_crank(kinematics: Kinematics, crank: int, slider: int, rod: float) -> Coordinate:
    """The place of a slider on its axis, whose end a rod of constant length joins to the crank."""
    m = kinematics.model.model
    (body, place), (other, there) = site_place(m, crank), site_place(m, slider)
    point, start = (kinematics.point(b, al.constant(p.position)) for b, p in ((body, place), (other, there)))
    axis, apart = al.column(_frame(kinematics, slider), 2), al.minus(kinematics.relative(body, point, other), start)
    along = al.dot(apart, axis)
    determinant = add(mul(along, along), sub(rod * rod, al.dot(apart, apart)))
    reaches = less(0.0, determinant)
    root = sqrt(where(reaches, determinant, 1.0))
    share = where(reaches, sub(1.0, div(along, root)), 1.0)
    force = al.plus(al.times(axis, share), al.times(apart, where(reaches, div(1.0, root), 0.0)))
    torque = al.cross(axis, al.times(apart, share))
    loads = [
        (body, (al.cross(point, force), force)),
        (other, (al.minus(torque, al.cross(start, force)), al.times(force, -1.0))),
    ]
    return between(kinematics, sub(along, where(reaches, root, 0.0)), loads)


def _opposite(load: Spatial) -> Spatial:
    return al.times(load[0], -1.0), al.times(load[1], -1.0)


def _constant(quaternion: Any) -> list[float]:
    return [float(x) for x in quaternion]


def _frame(kinematics: Kinematics, site: int) -> al.Matrix:
    """A site's axes, in columns."""
    body, place = site_place(kinematics.model.model, site)
    return al.product(kinematics.rotation[body], al.constant_rotation(place.rotation))


def _shared(kinematics: Kinematics, a: int, b: int) -> int:
    """The last body with joints that carries both bodies; 0 if there is none."""
    m = kinematics.model.model
    common = set(kinematics.chain(a)) & set(kinematics.chain(b))
    return int(m.dof_bodyid[max(common)]) if common else 0
