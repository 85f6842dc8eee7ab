"""Stage 4, collisions of convex geoms: the search for the normal along which two geoms touch.

Capsules and spheres are segments and points here, whose radius is added to every gap. With h1 and h2 the geoms' support
functions and c the second centre relative to the first, the gap along a unit vector n is

    D(n) = n . c - h1(n) - h2(n)

(all kinds are symmetric about their centres). Its maximum over n is the distance, negative where geoms overlap; the
normal is where it is. A growing polytope inside the sum of both geoms, itself grown by a ball, brings n near to it: its
face farthest out, or least deep, as seen from c is replaced by faces to the farthest point that way, as in the
expanding polytope algorithm. The gap between that face and that point bounds how far D is from the maximum.

D has kinks where a face, edge, cap or side is orthogonal to n. Newton's method then looks for the maximum with each set
of kinks near n as constraints, to rounding. The best of these has the features.
"""

from __future__ import annotations

from mage_diffsim.envs.warp.compiler.convex_places import MEETING
from mage_diffsim.envs.warp.compiler.convex_shapes import SHAPES, SIZES

FEATURES = (
    *("present", "normal0", "normal1", "normal2"),
    *("flat1_0", "flat1_1", "flat1_2", "flat2_0", "flat2_1", "flat2_2", "of_second1", "of_second2"),
    *("across1_0", "across1_1", "across1_2", "across2_0", "across2_1", "across2_2"),
    *("lift1_0", "lift1_1", "lift1_2", "lift2_0", "lift2_1", "lift2_2"),
    *("place1_0", "place1_1", "place1_2", "place2_0", "place2_1", "place2_2"),
    *("round1", "round2", "by_second", "crossing"),
)
"""What the search writes of a contact. ``present`` is 1.

The normal has two conditions, each a residual that vanishes: normal . flat, with ``flat`` in the frame of the first
geom or, if ``of_second``, of the second; or, with ``flat`` 0, across . (second witness - first). To first order of the
poses, the normal moves by the sum of lift times residual. ``across`` and ``lift`` are as the centres' difference.

The witness of a geom is at ``place`` in its frame, or, if ``round`` is not 0, that far from there towards the other
geom, orthogonal to its axis. An ellipsoid's follows from the normal. The contact is at the first witness, or at the
second if ``by_second``; if ``crossing`` it is where lines along both ``flat`` are nearest.
"""

PLANES = """
        // A polytope: its corners, its faces' corners, and their planes (normal, height).
        real corner[128][3], plane[2 * 128][4];
        unsigned char face[2 * 128][3];
        int count = 6, faces = 0;
        real best[3], highest = -4 * (length + ball + dot(apart, apart)), points[2][3];
        auto gap = [&](const real* n, real* y) -> real {
            support(n, 0, 0, points, y);
            const real found = dot(n, apart) - dot(n, y);
            if (found > highest) {
                highest = found;
                for (int k = 0; k < 3; ++k) best[k] = n[k];
            }
            return found;
        };
        auto attach = [&](int i, int j, int k) {
            real a[3], b[3], n[3];
            for (int r = 0; r < 3; ++r) {
                a[r] = corner[j][r] - corner[i][r];
                b[r] = corner[k][r] - corner[i][r];
            }
            cross(a, b, n);
            const real square = dot(n, n), scale = square > 0 ? real(1) / sqrt{f}(square) : real(0);
            for (int r = 0; r < 3; ++r) plane[faces][r] = n[r] * scale;
            plane[faces][3] = dot(plane[faces], corner[i]);
            face[faces][0] = i;
            face[faces][1] = j;
            face[faces++][2] = k;
        };
"""
"""What the growing polytope is made of."""
START = """\
        {
            real n[3] = {1, 0, 0};
            if (dot(apart, apart) > {tiny} * {tiny} * length * length) {
                const real scale = inverse_length(apart);
                for (int k = 0; k < 3; ++k) n[k] = apart[k] * scale;
            }
            for (int i = 0; i < 3; ++i) {
                real* y = corner[2 * i];
                if (gap(n, y) > limit) return 0;
                for (int k = 0; k < 3; ++k) {
                    y[k] += ball * n[k];
                    corner[2 * i + 1][k] = -y[k];
                }
                if (i == 2) break;
                real along[3];
                const real scale = inverse_length(y);
                for (int k = 0; k < 3; ++k) along[k] = y[k] * scale;
                if (i == 0) orthogonal(along, n);
                else {
                    cross(corner[0], along, n);
                    const real scale = inverse_length(n);
                    for (int k = 0; k < 3; ++k) n[k] *= scale;
                }
            }
            for (int i = 0; i < 8; ++i) {
                const int a = i & 1, b = 2 + (i >> 1 & 1), c = 4 + (i >> 2 & 1);
                if ((a + b + c) & 1) attach(a, c, b);
                else attach(a, b, c);
            }
        }
"""
"""Its first corners."""
GROWTH = """\
        for (int step = 0; step < 4 * 128; ++step) {
            int outer = 0;
            real height = 0;
            for (int k = 0; k < faces; ++k) {
                const real own = dot(plane[k], apart) - plane[k][3];
                if (!k || own > height) {
                    height = own;
                    outer = k;
                }
            }
            real n[3] = {plane[outer][0], plane[outer][1], plane[outer][2]}, y[3];
            if (gap(n, y) > limit) return 0;
            if (height + ball - highest < enough || count == 128) break;
            for (int k = 0; k < 3; ++k) corner[count][k] = y[k] + ball * n[k];
            // The faces that the new corner sees go; edges that only one of them had get a new face.
            unsigned char edge[128][2];
            int edges = 0;
            for (int k = faces; k-- > 0;) {
                if (k != outer && dot(plane[k], corner[count]) - plane[k][3] <= {rounding} * length) continue;
                for (int s = 0; s < 3; ++s) {
                    const int from = face[k][s], to = face[k][s == 2 ? 0 : s + 1];
                    int known = 0;
                    while (known < edges && (edge[known][0] != to || edge[known][1] != from)) ++known;
                    if (known < edges) {
                        --edges;
                        edge[known][0] = edge[edges][0];
                        edge[known][1] = edge[edges][1];
                    } else if (edges < 128) {
                        edge[edges][0] = from;
                        edge[edges++][1] = to;
                    }
                }
                --faces;
                for (int r = 0; r < 4; ++r) plane[k][r] = plane[faces][r];
                for (int r = 0; r < 3; ++r) face[k][r] = face[faces][r];
            }
            for (int k = 0; k < edges && faces < 2 * 128; ++k) attach(edge[k][0], edge[k][1], count);
            ++count;
        }
"""
"""How it grows; it leaves ``best``, a normal near the one looked for."""
SETS = """
        // Newton's method for the maximum, with each set of kinks near the normal.
        const real near = real(0.1);
        real w[2][3], t[2][3], y[3], most = 0;
        int chosen[2] = {0, 0};
        auto ones = [](int bits) -> int { return (bits & 1) + (bits >> 1 & 1) + (bits >> 2 & 1); };
"""
"""What the search with sets of kinks begins with."""
AXES = """\
        auto axes = [&](int bits1, int bits2) -> int {  // orthogonal to the normal
            int m = 0;
            for (int k = 0; k < 6; ++k) {
                if (!((k < 3 ? bits1 : bits2 << 3) >> k & 1)) continue;
                for (int r = 0; r < 3; ++r) w[m][r] = frames[k / 3][3 * r + k % 3];
                ++m;
            }
            return m;
        };
"""
"""The directions to which sets of kinks make the normal orthogonal."""
CLIMB = """\
        auto basis = [&](const real* n, int m) {
            if (m == 1) {
                cross(n, w[0], t[1]);
                cross(t[1], n, t[0]);
            } else {
                orthogonal(n, t[0]);
                cross(n, t[0], t[1]);
            }
        };
        auto climb = [&](int bits1, int bits2, real* n) {
            const int m = ones(bits1) + ones(bits2);
            real next[3], start[3] = {n[0], n[1], n[2]};
            axes(bits1, bits2);
            auto project = [&](real* x) {
                const real along = m == 1 ? dot(x, w[0]) : real(0);
                for (int k = 0; k < 3; ++k) x[k] -= along * w[0][k];
                const real scale = (dot(x, start) < 0 ? real(-1) : real(1)) * inverse_length(x);
                for (int k = 0; k < 3; ++k) x[k] *= scale;
            };
            if (m == 2) cross(w[0], w[1], n);
            project(n);
            support(n, bits1, bits2, points, y);
            real value = dot(n, apart) - dot(n, y);
            for (int step = 0; step < 40 && m < 2; ++step) {
                real g[3], along[2] = {0, 0};
                for (int k = 0; k < 3; ++k) g[k] = apart[k] - y[k];
                basis(n, m);
                const real c = curvature(n, bits1, bits2, points, t[1], t[1]) + value, r0 = dot(t[0], g);
                const real r1 = dot(t[1], g);
                if (m == 1) {
                    along[1] = r1 / (c > {flat} * length ? c : length);
                } else {
                    const real a = curvature(n, bits1, bits2, points, t[0], t[0]) + value;
                    const real b = curvature(n, bits1, bits2, points, t[0], t[1]);
                    // Where D is not concave enough, along the way in which it is least, it counts as more so.
                    const real half = (a + c) / 2, way = sqrt{f}((a - c) * (a - c) / 4 + b * b);
                    const real least = {flat} * (magnitude(half) + way) + {tiny} * length;
                    const real more = half - way < least ? least - half + way : real(0);
                    const real a1 = a + more, c1 = c + more, square = a1 * c1 - b * b;
                    along[0] = (c1 * r0 - b * r1) / square;
                    along[1] = (a1 * r1 - b * r0) / square;
                }
                const real size = sqrt{f}(along[0] * along[0] + along[1] * along[1]);
                real scale = size > real(0.5) ? real(0.5) / size : real(1);
                bool better = false;
                for (int half = 0; half < 10 && !better; ++half) {
                    for (int k = 0; k < 3; ++k) next[k] = n[k] + scale * (along[0] * t[0][k] + along[1] * t[1][k]);
                    project(next);
                    support(next, bits1, bits2, points, y);
                    const real found = dot(next, apart) - dot(next, y);
                    better = found >= value - {rounding} * length;
                    if (better) value = found;
                    scale *= real(0.5);
                }
                if (!better) break;
                for (int k = 0; k < 3; ++k) n[k] = next[k];
                if (size < {settled}) break;
            }
        };
        auto take = [&](int bits1, int bits2, const real* n) {  // if it is the best so far
            support(n, 0, 0, points, y);
            const real found = dot(n, apart) - dot(n, y);
            if (!(found > most + {rounding} * length)) return;
            most = found;
            chosen[0] = bits1;
            chosen[1] = bits2;
            for (int k = 0; k < 3; ++k) best[k] = n[k];
        };
"""
"""Newton's method with a set of kinks."""
ROUNDS = """\
        for (int round = 0; round < 3; ++round) {
            int open[2] = {1, 1};  // sets of kinks, as bits
            for (int g = 0; g < 2; ++g) {
                inside(g, best, y);
                for (int bits = 1; bits < 7; ++bits) {
                    bool fits = kinds[g] == box || (kinds[g] != ellipsoid && kinds[g] != sphere && bits == 4)
                        || (kinds[g] == cylinder && bits == 3);
                    for (int k = 0; k < 3; ++k) fits = fits && !(bits >> k & 1 && magnitude(y[k]) > near);
                    open[g] |= (int)fits << bits;
                }
            }
            const real start[3] = {best[0], best[1], best[2]};
            most = highest - 2 * (length + ball);
            for (int code = 0; code < 3 * 64; ++code) {
                const int m = 2 - code / 64, bits1 = code >> 3 & 7, bits2 = code & 7;
                if (ones(bits1) + ones(bits2) != m || !(open[0] >> bits1 & 1) || !(open[1] >> bits2 & 1)) continue;
                if (m == 2) {
                    axes(bits1, bits2);
                    cross(w[0], w[1], y);
                    if (dot(y, y) < {parallel}) continue;
                }
                real n[3] = {start[0], start[1], start[2]};
                climb(bits1, bits2, n);
                take(bits1, bits2, n);
            }
            real moved = 0;
            for (int k = 0; k < 3; ++k) moved += (best[k] - start[k]) * (best[k] - start[k]);
            if (moved < near * near / 4) break;
        }
"""
"""The choice of the sets."""
ENDS = """
        // Where the witnesses are. One beyond the end of its line or plane is at that end, to which D does not rise.
        real own[2][3];
        bool crosses = false;
        int outer = -1;  // a geom whose witness is beyond an end nevertheless, as faces or lines are parallel
        for (int round = 0; round < 5; ++round) {
            real witness[2][3], along[2][3];
            axes(chosen[0], chosen[1]);
            support(best, chosen[0], chosen[1], points, y);
            for (int k = 0; k < 3; ++k) points[1][k] = -points[1][k];
            for (int g = 0; g < 2; ++g) outside(g, points[g], witness[g]);
            for (int k = 0; k < 3; ++k) {
                witness[1][k] += apart[k];
                along[0][k] = witness[1][k] - witness[0][k];
                along[1][k] = -along[0][k];
            }
            crosses = chosen[0] && chosen[1];
            if (crosses) {
                const real cosine = dot(w[0], w[1]), sine = 1 - cosine * cosine;
                const real b1 = dot(along[0], w[0]), b2 = dot(along[0], w[1]);
                for (int k = 0; k < 3; ++k) {
                    along[0][k] = w[0][k] * (b1 - cosine * b2) / sine;
                    along[1][k] = w[1][k] * (cosine * b1 - b2) / sine;
                }
            }
            int beyond = -1;
            real excess = {settled} * length;
            for (int g = 0; g < 2; ++g) {
                inside(g, along[g], own[g]);
                const real over_rim = kinds[g] == cylinder && (chosen[g] & 1)
                    ? sqrt{f}(own[g][0] * own[g][0] + own[g][1] * own[g][1]) - sizes[g][0] : real(0);
                for (int k = 0; k < 3; ++k) {
                    if (!(chosen[g] >> k & 1)) continue;
                    const real over = kinds[g] == box ? magnitude(own[g][k]) - sizes[g][k]
                        : k == 2 ? magnitude(own[g][2]) - sizes[g][1] : over_rim;
                    if (over > excess) {
                        excess = over;
                        beyond = 3 * g + k;
                    }
                }
            }
            outer = beyond < 0 ? -1 : beyond / 3;
            if (beyond < 0) break;
            const int g = beyond / 3, k = beyond % 3, bits = kinds[g] == cylinder && k < 2 ? 3 : 1 << k;
            real n[3], part[3], way[3];
            for (int r = 0; r < 3; ++r) part[r] = bits >> r & 1 ? (g ? -own[g][r] : own[g][r]) : real(0);
            outside(g, part, way);
            const real scale = {tilt} * inverse_length(way);
            for (int r = 0; r < 3; ++r) n[r] = best[r] + scale * way[r];
            const int left[2] = {g ? chosen[0] : chosen[0] & ~bits, g ? chosen[1] & ~bits : chosen[1]};
            const real before = most;
            climb(left[0], left[1], n);
            take(left[0], left[1], n);
            if (!(most > before)) break;
        }
        if (most > limit) return 0;

"""
"""Where the witnesses are."""
WRITTEN = """
        // What the normal follows from.
        const int m = axes(chosen[0], chosen[1]);
        support(best, chosen[0], chosen[1], points, y);
        basis(best, m);
        real matrix[2][2];
        found[present] = 1;
        for (int k = 0; k < 3; ++k) found[normal + k] = best[k];
        for (int j = 0; j < 2; ++j) {
            for (int r = 0; r < 2; ++r) {
                matrix[j][r] = j < m ? -dot(w[j], t[r])
                    : curvature(best, chosen[0], chosen[1], points, t[j], t[r]) + (j == r ? most : real(0));
            }
            if (j < m) {
                const int g = j < ones(chosen[0]) ? 0 : 1;
                real axis[3];
                found[of_second + j] = real(g);
                inside(g, w[j], axis);
                for (int k = 0; k < 3; ++k) found[flat + 3 * j + k] = {flat_of};
            } else {
                for (int k = 0; k < 3; ++k) found[across + 3 * j + k] = t[j][k];
            }
        }
        const real square = matrix[0][0] * matrix[1][1] - matrix[0][1] * matrix[1][0];
        const real unit = m == 2 ? real(1) : m == 1 ? length : length * length;
        const real inverse = magnitude(square) > {tiny} * unit ? real(1) / square : real(0);
        for (int k = 0; k < 3; ++k) {
            found[lift + k] = inverse * (matrix[1][1] * t[0][k] - matrix[1][0] * t[1][k]);
            found[lift + 3 + k] = inverse * (matrix[0][0] * t[1][k] - matrix[0][1] * t[0][k]);
        }
        for (int g = 0; g < 2; ++g) {
            const bool turned = kinds[g] == cylinder && (points[g][0] != 0 || points[g][1] != 0);
            for (int k = 0; k < 3; ++k) {
                const real at = turned && k < 2 ? real(0) : g ? -points[g][k] : points[g][k];
                found[place + 3 * g + k] = at + (chosen[g] >> k & 1 ? own[g][k] : real(0));
            }
            found[rounding + g] = turned ? sizes[g][0] : real(0);
        }
        found[by_second] = {by_second_of};
        found[crossing] = real(crosses && outer < 0);
        return 1;
"""


def written(flat: str, by_second: str) -> str:
    """Code of features, given that of a number of an axis, and of whether the contact is at the second witness."""
    return WRITTEN.replace("{flat_of}", flat).replace("{by_second_of}", by_second)


SEARCH = (
    SHAPES
    + (SIZES + PLANES + START + GROWTH + SETS + AXES + CLIMB + ROUNDS + ENDS)
    + MEETING
    + written("real(magnitude(axis[k]) > real(0.5))", "real(outer < 0 ? chosen[0] && !chosen[1] : outer)")
)
