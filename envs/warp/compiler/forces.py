"""Stage 3, smooth forces: springs, dampers, fluid, gravity compensation; actuators."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from mage_diffsim.envs.mujoco.mixing import SMALLEST
from mage_diffsim.envs.mujoco.model import load_mujoco
from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.actuators import actuator_forces, clip
from mage_diffsim.envs.warp.compiler.coordinates import Coordinate, Coordinates
from mage_diffsim.envs.warp.compiler.dynamics import REST, Kinematics, Spatial, at_point, project
from mage_diffsim.envs.warp.compiler.graph import absolute, add, is_zero, less, maximum, mul, number, sqrt, sub, where
from mage_diffsim.envs.warp.compiler.rigid import carrier


@dataclasses.dataclass(frozen=True)
class Pull:
    """A force along a coordinate that depends on the frames of bodies."""

    coordinate: Coordinate
    force: Any
    speed: Any
    """The rate of the coordinate at v, through which the force depends on v."""
    bodies: tuple[int, ...]
    """The bodies on whose frames coordinate and force depend."""


@dataclasses.dataclass
class Forces:
    """Forces on a model, by what they depend on."""

    joints: list[Any]
    """Generalised forces that are functions of q, v, controls and activations alone, nv."""
    bodies: list[Spatial]
    """(torque about the origin, force) on each body, a function of its own frame."""
    pulls: list[Pull]

    def total(self, kinematics: Kinematics) -> list[Any]:
        """The generalised force, nv."""
        found = [add(a, b) for a, b in zip(self.joints, project(kinematics, self.bodies), strict=True)]
        for pull in self.pulls:
            found = [add(x, mul(share, pull.force)) for x, share in zip(found, pull.coordinate.row, strict=True)]
        return found

    def at(self, dof: int) -> Any:
        """The generalised force at a degree of freedom, without that of the loads on bodies."""
        found = self.joints[dof]
        for pull in self.pulls:
            found = add(found, mul(pull.coordinate.row[dof], pull.force))
        return found

    def act(self, coordinate: Coordinate, force: Any, speed: Any) -> None:
        """Add a force along a coordinate."""
        if is_zero(force):
            return
        if coordinate.bodies:
            self.pulls.append(Pull(coordinate, force, speed, coordinate.bodies))
        else:
            self.joints = [add(x, mul(share, force)) for x, share in zip(self.joints, coordinate.row, strict=True)]

    def plus(self, other: Forces) -> Forces:
        """Both forces together."""
        return Forces(
            [add(a, b) for a, b in zip(self.joints, other.joints, strict=True)],
            [(al.plus(a[0], b[0]), al.plus(a[1], b[1])) for a, b in zip(self.bodies, other.bodies, strict=True)],
            [*self.pulls, *other.pulls],
        )


def none(m: Any) -> Forces:
    """No forces on an ``MjModel``."""
    return Forces([0.0] * m.nv, [REST] * m.nbody, [])


def smooth(coordinates: Coordinates, v: Sequence[Any], drive: Sequence[Any], limited: bool = True) -> Forces:
    """Passive forces plus actuation; see :func:`actuation`."""
    return passive(coordinates, v).plus(actuation(coordinates, v, drive, limited))


def passive(coordinates: Coordinates, v: Sequence[Any]) -> Forces:
    """MuJoCo's qfrc_passive: springs, dampers, the fluid by the boxes of inertia, gravity compensation."""
    kinematics, m = coordinates.kinematics, coordinates.model
    flags, given = load_mujoco().mjtDisableBit, int(m.opt.disableflags)
    spring, damper = not given & flags.mjDSBL_SPRING, not given & flags.mjDSBL_DAMPER
    found = none(m)
    if not spring and not damper:  # MuJoCo then leaves out all of these forces
        return found
    if damper:
        found.joints = [mul(-x, speed) for x, speed in zip(kinematics.model.damping, v, strict=True)]
    if spring:
        _springs(coordinates, found.joints)
    motions = kinematics.velocities(v)
    for t in range(m.ntendon):
        stiffness = float(m.tendon_stiffness[t]) if spring else 0.0
        damping = kinematics.model.tendon_damping[t] if damper else 0.0
        if stiffness or damping:
            tendon = coordinates.tendon(t)
            speed = tendon.rate(motions, v)
            found.act(tendon, _stretched(m, t, tendon.length, stiffness, mul(-damping, speed)), speed)
    weightless = _weightless(kinematics)
    found.bodies = [_sum(a, b) for a, b in zip(drag(kinematics, v), weightless, strict=True)]
    _at_actuated_joints(kinematics, found, weightless, -1.0)
    return found


def actuation(coordinates: Coordinates, v: Sequence[Any], drive: Sequence[Any], limited: bool = True) -> Forces:
    """MuJoCo's qfrc_actuator.

    Args:
        coordinates: of the model at the positions.
        v: the velocities.
        drive: what each actuator's gain multiplies (:func:`.activation.inputs`).
        limited: whether ``actuatorfrcrange`` brings forces into the ranges of joints and tendons. Otherwise it leaves
            out what MuJoCo's implicit integrators do: the forces of a tendon's or joint's own actuators, where their
            sum is outside the range.
    """
    m = coordinates.model
    if not m.nactuator or m.opt.disableflags & load_mujoco().mjtDisableBit.mjDSBL_ACTUATION:
        return none(m)  # whatever the ranges
    found = _unlimited(coordinates, v, drive, scaled=True)
    ranges = {
        int(m.jnt_dofadr[j]): tuple(float(x) for x in m.jnt_actfrcrange[j])
        for j in range(m.njnt)
        if m.jnt_actfrclimited[j]
    }
    if limited:
        for dof, (low, high) in ranges.items():
            _limit(m, found, dof, low, high)
        return found
    counted = _unlimited(coordinates, v, drive, scaled=False)
    at_joints = (int(load_mujoco().mjtTrn.mjTRN_JOINT), int(load_mujoco().mjtTrn.mjTRN_JOINTINPARENT))
    for i, (coordinate, force, _) in actuator_forces(coordinates, v, drive).items():
        dof = int(m.jnt_dofadr[m.actuator_trnid[i, 0]]) if m.actuator_trntype[i] in at_joints else -1
        if dof in ranges:
            total, (low, high) = found.at(dof), ranges[dof]
            own = mul(coordinate.row[dof], force)
            left_out = where(less(total, low), own, where(less(high, total), own, 0.0))
            counted.joints[dof] = sub(counted.joints[dof], left_out)
    return counted


def _unlimited(coordinates: Coordinates, v: Sequence[Any], drive: Sequence[Any], scaled: bool) -> Forces:
    """Actuation without the ranges of joints; ``scaled`` as in :func:`.actuators.actuator_forces`."""
    kinematics, m = coordinates.kinematics, coordinates.model
    found = none(m)
    flags, given = load_mujoco().mjtDisableBit, int(m.opt.disableflags)
    for coordinate, force, speed in actuator_forces(coordinates, v, drive, scaled).values():
        found.act(coordinate, force, speed)
    if given & flags.mjDSBL_SPRING and given & flags.mjDSBL_DAMPER:
        weightless = [REST] * m.nbody
    else:
        weightless = _weightless(kinematics)
    _at_actuated_joints(kinematics, found, weightless, 1.0)
    return found


def _limit(m: Any, forces: Forces, dof: int, low: float, high: float) -> None:
    """Bring the generalised force at a degree of freedom into a range."""
    shares = [(pull, pull.coordinate.row[dof]) for pull in forces.pulls if not is_zero(pull.coordinate.row[dof])]
    total = forces.at(dof)
    if not shares:
        forces.joints[dof] = clip(total, low, high)
        return
    # The force at the joint may depend on any joint, by fixed tendons: the last body comes before them all.
    bodies = {m.nbody - 1, int(m.dof_bodyid[dof]), *(b for pull, _ in shares for b in pull.bodies)}
    forces.pulls.append(Pull(_unit(m, dof), sub(clip(total, low, high), total), 0.0, tuple(sorted(bodies))))


def _unit(m: Any, dof: int) -> Coordinate:
    """A coordinate whose rate is one velocity."""
    return Coordinate(0.0, [float(d == dof) for d in range(m.nv)])


def _springs(coordinates: Coordinates, forces: list[Any]) -> None:
    """Add the forces of joint springs."""
    m, q = coordinates.model, coordinates.q
    for j, kind in enumerate(coordinates.kinematics.model.joint_kinds):
        stiffness, d, at = number(m.jnt_stiffness[j]), int(m.jnt_dofadr[j]), int(m.jnt_qposadr[j])
        if not stiffness:
            continue
        stretch = []
        if kind != "ball":
            stretch = [sub(q[at + i], float(m.qpos_spring[at + i])) for i in range(3 if kind == "free" else 1)]
        if kind in ("free", "ball"):
            at += len(stretch)
            rest = al.conjugate([float(x) for x in m.qpos_spring[at : at + 4]])
            stretch += al.rotation_vector(al.quaternion_product(rest, q[at : at + 4]))
        for i, x in enumerate(stretch):
            forces[d + i] = add(forces[d + i], mul(-stiffness, x))


def _stretched(m: Any, tendon: int, length: Any, stiffness: float, force: Any) -> Any:
    """``force`` plus that of a tendon's spring, which rests over a range of lengths."""
    if not stiffness:
        return force
    low, high = (float(x) for x in m.tendon_lengthspring[tendon])
    stretch = where(less(length, low), sub(length, low), 0.0)
    stretch = sub(length, low) if low == high else where(less(high, length), sub(length, high), stretch)
    return add(mul(-stiffness, stretch), force)


def _sum(a: Spatial, b: Spatial) -> Spatial:
    return al.plus(a[0], b[0]), al.plus(a[1], b[1])


def _weightless(kinematics: Kinematics) -> list[Spatial]:
    """(torque about the origin, force) of gravity compensation on each body."""
    m = kinematics.model.model
    loads: list[Spatial] = [REST] * m.nbody
    if not m.flg_gravcomp:  # negative compensation counts only beside positive
        return loads
    for b in range(1, m.nbody):
        share = mul(number(m.body_mass[b]), float(m.body_gravcomp[b]))
        body, place = carrier(m, b)
        if not is_zero(share) and kinematics.tree[body]:
            force = [-share * x for x in kinematics.model.gravity]
            centre = kinematics.point(body, al.constant(place.inside(m.body_ipos[b], m.body_iquat[b]).position))
            loads[body] = _sum(loads[body], (al.cross(centre, force), force))
    return loads


def _at_actuated_joints(kinematics: Kinematics, forces: Forces, weightless: Sequence[Spatial], sign: float) -> None:
    """Add gravity compensation at joints with ``actuatorgravcomp``, which count as actuation, times ``sign``."""
    m = kinematics.model.model
    compensated = [b for b, load in enumerate(weightless) if load is not REST]
    for dof, force in enumerate(project(kinematics, weightless)):
        if m.jnt_actgravcomp[m.dof_jntid[dof]] and not is_zero(force):
            bodies = (b for b in compensated if dof in kinematics.chain(b))
            forces.pulls.append(Pull(_unit(m, dof), mul(sign, force), 0.0, tuple(bodies)))


def drag(kinematics: Kinematics, v: Sequence[Any]) -> list[Spatial]:
    """(torque about the origin, force) of the fluid on the box with each body's inertia (MuJoCo's documentation,
    "Inertia model")."""
    m = kinematics.model.model
    density, viscosity = float(m.opt.density), float(m.opt.viscosity)
    loads: list[Spatial] = [REST] * m.nbody
    if density <= 0.0 and viscosity <= 0.0:
        return loads
    for b, velocity in enumerate(kinematics.velocities(v)):
        mass, moments = number(m.body_mass[b]), [number(x) for x in m.body_inertia[b]]
        light = less(mass, SMALLEST)
        if light is True or kinematics.tree[b] == 0:
            continue
        squares = (maximum(moments[0] + moments[1] + moments[2] - 2.0 * x, SMALLEST) for x in moments)
        box = [where(light, 0.0, sqrt(square / where(light, 1.0, mass) * 6.0)) for square in squares]
        frame = al.product(kinematics.rotation[b], al.constant_rotation(al.rotation(m.body_iquat[b])))
        back, c = al.transpose(frame), kinematics.point(b, al.constant(m.body_ipos[b]))
        spin = al.apply(back, velocity[0])
        drift = al.apply(back, al.minus(at_point(velocity, c), al.constant(m.opt.wind)))
        torque, force = al.ZERO, al.ZERO
        if viscosity > 0.0:
            diameter = (box[0] + box[1] + box[2]) / 3.0
            torque = al.times(spin, -math.pi * diameter**3 * viscosity)
            force = al.times(drift, -3.0 * math.pi * diameter * viscosity)
        if density > 0.0:
            for i in range(3):
                j, k = (i + 1) % 3, (i + 2) % 3
                area = density * (box[j] * box[k])
                arm = density * (box[i] * (box[j] ** 4 + box[k] ** 4))
                force = al.plus(force, _along(i, mul(-0.5 * area, mul(absolute(drift[i]), drift[i]))))
                torque = al.plus(torque, _along(i, mul(-arm / 64.0, mul(absolute(spin[i]), spin[i]))))
        world_force = al.apply(frame, force)
        loads[b] = al.plus(al.apply(frame, torque), al.cross(c, world_force)), world_force
    return loads


def _along(i: int, x: Any) -> al.Vector:
    return [x if i == j else 0.0 for j in range(3)]
