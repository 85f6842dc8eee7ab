"""Vectors, matrices and rotations of expressions (see :mod:`.graph`): lists of 3, and 3 lists of 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mage_diffsim.envs.mujoco.mixing import SMALLEST
from mage_diffsim.envs.warp.compiler.graph import (
    ROUNDING,
    Node,
    add,
    atan2,
    div,
    is_zero,
    less,
    mul,
    neg,
    number,
    sqrt,
    sub,
    where,
)

Vector = list[Any]
Matrix = list[list[Any]]

ZERO: Vector = [0.0, 0.0, 0.0]
IDENTITY: Matrix = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


def constant(values: Any) -> Vector:
    """A vector of numbers; components that are rounding errors of the others become 0.

    Where the model's numbers are inputs, nothing is taken for a rounding error.
    """
    if any(isinstance(x, Node) for x in values):
        return [number(x) for x in values]
    values = np.asarray(values, dtype=np.float64)
    small = np.abs(values) < ROUNDING * np.abs(values).max(initial=0.0)
    return [float(x) for x in np.where(small, 0.0, values)]


def constant_matrix(values: Any) -> Matrix:
    """A matrix of numbers, cleaned of rounding errors like a vector."""
    flat = constant(np.asarray(values).reshape(-1))
    return [flat[0:3], flat[3:6], flat[6:9]]


def rotation(quaternion: Any) -> np.ndarray:
    """The 3x3 rotation matrix of a quaternion of numbers (w, x, y, z) of any length but 0."""
    w, x, y, z = np.asarray(quaternion, dtype=np.float64) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def constant_rotation(rotation: np.ndarray) -> Matrix:
    """A rotation matrix of numbers; entries at rounding become 0 and +-1."""
    near = np.round(rotation)
    return constant_matrix(np.where(np.abs(rotation - near) < ROUNDING, near, rotation))


def dot(a: Vector, b: Vector) -> Any:
    """a . b."""
    total: Any = 0.0
    for x, y in zip(a, b, strict=True):
        total = add(total, mul(x, y))
    return total


def cross(a: Vector, b: Vector) -> Vector:
    """a x b."""
    return [sub(mul(a[i], b[j]), mul(a[j], b[i])) for i, j in ((1, 2), (2, 0), (0, 1))]


def plus(a: Vector, b: Vector) -> Vector:
    """a + b."""
    return [add(x, y) for x, y in zip(a, b, strict=True)]


def minus(a: Vector, b: Vector) -> Vector:
    """a - b."""
    return [sub(x, y) for x, y in zip(a, b, strict=True)]


def times(a: Vector, s: Any) -> Vector:
    """a s."""
    return [mul(x, s) for x in a]


def choose(condition: Any, a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
    """Vector a where the condition holds, b elsewhere; or a matrix."""
    return [
        choose(condition, x, y) if isinstance(x, list) else where(condition, x, y) for x, y in zip(a, b, strict=True)
    ]


def column(m: Matrix, i: int) -> Vector:
    """Column i of a matrix."""
    return [row[i] for row in m]


def transpose(m: Matrix) -> Matrix:
    """The transposed matrix."""
    return [column(m, i) for i in range(3)]


def apply(m: Matrix, v: Vector) -> Vector:
    """M v."""
    return [dot(row, v) for row in m]


def product(a: Matrix, b: Matrix) -> Matrix:
    """A B."""
    return [[dot(row, column(b, j)) for j in range(3)] for row in a]


def matrix_of(quaternion: list[Any]) -> Matrix:
    """The rotation matrix of a unit quaternion (w, x, y, z) of expressions."""
    w, x, y, z = quaternion

    def two(a: Any, b: Any) -> Any:
        return mul(2.0, mul(a, b))

    return [
        [sub(1.0, add(two(y, y), two(z, z))), sub(two(x, y), two(w, z)), add(two(x, z), two(w, y))],
        [add(two(x, y), two(w, z)), sub(1.0, add(two(x, x), two(z, z))), sub(two(y, z), two(w, x))],
        [sub(two(x, z), two(w, y)), add(two(y, z), two(w, x)), sub(1.0, add(two(x, x), two(y, y)))],
    ]


def about(axis: Vector, sine: Any, cosine: Any) -> Matrix:
    """The rotation about a constant unit axis, given sine and cosine of the angle (Rodrigues)."""
    skew = [[0.0, neg(axis[2]), axis[1]], [axis[2], 0.0, neg(axis[0])], [neg(axis[1]), axis[0], 0.0]]
    result = []
    for i in range(3):
        row = []
        for j in range(3):
            along = axis[i] * axis[j]
            across = IDENTITY[i][j] - along
            across = 0.0 if abs(across) < ROUNDING else across
            row.append(add(add(along, mul(cosine, across)), mul(sine, skew[i][j])))
        result.append(row)
    return result


def direction(v: Vector, otherwise: Vector, smallest: float = SMALLEST) -> Vector:
    """v / |v|; where v is shorter than ``smallest`` it is ``otherwise``, with derivative 0."""
    if all(is_zero(x) for x in v):
        return otherwise
    length, safe = guarded_norm(v, smallest)
    short = less(length, smallest)
    return [where(short, b, div(a, safe)) for a, b in zip(v, otherwise, strict=True)]


def line_direction(v: Vector, otherwise: Vector, smallest: float = SMALLEST) -> Vector:
    """A unit vector along the line of v, in either direction; a line along a coordinate axis gives that axis."""
    present = [i for i in range(3) if not is_zero(v[i])]
    if len(present) == 1:
        return [1.0 if i == present[0] else 0.0 for i in range(3)]
    return direction(v, otherwise, smallest)


def guarded_norm(v: Vector, smallest: Any = SMALLEST) -> tuple[Any, Any]:
    """|v|, with derivative 0 where it is below ``smallest``; and |v| with 1 in place of such lengths."""
    square = dot(v, v)
    short = less(square, smallest**2)
    safe = sqrt(where(short, 1.0, square))
    return where(short, 0.0, safe), safe


def quaternion_product(a: list[Any], b: list[Any]) -> list[Any]:
    """a b, quaternions (w, x, y, z)."""
    vector = plus(plus(times(b[1:], a[0]), times(a[1:], b[0])), cross(a[1:], b[1:]))
    return [sub(mul(a[0], b[0]), dot(a[1:], b[1:])), *vector]


def conjugate(a: list[Any]) -> list[Any]:
    """The quaternion of the opposite rotation."""
    return [a[0], *times(a[1:], -1.0)]


def rotation_vector(quaternion: list[Any]) -> Vector:
    """Axis times angle [rad], at most pi, of a unit quaternion (MuJoCo's mju_quat2Vel)."""
    square = dot(quaternion[1:], quaternion[1:])
    small = less(square, 1e-2)
    size = sqrt(where(small, 1.0, square))
    half = where(less(quaternion[0], 0.0), atan2(neg(size), neg(quaternion[0])), atan2(size, quaternion[0]))
    # asin(s) / s, to double precision.
    series: Any = 0.0
    for coefficient in (143 / 10240, 231 / 13312, 63 / 2816, 35 / 1152, 5 / 112, 3 / 40, 1 / 6, 1.0):
        series = add(coefficient, mul(square, series))
    series = where(less(quaternion[0], 0.0), neg(series), series)
    return times(quaternion[1:], mul(2.0, where(small, series, div(half, size))))


def quaternion_tangents(quaternion: list[Any]) -> list[list[Any]]:
    """d q / d w of q exp(w / 2) at w = 0: one quaternion for each component of the body-fixed rotation w."""
    return [[mul(0.5, x) for x in quaternion_product(quaternion, [0.0, *axis])] for axis in IDENTITY]


def quaternion_of(m: Matrix) -> list[Any]:
    """The unit quaternion (w, x, y, z) of a rotation matrix, of either sign: of w or the largest of x, y and z, the
    square is taken from the diagonal."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = m
    trace = add(add(xx, yy), zz)
    rows = [
        [add(1.0, trace), sub(zy, yz), sub(xz, zx), sub(yx, xy)],
        [sub(zy, yz), add(1.0, sub(mul(2.0, xx), trace)), add(xy, yx), add(xz, zx)],
        [sub(xz, zx), add(xy, yx), add(1.0, sub(mul(2.0, yy), trace)), add(yz, zy)],
        [sub(yx, xy), add(xz, zx), add(yz, zy), add(1.0, sub(mul(2.0, zz), trace))],
    ]
    by_y, by_z = less(xx, yy), less(where(less(xx, yy), yy, xx), zz)

    def chosen(candidates: list[Any]) -> Any:
        w, x, y, z = candidates
        return where(less(0.0, trace), w, where(by_z, z, where(by_y, y, x)))

    scale = div(0.5, sqrt(chosen([rows[i][i] for i in range(4)])))
    return times([chosen([row[i] for row in rows]) for i in range(4)], scale)
