"""Stage 2, rigid bodies: kinematics, mass matrix and inverse dynamics of a model as expressions.

Spatial vectors (Featherstone, "Rigid Body Dynamics Algorithms", 2008) are pairs (angular, linear at an origin). The
origin of a tree is where its root body is now, so that float32 loses no digits far from the world's origin.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.graph import add, cos, div, is_zero, mul, number, sin, sub
from mage_diffsim.envs.warp.compiler.intake import Model, Pair

Spatial = tuple[al.Vector, al.Vector]
"""(angular, linear at the tree's origin)."""
REST: Spatial = (al.ZERO, al.ZERO)


class Kinematics:
    """Places of all bodies, joint axes and centres of mass.

    Positions of bodies are relative to :meth:`origin` of their tree.

    Args:
        model: the model.
        q: positions, nq expressions with unit quaternions.
        mocap: x, y, z and a unit quaternion of every mocap body by turns.
    """

    def __init__(self, model: Model, q: Sequence[Any], mocap: Sequence[Any] = ()) -> None:
        m = model.model
        self.model, self._mocap = model, list(mocap)
        self.rotation: list[al.Matrix] = [al.IDENTITY]
        self.position: list[al.Vector] = [al.ZERO]
        self._origin: dict[int, al.Vector] = {0: al.ZERO}
        self.tree: list[int] = [0]
        """The root body of each body's tree; 0 is the world and what is fixed to it."""
        self.axes: list[Spatial] = [REST] * m.nv
        """The motion that a unit velocity of each degree of freedom makes."""
        for b in range(1, m.nbody):
            self._add(m, b, q, mocap)
        self.centre = [
            al.plus(self.position[b], al.apply(self.rotation[b], body.centre)) for b, body in enumerate(model.bodies)
        ]

    def origin(self, body: int) -> al.Vector:
        """The world position of the origin that the body's position is relative to."""
        return self._origin[self.tree[body]]

    def world_position(self, body: int, at: al.Vector) -> al.Vector:
        """The world position of a point fixed to the body, given in its frame."""
        return al.plus(self.origin(body), self.point(body, at))

    def point(self, body: int, at: al.Vector) -> al.Vector:
        """The same point relative to :meth:`origin`."""
        return al.plus(self.position[body], al.apply(self.rotation[body], at))

    def geom(self, pair: Pair, side: int) -> tuple[al.Vector, al.Matrix]:
        """Centre, relative to :meth:`origin`, and rotation of the first or second (0 or 1) geom of a pair."""
        body, place = pair.bodies[side], pair.places[side]
        rotation = al.product(self.rotation[body], al.constant_rotation(place.rotation))
        return self.point(body, al.constant(place.position)), rotation

    def features(self, n: int) -> al.Vector:
        """What a search finds of one contact: only the kinematics of a pair alone have them."""
        raise NotImplementedError

    def relative(self, body: int, at: al.Vector, other: int) -> al.Vector:
        """A point relative to the origin of a body's tree, from the origin of another body's tree."""
        if self.tree[body] == self.tree[other]:
            return at
        return al.minus(al.plus(self.origin(body), at), self.origin(other))

    def quaternion(self, q: Sequence[Any], body: int) -> list[Any]:
        """The orientation of a body, MuJoCo's xquat, at the positions q."""
        m = self.model.model
        if body == 0:
            return [1.0, 0.0, 0.0, 0.0]
        if m.body_mocapid[body] >= 0:
            return self._mocap[7 * int(m.body_mocapid[body]) :][3:7]
        turned = self.quaternion(q, int(m.body_parentid[body]))
        turned = al.quaternion_product(turned, [float(x) for x in m.body_quat[body]])
        for j in range(int(m.body_jntadr[body]), int(m.body_jntadr[body]) + int(m.body_jntnum[body])):
            at, kind = int(m.jnt_qposadr[j]), self.model.joint_kinds[j]
            if kind == "free":
                turned = list(q[at + 3 : at + 7])
            elif kind == "ball":
                turned = al.quaternion_product(turned, list(q[at : at + 4]))
            elif kind == "hinge":
                half = mul(0.5, sub(q[at], float(m.qpos0[at])))
                axis = al.times(al.constant(m.jnt_axis[j]), sin(half))
                turned = al.quaternion_product(turned, [cos(half), *axis])
        return turned

    def _add(self, m: Any, b: int, q: Sequence[Any], mocap: Sequence[Any]) -> None:
        parent = int(m.body_parentid[b])
        joints = range(int(m.body_jntadr[b]), int(m.body_jntadr[b]) + int(m.body_jntnum[b]))
        root = self.tree[parent] == 0 and bool(m.body_jntnum[b])
        self.tree.append(b if root else self.tree[parent])
        if m.body_mocapid[b] >= 0:
            pose = list(mocap[7 * int(m.body_mocapid[b]) :][:7])
            place, turn = pose[:3], al.matrix_of(pose[3:])
        else:
            place, turn = al.constant(m.body_pos[b]), al.constant_rotation(al.rotation(m.body_quat[b]))
        rotation = al.product(self.rotation[parent], turn)
        position = al.plus(self.position[parent], al.apply(self.rotation[parent], place))
        motions: list[tuple[int, str, al.Vector, al.Vector]] = []
        for j in joints:
            d, at, kind = int(m.jnt_dofadr[j]), int(m.jnt_qposadr[j]), self.model.joint_kinds[j]
            if kind == "free":
                position, rotation = list(q[at : at + 3]), al.matrix_of(list(q[at + 3 : at + 7]))
                motions += [(d + i, "slide", al.IDENTITY[i], position) for i in range(3)]
                motions += [(d + 3 + i, "hinge", al.column(rotation, i), position) for i in range(3)]
                continue
            offset, axis = al.constant(m.jnt_pos[j]), al.constant(m.jnt_axis[j])
            anchor = al.plus(position, al.apply(rotation, offset))
            if kind == "ball":
                rotation = al.product(rotation, al.matrix_of(list(q[at : at + 4])))
                motions += [(d + i, "hinge", al.column(rotation, i), anchor) for i in range(3)]
                position = al.minus(anchor, al.apply(rotation, offset))
                continue
            moved, world_axis = sub(q[at], float(m.qpos0[at])), al.apply(rotation, axis)
            motions.append((d, kind, world_axis, anchor))
            if kind == "slide":
                position = al.plus(position, al.times(world_axis, moved))
            else:
                rotation = al.product(rotation, al.about(axis, sin(moved), cos(moved)))
                position = al.minus(anchor, al.apply(rotation, offset))
        if root:
            self._origin[b] = position
        shift = self._origin[b] if root else al.ZERO
        for d, kind, axis, anchor in motions:
            if kind == "slide":
                self.axes[d] = (al.ZERO, axis)
            else:
                self.axes[d] = (axis, al.cross(al.minus(anchor, shift), axis))
        self.rotation.append(rotation)
        self.position.append(al.minus(position, shift))

    def dofs(self, body: int) -> range:
        """The degrees of freedom of the body's own joints."""
        m = self.model.model
        return range(int(m.body_dofadr[body]), int(m.body_dofadr[body]) + int(m.body_dofnum[body]))

    def positions(self, body: int) -> range:
        """The places in qpos of the body's own joints."""
        m = self.model.model
        begin, end = (int(m.body_jntadr[body]) + n for n in (0, int(m.body_jntnum[body])))
        if begin == end:
            return range(0)
        return range(int(m.jnt_qposadr[begin]), int(m.jnt_qposadr[end]) if end < m.njnt else int(m.nq))

    def chain(self, body: int) -> list[int]:
        """The degrees of freedom that move the body, ascending."""
        found = []
        while body:
            found += list(self.dofs(body))
            body = int(self.model.model.body_parentid[body])
        return sorted(found)

    def velocities(self, v: Sequence[Any]) -> list[Spatial]:
        """The spatial velocity of every body: the sum of its chain's axes times v."""
        found = [REST]
        for b in range(1, self.model.model.nbody):
            angular, linear = found[int(self.model.model.body_parentid[b])]
            for d in self.dofs(b):
                angular = al.plus(angular, al.times(self.axes[d][0], v[d]))
                linear = al.plus(linear, al.times(self.axes[d][1], v[d]))
            found.append((angular, linear))
        return found


def centre_of_mass(kinematics: Kinematics, body: int, v: Sequence[Any] | None = None) -> al.Vector:
    """World position of the centre of mass of a body with all that it carries; with v, its velocity.

    Where these have no mass, it is that of the body, at rest, as in MuJoCo.
    """
    m = kinematics.model.model
    carried = [body]
    for b in range(body + 1, m.nbody):
        carried += [b] if int(m.body_parentid[b]) in carried else []
    mass = functools.reduce(add, [number(m.body_mass[b]) for b in carried])
    if is_zero(mass):
        return al.ZERO if v is not None else kinematics.world_position(body, al.constant(m.body_ipos[body]))
    velocities = kinematics.velocities(v) if v is not None else []
    total = al.ZERO
    for b in carried:
        at = al.constant(m.body_ipos[b])
        part = kinematics.world_position(b, at) if v is None else at_point(velocities[b], kinematics.point(b, at))
        total = al.plus(total, al.times(part, div(number(m.body_mass[b]), mass)))
    return total


def related(m: Any) -> list[list[int]]:
    """For each degree of freedom of an ``MjModel``, itself, its ancestors and its descendants, ascending."""
    found: list[list[int]] = []
    for i in range(m.nv):
        parent = int(m.dof_parentid[i])
        above = [j for j in found[parent] if j <= parent] if parent >= 0 else []
        for j in above:
            found[j].append(i)
        found.append([*above, i])
    return found


def at_point(motion: Spatial, point: al.Vector) -> al.Vector:
    """The linear part of a spatial motion at a point relative to its origin."""
    return al.plus(motion[1], al.cross(motion[0], point))


def mass_matrix(kinematics: Kinematics) -> list[list[Any]]:
    """M(q) with armature, [nv, nv], by composite rigid bodies; 0 between unconnected degrees of freedom."""
    m = kinematics.model.model
    mass: list[Any] = [0.0] * m.nbody
    moment = [al.ZERO] * m.nbody
    inertia: list[al.Matrix] = [[al.ZERO, al.ZERO, al.ZERO]] * m.nbody
    for b in range(1, m.nbody):
        body, c, turn = kinematics.model.bodies[b], kinematics.centre[b], kinematics.rotation[b]
        own = body.mass
        about_centre = al.product(al.product(turn, body.inertia), al.transpose(turn))
        square = al.dot(c, c)
        mass[b], moment[b] = own, al.times(c, own)
        inertia[b] = [
            [about_centre[i][j] + mul(own, sub(square if i == j else 0.0, mul(c[i], c[j]))) for j in range(3)]
            for i in range(3)
        ]
    for b in range(m.nbody - 1, 0, -1):
        p = int(m.body_parentid[b])
        mass[p] = mass[p] + mass[b]
        moment[p] = al.plus(moment[p], moment[b])
        inertia[p] = [al.plus(x, y) for x, y in zip(inertia[p], inertia[b], strict=True)]
    matrix: list[list[Any]] = [[0.0] * m.nv for _ in range(m.nv)]
    for i in range(m.nv):
        b, (angular, linear) = int(m.dof_bodyid[i]), kinematics.axes[i]
        momentum = al.plus(al.times(linear, mass[b]), al.cross(angular, moment[b]))
        spin = al.plus(al.apply(inertia[b], angular), al.cross(moment[b], linear))
        j = i
        while j >= 0:
            axis = kinematics.axes[j]
            matrix[i][j] = matrix[j][i] = al.dot(axis[0], spin) + al.dot(axis[1], momentum)
            j = int(m.dof_parentid[j])
        matrix[i][i] = matrix[i][i] + kinematics.model.armature[i]
    return matrix


def inverse_dynamics(kinematics: Kinematics, v: Sequence[Any], qacc: Sequence[Any], gravity: bool = True) -> list[Any]:
    """The generalised forces that make accelerations ``qacc`` at velocities ``v``, without armature, [nv].

    With qacc = 0 it is MuJoCo's qfrc_bias; with v = 0 and no gravity it is M qacc without armature.
    """
    return project(kinematics, wrenches(kinematics, *accelerations(kinematics, v, qacc, gravity)))


def accelerations(
    kinematics: Kinematics, v: Sequence[Any], qacc: Sequence[Any], gravity: bool = True
) -> tuple[list[Spatial], list[Spatial]]:
    """The spatial velocity and acceleration of every body; with gravity, what rests accelerates upwards."""
    m, kinds = kinematics.model.model, kinematics.model.joint_kinds
    weight = al.times(al.constant(kinematics.model.gravity), -1.0) if gravity else al.ZERO
    velocity, acceleration = [REST], [(al.ZERO, weight)]
    for b in range(1, m.nbody):
        p = int(m.body_parentid[b])
        if kinematics.tree[b] == 0:
            velocity.append(REST)
            acceleration.append((al.ZERO, weight))
            continue
        now = carrier = velocity[p]
        rate = acceleration[p]
        for d in kinematics.dofs(b):
            axis, joint = kinematics.axes[d], int(m.dof_jntid[d])
            of_joint = d - int(m.jnt_dofadr[joint])
            if of_joint == 0 or (kinds[joint] == "free" and of_joint == 3):
                # The three axes of a rotation move with the body that carries them, not with one another.
                carrier = now
            rate = (al.plus(rate[0], al.times(axis[0], qacc[d])), al.plus(rate[1], al.times(axis[1], qacc[d])))
            if kinds[joint] != "free" or of_joint >= 3:  # a free joint's translation is along the world's axes
                turn = al.cross(carrier[0], axis[0])
                drift = al.plus(al.cross(carrier[0], axis[1]), al.cross(carrier[1], axis[0]))
                rate = (al.plus(rate[0], al.times(turn, v[d])), al.plus(rate[1], al.times(drift, v[d])))
            now = (al.plus(now[0], al.times(axis[0], v[d])), al.plus(now[1], al.times(axis[1], v[d])))
        velocity.append(now)
        acceleration.append(rate)
    return velocity, acceleration


def wrenches(kinematics: Kinematics, velocity: Sequence[Spatial], acceleration: Sequence[Spatial]) -> list[Spatial]:
    """The (torque about the origin, force) on every body that make it move so."""
    m = kinematics.model.model
    force, torque = [al.ZERO] * m.nbody, [al.ZERO] * m.nbody
    for b in range(1, m.nbody):
        body = kinematics.model.bodies[b]
        if kinematics.tree[b] == 0 or not (body.mass or np.any(body.inertia)):
            continue
        c, turn, (spin, _), rate = kinematics.centre[b], kinematics.rotation[b], velocity[b], acceleration[b]
        at_centre = al.plus(at_point(rate, c), al.cross(spin, at_point(velocity[b], c)))
        force[b] = al.times(at_centre, body.mass)
        back, inertia = al.transpose(turn), body.inertia
        own_spin = al.apply(back, spin)
        own = al.plus(al.apply(inertia, al.apply(back, rate[0])), al.cross(own_spin, al.apply(inertia, own_spin)))
        torque[b] = al.plus(al.apply(turn, own), al.cross(c, force[b]))
    return list(zip(torque, force, strict=True))


def project(kinematics: Kinematics, loads: Sequence[Spatial]) -> list[Any]:
    """The generalised forces of one (torque about the origin, force) on each body, [nv]."""
    m = kinematics.model.model
    torque, force = [x[0] for x in loads], [x[1] for x in loads]
    result: list[Any] = [0.0] * m.nv
    for b in range(m.nbody - 1, 0, -1):
        for d in kinematics.dofs(b):
            axis = kinematics.axes[d]
            result[d] = al.dot(axis[0], torque[b]) + al.dot(axis[1], force[b])
        p = int(m.body_parentid[b])
        torque[p], force[p] = al.plus(torque[p], torque[b]), al.plus(force[p], force[b])
    return result
