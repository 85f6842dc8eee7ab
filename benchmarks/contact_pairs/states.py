"""Poses of two geoms with faces, edges, rims and tips together, where functions that look for contacts branch."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mage_diffsim.envs.mujoco.model import load_mujoco

KINDS = ("plane", "sphere", "capsule", "ellipsoid", "cylinder", "box")
"""Kinds of geoms in MuJoCo's order, which is that of a pair."""
PAIRS = [(a, b) for i, a in enumerate(KINDS) for b in KINDS[i:] if b != "plane"]
"""Pairs of kinds; planes do not touch each other."""
_DIAGONAL = np.sqrt(0.5)


@dataclasses.dataclass(frozen=True)
class Spot:
    """A place on the surface of a geom, in its frame."""

    name: str
    point: np.ndarray
    normal: np.ndarray
    """Outwards; at an edge or a corner one of several."""
    tangent: np.ndarray
    """Along the edge, if there is one."""
    extents: tuple[Any, Any] = (0.0, 0.0)
    """How far the face or edge goes on along the tangent, and across it [m]."""


def shapes(kinds: tuple[str, str], rng: np.random.Generator) -> np.ndarray:
    """Sizes [2, 3] of two geoms [m]: equal ones, or one 20 times the other; thick and thin; nearly a sphere."""
    first = float(rng.uniform(0.05, 0.3))
    second = first * float(rng.choice([1.0, 1.0, rng.uniform(0.5, 2.0), 0.05, 20.0]))
    sizes = [_shape(kind, size, rng) for kind, size in zip(kinds, (first, second), strict=True)]
    if kinds[0] == kinds[1] and rng.random() < 0.2:
        sizes[1] = sizes[0]
    return np.array(sizes)


def _shape(kind: str, size: float, rng: np.random.Generator) -> list[float]:
    if kind == "plane":
        return [0.0, 0.0, 0.0]
    if kind == "sphere":
        return [size, 0.0, 0.0]
    if kind in ("capsule", "cylinder"):
        return [size, size * float(rng.choice([0.05, 1.0, rng.uniform(0.3, 3.0), 6.0])), 0.0]
    if kind == "ellipsoid":
        nearly = 1.0 + rng.choice([1e-9, 1e-6, 1e-3]) * rng.normal(size=3)
        axes = [rng.uniform(0.3, 1.0, 3), nearly, np.array([1.0, 1.0, 0.05]), np.array([1.0, 0.6, 0.6])]
    else:
        axes = [rng.uniform(0.3, 1.0, 3), np.ones(3), np.array([1.0, 0.8, 0.05]), np.array([0.1, 0.1, 1.0])]
    return (size * axes[rng.integers(4)]).tolist()


def _unit(v: Any) -> np.ndarray:
    v = np.asarray(v, float)
    return v / np.linalg.norm(v)


def _sign(rng: np.random.Generator) -> float:
    return float(rng.choice([-1.0, 1.0]))


def _radial(rng: np.random.Generator) -> np.ndarray:
    """A direction across z: an axis, or any."""
    if rng.random() < 0.6:
        return _sign(rng) * np.eye(3)[rng.integers(2)]
    angle = rng.uniform(-np.pi, np.pi)
    return np.array([np.cos(angle), np.sin(angle), 0.0])


def _spot(kind: str, size: np.ndarray, rng: np.random.Generator) -> Spot:
    z, out = np.eye(3)[2], _radial(rng)
    up, around = _sign(rng) * z, np.cross(z, out)
    lean = rng.choice([_DIAGONAL, rng.uniform(0.05, 0.99)])  # the share of ``out`` in a normal between two faces
    between = lean * out + np.sqrt(1.0 - lean**2) * up
    if kind == "plane":
        return Spot("plane", np.append(rng.uniform(-1.0, 1.0, 2), 0.0), z, np.eye(3)[0], (0.5, 0.5))
    if kind == "sphere":
        normal = out if rng.random() < 0.5 else _unit(rng.normal(size=3))
        return Spot("sphere", size[0] * normal, normal, _across(normal))
    if kind == "ellipsoid":
        normal = _sign(rng) * np.eye(3)[rng.integers(3)] if rng.random() < 0.5 else _unit(rng.normal(size=3))
        scaled = size * normal
        return Spot("ellipsoid", size * scaled / np.linalg.norm(scaled), normal, _across(normal))
    if kind == "capsule":
        return [
            Spot("side", size[0] * out, out, z, (size[1], 0.0)),
            Spot("side", size[0] * out, out, z, (size[1], 0.0)),
            Spot("end of a side", size[0] * out + size[1] * up, out, z),
            Spot("tip", (size[0] + size[1]) * up, up, out),
            Spot("tip", size[0] * between + size[1] * up, between, around),
        ][rng.integers(5)]
    if kind == "cylinder":
        return [
            Spot("cap", size[1] * up, up, out, (size[0], size[0])),
            Spot("side", size[0] * out, out, z, (size[1], 0.0)),
            Spot("rim", size[0] * out + size[1] * up, between, around, (size[0], size[0])),
            Spot("rim", size[0] * out + size[1] * up, rng.choice([up, out]), around, (size[0], size[0])),
        ][rng.integers(4)]
    i, j, k = rng.permutation(3)
    axes, signs = np.eye(3), rng.choice([-1.0, 1.0], 3)
    corner, name = signs * size, str(rng.choice(["face", "face", "edge", "edge", "corner"]))
    if name == "face":
        return Spot(name, corner * axes[i], signs[i] * axes[i], axes[j], (size[j], size[k]))
    if name == "edge":
        normal = lean * signs[i] * axes[i] + np.sqrt(1.0 - lean**2) * signs[j] * axes[j]
        return Spot(name, corner * (axes[i] + axes[j]), normal, axes[k], (size[k], 0.0))
    normal = _unit(signs * rng.choice([np.ones(3), rng.uniform(0.05, 1.0, 3)]))
    return Spot(name, corner, normal, _across(normal))


def _across(normal: np.ndarray) -> np.ndarray:
    return _unit(np.cross(normal, np.eye(3)[np.argmin(abs(normal))]))


def _small(rng: np.random.Generator) -> float:
    """A number of either sign and of any size from 1e-12 to 0.1."""
    return _sign(rng) * float(10.0 ** rng.uniform(-12.0, -1.0))


def _turned(axis: np.ndarray, angle: float) -> np.ndarray:
    """The rotation [3, 3]; angles of 0 and quarters are exact."""
    cosine, sine = (0.0 if abs(x) < 1e-16 else float(x) for x in (np.cos(angle), np.sin(angle)))
    x, y, z = axis
    return (
        cosine * np.eye(3) + sine * np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) + (1 - cosine) * np.outer(axis, axis)
    )


def _frame(spot: Spot, sign: float) -> np.ndarray:
    """Columns: tangent, across, and the normal or its opposite."""
    normal = sign * spot.normal
    return np.stack([spot.tangent, np.cross(normal, spot.tangent), normal], 1)


def _quaternion(frame: np.ndarray) -> np.ndarray:
    found = np.zeros(4)
    load_mujoco().mju_mat2Quat(found, np.ascontiguousarray(frame).ravel())
    return found


def pose(
    kinds: tuple[str, str], sizes: np.ndarray, margin: float, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[str, str]]:
    """Place and quaternion of both geoms [14], and the names of the spots that are together.

    The spots face each other, turned about the normal and tilted by angles of any size, and beside each other. The gap
    is 0 or the margin, exactly or nearly, or the geoms overlap, up to having one centre.
    """
    first, second = (_spot(kind, size, rng) for kind, size in zip(kinds, sizes, strict=True))
    scene = np.eye(3)
    if rng.random() < 0.5:
        scene = _turned(_unit(rng.normal(size=3)), rng.uniform(-3.0, 3.0))
    place = rng.choice([np.zeros(3), rng.normal(size=3), np.array([10.0, -20.0, 5.0])])
    tangent, across, normal = _frame(first, 1.0).T

    quarter = np.pi / 2
    twist = rng.choice([0.0, 0.0, quarter, quarter / 2, rng.uniform(-3.0, 3.0), _small(rng), quarter + _small(rng)])
    tilt = rng.choice([0.0, 0.0, _small(rng), _small(rng), _small(rng), rng.uniform(-0.5, 0.5)])
    about = [tangent, across, _unit(rng.normal() * tangent + rng.normal() * across)][rng.integers(3)]
    facing = _turned(normal, twist) @ _frame(first, 1.0) @ _frame(second, -1.0).T
    turn = _turned(about, tilt) @ facing

    least = min(x for size in sizes for x in size if x)
    gap = rng.choice([0.0, margin, 0.5 * margin]) + rng.choice([0.0, 0.0, 1e-3, -1e-3, -1e-6, 1e-6])
    gap = rng.choice([gap, gap, gap, -0.01 * least, -rng.uniform(0.0, 2.5) * least])
    apart = first.point + gap * normal - turn @ second.point
    for way, i in ((tangent, 0), (across, 1)):
        a, b = first.extents[i], second.extents[rng.integers(2)]
        share, small = rng.uniform(), abs(_small(rng))
        beside = rng.choice([0.0, 0.0, 0.0, a - b, a + b, share * (a + b), share * a, small * a])
        apart = apart + _sign(rng) * beside * way
    if kinds[0] != "plane" and rng.random() < 0.03:
        apart = rng.choice([0.0, 1e-12, 1e-6, 0.1 * least]) * rng.normal(size=3)
    found = [place, _quaternion(scene), place + scene @ apart, _quaternion(scene @ turn)]
    return np.concatenate(found), (first.name, second.name)


def poses(
    kinds: tuple[str, str], sizes: np.ndarray, margin: float, rng: np.random.Generator, n: int
) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """As :func:`pose`, n times: [n, 14], and the spots."""
    found = [pose(kinds, sizes, margin, rng) for _ in range(n)]
    return np.array([x for x, _ in found]), [spots for _, spots in found]
