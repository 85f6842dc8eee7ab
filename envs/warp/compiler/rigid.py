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

    mass: float
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
    parts: list[list[tuple[float, np.ndarray, np.ndarray]]] = [[] for _ in range(m.nbody)]
    for b in range(1, m.nbody):
        root, place = carrier(m, b)
        centre = place.inside(m.body_ipos[b], m.body_iquat[b])
        turned = centre.rotation @ np.diag(m.body_inertia[b]) @ centre.rotation.T
        parts[root].append((float(m.body_mass[b]), centre.position, turned))
    return [NOTHING, *(_joined(p) if p else NOTHING for p in parts[1:])]


def _joined(parts: Sequence[tuple[float, np.ndarray, np.ndarray]]) -> Rigid:
    """The inertia of parts: (mass, centre of mass, inertia about it)."""
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
