"""Stage 1, reflection: where a path from one point to another touches a circle from outside, as light does a mirror.

A tendon that wraps inside a circle of radius r takes this path. For points at distances r / a and r / b from the
centre, seen at an angle g, the angle t between path and radius satisfies

    f = asin(a sin t) + asin(b sin t) - 2 t + g = 0

MuJoCo's Newton iteration (mju_wrap of 4.0) is repeated step by step, because it stops early. The derivatives are those
of the iteration: a step t' = t - f/s with s = df/dt has dt' = (f/s (s_t dt + ds) - df) / s.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

TOLERANCE = 1e-6
ITERATIONS = 20
NONE = (-1.0, 0.0, 0.0, 0.0)


def reflection(n: int, a: Any, b: Any, g: Any) -> np.ndarray:
    """t (n = 0), or its derivative by a, b or g (n = 1 to 3), at arrays of any one shape.

    Where the iteration finds nothing, t is -1.
    """
    return np.vectorize(lambda *point: _solve(*point)[n], otypes=[float])(a, b, g)


def _solve(a: float, b: float, g: float) -> tuple[float, float, float, float]:
    t, by = 0.5 * math.pi, np.zeros(3)
    f = math.asin(a) + math.asin(b) - math.pi + g
    if not f <= 0.0:
        return NONE
    for _ in range(ITERATIONS):
        if abs(f) <= TOLERANCE:
            return t, by[0], by[1], by[2]
        sine, cosine = math.sin(t), math.cos(t)
        p, q = (1.0 / max(1e-15, math.sqrt(1.0 - x * x)) for x in (a * sine, b * sine))
        s = cosine * (a * p + b * q) - 2.0
        nearer = t - f / s
        if s > -1e-15 or nearer > t:
            return NONE
        bend = sum(sine * x * w * (x * x * cosine * cosine * w * w - 1.0) for x, w in ((a, p), (b, q)))
        by_slope = np.array([cosine * p**3, cosine * q**3, 0.0])
        by = (f / s * (bend * by + by_slope) - np.array([sine * p, sine * q, 1.0])) / s
        t = nearer
        f = math.asin(a * math.sin(t)) + math.asin(b * math.sin(t)) - 2.0 * t + g
        if f > TOLERANCE:
            return NONE
    return NONE


def code(n: int) -> str:
    """The body of the same function in C++, for numbers a, b, g; doubles resolve the tolerance."""
    result, none = ("t", "by_a", "by_b", "by_g")[n], repr(NONE[n])
    return f"""
        auto inverse = [](double x) -> double {{
            const double y = sqrt(1.0 - x * x);
            return 1.0 / (y > 1e-15 ? y : 1e-15);
        }};
        double t = {0.5 * math.pi!r}, by_a = 0.0, by_b = 0.0, by_g = 0.0;
        double f = asin((double)a) + asin((double)b) - {math.pi!r} + g;
        if (!(f <= 0.0)) return {none};
        for (int i = 0; i < {ITERATIONS}; ++i) {{
            if (f <= {TOLERANCE!r} && f >= -{TOLERANCE!r}) return {result};
            const double sine = sin(t), cosine = cos(t), p = inverse(a * sine), q = inverse(b * sine);
            const double s = cosine * (a * p + b * q) - 2.0, nearer = t - f / s;
            if (s > -1e-15 || nearer > t) return {none};
            const double ap = a * p, bq = b * q, square = cosine * cosine;
            const double bend = sine * (ap * (ap * ap * square - 1.0) + bq * (bq * bq * square - 1.0));
            by_a = (f / s * (bend * by_a + cosine * p * p * p) - sine * p) / s;
            by_b = (f / s * (bend * by_b + cosine * q * q * q) - sine * q) / s;
            by_g = (f / s * (bend * by_g) - 1.0) / s;
            t = nearer;
            f = asin(a * sin(t)) + asin(b * sin(t)) - 2.0 * t + g;
            if (f > {TOLERANCE!r}) return {none};
        }}
        return {none};"""
