"""Stage 4, collisions of height fields: their numbers, as tables for searches, and their contacts with spheres.

MuJoCo cuts each cell of the grid into two prisms, which reach down to the field's base, and lets each of them touch the
other geom once. The :attr:`.geoms.Geom.size` of a height field begins with its number among those of the model.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mage_diffsim.envs.mujoco.model import load_mujoco
from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.convex_shapes import VECTORS
from mage_diffsim.envs.warp.compiler.geoms import Found, Geom, shortest
from mage_diffsim.envs.warp.compiler.graph import add, div, less, mul, sub, where

SLOTS = 50
"""Prisms of a height field that MuJoCo lets a geom touch at most."""
FEATURES = ("present", "face", "start0", "start1", "start2", "way0", "way1", "way2")
"""What the search writes of a contact, in the field's frame: 1; whether a face is nearest; a point of what is nearest;
and the normal of that face, or the direction of an edge, or 0 for a corner."""
NUMBERS = {"slots": str(SLOTS), "features": str(len(FEATURES))}
"""What stands for {names} in the code."""


def touching_fields(m: Any, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """The numbers of the height fields of a ``mujoco.MjModel`` that belong to geoms of some pairs, ascending."""
    kind = load_mujoco().mjtGeom.mjGEOM_HFIELD
    return sorted({int(m.geom_dataid[g]) for geoms in pairs for g in geoms if m.geom_type[g] == kind})


class HFields:
    """Some height fields.

    Args:
        m: a ``mujoco.MjModel``.
        fields: their numbers there, ascending.
    """

    def __init__(self, m: Any, fields: Sequence[int]) -> None:
        self._m, self._fields = m, list(fields)

    def size(self, geom: int) -> tuple[float, float, float]:
        """The :attr:`.geoms.Geom.size` of a geom that is a height field."""
        return float(self._fields.index(int(self._m.geom_dataid[geom]))), 0.0, 0.0

    @functools.cached_property
    def tables(self) -> dict[str, tuple[str, list[Any]]]:
        """The tables that searches read: name to the type of their numbers, and these; none without fields."""
        if not self._fields:
            return {}
        m, grids, sizes = self._m, [], []
        heights: list[float] = []
        for f in self._fields:
            rows, columns, first = (int(x[f]) for x in (m.hfield_nrow, m.hfield_ncol, m.hfield_adr))
            grids += [rows, columns, len(heights)]
            sizes += m.hfield_size[f].tolist()
            heights += (m.hfield_size[f, 2] * m.hfield_data[first : first + rows * columns].astype(np.float64)).tolist()
        return {"field_grid": ("int", grids), "field_size": ("real", sizes), "field_height": ("real", heights)}


WITH_SPHERE = (
    VECTORS
    + """
        const int* grid = field_grid + 3 * (int)given[21];
        const real *size = field_size + 4 * (int)given[21], *height = field_height + grid[2];
        const real radius = given[24], reach = radius + given[27];
        const int rows = grid[0], columns = grid[1];
        real centre[3];
        inside(0, given, centre);
        const real low = centre[2] - reach;
        if (low > size[2] || centre[2] + reach < -size[3]) return 0;
        // The first and last line of the grid that the sphere may reach, with bounds against overflow of int.
        auto line = [&](int k, int lines, bool last) -> int {
            const real cells = real(lines - 1), at = centre[k] + (last ? reach : -reach);
            real x = (at + size[k]) / (2 * size[k]) * cells;
            x = x < -1 ? real(-1) : x > cells + 1 ? cells + 1 : x;
            const int down = (int)(x + 2) - 2;
            const int found = last && real(down) < x ? down + 1 : down;
            return found < 0 ? 0 : found > lines - 1 ? lines - 1 : found;
        };
        const int first[2] = {line(0, columns, false), line(1, rows, false)};
        const int last[2] = {line(0, columns, true), line(1, rows, true)};
        const real step[2] = {2 * size[0] / real(columns - 1), 2 * size[1] / real(rows - 1)};
        real corner[6][3];  // three at the base, three on the surface
        auto touch = [&](real* feature) -> bool {
            const unsigned char face[5][4] = {{2, 1, 0, 0}, {3, 4, 5, 5}, {0, 1, 4, 3}, {1, 2, 5, 4}, {2, 0, 3, 5}};
            const unsigned char edge[9][2] = {{0, 1}, {1, 2}, {2, 0}, {3, 4}, {4, 5}, {5, 3}, {0, 3}, {1, 4}, {2, 5}};
            real middle[3], nearest = reach, deepest = -reach, deep[6], way[3], rest[3];
            bool within = true, close = false;
            auto take = [&](real distance, bool flat, const real* at, const real* along) {
                nearest = distance;
                close = true;
                feature[0] = 1;
                feature[1] = real(flat);
                for (int k = 0; k < 3; ++k) {
                    feature[2 + k] = at[k];
                    feature[5 + k] = along[k];
                }
            };
            for (int k = 0; k < 3; ++k) {
                middle[k] = 0;
                for (int i = 0; i < 6; ++i) middle[k] += corner[i][k] / 6;
            }
            for (int f = 0; f < 5; ++f) {
                const int count = f < 2 ? 3 : 4;
                const real* at = corner[face[f][0]];
                real a[3], b[3], n[3];
                for (int k = 0; k < 3; ++k) {
                    a[k] = corner[face[f][1]][k] - at[k];
                    b[k] = corner[face[f][2]][k] - at[k];
                    rest[k] = middle[k] - at[k];
                }
                cross(a, b, n);
                const real scale = (dot(n, rest) > 0 ? real(-1) : real(1)) / sqrt{f}(dot(n, n));
                for (int k = 0; k < 3; ++k) {
                    n[k] *= scale;
                    rest[k] = centre[k] - at[k];
                }
                const real distance = dot(n, rest);
                if (!f || distance > deepest) {
                    deepest = distance;
                    for (int k = 0; k < 3; ++k) {
                        deep[k] = at[k];
                        deep[3 + k] = n[k];
                    }
                }
                if (!(distance > 0)) continue;
                within = false;
                if (!(distance < nearest)) continue;
                bool over = true;  // the centre is over the face, not beside it
                for (int i = 0; i < count && over; ++i) {
                    const real *from = corner[face[f][i]], *to = corner[face[f][i + 1 == count ? 0 : i + 1]];
                    const real* next = corner[face[f][(i + 2) % count]];
                    real out[3], own[3], away[3];
                    for (int k = 0; k < 3; ++k) {
                        own[k] = to[k] - from[k];
                        away[k] = next[k] - from[k];
                        rest[k] = centre[k] - from[k];
                    }
                    cross(n, own, out);
                    over = !((dot(out, rest) < 0) != (dot(out, away) < 0) && dot(out, rest) != 0);
                }
                if (over) take(distance, true, at, n);
            }
            if (within) {
                take(deepest, true, deep, deep + 3);
                return true;
            }
            for (int e = 0; e < 9; ++e) {
                const real *from = corner[edge[e][0]], *to = corner[edge[e][1]];
                for (int k = 0; k < 3; ++k) {
                    way[k] = to[k] - from[k];
                    rest[k] = centre[k] - from[k];
                }
                const real square = dot(way, way), along = dot(way, rest) / square;
                const bool end = along <= 0 || along >= 1;
                const real t = along <= 0 ? real(0) : along >= 1 ? real(1) : along, scale = real(1) / sqrt{f}(square);
                for (int k = 0; k < 3; ++k) rest[k] -= t * way[k];
                const real distance = sqrt{f}(dot(rest, rest));
                if (!(distance < nearest)) continue;
                for (int k = 0; k < 3; ++k) way[k] *= end ? real(0) : scale;
                take(distance, false, along >= 1 ? to : from, way);
            }
            return close;
        };
        int n = 0;
        for (int r = first[1]; r < last[1]; ++r) {
            for (int c = first[0] + 1; c <= last[0]; ++c) {
                for (int half = 0; half < 2 && n < {slots}; ++half) {
                    const int at[3][2] = {{r + 1 - half, c - 1}, {r + half, c - 1 + half}, {r + 1 - half, c}};
                    bool below = true;
                    for (int i = 0; i < 3; ++i) {
                        for (int j = 0; j < 2; ++j) {
                            corner[i + 3 * j][0] = step[0] * real(at[i][1]) - size[0];
                            corner[i + 3 * j][1] = step[1] * real(at[i][0]) - size[1];
                        }
                        corner[i][2] = -size[3];
                        corner[i + 3][2] = height[at[i][0] * columns + at[i][1]];
                        below = below && corner[i + 3][2] < low;
                    }
                    if (!below && touch(found + {features} * n)) ++n;
                }
            }
        }
        return n;
"""
)
"""The search for the parts of prisms that are nearest to a sphere's centre; deep inside, the face that is nearest."""


def sphere_on_field(features: al.Vector, field: Geom, sphere: Geom, noise: float) -> Found:
    """The contact of a sphere with what :data:`WITH_SPHERE` found."""
    _, flat, *rest = features
    start, way = rest[:3], rest[3:]
    away = al.minus(field.inside(al.minus(sphere.centre, field.centre)), start)
    along = al.dot(way, away)
    beside = al.minus(away, al.times(way, along))
    length, safe = al.guarded_norm(beside, shortest(noise, sphere, sphere))
    flat = less(0.5, flat)
    normal = al.apply(field.frame, [where(flat, x, div(y, safe)) for x, y in zip(way, beside, strict=True)])
    distance = sub(where(flat, along, length), sphere.size[0])
    return Found(distance, al.minus(sphere.centre, al.times(normal, add(sphere.size[0], mul(0.5, distance)))), normal)
