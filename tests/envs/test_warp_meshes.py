"""Contacts of meshes: searches, steps and derivatives beside MuJoCo C."""

from __future__ import annotations

import collections

import numpy as np
import pytest

mujoco = pytest.importorskip("mujoco")
pytest.importorskip("warp")

from contact_pairs.finding import Judge, Searched, same  # noqa: E402

from mage_diffsim.envs.warp.compiler.hulls import Hulls, touching_meshes  # noqa: E402
from tests.envs.searched import states  # noqa: E402
from tests.envs.small_models import Body  # noqa: E402
from tests.envs.warp_models import assert_step_and_derivatives_are_those_of_mujoco_c  # noqa: E402


def vertices(rng, kind):
    """Vertices of a mesh about as large as .3 m: a cloud of points, a prism with many sides, or a wedge."""
    if kind == "cloud":
        points = rng.normal(size=(rng.choice([6, 9, 14, 40]), 3))
        return 0.25 * points / np.linalg.norm(points, axis=1)[:, None] ** 0.7
    if kind == "prism":
        angles = np.sort(rng.uniform(0.0, 2.0 * np.pi, rng.integers(5, 14)))
        ring = np.stack([0.3 * np.cos(angles), 0.2 * np.sin(angles)], 1)
        return np.array([[x, y, z] for x, y in ring for z in (-0.1, 0.15)])
    return rng.uniform(0.5, 1.5, 3) * [[0, 0, 0], [0.4, 0, 0], [0, 0.3, 0], [0.4, 0.3, 0], [0, 0, 0.2], [0, 0.3, 0.2]]


def asset(rng, n):
    """MJCF of a mesh named mesh{n}, with or without scale and a frame of its own."""
    points = vertices(rng, ("cloud", "prism", "wedge")[rng.integers(3)])
    frame = rng.choice(["", 'scale="1.5 .7 -1"', 'refpos=".3 .1 0" refquat="1 .2 -.3 .4"'])
    return f'<mesh name="mesh{n}" {frame} vertex="{" ".join(map(repr, points.ravel().tolist()))}"/>'


def test_corners_on_a_plane_are_those_of_mujoco_c():
    """In C's order, which the noslip solver depends on. Of two corners that are equally low, either may come first."""
    rng, seen = np.random.default_rng(0), collections.Counter()
    for model in range(8):
        margin = (0.0, 0.03)[model % 2]
        judge = Judge(("plane", "mesh"), np.zeros((2, 3)), margin, assets=asset(rng, 1))
        hulls = Hulls(judge.m, touching_meshes(judge.m, [(0, 1)]))
        sizes = np.array([[0.0, 0.0, 0.0], hulls.size(1)])
        reach = lambda i, way, far=sizes[1, 2]: 0.7 * far * i  # noqa: E731
        positions, expected, places = states(rng, reach, 1250), [], []
        for qpos in positions:
            expected.append(judge.contacts(qpos))
            places.append(judge.places())
        found = Searched(("plane", "mesh"), 8, hulls).contacts(np.array(places), sizes, margin)
        for qpos, ours, theirs in zip(positions, found, expected, strict=True):
            seen[len(theirs)] += 1
            if ours.shape != theirs.shape or abs(ours - theirs).max(initial=0.0) > 1e-12:
                level = same(ours, theirs) and np.ptp(np.sort(theirs[:, 0])[:2]) < 1e-12
                seen["wavers" if level or judge.wavers(qpos, rng) else "other"] += 1
    assert min(seen[n] for n in range(5)) > 100 and seen["wavers"] < 50 and not seen["other"], seen


STONES = """<mujoco><option timestep=".005"/><default><geom density="300" contype="2"/></default>
<asset><mesh name="wedge" vertex="0 0 0 .4 0 0 0 .3 0 .4 .3 0 0 0 .2 0 .3 .2"/>
  <mesh name="gem" scale=".2 .2 .3" refpos=".05 0 0" refquat="1 .2 0 0"
    vertex="0 .5 .8 0 -.5 .8 0 .5 -.8 0 -.5 -.8 .5 .8 0 -.5 .8 0
            .5 -.8 0 -.5 -.8 0 .8 0 .5 -.8 0 .5 .8 0 -.5 -.8 0 -.5"/>
</asset><worldbody>
<geom type="plane" size="9 9 1" quat="1 .02 .05 0" contype="1" conaffinity="0"/>
<body pos="-.2 -.15 .02"><freejoint/><geom type="mesh" mesh="wedge"/></body>
<body pos="1 0 .15"><freejoint/><geom type="mesh" mesh="gem" margin=".01" condim="4"/>
  <geom type="mesh" mesh="wedge" contype="0" conaffinity="0"/></body>
<body pos="0 1 .2" euler="40 20 0"><joint name="push" type="slide" axis="0 0 1" damping="5"/>
  <joint type="hinge" axis="1 0 1"/><geom type="mesh" mesh="gem" euler="20 30 40" pos=".05 0 -.02"/></body>
</worldbody><actuator><motor joint="push" gear="30" ctrlrange="-1 1"/></actuator></mujoco>"""


class Stones(Body):
    """Two stones that rest on a plane, one with a mesh that does not touch, and one that is pushed against it."""

    name, mjcf, frame_skip = "Stones", STONES, 2


def test_meshes_step_as_in_mujoco_c_with_its_derivatives():
    assert_step_and_derivatives_are_those_of_mujoco_c(Stones)
