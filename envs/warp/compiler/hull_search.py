"""Stage 4, collisions of meshes with convex geoms: the search for the normal along which they touch.

It is the search of :mod:`.convex_search`, in which the second geom, or both, are hulls of meshes. A hull has kinks
where the normal is orthogonal to an edge or a triangle. Sets of kinks are made of the corners near the normal. Of two
geoms that have corners and edges only, each set has one normal, which takes no iteration.
"""

from __future__ import annotations

from mage_diffsim.envs.warp.compiler.convex_search import CLIMB, GROWTH, PLANES, SETS, written
from mage_diffsim.envs.warp.compiler.convex_shapes import CURVATURE, FARTHEST, SIZES, VECTORS

NEAR, MOST = 16, 96
"""Corners near the normal at most, and sets of kinks of a hull at most; the graph of 16 corners is planar."""

SUPPORT_OF_HULLS = (
    """\
        enum {mesh = 6};
        // Of a hull: the corner where its last search ended; and sets of kinks, whose codes are 8 times their number,
        // from 1, and a bit for each of their directions, orthogonal to the normal.
        int ends[2] = {0, 0}, members[2][MOST][3];
        real flats[2][MOST][2][3];
        for (int g = 0; g < 2; ++g)
            if (kinds[g] == mesh) ends[g] = hull_first[(int)sizes[g][0]];
        auto highest_corner = [&](int g, const real* n) {
            real most = dot(n, hull_corner + 3 * ends[g]);
            for (int last = -1; last != ends[g];) {
                last = ends[g];
                for (int i = hull_link_begin[last]; i < hull_link_begin[last + 1]; ++i) {
                    const real own = dot(n, hull_corner + 3 * hull_link[i]);
                    if (own <= most) continue;
                    most = own;
                    ends[g] = hull_link[i];
                }
            }
        };
        // The sum of both geoms' farthest points along n, the second mirrored, each at ``points`` in its frame.
        auto support = [&](const real* n, int bits1, int bits2, real (*points)[3], real* y) {
            real m[3], own[3];
            y[0] = y[1] = y[2] = 0;
            for (int g = 0; g < 2; ++g) {
                const int bits = g ? bits2 : bits1;
                const real side = g ? real(-1) : real(1);
                inside(g, n, m);
                if (kinds[g] == mesh) {
                    for (int k = 0; k < 3; ++k) m[k] *= side;
                    if (!bits) highest_corner(g, m);
                    const int corner = bits ? members[g][bits >> 3][0] : ends[g];
                    for (int k = 0; k < 3; ++k) points[g][k] = side * hull_corner[3 * corner + k];
                } else {
                    farthest(g, m, bits, points[g]);
                }
                outside(g, points[g], own);
                for (int k = 0; k < 3; ++k) y[k] += own[k];
            }
        };
"""
).replace("MOST", str(MOST))
"""The support functions of hulls, and their sets of kinks."""

SIZES_OF_HULLS = SIZES.replace(
    """                most = size[k] > most ? size[k] : most;
            }
""",
    """                most = size[k] > most ? size[k] : most;
            }
            if (kinds[g] == mesh) {
                least = size[1];
                most = size[2];
            }
""",
)

PLANES_OF_HULLS = PLANES.replace(
    "plane[faces][3] = dot(plane[faces], corner[i]);",
    """plane[faces][3] = dot(plane[faces], corner[i]);
            // A face without area is never the outermost.
            if (square <= {rounding} * dot(a, a) * dot(b, b))
                plane[faces][3] = 16 * (length + ball) + dot(apart, apart);""",
)

START = """\
        // Some of a ball around the origin, as centres are inside the geoms; in no special directions.
        {
            real n[3] = {1, 0, 0}, y[3];
            if (dot(apart, apart) > {tiny} * {tiny} * length * length) {
                const real scale = inverse_length(apart);
                for (int k = 0; k < 3; ++k) n[k] = apart[k] * scale;
            }
            if (gap(n, y) > limit) return 0;
            const real axes[3][3] = {{.36, .48, .8}, {-.8, .6, 0}, {-.48, -.64, .6}};
            for (int i = 0; i < 6; ++i)
                for (int k = 0; k < 3; ++k) corner[i][k] = (i & 1 ? -ball : ball) * axes[i / 2][k];
            for (int i = 0; i < 8; ++i) {
                const int a = i & 1, b = 2 + (i >> 1 & 1), c = 4 + (i >> 2 & 1);
                if ((a + b + c) & 1) attach(a, c, b);
                else attach(a, b, c);
            }
        }
"""

AXES = """\
        auto axes = [&](int bits1, int bits2) -> int {  // orthogonal to the normal
            int m = 0;
            for (int g = 0; g < 2; ++g) {
                const int bits = g ? bits2 : bits1;
                for (int k = 0; k < 3; ++k) {
                    if (!(bits >> k & 1)) continue;
                    for (int r = 0; r < 3; ++r)
                        w[m][r] = kinds[g] == mesh ? flats[g][bits >> 3][k][r] : frames[g][3 * r + k];
                    ++m;
                }
            }
            return m;
        };
"""

ROUNDS = """\
        int codes[2][MOST], sets[2], nearest[2][NEAR], many[2] = {0, 0};
        // The sets of kinks of a hull near a direction in its frame.
        auto collect = [&](int g, const real* n) {
            highest_corner(g, n);
            const real* top = hull_corner + 3 * ends[g];
            real slopes[NEAR];
            int linked[NEAR];
            nearest[g][0] = ends[g];
            slopes[0] = 0;
            many[g] = 1;
            const int hull = (int)sizes[g][0];
            for (int i = hull_first[hull]; i < hull_first[hull + 1]; ++i) {
                if (i == ends[g]) continue;
                real way[3];
                for (int k = 0; k < 3; ++k) way[k] = hull_corner[3 * i + k] - top[k];
                const real down = dot(n, way), square = dot(way, way);
                if (down * down > near * near * square) continue;
                const real slope = down * down / square;
                int at = many[g];
                while (at > 1 && slopes[at - 1] > slope) --at;
                if (at == NEAR) continue;
                if (many[g] < NEAR) ++many[g];
                for (int j = many[g] - 1; j > at; --j) {
                    slopes[j] = slopes[j - 1];
                    nearest[g][j] = nearest[g][j - 1];
                }
                slopes[at] = slope;
                nearest[g][at] = i;
            }
            auto add = [&](int bits, int a, int b, int c) {
                if (sets[g] == MOST) return;
                const int chosen[3] = {nearest[g][a], nearest[g][b], nearest[g][c]};
                for (int k = 0; k < 3; ++k) members[g][sets[g]][k] = chosen[k];
                for (int j = 0; j < 2; ++j) {
                    if (!(bits >> j & 1)) continue;
                    real way[3];
                    for (int k = 0; k < 3; ++k)
                        way[k] = hull_corner[3 * chosen[j + 1] + k] - hull_corner[3 * chosen[0] + k];
                    const real scale = inverse_length(way);
                    for (int k = 0; k < 3; ++k) way[k] *= scale;
                    outside(g, way, flats[g][sets[g]][j]);
                }
                codes[g][sets[g]] = 8 * sets[g] + bits;
                ++sets[g];
            };
            for (int i = 0; i < many[g]; ++i) {
                linked[i] = 0;
                for (int k = hull_link_begin[nearest[g][i]]; k < hull_link_begin[nearest[g][i] + 1]; ++k)
                    for (int j = 0; j < i; ++j) linked[i] |= (int)(hull_link[k] == nearest[g][j]) << j;
                add(0, i, i, i);
                for (int j = 0; j < i; ++j) {
                    if (!(linked[i] >> j & 1)) continue;
                    add(1, i, j, j);
                    for (int k = 0; k < j; ++k)
                        if (linked[i] >> k & 1 && linked[j] >> k & 1) add(3, i, j, k);
                }
            }
        };
        // Whether the corners of a set are the farthest of those nearby.
        auto holds = [&](int g, int code, const real* n) -> bool {
            if (kinds[g] != mesh || !code) return true;
            real m[3];
            inside(g, n, m);
            const real side = g ? real(-1) : real(1);
            const real most = side * dot(m, hull_corner + 3 * members[g][code >> 3][0]) + {settled} * length;
            for (int i = 0; i < many[g]; ++i)
                if (side * dot(m, hull_corner + 3 * nearest[g][i]) > most) return false;
            return true;
        };
        const bool faceted = kinds[0] != ellipsoid && kinds[0] != cylinder;
        for (int round = 0; round < 3; ++round) {
            const real start[3] = {best[0], best[1], best[2]};
            for (int g = 0; g < 2; ++g) {
                sets[g] = 1;
                codes[g][0] = 0;
                inside(g, start, y);
                if (kinds[g] == mesh) {
                    for (int k = 0; k < 3; ++k) y[k] *= g ? -1 : 1;
                    collect(g, y);
                    continue;
                }
                for (int bits = 1; bits < 7; ++bits) {
                    bool fits = kinds[g] == box || (kinds[g] != ellipsoid && kinds[g] != sphere && bits == 4)
                        || (kinds[g] == cylinder && bits == 3);
                    for (int k = 0; k < 3; ++k) fits = fits && !(bits >> k & 1 && magnitude(y[k]) > near);
                    if (fits) codes[g][sets[g]++] = bits;
                }
            }
            most = highest - 2 * (length + ball);
            for (int m = 2; m >= 0; --m) {
                for (int i = 0; i < sets[0]; ++i) {
                    for (int j = 0; j < sets[1]; ++j) {
                        const int own[2] = {codes[0][i], codes[1][j]};
                        if (ones(own[0]) + ones(own[1]) != m) continue;
                        // A corner of a hull is known, but where the other geom alone makes the normal.
                        bool fits = true;
                        for (int g = 0; g < 2; ++g)
                            fits = fits && !(kinds[g] == mesh && !ones(own[g]) && (m == 2) != (own[g] == 0));
                        if (!fits) continue;
                        axes(own[0], own[1]);
                        real n[3] = {start[0], start[1], start[2]};
                        if (m == 2 || faceted) {
                            if (m == 2) {
                                cross(w[0], w[1], n);
                            } else {
                                support(start, own[0], own[1], points, y);
                                for (int k = 0; k < 3; ++k) n[k] = apart[k] - y[k];
                                const real along = m ? dot(n, w[0]) : real(0);
                                for (int k = 0; k < 3; ++k) n[k] -= along * w[0][k];
                            }
                            const real square = dot(n, n), towards = dot(n, start);
                            if (!(square > (m == 2 ? {parallel} : {tiny} * {tiny} * length * length))) continue;
                            if (towards * towards < real(0.9) * square || (m < 2 && towards < 0)) continue;
                            const real scale = (towards < 0 ? real(-1) : real(1)) * inverse_length(n);
                            for (int k = 0; k < 3; ++k) n[k] *= scale;
                        } else {
                            climb(own[0], own[1], n);
                        }
                        if (holds(0, own[0], n) && holds(1, own[1], n)) take(own[0], own[1], n);
                    }
                }
            }
            real moved = 0;
            for (int k = 0; k < 3; ++k) moved += (best[k] - start[k]) * (best[k] - start[k]);
            if (moved < near * near / 4) break;
        }
        if (most > limit) return 0;
{touched}        real own[2][3] = {{0, 0, 0}, {0, 0, 0}};
        const bool crosses = (chosen[0] & 7) && (chosen[1] & 7);
        const int outer = -1;

""".replace("MOST", str(MOST)).replace("NEAR", str(NEAR))
"""The choice of the sets of kinks."""

TOUCHED = """\
        support(best, 0, 0, points, y);
        for (int g = 0; g < 2; ++g) {
            if (kinds[g] != mesh) continue;
            dims[g] = 1 + ones(chosen[g]);
            for (int k = 0; k < 3; ++k) touched[g][k] = chosen[g] ? members[g][chosen[g] >> 3][k] : ends[g];
        }
"""
"""Of a mesh, which corners are at the contact, and how many."""


def search(touched: str) -> str:
    """The search of a convex geom and a mesh, which runs ``touched`` where it has found a contact."""
    code = VECTORS + FARTHEST + SUPPORT_OF_HULLS + CURVATURE + SIZES_OF_HULLS + PLANES_OF_HULLS + START + GROWTH
    code += SETS + AXES + CLIMB + ROUNDS.replace("{touched}", touched)
    flat = "kinds[g] == mesh ? axis[k] : real(magnitude(axis[k]) > real(0.5))"
    return code + written(flat, "(chosen[0] & 7) && !(chosen[1] & 7)")


SEARCH = search("")
"""The search of a convex geom and a mesh, which writes :data:`.convex_search.FEATURES`."""
KINDS = tuple((kind, "mesh") for kind in ("sphere", "ellipsoid"))
"""Kinds of two geoms of which the second is a mesh; they have one contact."""
