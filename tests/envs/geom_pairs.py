"""Generated pairs of geoms in the positions where collision functions branch.

:data:`PAIRS` names the pairs; :func:`mjcf` is the model of one, two free bodies (one on a tilted plane), and
:func:`placements` the hypothesis strategy of its states. :func:`batch` is a list of them, for backends that step many
states at once. Nothing here depends on a backend: compare one with ``mujoco.mj_forward`` at the same state, unless a
rounding error decides whether the geoms touch there (:func:`at_margin`).

A placement of planes, spheres and capsules says where the second geom is, as seen from the first:

* the angle between the axes: 0, every decade from 1e-16 rad to 1e-2 rad, near 1e-4 rad (where MuJoCo 4.0 changes from
  one contact of two capsules to two), anything up to a right angle; the same way or opposite ways;
* the offset along the first axis: none, side by side with two ends level, end on end, anything between;
* the offset across it: none (collinear, crossing and coincident), the geoms just apart, overlapping, deep inside;
* the plane in which the axes turn against each other: that of the offset (they cross in one plane), across it, between;
* the whole scene turned and moved, and both bodies moving.

A box, cylinder or ellipsoid on a plane stands on a face, an edge or a corner, exactly or but for such an angle, or is
turned at random; it is just apart, touches, or has its centre in or below the plane. A sphere's centre, as seen from a
box or cylinder, is beside a face, an edge, a corner, a side, a cap or a rim, or on it, or inside, where faces may be
equally near.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mage_diffsim.envs.mujoco.model import load_mujoco


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two geoms: what they are, the size of each [m], and the contact's attributes (MJCF)."""

    name: str
    kinds: tuple[str, str]
    sizes: tuple[tuple[float, ...], tuple[float, ...]]
    """As in MJCF; of a plane, empty."""
    attributes: str = ""
    margin: float = 0.0
    """Distance below which the contact acts [m]: the sum of the geoms' margins, and of their gaps if those are
    negative."""


PAIRS = {
    p.name: p
    for p in (
        Pair("logs", ("capsule", "capsule"), ((0.1, 0.4), (0.1, 0.3))),
        Pair("equal sticks", ("capsule", "capsule"), ((0.05, 0.2), (0.05, 0.2)), 'margin=".02" condim="1"', 0.04),
        Pair("stick and stub", ("capsule", "capsule"), ((0.03, 0.5), (0.2, 0.05)), 'margin=".05" gap=".03"', 0.1),
        Pair("ball and log", ("sphere", "capsule"), ((0.15,), (0.1, 0.3)), 'margin=".02" gap="-.01"', 0.02),
        Pair("balls", ("sphere", "sphere"), ((0.15,), (0.1,)), 'margin=".01" gap=".005"', 0.02),
        Pair("log on plane", ("plane", "capsule"), ((), (0.1, 0.3)), 'margin=".01"', 0.02),
        Pair("ball on plane", ("plane", "sphere"), ((), (0.1,)), 'condim="1"'),
        Pair("brick on plane", ("plane", "box"), ((), (0.1, 0.2, 0.3)), 'margin=".01"', 0.02),
        Pair("cube on plane", ("plane", "box"), ((), (0.1, 0.1, 0.1)), 'condim="1"'),
        Pair("ball and brick", ("sphere", "box"), ((0.1,), (0.1, 0.2, 0.3)), 'margin=".01"', 0.02),
        Pair("ball and cube", ("sphere", "box"), ((0.05,), (0.1, 0.1, 0.1)), 'margin=".01" gap=".005"', 0.02),
        Pair("can on plane", ("plane", "cylinder"), ((), (0.1, 0.3)), 'margin=".01"', 0.02),
        Pair("coin on plane", ("plane", "cylinder"), ((), (0.1, 0.02)), 'condim="1"'),
        Pair("ball and can", ("sphere", "cylinder"), ((0.1,), (0.1, 0.3)), 'margin=".01"', 0.02),
        Pair("ball and coin", ("sphere", "cylinder"), ((0.05,), (0.2, 0.05)), 'margin=".01" gap=".005"', 0.02),
        Pair("egg on plane", ("plane", "ellipsoid"), ((), (0.1, 0.2, 0.3)), 'margin=".01"', 0.02),
    )
}

SIZES = {
    "plane": "5 5 1",
    "sphere": ".1",
    "capsule": ".1 .2",
    "ellipsoid": ".1 .2 .3",
    "cylinder": ".1 .2",
    "box": ".1 .2 .3",
}
"""A size (MJCF) of each kind of geom."""

PLANE = np.array([math.cos(0.2), math.sin(0.2), 0.0, 0.0])
"""The plane's orientation (w, x, y, z): turned about x by 0.4 rad."""


def mjcf(pair: Pair) -> str:
    """The model: each geom on a free body, but a plane fixed and tilted; and far away an actuated hinge, by which the
    model can be a task's."""
    bodies = []
    for n, (kind, size) in enumerate(zip(pair.kinds, pair.sizes, strict=True)):
        if kind == "plane":
            bodies.append(f'<geom type="plane" size="9 9 1" quat="{" ".join(repr(float(x)) for x in PLANE)}"/>')
            continue
        numbers = " ".join(map(str, size))
        bodies.append(f'<body name="body{n}"><freejoint/><geom type="{kind}" size="{numbers}"/></body>')
    return (
        f'<mujoco><option timestep="0.004"/><default><geom friction=".8 .1 .1" {pair.attributes}/></default>'
        f'<worldbody>{"".join(bodies)}<body pos="0 0 -50"><joint name="motor"/><geom size=".1" contype="0" '
        'conaffinity="0"/></body></worldbody><actuator><motor joint="motor" ctrlrange="-1 1"/></actuator></mujoco>'
    )


@dataclasses.dataclass(frozen=True)
class State:
    """Positions (free joints: place and quaternion w, x, y, z; last the hinge's angle) and velocities."""

    qpos: np.ndarray
    qvel: np.ndarray


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    w, v = a[0] * b[0] - a[1:] @ b[1:], a[0] * b[1:] + b[0] * a[1:] + np.cross(a[1:], b[1:])
    return np.array([w, *v])


def _about(axis: np.ndarray, angle: float) -> np.ndarray:
    return np.array([math.cos(angle / 2), *(math.sin(angle / 2) * axis)])


def _turned(quaternion: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _product(_product(quaternion, np.array([0.0, *v])), quaternion * [1, -1, -1, -1])[1:]


_UNIT = st.floats(-1.0, 1.0)
_DECADES = st.builds(lambda exponent, mantissa: mantissa * 10.0**exponent, st.integers(-16, -3), st.floats(1.0, 10.0))
_ANGLES = st.one_of(
    st.just(0.0),
    _DECADES,
    _DECADES,
    st.sampled_from([0.99e-4, 0.99999e-4, 1.00001e-4, 1.01e-4, 2e-4, 1e-3, 1e-2]),
    st.floats(0.01, math.pi / 2),
    st.just(math.pi / 2),
)
_AZIMUTHS = st.one_of(st.sampled_from([0.0, math.pi / 2, math.pi, -math.pi / 2]), st.floats(-3.2, 3.2))
_ROTATIONS = st.tuples(*[_UNIT] * 4).filter(lambda x: sum(y * y for y in x) > 0.1)
_SCENES = st.one_of(
    st.sampled_from([(1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 0.0, 0.0), (1.0, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0, 0.0)]),
    _ROTATIONS,
)
_PLACES = st.one_of(st.just((0.0, 0.0, 0.0)), st.tuples(_UNIT, _UNIT, _UNIT), st.just((10.0, -20.0, 5.0)))


@st.composite
def placements(draw: st.DrawFn, pair: Pair) -> State:
    """States of the pair's model, almost all of them touching or nearly so."""
    place = _places_of_round_geoms
    if pair.kinds[1] in ("box", "cylinder", "ellipsoid"):
        place = _places_on_a_plane if pair.kinds[0] == "plane" else _places_of_a_sphere
    bodies = place(draw, pair)
    moving = np.array(draw(st.lists(_UNIT, min_size=6, max_size=6))) * draw(st.sampled_from([0.0, 0.1, 3.0]))
    qpos = np.concatenate([np.concatenate([p, q / np.linalg.norm(q)]) for p, q in bodies])
    qvel = np.concatenate([moving * sign for sign in (1.0, -0.7)[: len(bodies)]])
    return State(np.append(qpos, 0.0), np.append(qvel, 0.0))


_Bodies = list[tuple[np.ndarray, np.ndarray]]
"""Places and quaternions of the free bodies."""


def _places_of_round_geoms(draw: st.DrawFn, pair: Pair) -> _Bodies:
    (r1, h1), (r2, h2) = ((*size, 0.0, 0.0)[:2] for size in pair.sizes)
    reach, angle, azimuth = r1 + r2, draw(_ANGLES), draw(_AZIMUTHS)
    turn = _about(np.array([-math.sin(azimuth), math.cos(azimuth), 0.0]), angle)
    flipped = np.array([0.0, 1.0, 0.0, 0.0]) if draw(st.booleans()) else np.array([1.0, 0.0, 0.0, 0.0])
    share = draw(st.one_of(st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.floats(0.0, 1.0), st.floats(1.001, 1.2)))
    across = reach * share + draw(st.sampled_from([0.0, 0.5, 0.999, 1.001])) * pair.margin
    across += draw(st.sampled_from([0.0, 0.0, 0.0, 0.01]))
    if pair.kinds[0] == "plane":
        # Angles from the normal (standing on end) or from the plane (lying), about any axis in the plane.
        lying = draw(st.booleans())
        turn = _about(np.array([math.cos(azimuth), math.sin(azimuth), 0.0]), angle + (math.pi / 2 if lying else 0.0))
        axis = _turned(turn, np.array([0.0, 0.0, 1.0]))
        spot = np.array([*draw(st.tuples(_UNIT, _UNIT)), across + h2 * abs(axis[2]) * draw(st.sampled_from([0, 1]))])
        far = draw(st.sampled_from([0.0, 0.0, 30.0]))
        spot[:2] += [far, -far]
        return [(_turned(PLANE, spot), _product(PLANE, _product(turn, flipped)))]
    along = draw(
        st.one_of(
            st.sampled_from([0.0, h1 - h2, h2 - h1, h1, -h1]),
            st.builds(
                lambda sign, x: sign * (h1 + h2 + x * (reach + pair.margin)),
                st.sampled_from([1.0, -1.0]),
                st.floats(0.0, 1.0),
            ),
            st.floats(-1.0, 1.0).map(lambda x: x * (h1 + h2 + reach)),
        )
    )
    if abs(along) > h1 + h2:
        across = draw(st.sampled_from([0.0, 0.0, across]))
    scene = np.array(draw(_SCENES))
    scene /= np.linalg.norm(scene)
    place = np.array(draw(_PLACES))
    # Turned about its own centre, or about the point beside the first one's centre.
    apart = np.array([across, 0.0, along])
    if draw(st.booleans()):
        apart = np.array([across, 0.0, 0.0]) + _turned(turn, np.array([0.0, 0.0, along]))
    return [(place, scene), (place + _turned(scene, apart), _product(scene, _product(turn, flipped)))]


_FEATURES = st.sampled_from(
    [
        *[(1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 0.0, 0.0), (1.0, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0)],
        *[(math.cos(math.pi / 8), *(math.sin(math.pi / 8) * x for x in axis)) for axis in np.eye(3)],
        (0.8880738339771153, 0.32505758367186816, 0.32505758367186816, 0.0),
    ]
)
"""Turns by which a cube stands on a face, an edge or (the last one) a corner."""


def _places_on_a_plane(draw: st.DrawFn, pair: Pair) -> _Bodies:
    azimuth, size = draw(_AZIMUTHS), np.array([*pair.sizes[1], 0.0][:3])
    tilt = _about(np.array([math.cos(azimuth), math.sin(azimuth), 0.0]), draw(_ANGLES))
    turn = _product(tilt, np.array(draw(_FEATURES)))
    if draw(st.integers(0, 2)):
        turn = np.array(draw(_ROTATIONS))
    turn /= np.linalg.norm(turn)
    up = _turned(turn * [1, -1, -1, -1], np.array([0.0, 0.0, 1.0]))
    # How high the centre is above the lowest point, or above a box's corners and halfway between two of these.
    if pair.kinds[1] == "cylinder":
        reaches = [size[0] * math.hypot(up[0], up[1]) + size[1] * abs(up[2])]
    elif pair.kinds[1] == "box":
        corners = sorted(abs(sum(up * size * signs)) for signs in itertools.product((1, -1), (1, -1), (1,)))
        reaches = [*corners, *(0.5 * (a + b) for a, b in itertools.pairwise(corners))]
    else:
        reaches = [np.linalg.norm(up * size)]
    height = max(reaches) + draw(st.sampled_from([0.5, 0.999, 1.001])) * pair.margin
    height += draw(st.sampled_from([0.0, 0.0, 0.01]))
    if draw(st.integers(0, 3)):
        share = draw(
            st.one_of(
                st.sampled_from([0.99, 1.01, -1.1]), st.floats(-1.5, 1.0), st.floats(0.0, 1.0), st.floats(0.9, 1.0)
            )
        )
        height = share * draw(st.sampled_from(reaches))
    spot = np.array([*draw(st.tuples(_UNIT, _UNIT)), height])
    return [(_turned(PLANE, spot), _product(PLANE, turn))]


_SHARES = st.one_of(st.sampled_from([0.0, 1.0, 1.0]), _DECADES, st.floats(0.0, 1.0), st.floats(0.9, 1.1))


def _places_of_a_sphere(draw: st.DrawFn, pair: Pair) -> _Bodies:
    """From a point of the other geom, or near it, a way that is shorter than the radius or a little longer."""
    (radius,), size = pair.sizes
    shares, signs = (
        np.array(draw(st.tuples(*[_SHARES] * 3))),
        np.array(draw(st.tuples(*[st.sampled_from([1, -1])] * 3))),
    )
    away = signs * np.array(draw(st.tuples(*[st.sampled_from([0.0, 0.0, 1.0, 1.0, 0.3])] * 3)))
    length = radius * draw(st.sampled_from([0.0, 0.5, 0.9])) + draw(st.sampled_from([0.0, 0.0, 0.1, 1.0])) * radius
    length += pair.margin * draw(st.sampled_from([0.0, 0.5, 0.999, 1.001]))
    away *= length / max(1.0, float(np.linalg.norm(away)))
    if pair.kinds[1] == "box":
        spot = signs * shares * size + away
    else:
        azimuth = draw(_AZIMUTHS)
        across = size[0] * shares[0] + abs(away[0])
        spot = np.array(
            [across * math.cos(azimuth), across * math.sin(azimuth), signs[2] * size[1] * shares[2] + away[2]]
        )
    if not draw(st.integers(0, 7)):
        spot *= 1.0 + (2.0 * radius + pair.margin) / max(1e-3, float(np.linalg.norm(spot)))
    scene, other = np.array(draw(_SCENES)), np.array(draw(_SCENES))
    scene, place = scene / np.linalg.norm(scene), np.array(draw(_PLACES))
    return [(place + _turned(scene, spot), other), (place, scene)]


def batch(pair: Pair, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The first n placements of a sequence: (qpos [n, nq], qvel [n, nv]).

    The sequence is another one when Hypothesis is, or when other modules are imported, of which it takes constants.
    """
    found: list[State] = []

    @settings(
        max_examples=n,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(placements(pair))
    def collect(state: State) -> None:
        found.append(state)

    collect()
    return np.stack([s.qpos for s in found[:n]]), np.stack([s.qvel for s in found[:n]])


def at_margin(model: Any, data: Any) -> bool:
    """Whether a rounding error decides if the geoms touch: whether MuJoCo C counts other contacts at ``data.qpos`` when
    the margins are 1e-12 m wider than when they are narrower. Overwrites the contacts in ``data``."""
    mujoco, margins, numbers = load_mujoco(), model.geom_margin.copy(), set()
    for change in (-1e-12, 1e-12):
        model.geom_margin[:] = margins + change
        mujoco.mj_fwdPosition(model, data)
        numbers.add(sum(not c.exclude for c in data.contact))
    model.geom_margin[:] = margins
    return len(numbers) > 1
