"""Stage 4, collisions of two boxes: a search for the features that touch, and the contact that features make.

As in MuJoCo C, the axis that separates the boxes best decides. If it is orthogonal to an edge of each, these edges
cross in one contact. If it is the normal of a face, the face of the other box most opposed to it is clipped to its
edges, and each corner of what is left is a contact. A corner is where a line meets a plane of the other box, or a
corner of the clipped face. What the search finds does not change in a neighbourhood, so it has no derivative.
"""

from __future__ import annotations

from typing import Any

from mage_diffsim.envs.mujoco.mixing import SMALLEST
from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.geoms import Found, Geom, meeting, turned
from mage_diffsim.envs.warp.compiler.graph import add, div, less, mul, sub, where

SLOTS = 8
"""A rectangle clipped to another has no more corners."""
FEATURES = (
    *("present", "crossing", "first"),
    *("start0", "start1", "start2", "way0", "way1", "way2"),
    *("other0", "other1", "other2", "bound"),
    *("reference", "face0", "face1", "face2", "height", "stopped", "other_stopped"),
)
"""What the search writes of a contact, all in the frames of the boxes. ``present`` is 1.

A line (start, way) of the first box, or of the second if not ``first``. If not ``crossing``, it meets the plane
{other . x = bound} of the other box; a ``way`` of 0 leaves ``start``. The contact is at the face {face . x = height} of
the first box, or of the second if not ``reference``. If ``crossing``, the other line is (face, other) of the second
box, and the lines may end at ``bound`` and ``height``, if ``stopped`` and ``other_stopped``.
"""

SEARCH = """
        enum {present, crossing, first, start, way = 6, other = 9, bound = 12, reference, face, height = 17};
        enum {stopped = height + 1, width = stopped + 2};
        const real *apart = given, *frame1 = given + 3, *frame2 = given + 12, *size1 = given + 21, *size2 = given + 24;
        const real margin = given[27];
        auto magnitude = [](real x) -> real { return x < 0 ? -x : x; };
        auto clip = [](real x, real most) -> real { return x < -most ? -most : x > most ? most : x; };
        real turn[9], at1[3], at2[3], sizes = 0;
        for (int i = 0; i < 3; ++i) {
            at2[i] = frame1[i] * apart[0] + frame1[3 + i] * apart[1] + frame1[6 + i] * apart[2];
            at1[i] = -(frame2[i] * apart[0] + frame2[3 + i] * apart[1] + frame2[6 + i] * apart[2]);
            sizes += size1[i] + size2[i];
            for (int j = 0; j < 3; ++j)
                turn[3 * i + j] = frame1[i] * frame2[j] + frame1[3 + i] * frame2[3 + j] + frame1[6 + i] * frame2[6 + j];
        }

        // Of 15 axes: the faces' normals, 0 to 2 of the first box and 3 to 5 of the second, and 6 + 3 i + j, which is
        // orthogonal to edge i of the first and edge j of the second.
        const real apart_by = margin + {slack} * sizes;
        real best = real(-1e30), axis[3] = {0, 0, 0};
        int code = 0;
        for (int k = 0; k < 6; ++k) {
            const int i = k % 3;
            real reach = 0;
            for (int j = 0; j < 3; ++j)
                reach += k < 3 ? magnitude(turn[3 * i + j]) * size2[j] : magnitude(turn[3 * j + i]) * size1[j];
            const real gap = (k < 3 ? magnitude(at2[i]) - size1[i] : magnitude(at1[i]) - size2[i]) - reach;
            if (gap > apart_by) return 0;
            if (gap > best) { best = gap; code = k; }
        }
        const real best_face = best;
        const int code_face = code;
        for (int k = 0; k < 9; ++k) {
            const int i = k / 3, j = k % 3, i1 = (i + 1) % 3, i2 = (i + 2) % 3, j1 = (j + 1) % 3, j2 = (j + 2) % 3;
            real a1 = -turn[3 * i2 + j], a2 = turn[3 * i1 + j];
            const real square = a1 * a1 + a2 * a2;
            if (square < {parallel}) continue;
            const real scale = real(1) / sqrt{f}(square);
            a1 *= scale;
            a2 *= scale;
            const real gap = magnitude(a1 * at2[i1] + a2 * at2[i2])
                - (size1[i1] * magnitude(a1) + size1[i2] * magnitude(a2))
                - (size2[j1] * magnitude(a1 * turn[3 * i1 + j1] + a2 * turn[3 * i2 + j1])
                    + size2[j2] * magnitude(a1 * turn[3 * i1 + j2] + a2 * turn[3 * i2 + j2]));
            if (gap > apart_by) return 0;
            if (gap - real(1e-6) * magnitude(gap) > best && gap > best_face) {
                best = gap;
                code = 6 + k;
                axis[i] = 0;
                axis[i1] = a1;
                axis[i2] = a2;
            }
        }
        if (code >= 6) {  // An axis beside a face's normal that is hardly better: the face has more contacts.
            real cosine = 0;
            for (int i = 0; i < 3; ++i)
                cosine += axis[i] * (code_face < 3 ? real(i == code_face) : turn[3 * i + code_face - 3]);
            if (magnitude(cosine) > real(0.99) && best < best_face + real(0.05) * magnitude(best_face) + real(1e-15))
                code = code_face;
        }

        if (code >= 6) {
            const int i = (code - 6) / 3, j = (code - 6) % 3;
            const real side = axis[0] * at2[0] + axis[1] * at2[1] + axis[2] * at2[2] < 0 ? real(-1) : real(1);
            real axis2[3];
            int vague1 = -1, vague2 = -1;
            for (int k = 0; k < 3; ++k) axis[k] *= side;
            for (int k = 0; k < 3; ++k) axis2[k] = axis[0] * turn[k] + axis[1] * turn[3 + k] + axis[2] * turn[6 + k];
            for (int k = 2; k > 0; --k) {  // An axis along a face is at two of its edges.
                if (magnitude(axis[(i + k) % 3]) < {vague}) vague1 = (i + k) % 3;
                if (magnitude(axis2[(j + k) % 3]) < {vague}) vague2 = (j + k) % 3;
            }
            real nearest = real(1e30);
            for (int v = 0; v < 4; ++v) {
                const bool other1 = v & 2, other2 = v & 1;
                if ((other1 && vague1 < 0) || (other2 && vague2 < 0)) continue;
                real c1[3], c2[3], between[3], along2 = 0;
                for (int k = 0; k < 3; ++k) {
                    c1[k] = k == i ? real(0) : (axis[k] >= 0) != (other1 && k == vague1) ? size1[k] : -size1[k];
                    c2[k] = k == j ? real(0) : (axis2[k] >= 0) != (other2 && k == vague2) ? -size2[k] : size2[k];
                }
                for (int k = 0; k < 3; ++k) {
                    const real* row = turn + 3 * k;
                    between[k] = at2[k] - c1[k] + row[0] * c2[0] + row[1] * c2[1] + row[2] * c2[2];
                    along2 += row[j] * between[k];
                }
                const real cosine = turn[3 * i + j], square = 1 - cosine * cosine;
                const real guess = square < real(1e-15) ? real(0) : (between[i] - cosine * along2) / square;
                const real free2 = cosine * clip(guess, size1[i]) - along2, end2 = clip(free2, size2[j]);
                const real free1 = between[i] + cosine * end2, end1 = clip(free1, size1[i]);
                real distance = 0;
                for (int k = 0; k < 3; ++k) {
                    const real x = between[k] + turn[3 * k + j] * end2 - (k == i ? end1 : real(0));
                    distance += x * x;
                }
                if (!(distance < nearest)) continue;
                nearest = distance;
                for (int k = 0; k < 3; ++k) {
                    found[start + k] = c1[k];
                    found[way + k] = k == i ? side : real(0);
                    found[other + k] = real(k == j);
                    found[face + k] = c2[k];
                }
                found[bound] = side * end1;
                found[height] = end2;
                found[stopped] = real(end1 != free1);
                found[stopped + 1] = real(end2 != free2);
            }
            found[present] = found[crossing] = found[first] = 1;
            return 1;
        }

        // The face a of one box, at which contacts are, and the face b of the other.
        const bool reference1 = code < 3;
        const int a = reference1 ? code : code - 3, ax[2] = {(a + 1) % 3, (a + 2) % 3};
        const real *size_a = reference1 ? size1 : size2, *size_b = reference1 ? size2 : size1;
        const real* at = reference1 ? at2 : at1;
        auto entry = [&](int row, int column) -> real {
            return reference1 ? turn[3 * row + column] : turn[3 * column + row];
        };
        const real side_a = at[a] >= 0 ? real(1) : real(-1);
        int b = 0;
        for (int k = 1; k < 3; ++k) if (magnitude(entry(a, k)) > magnitude(entry(a, b))) b = k;
        const real side_b = side_a * entry(a, b) > 0 ? real(-1) : real(1);
        const int bx[2] = {(b + 1) % 3, (b + 2) % 3};

        // A polygon: corners (x, y beside the face's centre, height above it), the line that leads to the next, and
        // what makes a corner. Lines 0 to 3 are edges of face b, and 4 to 7 the sides of face a, +x, -x, +y, -y.
        real corner[2][12][3];
        int line[2][12], made[2][12], n = 4, now = 0;
        for (int k = 0; k < 4; ++k) {
            const real u = k == 1 || k == 2 ? real(-1) : real(1), v = k > 1 ? real(-1) : real(1);
            for (int r = 0; r < 3; ++r) {
                const int c = r < 2 ? ax[r] : a;
                const real x = at[c] + side_b * size_b[b] * entry(c, b) + u * size_b[bx[0]] * entry(c, bx[0])
                    + v * size_b[bx[1]] * entry(c, bx[1]);
                corner[0][k][r] = r < 2 ? x : side_a * x - size_a[a];
            }
            line[0][k] = k;
            made[0][k] = k;
        }
        for (int plane = 0; plane < 4; ++plane) {
            const real sign = plane % 2 ? real(-1) : real(1), most = size_a[ax[plane / 2]];
            real above[12];
            bool inside = true;
            for (int k = 0; k < n; ++k) {
                above[k] = sign * corner[now][k][plane / 2] - most;
                inside = inside && above[k] <= 0;
            }
            if (inside) continue;
            const int next = 1 - now;
            int m = 0;
            for (int k = 0; k < n; ++k) {
                const int k1 = k + 1 == n ? 0 : k + 1;
                const real p = above[k], q = above[k1];
                if (p <= 0 && m < 12) {
                    for (int r = 0; r < 3; ++r) corner[next][m][r] = corner[now][k][r];
                    made[next][m] = made[now][k];
                    line[next][m++] = p == 0 && q > 0 ? 4 + plane : line[now][k];
                }
                if (((p < 0 && q > 0) || (p > 0 && q < 0)) && m < 12) {
                    const real t = p / (p - q);
                    for (int r = 0; r < 3; ++r)
                        corner[next][m][r] = corner[now][k][r] + t * (corner[now][k1][r] - corner[now][k][r]);
                    made[next][m] = 4 + 4 * line[now][k] + plane;
                    line[next][m++] = q > 0 ? 4 + plane : line[now][k];
                }
            }
            n = m;
            now = next;
        }

        const real same = {same} * (size_a[ax[0]] * size_a[ax[0]] + size_a[ax[1]] * size_a[ax[1]]);
        int taken[12], count = 0;
        for (int k = 0; k < n; ++k) {
            const real* p = corner[now][k];
            bool known = p[2] > margin;
            for (int i = 0; i < count; ++i) {
                const real *other = corner[now][taken[i]], x = other[0] - p[0], y = other[1] - p[1];
                known = known || x * x + y * y < same;
            }
            if (known || count == 8) continue;
            real* own = found + width * count;
            taken[count++] = k;
            own[present] = 1;
            own[reference] = real(reference1);
            own[face + a] = side_a;
            own[height] = size_a[a];
            const int what = made[now][k], edge = (what - 4) / 4, plane = (what - 4) % 4;
            const int x = plane / 2, ahead = plane % 2 ? -1 : 1;
            if (what < 4 || edge < 4) {  // a corner of face b, or its edge meets a side of face a
                const int from = what < 4 ? what : edge;
                own[first] = real(!reference1);
                own[start + b] = side_b * size_b[b];
                own[start + bx[0]] = from == 1 || from == 2 ? -size_b[bx[0]] : size_b[bx[0]];
                own[start + bx[1]] = from > 1 ? -size_b[bx[1]] : size_b[bx[1]];
                if (what >= 4) {
                    own[way + bx[edge % 2]] = 1;
                    own[other + ax[x]] = real(ahead);
                    own[bound] = size_a[ax[x]];
                }
            } else {  // above a corner of face a
                const int y = (edge - 4) / 2;
                own[first] = real(reference1);
                own[start + ax[x]] = real(ahead) * size_a[ax[x]];
                own[start + ax[y]] = edge % 2 ? -size_a[ax[y]] : size_a[ax[y]];
                own[way + a] = 1;
                own[other + b] = side_b;
                own[bound] = size_b[b];
            }
        }
        return count;"""
"""The search, see :attr:`.searches.Search.code`."""
THRESHOLDS = {
    "double": {"slack": "real(1e-13)", "parallel": "real(1e-16)", "vague": "real(1e-9)", "same": "real(1e-14)"},
    "float": {"slack": "real(1e-6)", "parallel": "real(1e-7)", "vague": "real(1e-5)", "same": "real(1e-10)"},
}
"""MuJoCo's, below which gaps, squared sines, cosines and squared distances are rounding errors."""


def contact(features: al.Vector, first_box: Geom, second_box: Geom, noise: float) -> Found:
    """The contact that :data:`FEATURES` make."""
    f = dict(zip(FEATURES, features, strict=True))
    crossing, first, reference = (less(0.5, f[name]) for name in ("crossing", "first", "reference"))
    stopped, other_stopped = less(0.5, f["stopped"]), less(0.5, f["other_stopped"])

    def vector(name: str, by_first: Any) -> al.Vector:
        return turned(first_box, second_box, by_first, [f[f"{name}{i}"] for i in range(3)])

    start, way, other = vector("start", first), vector("way", first), vector("other", less(f["first"], 0.5))
    face = vector("face", reference)
    # From here, places are relative to the centre of the line's own box, and the other box is ``beyond``.
    beyond = al.times(al.minus(second_box.centre, first_box.centre), where(first, 1.0, -1.0))
    slope = al.dot(other, way)

    # Where the line meets the other box's plane, and how high that is above the face.
    corner = meeting(start, way, other, add(f["bound"], al.dot(other, beyond)))
    own = less(0.5, add(mul(f["first"], f["reference"]), mul(sub(1.0, f["first"]), sub(1.0, f["reference"]))))
    height = sub(al.dot(face, al.minus(corner, [where(own, 0.0, x) for x in beyond])), f["height"])
    at_face = al.minus(corner, al.times(face, mul(0.5, height)))

    # Where two lines are nearest.
    between = al.minus(al.plus(face, beyond), start)
    along, along_other = al.dot(way, between), al.dot(other, between)
    square = sub(1.0, mul(slope, slope))
    free = div(sub(along, mul(slope, along_other)), where(less(SMALLEST, square), square, 1.0))
    here = where(stopped, f["bound"], where(other_stopped, add(along, mul(slope, f["height"])), free))
    there = where(other_stopped, f["height"], sub(mul(slope, here), along_other))
    ends = al.plus(start, al.times(way, here)), al.plus(al.plus(face, beyond), al.times(other, there))
    across = al.direction(al.cross(way, other), al.IDENTITY[0], noise)
    gap = al.dot(across, al.minus(ends[1], ends[0]))

    middle = al.times(al.plus(*ends), 0.5)
    point = al.choose(crossing, middle, at_face)
    centre = al.choose(first, first_box.centre, second_box.centre)
    outward = al.times(face, where(reference, 1.0, -1.0))
    normal = al.choose(crossing, across, outward)
    return Found(where(crossing, gap, height), al.plus(centre, point), normal)
