"""Contacts of meshes: searches, steps and derivatives beside MuJoCo C."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch

mujoco = pytest.importorskip("mujoco")
pytest.importorskip("warp")

from contact_pairs.finding import Judge, Searched, same  # noqa: E402
from contact_pairs.judging import REACHES  # noqa: E402

from mage_diffsim.envs import make_physics  # noqa: E402
from mage_diffsim.envs.warp.compiler import hull_faces, hull_search, intake  # noqa: E402
from mage_diffsim.envs.warp.compiler.hulls import Hulls, touching_meshes  # noqa: E402
from mage_diffsim.errors import InputError  # noqa: E402
from tests.envs.searched import states  # noqa: E402
from tests.envs.small_models import Body  # noqa: E402
from tests.envs.test_warp_convex import sizes_of  # noqa: E402
from tests.envs.warp_models import (  # noqa: E402
    CHECKED,
    assert_adjoint_and_tangents_agree,
    jacobian,
    physics_of,
    samples,
    scaled,
)


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


def reach_of(kind, size, way):
    """How far a geom extends along a direction in its frame; of a mesh, some of it."""
    return 0.7 * size[2] if kind == "mesh" else REACHES[kind](size, way)


@pytest.mark.parametrize(
    ("kinds", "models"),
    [
        (("mesh", "mesh"), 2),
        *(pytest.param(kinds, 10, marks=pytest.mark.slow) for kinds in hull_search.KINDS + hull_faces.KINDS),
    ],
    ids=str,
)
def test_searches_find_the_contacts_of_mujoco_c(kinds, models):
    """C's normals are as accurate as the root of its tolerance where a geom is round. Of two contacts along an edge,
    either may come first."""
    rng, seen = np.random.default_rng(0), collections.Counter()
    for model in range(models):
        margin = (0.0, 0.02)[model % 2]
        sizes = np.array([sizes_of(kind, rng) if kind != "mesh" else [0.0] * 3 for kind in kinds])
        assets = "".join(asset(rng, n) for n in (0, 1) if kinds[n] == "mesh")
        judge = Judge(kinds, sizes, margin, assets=assets)
        hulls = Hulls(judge.m, touching_meshes(judge.m, [(0, 1)]))
        for n in (0, 1):
            sizes[n] = hulls.size(n) if kinds[n] == "mesh" else sizes[n]
        positions, expected, places = states(rng, lambda i, way, s=sizes: reach_of(kinds[i], s[i], way), 300), [], []
        for qpos in positions:
            expected.append(judge.contacts(qpos))
            places.append(judge.places())
        found = Searched(kinds, 8, hulls).contacts(np.array(places), sizes, margin)
        for qpos, ours, theirs in zip(positions, found, expected, strict=True):
            seen[len(theirs)] += 1
            if not same(ours, theirs, 1e-5):
                seen["wavers" if judge.wavers(qpos, rng, 1e-7) else "other"] += 1
    assert seen[0] > 100 and seen[1] > 50 and seen["other"] <= 3 * models and seen["wavers"] <= 30 * models, seen
    assert kinds in hull_search.KINDS or seen[2] > 50, seen


STONES = """<mujoco><option timestep=".005"/><default><geom density="300" contype="2" conaffinity="3"/></default>
<asset><mesh name="wedge" vertex="0 0 0 .4 0 0 0 .3 0 .4 .3 0 0 0 .2 0 .3 .2"/>
  <mesh name="gem" scale=".2 .2 .3" refpos=".05 0 0" refquat="1 .2 0 0"
    vertex="0 .5 .8 0 -.5 .8 0 .5 -.8 0 -.5 -.8 .5 .8 0 -.5 .8 0
            .5 -.8 0 -.5 -.8 0 .8 0 .5 -.8 0 .5 .8 0 -.5 -.8 0 -.5"/>
</asset><worldbody>
<geom type="plane" size="9 9 1" quat="1 .02 .05 0" contype="1" conaffinity="0"/>
<body pos="-.2 -.15 .02"><freejoint/><geom type="mesh" mesh="wedge"/></body>
<body pos=".4 0 .15"><freejoint/><geom type="mesh" mesh="gem" margin=".01" condim="4"/>
  <geom type="mesh" mesh="wedge" contype="0" conaffinity="0"/></body>
<body pos="0 1 .2" euler="40 20 0"><joint name="push" type="slide" axis="0 0 1" damping="5"/>
  <joint type="hinge" axis="1 0 1"/><geom type="mesh" mesh="gem" euler="20 30 40" pos=".05 0 -.02"/></body>
<body pos="-.15 -.1 .3"><freejoint/><geom type="box" size=".1 .08 .06" conaffinity="2"/></body>
<body pos="0 1 .5"><freejoint/><geom size=".1" conaffinity="2"/></body>
</worldbody><actuator><motor joint="push" gear="30" ctrlrange="-1 1"/></actuator></mujoco>"""


class Stones(Body):
    """Two stones on a plane, one with a mesh that does not touch, one pushed against it; a box and a ball on them."""

    name, mjcf, frame_skip = "Stones", STONES, 2


def test_meshes_step_as_in_mujoco_c_with_its_derivatives():
    """C's contacts of the ball with meshes are as accurate as the root of its tolerance."""
    task, state, action = samples(Stones)
    reference, physics = make_physics(task, "mujoco", dtype=torch.float64), physics_of(Stones)
    expected = reference.step(state, action)
    error = scaled(physics.step(state, action) - expected, expected).sort().values
    assert error[-12] <= 1e-12 and error[-1] <= 1e-6, error[-15:]
    state, action = state[:CHECKED], action[:CHECKED]
    expected, found = jacobian(reference.step, state, action), jacobian(physics.step, state, action)
    error = scaled(found - expected, expected).sort().values
    assert error[-5] <= 1e-6, error[-10:]


@pytest.mark.slow
def test_adjoint_and_tangents_of_meshes_agree():
    assert_adjoint_and_tangents_agree(Stones)


def test_a_hull_with_too_many_corners_is_refused(monkeypatch):
    monkeypatch.setattr(intake, "CORNERS", 10)
    with pytest.raises(InputError, match=r"with more than 10 corners together: 18"):
        intake.read(Stones().simulation)
