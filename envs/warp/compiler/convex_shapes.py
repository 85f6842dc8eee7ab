"""Stage 4, collisions of convex geoms: their support functions, as code for one lane.

Capsules and spheres are segments and points here; their radius is added to distances. Every geom is symmetric about its
centre. Where n is orthogonal to an edge or a face, many points are farthest along it. The code is then told to take
components of n, in the geom's frame, for 0, which gives the middle of them.
"""

from __future__ import annotations

KINDS = ("sphere", "capsule", "ellipsoid", "cylinder", "box", "plane", "mesh", "hfield")
"""Kinds of geoms; the code has their numbers in this order."""

ON_PLANE = """
        real height = 0, up[3] = {0, 0, 0};
        for (int k = 0; k < 3; ++k) height += given[3 * k + 5] * given[k];
        for (int k = 0; k < 3; ++k)
            for (int i = 0; i < 3; ++i) up[k] += given[3 * i + 5] * given[3 * i + 12 + k];
"""
"""How high the second geom's centre is over the first, a plane, and the plane's normal in the second's frame."""

VECTORS = """
        const real* frames[2] = {given + 3, given + 12};
        auto dot = [](const real* a, const real* b) -> real { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; };
        auto cross = [](const real* a, const real* b, real* y) {
            for (int k = 0; k < 3; ++k) {
                const int i = k == 2 ? 0 : k + 1, j = k == 0 ? 2 : k - 1;
                y[k] = a[i] * b[j] - a[j] * b[i];
            }
        };
        auto magnitude = [](real x) -> real { return x < 0 ? -x : x; };
        auto inside = [&](int g, const real* v, real* y) {
            const real* m = frames[g];
            for (int k = 0; k < 3; ++k) y[k] = m[k] * v[0] + m[3 + k] * v[1] + m[6 + k] * v[2];
        };
        auto outside = [&](int g, const real* v, real* y) {
            for (int k = 0; k < 3; ++k) y[k] = dot(frames[g] + 3 * k, v);
        };
"""
"""Functions of vectors, and of the frames of the two geoms that ``given`` has (:func:`.searches.given`). ``inside``
takes a vector to geom g's frame, and ``outside`` from there."""

FARTHEST = """
        enum {sphere, capsule, ellipsoid, cylinder, box};
        const real *apart = given, *sizes[2] = {given + 21, given + 24};
        const int kinds[2] = {(int)given[28], (int)given[29]};
        auto inverse_length = [&](const real* a) -> real { return real(1) / sqrt{f}(dot(a, a)); };
        auto orthogonal = [&](const real* n, real* y) {  // to n, of length 1
            const int k = magnitude(n[0]) < real(0.6) ? 0 : magnitude(n[1]) < real(0.6) ? 1 : 2;
            for (int i = 0; i < 3; ++i) y[i] = real(i == k) - n[k] * n[i];
            const real scale = inverse_length(y);
            for (int i = 0; i < 3; ++i) y[i] *= scale;
        };
        // The point of a geom farthest along n; all in its frame. Bits say which coordinates of n count as 0.
        auto farthest = [&](int g, const real* n, int bits, real* y) {
            const real* size = sizes[g];
            const int kind = kinds[g];
            y[0] = y[1] = y[2] = 0;
            if (kind == ellipsoid) {
                real square = 0;
                for (int k = 0; k < 3; ++k) square += size[k] * size[k] * n[k] * n[k];
                const real scale = real(1) / sqrt{f}(square);
                for (int k = 0; k < 3; ++k) y[k] = size[k] * size[k] * n[k] * scale;
            } else if (kind == box) {
                for (int k = 0; k < 3; ++k) y[k] = bits >> k & 1 ? real(0) : n[k] < 0 ? -size[k] : size[k];
            } else if (kind != sphere) {
                y[2] = bits >> 2 & 1 ? real(0) : n[2] < 0 ? -size[1] : size[1];
                const real square = n[0] * n[0] + n[1] * n[1];
                if (kind == cylinder && !(bits & 3)) {
                    const real scale = square > 0 ? size[0] / sqrt{f}(square) : real(0);
                    y[0] = square > 0 ? n[0] * scale : size[0];
                    y[1] = n[1] * scale;
                }
            }
        };
"""
"""The farthest points of one of the geoms that ``given`` has."""
SUPPORT = """\
        // The sum of both geoms' farthest points along n, each at ``points`` in its frame.
        auto support = [&](const real* n, int bits1, int bits2, real (*points)[3], real* y) {
            real m[3], own[3];
            y[0] = y[1] = y[2] = 0;
            for (int g = 0; g < 2; ++g) {
                inside(g, n, m);
                farthest(g, m, g ? bits2 : bits1, points[g]);
                outside(g, points[g], own);
                for (int k = 0; k < 3; ++k) y[k] += own[k];
            }
        };
"""
"""Those of both geoms, which are symmetric about their centres."""
CURVATURE = """\
        // u . (second derivative of both support functions) v, of vectors orthogonal to n.
        auto curvature = [&](const real* n, int bits1, int bits2, real (*points)[3], const real* u,
                const real* v) -> real {
            real sum = 0, m[3], a[3], b[3];
            for (int g = 0; g < 2; ++g) {
                const int bits = g ? bits2 : bits1;
                inside(g, n, m);
                inside(g, u, a);
                inside(g, v, b);
                const real *p = points[g], *size = sizes[g];
                if (kinds[g] == ellipsoid) {
                    real mixed = 0;
                    for (int k = 0; k < 3; ++k) mixed += size[k] * size[k] * a[k] * b[k];
                    sum += (mixed - dot(p, a) * dot(p, b)) / dot(p, m);
                } else if (kinds[g] == cylinder && !(bits & 3)) {
                    const real square = m[0] * m[0] + m[1] * m[1];
                    if (square > {tiny} * {tiny})
                        sum += size[0] * (m[0] * a[1] - m[1] * a[0]) * (m[0] * b[1] - m[1] * b[0])
                            / (square * sqrt{f}(square));
                }
            }
            return sum;
        };
"""
"""The second derivative of their support functions."""
SHAPES = VECTORS + FARTHEST + SUPPORT + CURVATURE
"""Functions of the two geoms that ``given`` has."""
SIZES = """
        enum {present, normal, flat = 4, of_second = 10, across = 12, lift = 18, place = 24, rounding = 30};
        enum {by_second = 32, crossing};
        real radius = 0, length = 0, small = 0;
        for (int g = 0; g < 2; ++g) {
            const real* size = sizes[g];
            const int used = kinds[g] == sphere ? 1 : kinds[g] == capsule || kinds[g] == cylinder ? 2 : 3;
            real least = size[0], most = size[0];
            for (int k = 1; k < used; ++k) {
                least = size[k] < least ? size[k] : least;
                most = size[k] > most ? size[k] : most;
            }
            if (kinds[g] < ellipsoid) {
                radius += size[0];
                least = size[0];
            }
            small = g && small < least ? small : least;
            length += most;
        }
        const real limit = radius + given[27], ball = limit + real(0.25) * small;
        const real enough = {enough} * small;
"""
"""The radius of both geoms, a length and the smallest size."""
