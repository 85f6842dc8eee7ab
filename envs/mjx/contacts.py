"""Makes contacts as MuJoCo C does; MJX's own collisions differ in places. :data:`COLLISIONS` lists the geom pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mage_diffsim.envs.mujoco.mixing import PARALLEL, SMALLEST, ContactPair, contact_pairs, kind_of

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Geom:
    """One geom, or several with a leading axis."""

    position: Any
    """World position [m], [3]."""
    rotation: Any
    """Rotation matrix, whose columns are the geom's axes, [3, 3]."""
    size: Any
    """As in MJCF, [3]."""


jax.tree_util.register_dataclass(Geom)


@dataclasses.dataclass(frozen=True)
class Group:
    """Pairs of geoms of the same two kinds, known when the step is compiled."""

    kinds: tuple[str, str]
    dim: int
    """1 without friction, else 3, 4 or 6 (condim)."""
    geoms: np.ndarray
    """In MuJoCo's order (by kind), [k, 2]."""
    bodies: np.ndarray
    """[k, 2]."""
    margin: np.ndarray
    """Distance below which a contact acts, where MuJoCo finds it [m], [k]."""
    reach: np.ndarray
    """Distance below which MuJoCo finds it [m], [k]."""
    friction: np.ndarray
    """[k, 5]."""
    solref: np.ndarray
    """[k, 2]."""
    solreffriction: np.ndarray
    """0 where solref serves, [k, 2]."""
    solimp: np.ndarray
    """[k, 5]."""

    @property
    def slots(self) -> int:
        """Largest number of contacts of one pair."""
        return COLLISIONS[self.kinds][0]

    def collide(self, size: Array, position: Array, rotation: Array) -> tuple[Array, Array, Array]:
        """Distance [k slots], position [k slots, 3] and frame (normal, tangents) [k slots, 3, 3] of the contacts.

        Args:
            size, position, rotation: of all geoms, [ngeom, 3], [ngeom, 3] and [ngeom, 3, 3].
        """
        first, second = (Geom(position[g], rotation[g], size[g]) for g in self.geoms.T)
        distance, where, frame = jax.vmap(COLLISIONS[self.kinds][1])(first, second)
        return distance.reshape(-1), where.reshape(-1, 3), frame.reshape(-1, 3, 3)


def groups(model: Any) -> tuple[Group, ...]:
    """All pairs of geoms of a ``mujoco.MjModel`` with their parameters, as MuJoCo's mj_contactParam mixes them.

    Raises:
        KeyError: a pair is not one of :data:`COLLISIONS`.
    """
    found: dict[tuple[int, tuple[str, str]], list[ContactPair]] = {}
    for pair in contact_pairs(model):
        found.setdefault((pair.dim, (kind_of(model, pair.geoms[0]), kind_of(model, pair.geoms[1]))), []).append(pair)
    made = []
    for (dim, kinds), same in sorted(found.items()):
        COLLISIONS[kinds]
        columns = {
            name: np.array([getattr(pair, name) for pair in same])
            for name in ("geoms", "margin", "reach", "friction", "solref", "solreffriction", "solimp")
        }
        made.append(Group(kinds, dim, bodies=np.asarray(model.geom_bodyid)[columns["geoms"]], **columns))
    return tuple(made)


def _smallest(x: Array) -> float:
    """Length below which a vector has no direction: MuJoCo's limit in float64, rounding in float32."""
    return SMALLEST if x.dtype == jnp.float64 else 1e-6


def _unit(x: Array, otherwise: Array | None = None, smallest: float = SMALLEST) -> tuple[Array, Array]:
    """x [3] at length 1, or another vector (by default the x axis) if x is too short; and x's length."""
    squared = x @ x
    clear = squared >= smallest**2
    length = jnp.sqrt(jnp.where(clear, squared, 1.0))
    otherwise = jnp.eye(3, dtype=x.dtype)[0] if otherwise is None else otherwise
    return jnp.where(clear, x / length, otherwise), jnp.where(clear, length, 0.0)


def _frame(normal: Array, along: Array | None = None) -> Array:
    """Normal and tangents as rows [3, 3], as MuJoCo's mju_makeFrame completes them.

    Args:
        normal: of length 1, [3].
        along: where the first tangent shall point, of length 1, [3]; by default the y axis, or z along y.
    """
    if along is None:
        y, z = jnp.eye(3, dtype=normal.dtype)[1:]
        along = jnp.where(jnp.abs(normal[1]) < 0.5, y, z)
    tangent = _unit(along - normal * (normal @ along), smallest=_smallest(normal))[0]
    return jnp.stack([normal, tangent, jnp.cross(normal, tangent)])


def _plane_sphere(plane: Geom, sphere: Geom) -> tuple[Array, Array, Array]:
    normal = plane.rotation[:, 2]
    distance = (sphere.position - plane.position) @ normal - sphere.size[0]
    return distance, sphere.position - normal * (sphere.size[0] + 0.5 * distance), _frame(normal)


def _plane_capsule(plane: Geom, capsule: Geom) -> tuple[Array, Array, Array]:
    """Contacts at the two ends; the first tangent lies along the capsule."""
    normal, axis = plane.rotation[:, 2], capsule.rotation[:, 2]
    frame = _frame(normal, axis)
    ends = [capsule.position + sign * capsule.size[1] * axis for sign in (1.0, -1.0)]
    found = [_plane_sphere(plane, Geom(end, capsule.rotation, capsule.size)) for end in ends]
    return jnp.stack([f[0] for f in found]), jnp.stack([f[1] for f in found]), jnp.stack([frame, frame])


def _plane_ellipsoid(plane: Geom, ellipsoid: Geom) -> tuple[Array, Array, Array]:
    normal, size = plane.rotation[:, 2], ellipsoid.size
    lowest = -_unit((ellipsoid.rotation.T @ normal) * size)[0] * size
    point = ellipsoid.position + ellipsoid.rotation @ lowest
    distance = normal @ (point - plane.position)
    return distance, point - 0.5 * distance * normal, _frame(normal)


def _plane_cylinder(plane: Geom, cylinder: Geom) -> tuple[Array, Array, Array]:
    """Contacts at the lowest points of both rims, and at two more points on the lower rim, which make a triangle."""
    normal, axis = plane.rotation[:, 2], cylinder.rotation[:, 2]
    radius, half = cylinder.size[0], cylinder.size[1]
    axis = jnp.where(normal @ axis > 0.0, -axis, axis)
    down = axis @ normal
    flat = cylinder.rotation[:, 0]
    outwards = radius * _unit(axis * down - normal, flat, _smallest(axis))[0]
    axis = half * axis
    sideways = 0.5 * jnp.sqrt(3.0) * radius * _unit(jnp.cross(outwards, axis))[0]
    points = cylinder.position + jnp.stack(
        [
            outwards + axis,
            outwards - axis,
            axis - 0.5 * outwards + sideways,
            axis - 0.5 * outwards - sideways,
        ]
    )
    above = (cylinder.position - plane.position) @ normal
    lowest, side = outwards @ normal, half * down
    distance = above + jnp.stack([side + lowest, lowest - side, side - 0.5 * lowest, side - 0.5 * lowest])
    frame = jnp.tile(_frame(normal), (4, 1, 1))
    return distance, points - 0.5 * distance[:, None] * normal, frame


def _plane_box(plane: Geom, box: Geom) -> tuple[Array, Array, Array]:
    """Contacts at the lower one of any two opposite corners."""
    normal = plane.rotation[:, 2]
    corners = jnp.array([[-1.0, -1.0, -1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [1.0, 1.0, -1.0]]) * box.size
    corners = corners @ box.rotation.T
    corners = jnp.where((corners @ normal > 0.0)[:, None], -corners, corners)
    distance = (box.position - plane.position + corners) @ normal
    return distance, box.position + corners - 0.5 * distance[:, None] * normal, jnp.tile(_frame(normal), (4, 1, 1))


def _spheres(first: Geom, second: Geom) -> tuple[Array, Array, Array]:
    """The contact of spheres with radii ``size[0]``. Coincident centres are pushed apart across both z axes."""
    across, _ = _unit(jnp.cross(first.rotation[:, 2], second.rotation[:, 2]))
    normal, length = _unit(second.position - first.position, across)
    distance = length - first.size[0] - second.size[0]
    return distance, first.position + normal * (first.size[0] + 0.5 * distance), _frame(normal)


def _sphere_capsule(sphere: Geom, capsule: Geom) -> tuple[Array, Array, Array]:
    axis, half = capsule.rotation[:, 2], capsule.size[1]
    along = jnp.clip(axis @ (sphere.position - capsule.position), -half, half)
    return _spheres(sphere, Geom(capsule.position + along * axis, capsule.rotation, capsule.size))


def _sphere_box(sphere: Geom, box: Geom) -> tuple[Array, Array, Array]:
    """The contact at the box's nearest point; a centre inside the box leaves by the nearest face."""
    centre, radius = box.rotation.T @ (sphere.position - box.position), sphere.size[0]
    nearest = jnp.clip(centre, -box.size, box.size)
    inwards, outside = _unit(nearest - centre)
    # Faces are in the order -x, x, -y, ...; of equally near ones the first counts.
    faces = jnp.stack([-box.size, box.size], axis=1).reshape(-1)
    depths = jnp.abs(faces - jnp.repeat(centre, 2))
    face = jnp.argmin(depths)
    depth = depths[face]
    into = jnp.eye(3, dtype=centre.dtype)[face // 2] * jnp.where(face % 2 == 0, 1.0, -1.0)
    inside = outside <= 0.0
    normal = jnp.where(inside, into, inwards)
    distance = jnp.where(inside, -depth, outside) - radius
    point = jnp.where(inside, centre + 0.5 * (radius - depth) * into, 0.5 * (nearest + centre + radius * inwards))
    return distance, box.position + box.rotation @ point, _frame(box.rotation @ normal)


def _sphere_cylinder(sphere: Geom, cylinder: Geom) -> tuple[Array, Array, Array]:
    """The contact with side, cap or rim; a centre inside leaves by the nearer of side and cap."""
    axis, radius, half = cylinder.rotation[:, 2], cylinder.size[0], cylinder.size[1]
    apart = sphere.position - cylinder.position
    height = axis @ apart
    outwards, from_axis = _unit(apart - axis * height)
    # In the half plane of the sphere's centre and the axis, distances from cap and side.
    beyond, beside = jnp.abs(height) - half, from_axis - radius
    at_cap, at_side = beside < jnp.minimum(beyond, 0.0), beyond < 0.0
    (along, across), from_rim = _unit(jnp.stack([beyond, beside]), jnp.array([0.0, 0.0], axis.dtype))
    along = jnp.where(at_cap, 1.0, jnp.where(at_side, 0.0, along))
    across = jnp.where(at_cap, 0.0, jnp.where(at_side, 1.0, across))
    gap = jnp.where(at_cap, beyond, jnp.where(at_side, beside, from_rim))
    known = jnp.where(at_cap, 1.0, jnp.where(at_side, from_axis, from_rim))
    normal = -axis * along * jnp.where(height > 0.0, 1.0, -1.0) - outwards * across
    otherwise, _ = _unit(jnp.cross(sphere.rotation[:, 2], axis))
    normal = jnp.where(known > 0.0, normal, otherwise)
    distance = gap - sphere.size[0]
    return distance, sphere.position + normal * (sphere.size[0] + 0.5 * distance), _frame(normal)


def _capsules(first: Geom, second: Geom) -> tuple[Array, Array, Array]:
    """The contact at the nearest points of the axes; parallel axes have two, which may coincide."""
    axis1, axis2 = (2.0 * g.size[1] * g.rotation[:, 2] for g in (first, second))
    start1, start2 = first.position - 0.5 * axis1, second.position - 0.5 * axis2
    apart = start1 - start2
    aa, ab, bb = axis1 @ axis1, axis1 @ axis2, axis2 @ axis2
    a, b = axis1 @ apart, axis2 @ apart
    normal = jnp.cross(axis1, axis2)
    squared = normal @ normal
    parallel = squared <= PARALLEL**2 * aa * bb

    def held(s: Array) -> tuple[Array, Array]:
        """Places on both axes, from 0 to 1, that are nearest to each other when the first is held near s."""
        t = (b + ab * s) / bb
        s = jnp.where(t < 0.0, jnp.clip(-a / aa, 0.0, 1.0), jnp.where(t > 1.0, jnp.clip((ab - a) / aa, 0.0, 1.0), s))
        return s, jnp.clip(t, 0.0, 1.0)

    crossing = normal @ jnp.cross(axis2, apart) / jnp.where(parallel, 1.0, squared)
    found = []
    for s in (jnp.where(parallel, 0.0, jnp.clip(crossing, 0.0, 1.0)), jnp.ones_like(a)):
        s, t = held(s)
        point1, point2 = start1 + s * axis1, start2 + t * axis2
        found.append(_spheres(Geom(point1, first.rotation, first.size), Geom(point2, second.rotation, second.size)))
    one, two = found
    distance = jnp.stack([one[0], jnp.where(parallel, two[0], jnp.inf)])
    return distance, jnp.stack([one[1], two[1]]), jnp.stack([one[2], two[2]])


COLLISIONS: dict[tuple[str, str], tuple[int, Callable[[Geom, Geom], tuple[Array, Array, Array]]]] = {
    ("plane", "sphere"): (1, _plane_sphere),
    ("plane", "capsule"): (2, _plane_capsule),
    ("plane", "ellipsoid"): (1, _plane_ellipsoid),
    ("plane", "cylinder"): (4, _plane_cylinder),
    ("plane", "box"): (4, _plane_box),
    ("sphere", "sphere"): (1, _spheres),
    ("sphere", "capsule"): (1, _sphere_capsule),
    ("sphere", "cylinder"): (1, _sphere_cylinder),
    ("sphere", "box"): (1, _sphere_box),
    ("capsule", "capsule"): (2, _capsules),
}
"""Kinds of two geoms, to the largest number of their contacts and the function that makes them."""
