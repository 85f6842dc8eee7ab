"""Stage 4, collisions of a capsule with a box: a search for places on the capsule's segment, and spheres there.

As in MuJoCo C, one sphere is at the place nearest to the box: an end beside a face, or where the segment is nearest to
one of the edges. A second one is further along the segment, where it leaves the space beside the box.
"""

from __future__ import annotations

from mage_diffsim.envs.mujoco.mixing import SMALLEST
from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.boxes import sphere_box
from mage_diffsim.envs.warp.compiler.geoms import Found, Geom
from mage_diffsim.envs.warp.compiler.graph import add, div, less, mul, sub, where

SLOTS = 2
FEATURES = (
    *("present", "fixed", "place"),
    *("corner0", "corner1", "corner2", "edge0", "edge1", "edge2"),
    *("side0", "side1", "side2", "bound", "height"),
)
"""What the search writes of a place x on the segment, which is from -1 to 1. ``present`` is 1.

If ``fixed``, x is ``place``; else it is where the segment is nearest to the line (corner, edge) in the box's frame, or
to ``corner`` if ``edge`` is 0. If ``side`` is not 0, (bound - height side . s) / side . h is added to x, with s the
place's point and h half the segment.
"""

SEARCH = """
        enum {present, fixed, place, corner, edge = 6, side = 9, bound = 12, height, width};
        const real *apart = given, *frame1 = given + 3, *frame2 = given + 12, *size = given + 24;
        const real half = given[22], reach = given[21] + half + size[0] + size[1] + size[2];
        auto magnitude = [](real x) -> real { return x < 0 ? -x : x; };
        real centre[3], h[3], axis[3];
        int ahead = 0;  // the signs of h, as bits
        for (int k = 0; k < 3; ++k) {
            centre[k] = -(frame2[k] * apart[0] + frame2[3 + k] * apart[1] + frame2[6 + k] * apart[2]);
            axis[k] = frame2[k] * frame1[2] + frame2[3 + k] * frame1[5] + frame2[6 + k] * frame1[8];
            h[k] = axis[k] * half;
            ahead |= (h[k] > 0) << k;
        }

        // The place nearest to the box: an end beside a face (or inside), or one nearest to an edge.
        real best = given[27] + 2 * reach, x = 0;
        int end = 0, face = -1, nearest_edge = -1, nearest_corner = 0, on_edge = 0, on_segment = 0;
        for (int i = -1; i <= 1; i += 2) {
            int outside = 0, last = -1;
            real distance = 0;
            for (int k = 0; k < 3; ++k) {
                const real tip = centre[k] + i * h[k], beyond = magnitude(tip) - size[k];
                if (beyond > 0) {
                    ++outside;
                    last = k;
                    distance = beyond * beyond;
                }
            }
            if (outside > 1 || !(distance < best)) continue;
            best = distance;
            x = real(i);
            end = i;
            face = last;
        }
        for (int j = 0; j < 3; ++j) {
            for (int i = 0; i < 8; ++i) {
                if (i >> j & 1) continue;
                real from[3], to_edge[3], along = 0;
                for (int k = 0; k < 3; ++k) {
                    from[k] = k == j ? real(0) : i >> k & 1 ? size[k] : -size[k];
                    to_edge[k] = from[k] - centre[k];
                    along += h[k] * to_edge[k];
                }
                const real a = size[j] * size[j], b = -size[j] * h[j], c = half * half, u = -size[j] * to_edge[j];
                const real square = a * c - b * b;
                if (magnitude(square) < real(1e-15) || square < {parallel} * a * c) continue;
                const real scale = real(1) / square;
                real y = (c * u - b * along) * scale, z = (a * along - b * u) * scale;  // on edge and segment
                int of_y = 1, of_z = 1;  // 0 and 2: at an end
                if (magnitude(y) > 1) {
                    y = y > 1 ? real(1) : real(-1);
                    of_y = y > 0 ? 2 : 0;
                    z = (along - b * y) * (real(1) / c);
                }
                if (magnitude(z) > 1) {
                    z = z > 1 ? real(1) : real(-1);
                    of_z = z > 0 ? 2 : 0;
                    y = (u - b * z) * (real(1) / a);
                    if (magnitude(y) > 1) {
                        y = y > 1 ? real(1) : real(-1);
                        of_y = y > 0 ? 2 : 0;
                    }
                }
                real distance = 0;
                for (int k = 0; k < 3; ++k) {
                    const real gap = to_edge[k] - h[k] * z + (k == j ? size[j] * y : real(0));
                    distance += gap * gap;
                }
                if (distance < best - real(1e-15)) {
                    best = distance;
                    x = z;
                    end = 0;
                    nearest_edge = j;
                    nearest_corner = of_y == 2 ? i | 1 << j : i;
                    on_edge = of_y;
                    on_segment = of_z;
                }
            }
        }
        if (!end && nearest_edge < 0) return 0;

        real* own = found;
        own[present] = 1;
        own[fixed] = real(end || on_segment != 1);
        own[place] = x;
        if (!own[fixed]) {
            for (int k = 0; k < 3; ++k) {
                own[corner + k] = nearest_corner >> k & 1 ? size[k] : -size[k];
                if (on_edge == 1 && k == nearest_edge) {
                    own[corner + k] = 0;
                    own[edge + k] = size[k];
                }
            }
        }

        // The second place: the other end, or where the segment has passed the box along an axis.
        int way = 0, slab = -1;
        real step = -4, shift = 0, weight = 0;  // slab: (shift - weight s) / h, along this axis
        auto shorter = [&](int k, real numerator, real own_weight) {
            const real length = numerator / magnitude(h[k]);
            if (magnitude(axis[k]) >= {across} && length < step) {
                step = length;
                slab = k;
                shift = way * (h[k] < 0 ? -numerator : numerator);
                weight = own_weight;
            }
        };
        if (end) {
            if (face < 0) return 1;
            way = -end;
            step = 2;
            for (int k = 0; k < 3; ++k) {
                if (k == face || magnitude(axis[k]) < {across}) continue;
                for (int s = 1; s >= -1; s -= 2) {
                    const real length = (s * size[k] - (centre[k] + end * h[k])) / h[k] * way;
                    if (length > 0 && length < step) {
                        step = length;
                        slab = k;
                        shift = s * size[k];
                        weight = 1;
                    }
                }
            }
        } else if (on_edge != 1) {
            int c = ahead ^ nearest_corner;
            if (c == 0 || c == 7) return 1;
            way = c == 1 || c == 2 || c == 4 ? 1 : -1;
            if (way < 0) c = 7 - c;
            const int k = c == 1 ? 0 : c == 2 ? 1 : 2;
            if (axis[k] * axis[k] > real(0.5)) {  // along an edge of the box
                step = 1 - way * x;
                shorter(k, 2 * size[k], 0);
            } else {  // along a face
                step = 1 + way * x;
                way = -way;
                shorter((k + 1) % 3, 2 * size[(k + 1) % 3], 0);
                shorter((k + 2) % 3, 2 * size[(k + 2) % 3], 0);
            }
        } else {
            const int c = (ahead ^ nearest_corner) & (7 - (1 << nearest_edge)), k = nearest_edge;
            if (c != 1 && c != 2 && c != 4) return 1;
            int k1 = (k + 1) % 3;
            if (magnitude(axis[k1]) > magnitude(axis[(k + 2) % 3])) k1 = (k + 2) % 3;
            const int k2 = 3 - k - k1;
            way = c >> k2 & 1 ? 1 : -1;
            step = 1 - way * x;
            shorter(k2, 2 * size[k2], 0);
            // The end of the edge that the segment goes towards.
            const real at = centre[k] + h[k] * x;
            const real towards = (ahead >> k & 1) == (c >> k2 & 1) ? real(1) : real(-1);
            shorter(k, size[k] - towards * at, way * towards * (h[k] < 0 ? real(-1) : real(1)));
            if (slab == k) shift = way * size[k] * (h[k] < 0 ? real(-1) : real(1));
        }
        real* next = found + width;
        next[present] = 1;
        if (slab < 0) {  // the other end
            next[fixed] = 1;
            next[place] = real(way);
        } else {
            for (int k = 0; k < side; ++k) next[k] = own[k];
            next[side + slab] = 1;
            next[bound] = shift;
            next[height] = weight;
        }
        return 2;"""
"""The search, see :attr:`.searches.Search.code`."""
THRESHOLDS = {
    "double": {"across": "real(1e-14)", "parallel": "real(4e-15)"},
    "float": {"across": "real(1e-6)", "parallel": "real(2e-6)"},
}
"""Cosines, and squared sines, that are rounding errors."""


def contact(features: al.Vector, capsule: Geom, box: Geom, noise: float) -> Found:
    """The contact that :data:`FEATURES` make."""
    f = dict(zip(FEATURES, features, strict=True))
    corner, edge, side = ([f[f"{name}{k}"] for k in range(3)] for name in ("corner", "edge", "side"))
    centre = box.inside(al.minus(capsule.centre, box.centre))
    half = al.times(box.inside(capsule.axis), capsule.size[1])
    apart = al.minus(corner, centre)
    length, mixed, square = al.dot(edge, edge), al.dot(edge, half), capsule.size[1] ** 2
    # Minimises |corner + y edge - centre - x half|^2.
    along, along_edge = al.dot(half, apart), al.dot(edge, apart)
    pointed = less(length, SMALLEST * SMALLEST)
    determinant = where(pointed, square, sub(mul(length, square), mul(mixed, mixed)))
    nearest = div(where(pointed, along, sub(mul(length, along), mul(mixed, along_edge))), determinant)
    x = where(less(0.5, f["fixed"]), f["place"], nearest)
    slope = al.dot(side, half)
    slab = less(0.5, al.dot(side, side))
    passed = sub(f["bound"], mul(f["height"], al.dot(side, al.plus(centre, al.times(half, x)))))
    x = add(x, where(slab, div(passed, where(slab, slope, 1.0)), 0.0))
    sphere = Geom(al.plus(capsule.centre, al.times(capsule.axis, mul(capsule.size[1], x))), capsule.frame, capsule.size)
    (found,) = sphere_box(sphere, box, noise)
    return found
