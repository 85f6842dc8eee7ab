"""Stage 4, collisions of convex geoms whose faces or edges lie together: several contacts, as in MuJoCo C 4.0.

The features at the contact of :mod:`.convex` have normals: a box's faces at that corner or edge, a cylinder's cap. Two
that face each other to within :data:`TOLERANCE` make contacts of the part that both faces share, where a cap is a
polygon of 16 sides. Else a side of a cylinder or a capsule may lie along a face to within that angle; it is cut to the
face, and its ends make two contacts. Contacts are along the face's normal.
"""

from __future__ import annotations

import math
from typing import Any

from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler import convex
from mage_diffsim.envs.warp.compiler.convex_search import FEATURES, SEARCH
from mage_diffsim.envs.warp.compiler.convex_shapes import VECTORS
from mage_diffsim.envs.warp.compiler.geoms import Found, Geom, meeting, turned
from mage_diffsim.envs.warp.compiler.graph import add, div, less, mul, sub, where

TOLERANCE = 0.0889
"""Angle below which faces and edges lie together [rad]."""
FLAT = (("capsule", "cylinder"), ("cylinder", "cylinder"), ("cylinder", "box"))
"""Kinds of two geoms of which both have edges, and one has faces."""
SLOTS = 4
CLIPPED = (
    *("clipped", "faces", "reference", "first", "beside"),
    *("start0", "start1", "start2", "way0", "way1", "way2"),
    *("other0", "other1", "other2", "bound"),
    *("face0", "face1", "face2", "height", "facing0", "facing1", "facing2", "rest"),
)
"""What the search writes of a contact after :data:`.convex_search.FEATURES`; all 0 if that is the only contact.

If ``clipped``, the contact is where a line (start, way) of the first geom, or of the second if not ``first``, meets the
plane {other . x = bound} of the other geom; a ``way`` of 0 leaves ``start``. If ``beside``, the line is not beside the
axis but, ``rest`` further out, beside the witness that ``FEATURES`` have. The contact lies on the face
{face . x = height} of the first geom, or of the second if not ``reference``. If both have ``faces``, ``facing`` is the
second geom's.
"""

SEARCH_FLAT = (
    "        auto one = [](const real* given, real* found) -> int {"
    + SEARCH
    + """        };
        enum {normal = 1, flat = 4, of_second = 10, place = 24, clipped = 34, faces, reference, first, beside, start};
        enum {way = 42, other = 45, bound = 48, face, height = 52, facing, rest = 56, stride};
        enum {capsule = 1, cylinder = 3, box};
        if (!one(given, found)) return 0;
        if (given[30] == 0) return 1;
"""
    + VECTORS
    + """
        // Which faces are at the contact: the code of one is 2 k, or 2 k + 1 if it looks along -k.
        const real* n = found + normal;
        int sides[2][3], count[2] = {0, 0}, dims[2] = {1, 1}, bits[2] = {0, 0};
        real normals[2][3][3];
        for (int g = 0; g < 2; ++g) {
            const int kind = (int)given[28 + g];
            for (int j = 0; j < 2; ++j)
                for (int k = 0; k < 3; ++k)
                    if (found[flat + 3 * j + k] != 0 && (found[of_second + j] != 0) == (g == 1)) bits[g] |= 1 << k;
            if (kind == box) dims[g] += (bits[g] & 1) + (bits[g] >> 1 & 1) + (bits[g] >> 2 & 1);
            if (kind == cylinder) dims[g] += bits[g] >> 2 & 1;
            for (int k = 0; k < 3; ++k) {
                if (bits[g] >> k & 1 || kind == capsule || (kind == cylinder && k < 2)) continue;
                const bool back = found[place + 3 * g + k] < 0;
                sides[g][count[g]] = 2 * k + back;
                for (int r = 0; r < 3; ++r) normals[g][count[g]][r] = (back ? -1 : 1) * frames[g][3 * r + k];
                ++count[g];
            }
        }
        int chosen[2] = {-1, -1}, line = -1;  // the faces that touch, and the geom of which an edge does
        real best = real(-{together});
        for (int i = 0; i < count[0]; ++i) {
            if (!(dot(normals[0][i], n) > {across})) continue;
            for (int j = 0; j < count[1]; ++j) {
                const real cosine = dot(normals[0][i], normals[1][j]);
                if (dot(normals[1][j], n) < -{across} && cosine < best) {
                    best = cosine;
                    chosen[0] = i;
                    chosen[1] = j;
                }
            }
        }
        int along = 2;  // the edge's axis
        for (int g = 0; g < 2 && chosen[0] < 0 && line < 0; ++g) {
            const int against = 1 - g, kind = (int)given[28 + g];
            if (dims[g] == 3) continue;
            for (int i = 0; i < count[against] && line < 0; ++i) {
                const real* level = normals[against][i];
                if (!((g ? dot(level, n) : -dot(level, n)) > {tiny})) continue;
                for (int k = kind == box ? 0 : 2; k < 3 && line < 0; ++k) {
                    if (kind == box && dims[g] == 2 && !(bits[g] >> k & 1)) continue;
                    const real axis[3] = {frames[g][k], frames[g][3 + k], frames[g][6 + k]};
                    if (magnitude(dot(level, axis)) < {across}) {
                        line = g;
                        along = k;
                        chosen[against] = i;
                    }
                }
            }
        }
        if (chosen[0] < 0 && line < 0) return 1;
        // MuJoCo takes any side of a cylinder that stands on its cap, and as a rule cuts all of it off.
        if (line >= 0 && given[28 + line] == cylinder && bits[line] == 3) return 1;

        // Polygons: the reference's, and the other, in their frames; the other has 2 corners if it is an edge.
        const int from = line == 0 ? 1 : 0, to = 1 - from;
        const real leave = given[28 + to] == capsule ? given[27] / 2 : real(0);
        real ring[2][16][3];
        int corners[2];
        for (int g = 0; g < 2; ++g) {
            const real* size = given + 21 + 3 * g;
            if (g == line && given[28 + g] == box) {
                corners[g] = 2;
                for (int i = 0; i < 2; ++i)
                    for (int k = 0; k < 3; ++k)
                        ring[g][i][k] = (found[place + 3 * g + k] < 0) != (i && k == along) ? -size[k] : size[k];
                continue;
            }
            if (g == line) {
                corners[g] = 2;
                const bool capped = given[28 + g] == cylinder;
                real m[3];
                inside(g, n, m);
                const real across = sqrt{f}(m[0] * m[0] + m[1] * m[1]);
                const real far = capped ? (across > 0 ? size[0] / across : real(0)) : size[0] + leave;
                const real out = g ? -far : far;
                const real end = capped && dims[g] == 1 && found[place + 3 * g + 2] > 0 ? size[1] : -size[1];
                for (int i = 0; i < 2; ++i) {
                    ring[g][i][0] = out * m[0];
                    ring[g][i][1] = out * m[1];
                    ring[g][i][2] = i ? -end : end;
                }
                continue;
            }
            const int side = sides[g][chosen[g]];
            if (given[28 + g] == box) {
                const unsigned char codes[24]
                    = {7, 3, 1, 5, 2, 6, 4, 0, 2, 3, 7, 6, 4, 5, 1, 0, 6, 7, 5, 4, 3, 2, 0, 1};
                corners[g] = 4;
                for (int i = 0; i < 4; ++i)
                    for (int k = 0; k < 3; ++k) ring[g][i][k] = codes[4 * side + i] >> k & 1 ? size[k] : -size[k];
            } else {
                const real cosines[5] = {1, {cosine1}, {cosine2}, {cosine3}, 0}, sign = side == 4 ? real(1) : real(-1);
                auto cosine = [&](int i) -> real {
                    const int k = i % 16 < 8 ? i % 16 : 16 - i % 16;
                    return k < 5 ? cosines[k] : -cosines[8 - k];
                };
                corners[g] = 16;
                for (int i = 0; i < 16; ++i) {
                    ring[g][i][0] = size[0] * cosine(i);
                    ring[g][i][1] = -sign * size[0] * cosine(i + 12);
                    ring[g][i][2] = sign * size[1];
                }
            }
        }
        const int axis = sides[from][chosen[from]] / 2, backwards = sides[from][chosen[from]] % 2;
        real level[3] = {0, 0, 0};
        level[axis] = backwards ? real(-1) : real(1);
        const real floor = level[axis] * ring[from][0][axis];

        // The other polygon is cut to the reference's sides. A corner has a place, what made it (a corner of the other
        // polygon, or 16 (1 + cut line) + side), and the line that leads to it (an edge, or 16 + side).
        real corner[2][40][3], plane[16][4];
        int made[2][40], into[2][40], now = 0, size = corners[to];
        for (int i = 0; i < size; ++i) {
            real y[3];
            outside(to, ring[to][i], y);
            for (int k = 0; k < 3; ++k) y[k] += to ? given[k] : -given[k];
            inside(from, y, corner[0][i]);
            made[0][i] = into[0][i] = i;
        }
        for (int e = 0; e < corners[from]; ++e) {
            const int after = e + 1 == corners[from] ? 0 : e + 1;
            real edge[3];
            for (int k = 0; k < 3; ++k) edge[k] = ring[from][after][k] - ring[from][e][k];
            cross(edge, level, plane[e]);
            plane[e][3] = dot(plane[e], ring[from][e]);
            const int next = 1 - now;
            int m = 0;
            for (int i = 0; i < size; ++i) {
                const int j = i + 1 == size ? 0 : i + 1;
                const real *p = corner[now][i], *q = corner[now][j];
                const real above = dot(plane[e], p) - plane[e][3], then = dot(plane[e], q) - plane[e][3];
                const bool in = above > real(-1e-10), stays = then > real(-1e-10);
                if (in != stays && magnitude(then - above) >= real(1e-10) && m < 40) {
                    real t = -above / (then - above);
                    t = t < 0 ? real(0) : t > 1 ? real(1) : t;
                    for (int k = 0; k < 3; ++k) corner[next][m][k] = p[k] + t * (q[k] - p[k]);
                    made[next][m] = 16 * (1 + into[now][j]) + e;
                    into[next][m++] = in ? into[now][j] : 16 + e;
                }
                if (stays && m < 40) {
                    for (int k = 0; k < 3; ++k) corner[next][m][k] = q[k];
                    made[next][m] = made[now][j];
                    into[next][m++] = into[now][j];
                }
            }
            size = m;
            now = next;
        }
        int kept[40], many = 0;
        for (int i = 0; i < size; ++i)
            if (dot(level, corner[now][i]) - floor <= given[27] - leave) kept[many++] = i;
        if (!many) return 1;

        // At most four: the ends of a line, or the corners of the largest quadrilateral.
        int taken[4] = {0, 1, 2, 3}, total = many < 4 ? many : 4;
        auto between = [&](int i, int j, real* y) {
            for (int k = 0; k < 3; ++k) y[k] = corner[now][kept[i]][k] - corner[now][kept[j]][k];
        };
        if (line >= 0 && many > 2) {
            real most = 0, y[3];
            total = 2;
            for (int i = 0; i < many; ++i) {
                for (int j = i + 1; j < many; ++j) {
                    between(i, j, y);
                    if (dot(y, y) > most) {
                        most = dot(y, y);
                        taken[0] = i;
                        taken[1] = j;
                    }
                }
            }
        } else if (many > 4) {
            auto area = [&](int a, int b, int c, int d) -> real {
                real u[3], v[3], y[3];
                between(a, c, u);
                between(b, d, v);
                cross(u, v, y);
                return sqrt{f}(dot(y, y)) / 2;
            };
            auto next = [&](int i) -> int { return i + 1 == many ? 0 : i + 1; };
            const real more = 1 + {settled};  // of equal areas the first, whatever the rounding errors
            int b = 1, c = 2, d = 3;
            real most = area(0, 1, 2, 3);
            auto take = [&](int a, real found) {
                most = found;
                taken[0] = a;
                taken[1] = b;
                taken[2] = c;
                taken[3] = d;
            };
            for (int a = 0; a < many; ++a) {
                for (int i = 0; i < many; ++i) {
                    real found = area(a, b, c, next(d));
                    if (found <= more * most) break;
                    d = next(d);
                    take(a, found);
                    for (int j = 0; j < many && (found = area(a, b, next(c), d)) > more * most; ++j) {
                        c = next(c);
                        take(a, found);
                    }
                    for (int j = 0; j < many && (found = area(a, next(b), c, d)) > more * most; ++j) {
                        b = next(b);
                        take(a, found);
                    }
                }
                if (b == a) {
                    b = next(b);
                    if (c == b) {
                        c = next(c);
                        if (d == c) d = next(d);
                    }
                }
            }
        }

        for (int i = 1; i < total; ++i)
            for (int k = 0; k < clipped; ++k) found[stride * i + k] = found[k];
        for (int i = 0; i < total; ++i) {
            real* row = found + stride * i;
            row[clipped] = 1;
            row[faces] = real(line < 0);
            row[reference] = real(from == 0);
            row[face + axis] = level[axis];
            row[height] = floor;
            row[rest] = leave;
            const int what = made[now][kept[taken[i]]], by = what / 16 - 1, cut = what % 16;
            int facing_axis = 0;
            real facing_sign = 0;
            if (line < 0) {
                const int side = sides[to][chosen[to]];
                facing_axis = side / 2;
                facing_sign = side % 2 ? real(-1) : real(1);
                row[facing + facing_axis] = facing_sign;
            }
            if (by < 16) {  // of the other polygon
                row[first] = real(to == 0);
                const bool round = line >= 0 && given[28 + to] != box;
                row[beside] = real(round);
                const real *here = ring[to][by < 0 ? what : by], *last = ring[to][by > 0 ? by - 1 : corners[to] - 1];
                for (int k = round ? 2 : 0; k < 3; ++k) {
                    row[start + k] = here[k];
                    if (by >= 0) row[way + k] = here[k] - last[k];
                }
                if (by >= 0) {
                    for (int k = 0; k < 3; ++k) row[other + k] = plane[cut][k];
                    row[bound] = plane[cut][3];
                }
            } else {  // where two sides of the reference meet
                row[first] = real(from == 0);
                const real *p = plane[by - 16], *q = plane[cut];
                const int i1 = axis == 2 ? 0 : axis + 1, i2 = axis == 0 ? 2 : axis - 1;
                const real square = p[i1] * q[i2] - p[i2] * q[i1];
                row[start + i1] = (p[3] * q[i2] - q[3] * p[i2]) / square;
                row[start + i2] = (p[i1] * q[3] - q[i1] * p[3]) / square;
                row[way + axis] = 1;
                row[other + facing_axis] = facing_sign;
                row[bound] = facing_sign * ring[to][0][facing_axis];
            }
        }
        return total;"""
)
_ANGLES = {
    "together": math.cos(TOLERANCE),
    "across": math.sin(TOLERANCE),
    **{f"cosine{k}": math.cos(k * math.pi / 8) for k in (1, 2, 3)},
}
THRESHOLDS = {real: x | {name: f"real({y!r})" for name, y in _ANGLES.items()} for real, x in convex.THRESHOLDS.items()}
"""What stands for {names} in the code."""


def contact(kinds: tuple[str, str], features: al.Vector, first: Geom, second: Geom, noise: float) -> Found:
    """The contact that the features make of two geoms of :data:`FLAT`."""
    n = len(FEATURES)
    whole = convex.contact(kinds, features[:n], first, second, noise)
    f = dict(zip(CLIPPED, features[n:], strict=True))
    clipped, faces, reference, own, beside = (less(0.5, f[x]) for x in CLIPPED[:5])

    def vector(name: str, by_first: Any) -> al.Vector:
        return turned(first, second, by_first, [f[f"{name}{i}"] for i in range(3)])

    # The line, relative to the centre of its geom.
    start, way, other = vector("start", own), vector("way", own), vector("other", less(f["first"], 0.5))
    apart = al.minus(second.centre, first.centre)
    beyond = al.times(apart, where(own, 1.0, -1.0))
    side = where(own, 1.0, -1.0)
    centre, axis = al.choose(own, first.centre, second.centre), al.choose(own, first.axis, second.axis)
    # How far the side of a capsule or cylinder is from the axis, towards the other geom.
    towards = al.times(al.minus(whole.normal, al.times(axis, al.dot(axis, whole.normal))), side)
    lengths = []
    for kind, geom in zip(kinds, (first, second), strict=True):
        round_ = al.guarded_norm(towards)[1] if kind == "cylinder" else 1.0
        lengths.append(div(add(geom.size[0], f["rest"]), round_))
    across = al.times(towards, where(own, *lengths))
    start = al.plus(start, [where(beside, x, 0.0) for x in across])
    corner = meeting(start, way, other, add(f["bound"], al.dot(other, beyond)))

    # On the face.
    face = vector("face", reference)
    same = less(0.5, add(mul(f["first"], f["reference"]), mul(sub(1.0, f["first"]), sub(1.0, f["reference"]))))
    height = sub(al.dot(face, al.minus(corner, [where(same, 0.0, x) for x in beyond])), f["height"])
    outward = al.times(face, where(reference, 1.0, -1.0))
    facing = al.apply(second.frame, [f[f"facing{i}"] for i in range(3)])
    normal = [where(faces, -x, y) for x, y in zip(facing, outward, strict=True)]
    distance = where(faces, mul(height, al.dot(face, normal)), add(height, f["rest"]))
    between = al.minus(al.times(normal, mul(0.5, where(faces, distance, -f["rest"]))), al.times(face, mul(height, 0.5)))
    lower = al.minus(corner, al.times(face, where(faces, mul(0.5, height), 0.0)))
    point = al.plus(centre, al.plus(lower, between))
    point, normal = al.choose(clipped, point, whole.point), al.choose(clipped, normal, whole.normal)
    return Found(where(clipped, distance, whole.distance), point, normal)
