"""Stage 4, collisions of convex geoms: where two geoms touch along lines or faces that are parallel.

Any point of both will do. The code looks for one by going to the nearest point of either geom in turn.
"""

from __future__ import annotations

MEETING = """
        if (outer >= 0) {
            const int other = 1 - outer;
            auto within = [&](int g, real* x) {
                const real *size = sizes[g], far = sqrt{f}(x[0] * x[0] + x[1] * x[1]);
                for (int k = 0; k < 3; ++k) {
                    const real most = size[kinds[g] == box ? k : 1];
                    if (!(chosen[g] >> k & 1)) continue;
                    if (kinds[g] == cylinder && k < 2) x[k] *= far > size[0] ? size[0] / far : real(1);
                    else x[k] = x[k] < -most ? -most : x[k] > most ? most : x[k];
                }
            };
            auto across_to = [&](int from, const real* x, real* y) {  // from one frame to the other
                real z[3];
                outside(from, x, z);
                for (int k = 0; k < 3; ++k) z[k] += from ? apart[k] : -apart[k];
                inside(1 - from, z, y);
            };
            within(outer, own[outer]);
            for (int round = 0; round < 16; ++round) {
                real x[3], there[3];
                for (int k = 0; k < 3; ++k)
                    x[k] = points[outer][k] + (chosen[outer] >> k & 1 ? own[outer][k] : real(0));
                across_to(outer, x, there);
                for (int k = 0; k < 3; ++k) if (!(chosen[other] >> k & 1)) there[k] = points[other][k];
                within(other, there);
                across_to(other, there, own[outer]);
                within(outer, own[outer]);
            }
        }
"""
"""Code of :data:`.convex_search.SEARCH`: moves the witness ``own`` of the geom ``outer``, where there is one, to a
point that is also of the other geom, along the coordinates that are ``chosen``."""
