"""Stage 4, collisions of meshes: several contacts where faces or edges lie together, as in MuJoCo C 4.0.

It is :mod:`.convex_faces` with the polygons of a hull's faces, whose corners are in the tables of :mod:`.hulls`.
"""

from __future__ import annotations

from mage_diffsim.envs.warp.compiler.convex_faces import CLIP, PICK, RINGS
from mage_diffsim.envs.warp.compiler.convex_shapes import VECTORS
from mage_diffsim.envs.warp.compiler.hull_search import TOUCHED, search

SIDES = 64
"""Sides of a face at most."""
KINDS = (("box", "mesh"), ("mesh", "mesh"))
"""Kinds of two geoms that have corners, edges and faces, and of which the second is a mesh."""

SEARCH = (
    (
        """
        int touched[2][3], dims[2] = {1, 1};
        auto one = [&](const real* given, real* found) -> int {"""
        + search(TOUCHED)
        + """        };
        enum {normal = 1, flat = 4, of_second = 10, place = 24, clipped = 34, faces, reference, first, beside, start};
        enum {way = 42, other = 45, bound = 48, face, height = 52, facing, rest = 56, stride};
        enum {capsule = 1, cylinder = 3, box, mesh = 6};
        if (!one(given, found)) return 0;
        if (given[30] == 0) return 1;
"""
        + VECTORS
        + """
        // Which faces are at the contact: of a mesh, their numbers; else 2 k, or 2 k + 1 for one that looks along -k.
        const real* n = found + normal;
        int sides[2][3], count[2] = {0, 0}, bits[2] = {0, 0};
        auto meets = [&](int corner, int face) -> bool {
            for (int i = hull_around_begin[corner]; i < hull_around_begin[corner + 1]; ++i)
                if (hull_around[i] == face) return true;
            return false;
        };
        for (int g = 0; g < 2; ++g) {
            const int kind = (int)given[28 + g];
            if (kind == mesh) {
                const int begin = hull_around_begin[touched[g][0]], end = hull_around_begin[touched[g][0] + 1];
                if (dims[g] == 1) count[g] = end - begin;
                for (int i = begin; i < end && dims[g] > 1 && count[g] < 3; ++i)
                    if (meets(touched[g][1], hull_around[i]) && meets(touched[g][2], hull_around[i]))
                        sides[g][count[g]++] = hull_around[i];
                continue;
            }
            for (int j = 0; j < 2; ++j)
                for (int k = 0; k < 3; ++k)
                    if (found[flat + 3 * j + k] != 0 && (found[of_second + j] != 0) == (g == 1)) bits[g] |= 1 << k;
            if (kind == box) dims[g] += (bits[g] & 1) + (bits[g] >> 1 & 1) + (bits[g] >> 2 & 1);
            if (kind == cylinder) dims[g] += bits[g] >> 2 & 1;
            for (int k = 0; k < 3; ++k) {
                if (bits[g] >> k & 1 || kind == capsule || (kind == cylinder && k < 2)) continue;
                sides[g][count[g]++] = 2 * k + (found[place + 3 * g + k] < 0);
            }
        }
        auto side = [&](int g, int i) -> int {
            const bool all = given[28 + g] == mesh && dims[g] == 1;
            return all ? hull_around[hull_around_begin[touched[g][0]] + i] : sides[g][i];
        };
        auto own_normal = [&](int g, int i, real* y) {
            const int number = side(g, i);
            for (int k = 0; k < 3; ++k)
                y[k] = given[28 + g] == mesh ? hull_normal[3 * number + k]
                    : number / 2 != k ? real(0) : number % 2 ? real(-1) : real(1);
        };
        auto normal_of = [&](int g, int i, real* y) {
            real own[3];
            own_normal(g, i, own);
            outside(g, own, y);
        };
        int chosen[2] = {-1, -1}, line = -1;  // the faces that touch, and the geom of which an edge does
        real best = real(-{together});
        for (int i = 0; i < count[0]; ++i) {
            real a[3], b[3];
            normal_of(0, i, a);
            if (!(dot(a, n) > {across})) continue;
            for (int j = 0; j < count[1]; ++j) {
                normal_of(1, j, b);
                const real cosine = dot(a, b);
                if (dot(b, n) < -{across} && cosine < best) {
                    best = cosine;
                    chosen[0] = i;
                    chosen[1] = j;
                }
            }
        }
        int along = 2;  // the edge's axis, or of a mesh the corner at its end
        for (int g = 0; g < 2 && chosen[0] < 0 && line < 0; ++g) {
            const int against = 1 - g, kind = (int)given[28 + g];
            if (dims[g] == 3) continue;
            for (int i = 0; i < count[against] && line < 0; ++i) {
                real level[3];
                normal_of(against, i, level);
                if (!((g ? dot(level, n) : -dot(level, n)) > {tiny})) continue;
                const int edges = kind != mesh ? 3 : dims[g] == 2 ? 1 : count[g];
                for (int k = kind == box || kind == mesh ? 0 : 2; k < edges && line < 0; ++k) {
                    if (kind == box && dims[g] == 2 && !(bits[g] >> k & 1)) continue;
                    real axis[3] = {frames[g][k % 3], frames[g][3 + k % 3], frames[g][6 + k % 3]};
                    int end = k;
                    if (kind == mesh) {
                        end = touched[g][1];
                        if (dims[g] == 1) {  // the corner before it in a face
                            const int begin = hull_ring_begin[side(g, k)], after = hull_ring_begin[side(g, k) + 1];
                            int at = begin;
                            while (hull_ring[at] != touched[g][0]) ++at;
                            end = hull_ring[at == begin ? after - 1 : at - 1];
                        }
                        real edge[3];
                        for (int r = 0; r < 3; ++r)
                            edge[r] = hull_corner[3 * end + r] - hull_corner[3 * touched[g][0] + r];
                        const real scale = real(1) / sqrt{f}(dot(edge, edge));
                        for (int r = 0; r < 3; ++r) edge[r] *= scale;
                        outside(g, edge, axis);
                    }
                    if (magnitude(dot(level, axis)) < {across}) {
                        line = g;
                        along = end;
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
        real ring[2][{sides}][3];
        int corners[2];
        for (int g = 0; g < 2; ++g) {
            if (given[28 + g] == mesh) {
                const int number = g == line ? 0 : side(g, chosen[g]), end = hull_ring_begin[number + 1];
                corners[g] = g == line ? 2 : end - hull_ring_begin[number];
                for (int i = 0; i < corners[g]; ++i) {
                    const int corner = g != line ? hull_ring[end - 1 - i] : i ? along : touched[g][0];
                    for (int k = 0; k < 3; ++k) ring[g][i][k] = hull_corner[3 * corner + k];
                }
                continue;
            }
"""
        + RINGS
        + """\
        real level[3], opposite[3] = {0, 0, 0};
        own_normal(from, chosen[from], level);
        if (line < 0) own_normal(to, chosen[to], opposite);
        const real floor = dot(level, ring[from][0]);

"""
        + CLIP
        + PICK
        + """\
        for (int i = 1; i < total; ++i)
            for (int k = 0; k < clipped; ++k) found[stride * i + k] = found[k];
        for (int i = 0; i < total; ++i) {
            real* row = found + stride * i;
            row[clipped] = 1;
            row[faces] = real(line < 0);
            row[reference] = real(from == 0);
            for (int k = 0; k < 3; ++k) row[face + k] = level[k];
            for (int k = 0; k < 3; ++k) row[facing + k] = opposite[k];
            row[height] = floor;
            row[rest] = leave;
            const int what = made[now][kept[taken[i]]], by = what / {sides} - 1, cut = what % {sides};
            if (by < {sides}) {  // of the other polygon
                row[first] = real(to == 0);
                const bool round = line >= 0 && given[28 + to] != box && given[28 + to] != mesh;
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
                const real *p = plane[by - {sides}], *q = plane[cut];
                real a[3], b[3], c[3];
                cross(p, q, c);
                cross(q, level, a);
                cross(level, p, b);
                const real square = dot(level, c);
                for (int k = 0; k < 3; ++k) {
                    row[start + k] = (p[3] * a[k] + q[3] * b[k]) / square;
                    row[way + k] = level[k];
                    row[other + k] = opposite[k];
                }
                row[bound] = dot(opposite, ring[to][0]);
            }
        }
        return total;"""
    )
    .replace("{sides}", str(SIDES))
    .replace("{cuts}", str(3 * SIDES))
)
"""The search of a convex geom and a mesh, which writes the features of :mod:`.convex_faces`."""
