"""Stage 4, collisions of meshes: the convex hulls that touch, as tables for searches, and their contacts with planes.

MuJoCo lets the convex hulls of meshes collide. Corners, faces and edges of all hulls of a model are numbered one after
the other. The :attr:`.geoms.Geom.size` of a mesh is the number of its hull, its shortest half extent along an axis, and
how far its corners are from its centre.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mage_diffsim.envs.mujoco.model import load_mujoco
from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.convex_shapes import ON_PLANE
from mage_diffsim.envs.warp.compiler.geoms import Found, Geom, on_plane

CORNERS = 20_000
"""Corners that the hulls of a model may have together. The tables have some 250 characters for each."""


class Hull(NamedTuple):
    """The convex hull of a mesh."""

    corners: np.ndarray
    """[n, 3] in the geom's frame [m]."""
    links: list[list[int]]
    """The corners to which an edge leads from each corner; edges cut faces with more corners to triangles."""
    faces: list[list[int]]
    """The corners around each face, counterclockwise as seen from outside."""
    normals: np.ndarray
    """Of the faces [k, 3]."""
    around: list[list[int]]
    """The faces around each corner, in MuJoCo's order."""


def hull_of(m: Any, mesh: int) -> Hull:
    """The hull of a mesh of a ``mujoco.MjModel``."""
    first, begin = int(m.mesh_vertadr[mesh]), int(m.mesh_graphadr[mesh])
    n = int(m.mesh_graph[begin])
    starts, own, edges = np.split(m.mesh_graph[begin + 2 :], [n, 2 * n])
    order = np.argsort(own)
    number = {int(own[i]): place for place, i in enumerate(order)}
    ends = [start + int(np.argmax(edges[start:] < 0)) for start in starts]
    links = [[number[int(own[x])] for x in edges[starts[i] : ends[i]]] for i in order]
    rows = slice(int(m.mesh_polyadr[mesh]), int(m.mesh_polyadr[mesh] + m.mesh_polynum[mesh]))
    beside = zip(m.mesh_polyvertadr[rows], m.mesh_polyvertnum[rows], strict=True)
    places = slice(first, first + int(m.mesh_vertnum[mesh]))
    maps = list(zip(m.mesh_polymapadr[places], m.mesh_polymapnum[places], strict=True))
    return Hull(
        corners=m.mesh_vert[first + own[order]].astype(np.float64),
        links=links,
        faces=[[number[int(x)] for x in m.mesh_polyvert[at : at + count]] for at, count in beside],
        normals=np.array(m.mesh_polynormal[rows], dtype=np.float64),
        around=[[int(x) for x in m.mesh_polymap[at : at + count]] for at, count in (maps[own[i]] for i in order)],
    )


def touching_meshes(m: Any, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """The numbers of the meshes of a ``mujoco.MjModel`` that belong to geoms of some pairs, ascending."""
    mesh = load_mujoco().mjtGeom.mjGEOM_MESH
    return sorted({int(m.geom_dataid[g]) for geoms in pairs for g in geoms if m.geom_type[g] == mesh})


class Hulls:
    """The hulls of some meshes.

    Args:
        m: a ``mujoco.MjModel``.
        meshes: their numbers there, ascending.
    """

    def __init__(self, m: Any, meshes: Sequence[int]) -> None:
        self._m, self._meshes = m, list(meshes)

    def size(self, geom: int) -> tuple[float, float, float]:
        """The :attr:`.geoms.Geom.size` of a geom that is a mesh."""
        number = self._meshes.index(int(self._m.geom_dataid[geom]))
        corners = self._hulls[number].corners
        return float(number), float(np.ptp(corners, 0).min() / 2), float(np.linalg.norm(corners, axis=1).max())

    @functools.cached_property
    def _hulls(self) -> list[Hull]:
        return [hull_of(self._m, mesh) for mesh in self._meshes]

    @property
    def most(self) -> int:
        """Corners of a face at most."""
        return max((len(face) for hull in self._hulls for face in hull.faces), default=0)

    @property
    def tables(self) -> dict[str, tuple[str, list[Any]]]:
        """The tables that searches read: name to the type of their numbers, and these; none without hulls."""
        if not self._meshes:
            return {}
        corners, faces = [0], [0]
        links: list[list[int]] = []
        around: list[list[int]] = []
        rings: list[list[int]] = []
        for hull in self._hulls:
            links += [[corners[-1] + x for x in row] for row in hull.links]
            around += [[faces[-1] + x for x in row] for row in hull.around]
            rings += [[corners[-1] + x for x in row] for row in hull.faces]
            corners.append(corners[-1] + len(hull.links))
            faces.append(faces[-1] + len(hull.faces))
        found: dict[str, tuple[str, list[Any]]] = {
            "hull_first": ("int", corners),
            "hull_corner": ("real", [float(x) for hull in self._hulls for x in hull.corners.ravel()]),
            "hull_normal": ("real", [float(x) for hull in self._hulls for x in hull.normals.ravel()]),
        }
        for name, lists in (("link", links), ("around", around), ("ring", rings)):
            found[f"hull_{name}"] = "int", [x for row in lists for x in row]
            found[f"hull_{name}_begin"] = "int", [0, *np.cumsum([len(row) for row in lists]).tolist()]
        return found


CORNERS_ON_PLANE = (
    ON_PLANE
    + """
        auto along = [&](const real* x) -> real { return up[0] * x[0] + up[1] * x[1] + up[2] * x[2]; };
        const int hull = (int)given[24];
        int lowest = hull_first[hull];
        for (int i = lowest + 1; i < hull_first[hull + 1]; ++i)
            if (along(hull_corner + 3 * i) < along(hull_corner + 3 * lowest)) lowest = i;
        if (height + along(hull_corner + 3 * lowest) > given[27]) return 0;

        // The face at that corner that is most level; its corners from there on.
        int face = hull_around[hull_around_begin[lowest]];
        for (int i = hull_around_begin[lowest]; i < hull_around_begin[lowest + 1]; ++i)
            if (along(hull_normal + 3 * hull_around[i]) < along(hull_normal + 3 * face)) face = hull_around[i];
        const int begin = hull_ring_begin[face], many = hull_ring_begin[face + 1] - begin;
        int start = 0;
        while (hull_ring[begin + start] != lowest) ++start;
        auto corner = [&](int i) -> const real* {
            return hull_corner + 3 * hull_ring[begin + (start + i < many ? start + i : start + i - many)];
        };

        // Four of them at most, which make a large quadrilateral.
        int taken[4] = {0, 1, 2, 3};
        if (many > 4) {
            auto area = [&](int b, int c, int d) -> real {
                real u[3], v[3], square = 0;
                for (int k = 0; k < 3; ++k) {
                    u[k] = corner(0)[k] - corner(c)[k];
                    v[k] = corner(b)[k] - corner(d)[k];
                }
                for (int k = 0; k < 3; ++k) {
                    const int i = k == 2 ? 0 : k + 1, j = k == 0 ? 2 : k - 1;
                    square += (u[i] * v[j] - u[j] * v[i]) * (u[i] * v[j] - u[j] * v[i]);
                }
                return sqrt{f}(square);
            };
            auto next = [&](int i) -> int { return i + 1 == many ? 0 : i + 1; };
            const real more = 1 + {settled};  // of equal areas the first, whatever the rounding errors
            int *b = taken + 1, *c = taken + 2, *d = taken + 3;
            real most = area(1, 2, 3), wider;
            for (int i = 0; i < many && (wider = area(*b, *c, next(*d))) > more * most; ++i) {
                most = wider;
                *d = next(*d);
                for (int j = 0; j < many && (wider = area(*b, next(*c), *d)) > more * most; ++j) {
                    most = wider;
                    *c = next(*c);
                }
                for (int j = 0; j < many && (wider = area(next(*b), *c, *d)) > more * most; ++j) {
                    most = wider;
                    *b = next(*b);
                }
            }
        }
        int n = 0;
        for (int i = 0; i < 4 && i < many; ++i) {
            const real* x = corner(taken[i]);
            if (i && (along(x) > 0 || height + along(x) > given[27])) continue;
            real* feature = found + 4 * n++;
            feature[0] = 1;
            for (int k = 0; k < 3; ++k) feature[k + 1] = x[k];
        }
        return n;
"""
)
"""The search for the corners of a hull on a plane, in MuJoCo's order; features are 1 and where the corner is.

They are those of one face, and no higher than the mesh's centre, as in MuJoCo 4.0.
"""


def corner_on_plane(features: al.Vector, plane: Geom, mesh: Geom, noise: float) -> Found:
    """The contact of a corner that :data:`CORNERS_ON_PLANE` found."""
    del noise
    return on_plane(plane, mesh, features[1:])
