"""Bodies that are welded together, as one: its mass, centre and inertia, and where the others' geoms are in its frame.

The model has constants in place of the welded bodies' equations: the Ant, whose four hips are welded to its torso, has
9 bodies that move for 13.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.graph import Node, add, div, less, mul, number, sub, where


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a frame is in the frame of the body that carries it."""

    position: np.ndarray
    rotation: np.ndarray
    """[3, 3], the frame's axes in columns."""

    def inside(self, position: Any, quaternion: Any) -> Place:
        """The place of a frame that is given in this one."""
        return Place(self.position + self.rotation @ position, self.rotation @ al.rotation(quaternion))


@dataclasses.dataclass(frozen=True)
class Rigid:
    """Inertia of a body with all that is welded to it; 0 for the others."""

    mass: Any
    centre: al.Vector
    """The centre of mass in the body's frame [m]."""
    inertia: al.Matrix
    """About the centre of mass, in the body's frame."""


NOTHING = Rigid(0.0, al.ZERO, [al.ZERO, al.ZERO, al.ZERO])


def carrier(m: Any, body: int) -> tuple[int, Place]:
    """The body that a body is welded to (itself if it has joints, 0 if it cannot move), and its place there."""
    place, root = Place(np.zeros(3), np.eye(3)), int(m.body_weldid[body])
    while body != root:
        outer = Place(np.array(m.body_pos[body]), al.rotation(m.body_quat[body]))
        place = Place(outer.position + outer.rotation @ place.position, outer.rotation @ place.rotation)
        body = int(m.body_parentid[body])
    return root, place


def geom_place(m: Any, geom: int) -> tuple[int, Place]:
    """The body that carries a geom, and the geom's place there."""
    body, place = carrier(m, int(m.geom_bodyid[geom]))
    return body, place.inside(m.geom_pos[geom], m.geom_quat[geom])


def site_place(m: Any, site: int) -> tuple[int, Place]:
    """The body that carries a site, and the site's place there."""
    body, place = carrier(m, int(m.site_bodyid[site]))
    return body, place.inside(m.site_pos[site], m.site_quat[site])


def rigid_bodies(m: Any) -> list[Rigid]:
    """The inertia of every body of an ``MjModel``."""
    parts: list[list[Part]] = [[] for _ in range(m.nbody)]
    for b in range(1, m.nbody):
        root, place = carrier(m, b)
        centre = place.inside(m.body_ipos[b], m.body_iquat[b])
        turned = _turned(centre.rotation, m.body_inertia[b])
        parts[root].append((number(m.body_mass[b]), centre.position, turned))
    return [NOTHING, *(_joined(p) if p else NOTHING for p in parts[1:])]


Part = tuple[Any, np.ndarray, np.ndarray]
"""(mass, centre of mass, inertia about it); arrays of expressions where the model's numbers are inputs."""


def _turned(rotation: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """The inertia tensor with principal moments along the columns of a rotation."""
    if moments.dtype != object:
        return rotation @ np.diag(moments) @ rotation.T
    axes = np.array(al.constant_rotation(rotation))
    return (axes[:, None, :] * axes[None, :, :]) @ moments


def _joined(parts: Sequence[Part]) -> Rigid:
    """The inertia of parts."""
    if any(isinstance(own, Node) or at.dtype == object or turned.dtype == object for own, at, turned in parts):
        return _joined_inputs(parts)
    mass = sum(part[0] for part in parts)
    if mass == 0.0:
        return Rigid(0.0, al.constant(parts[0][1]), al.constant_matrix(sum(part[2] for part in parts)))
    shares = np.array([own / mass * at for own, at, _ in parts])
    centre = shares.sum(0)
    # What symmetric parts leave is a rounding error.
    centre[np.abs(centre) < al.ROUNDING * np.abs(shares).sum(0)] = 0.0
    inertia = np.zeros((3, 3))
    for own, at, turned in parts:
        arm = at - centre
        inertia += turned + own * (arm @ arm * np.eye(3) - np.outer(arm, arm))
    return Rigid(mass, al.constant(centre), al.constant_matrix(inertia))


def _joined_inputs(parts: Sequence[Part]) -> Rigid:
    """The inertia of parts some of whose numbers are inputs; where nothing has mass, the centre is the origin."""
    if len(parts) == 1:
        ((mass, at, turned),) = parts
        return Rigid(mass, al.constant(at), al.constant_matrix(turned))
    mass, moment = 0.0, al.ZERO
    for own, at, _ in parts:
        mass, moment = add(mass, own), al.plus(moment, al.times(al.constant(at), own))
    some = less(0.0, mass)
    centre = [div(x, where(some, mass, 1.0)) for x in moment]
    inertia: al.Matrix = [al.ZERO] * 3
    for own, at, turned in parts:
        arm = al.minus(al.constant(at), centre)
        square = al.dot(arm, arm)
        for i, row in enumerate(al.constant_matrix(turned)):
            shift = [mul(own, sub(square if i == j else 0.0, mul(arm[i], arm[j]))) for j in range(3)]
            inertia[i] = al.plus(inertia[i], al.plus(row, shift))
    return Rigid(mass, centre, inertia)
