"""Stage 3, smooth forces: springs, dampers, the fluid, actuators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mage_diffsim.envs.mujoco.mixing import SMALLEST
from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics, Spatial, at_point, project
from mage_diffsim.envs.warp.compiler.graph import absolute, add, maximum, minimum, mul, sub


def passive(kinematics: Kinematics, q: Sequence[Any], v: Sequence[Any]) -> list[Any]:
    """MuJoCo's qfrc_passive, [nv]: joint springs and dampers, and the fluid by the boxes of inertia."""
    both = zip(springs(kinematics, q, v), project(kinematics, drag(kinematics, v)), strict=True)
    return [add(a, b) for a, b in both]


def springs(kinematics: Kinematics, q: Sequence[Any], v: Sequence[Any]) -> list[Any]:
    """The forces of joint springs and dampers, [nv]."""
    model, m = kinematics.model, kinematics.model.model
    total = [mul(-float(m.dof_damping[d]), v[d]) for d in range(m.nv)]
    for j, kind in enumerate(model.joint_kinds):
        if m.jnt_stiffness[j] and kind in ("hinge", "slide"):
            d, at = int(m.jnt_dofadr[j]), int(m.jnt_qposadr[j])
            stretch = sub(q[at], float(m.qpos_spring[at]))
            total[d] = add(total[d], mul(-float(m.jnt_stiffness[j]), stretch))
    return total


def drag(kinematics: Kinematics, v: Sequence[Any]) -> list[Spatial]:
    """(torque about the origin, force) of the fluid on the box with each body's inertia (MuJoCo's documentation,
    "Inertia model")."""
    m = kinematics.model.model
    density, viscosity = float(m.opt.density), float(m.opt.viscosity)
    loads: list[Spatial] = [(al.ZERO, al.ZERO)] * m.nbody
    if density <= 0.0 and viscosity <= 0.0:
        return loads
    for b, velocity in enumerate(kinematics.velocities(v)):
        mass = float(m.body_mass[b])
        if mass < SMALLEST or kinematics.tree[b] == 0:
            continue
        moments = m.body_inertia[b]
        box = np.sqrt([max(SMALLEST, moments.sum() - 2.0 * moments[i]) / mass * 6.0 for i in range(3)])
        frame = al.product(kinematics.rotation[b], al.constant_rotation(al.rotation(m.body_iquat[b])))
        back, c = al.transpose(frame), kinematics.point(b, al.constant(m.body_ipos[b]))
        spin = al.apply(back, velocity[0])
        drift = al.apply(back, al.minus(at_point(velocity, c), al.constant(m.opt.wind)))
        torque, force = al.ZERO, al.ZERO
        if viscosity > 0.0:
            diameter = float(box.mean())
            torque = al.times(spin, -math.pi * diameter**3 * viscosity)
            force = al.times(drift, -3.0 * math.pi * diameter * viscosity)
        if density > 0.0:
            for i in range(3):
                j, k = (i + 1) % 3, (i + 2) % 3
                area = density * float(box[j] * box[k])
                arm = density * float(box[i] * (box[j] ** 4 + box[k] ** 4))
                force = al.plus(force, _along(i, mul(-0.5 * area, mul(absolute(drift[i]), drift[i]))))
                torque = al.plus(torque, _along(i, mul(-arm / 64.0, mul(absolute(spin[i]), spin[i]))))
        world_force = al.apply(frame, force)
        loads[b] = al.plus(al.apply(frame, torque), al.cross(c, world_force)), world_force
    return loads


def _along(i: int, x: Any) -> al.Vector:
    return [x if i == j else 0.0 for j in range(3)]


def actuation(kinematics: Kinematics, q: Sequence[Any], v: Sequence[Any], control: Sequence[Any]) -> list[Any]:
    """MuJoCo's qfrc_actuator, [nv]."""
    total: list[Any] = [0.0] * kinematics.model.model.nv
    for motor, u in zip(kinematics.model.motors, control, strict=True):
        length, speed = mul(motor.gear, q[motor.position]), mul(motor.gear, v[motor.dof])
        force = add(mul(motor.gain, u), add(motor.bias[0], mul(motor.bias[1], length)))
        force = add(force, mul(motor.bias[2], speed))
        low, high = motor.force_range
        force = force if low == -math.inf else maximum(force, low)
        force = force if high == math.inf else minimum(force, high)
        total[motor.dof] = add(total[motor.dof], mul(motor.gear, force))
    return total


def smooth(kinematics: Kinematics, q: Sequence[Any], v: Sequence[Any], control: Sequence[Any]) -> list[Any]:
    """Passive forces plus actuation, [nv]."""
    both = zip(passive(kinematics, q, v), actuation(kinematics, q, v, control), strict=True)
    return [add(a, b) for a, b in both]
