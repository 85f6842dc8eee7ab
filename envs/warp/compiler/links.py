"""Stage 4, links: the equalities ``connect`` and ``weld`` of two frames, as coordinates that are to be 0.

A connect holds the frames' origins together; a weld their axes, too, by the vector part of the quaternion between them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from mage_diffsim.envs.mujoco.model import load_mujoco
from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.coordinates import Coordinate, summed
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics, Spatial, at_point
from mage_diffsim.envs.warp.compiler.graph import mul, neg, sub
from mage_diffsim.envs.warp.compiler.rigid import carrier


class Frame(NamedTuple):
    """A frame fixed to a body."""

    body: int
    """The body that carries it."""
    point: al.Vector
    """Its origin, relative to that of the body's tree."""
    rotation: al.Matrix


@dataclasses.dataclass(frozen=True)
class Link:
    """A connect or weld: the first frame relative to the second."""

    frames: tuple[Frame, Frame]
    apart: al.Vector
    """From the second origin to the first, along the world's axes [m]."""
    turn: list[Any] | None
    """The quaternion that turns the second frame into the first; None of a connect."""
    torque_scale: float
    coordinates: list[Coordinate]
    """The 3 or 6 violations."""

    def second(self, velocity: Sequence[Spatial], acceleration: Sequence[Spatial]) -> list[Any]:
        """The second derivatives of the violations by time, from the bodies' spatial motions: J a + J' v."""
        rates = []
        for body, point, _ in self.frames:
            spin, drift = velocity[body][0], at_point(velocity[body], point)
            rates.append(al.plus(at_point(acceleration[body], point), al.cross(spin, drift)))
        found = al.minus(*rates)
        if self.turn is None:
            return found
        first, other = (frame.body for frame in self.frames)
        back = al.transpose(self.frames[1].rotation)
        relative = al.minus(velocity[first][0], velocity[other][0])
        rate = al.minus(acceleration[first][0], acceleration[other][0])
        rate = al.minus(rate, al.cross(velocity[other][0], relative))
        # The quaternion e turns at w: e' = w e / 2 and e'' = (w' e + w e') / 2, where w w is -|w|^2.
        own = _turned(al.apply(back, rate), self.turn)
        square = al.dot(relative, relative)
        own = [sub(x, mul(0.5, mul(square, y))) for x, y in zip(own, self.turn[1:], strict=True)]
        return [*found, *al.times(own, 0.5 * self.torque_scale)]


def link(kinematics: Kinematics, equality: int) -> Link:
    """The link of a connect or weld constraint of the model."""
    m = kinematics.model.model
    data, weld = m.eq_data[equality], int(m.eq_type[equality]) == int(load_mujoco().mjtEq.mjEQ_WELD)
    anchors = (data[3:6], data[0:3]) if weld else (data[0:3], data[3:6])
    turns = (data[6:10] if weld else (1.0, 0.0, 0.0, 0.0)), (1.0, 0.0, 0.0, 0.0)
    frames = []
    for i, anchor, quaternion in zip((m.eq_obj1id[equality], m.eq_obj2id[equality]), anchors, turns, strict=True):
        if int(m.eq_objtype[equality]) == int(load_mujoco().mjtObj.mjOBJ_SITE):
            frames.append(_frame(kinematics, int(m.site_bodyid[i]), m.site_pos[i], m.site_quat[i]))
        else:
            frames.append(_frame(kinematics, int(i), anchor, quaternion))
    first, second = frames
    if kinematics.tree[first.body] == kinematics.tree[second.body]:
        apart = al.minus(first.point, second.point)
    else:
        places = (al.plus(kinematics.origin(f.body), f.point) for f in frames)
        apart = al.minus(*places)
    coordinates = [_shift(kinematics, first, second, apart, i) for i in range(3)]
    scale, turn = float(data[10]), None
    if weld:
        turn = al.quaternion_of(al.product(al.transpose(second.rotation), first.rotation))
        for i in range(3):
            # w / 2 e, component i, for w along each of the second frame's axes.
            ways = [_turned(axis, turn)[i] for axis in al.IDENTITY]
            torque = al.times(al.apply(second.rotation, ways), 0.5 * scale)
            coordinates.append(_rotation(kinematics, first, second, mul(scale, turn[1 + i]), torque))
    return Link((first, second), apart, turn, scale, coordinates)


def _frame(kinematics: Kinematics, body: int, position: Any, quaternion: Any) -> Frame:
    """A frame given in a body's frame; what cannot be moved by joints stays with its own body, which may be mocap."""
    root, place = carrier(kinematics.model.model, body)
    if root == 0:
        rotation = al.product(kinematics.rotation[body], al.constant_rotation(al.rotation(quaternion)))
        return Frame(body, kinematics.point(body, al.constant(position)), rotation)
    place = place.inside(position, quaternion)
    rotation = al.product(kinematics.rotation[root], al.constant_rotation(place.rotation))
    return Frame(root, kinematics.point(root, al.constant(place.position)), rotation)


def _turned(w: al.Vector, quaternion: Sequence[Any]) -> al.Vector:
    """The vector part of (0, w) times a quaternion."""
    vector = list(quaternion[1:])
    return al.plus(al.times(w, quaternion[0]), al.cross(w, vector))


def _shift(kinematics: Kinematics, first: Frame, second: Frame, apart: al.Vector, i: int) -> Coordinate:
    """The coordinate of component i of ``apart``."""
    way = al.IDENTITY[i]
    loads = [
        (f.body, (al.cross(f.point, al.times(way, s)), al.times(way, s))) for f, s in ((first, 1.0), (second, -1.0))
    ]
    row: list[Any] = [0.0] * kinematics.model.model.nv
    chains = [set(kinematics.chain(f.body)) for f in (first, second)]
    for d in chains[0] | chains[1]:
        axis = kinematics.axes[d]
        if d in chains[0] & chains[1]:
            row[d] = al.cross(axis[0], apart)[i]
        elif d in chains[0]:
            row[d] = at_point(axis, first.point)[i]
        else:
            row[d] = neg(at_point(axis, second.point)[i])
    return Coordinate(apart[i], row, summed(loads))


def _rotation(kinematics: Kinematics, first: Frame, second: Frame, length: Any, torque: al.Vector) -> Coordinate:
    """A coordinate on which a unit force is a torque on the first body, and its opposite on the second."""
    row: list[Any] = [0.0] * kinematics.model.model.nv
    chains = [set(kinematics.chain(f.body)) for f in (first, second)]
    for d in chains[0] ^ chains[1]:
        along = al.dot(kinematics.axes[d][0], torque)
        row[d] = along if d in chains[0] else neg(along)
    loads = [(first.body, (torque, al.ZERO)), (second.body, (al.times(torque, -1.0), al.ZERO))]
    return Coordinate(length, row, summed(loads))
