"""Contacts of convex geoms: searches, steps and derivatives beside MuJoCo C and central differences."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch

mujoco = pytest.importorskip("mujoco")
pytest.importorskip("warp")

from contact_pairs.finding import Judge, Searched, same  # noqa: E402
from contact_pairs.judging import REACHES, gap, unfit  # noqa: E402

from mage_diffsim.envs import make_physics  # noqa: E402
from mage_diffsim.envs.mujoco.task import with_unit_quaternions  # noqa: E402
from mage_diffsim.envs.warp.compiler import convex, convex_faces, convex_search  # noqa: E402
from mage_diffsim.envs.warp.compiler.convex_shapes import KINDS  # noqa: E402
from tests.envs.searched import states  # noqa: E402
from tests.envs.small_models import Body  # noqa: E402
from tests.envs.warp_models import assert_adjoint_and_tangents_agree, physics_of, samples, scaled  # noqa: E402

EXACT = 'ccd_tolerance="1e-14" ccd_iterations="900"'
"""MuJoCo C then has distances to 1e-12 and, as a distance changes little with the normal, normals to 1e-6."""


def sizes_of(kind, rng):
    if kind == "sphere":
        return [rng.uniform(0.03, 0.3), 0.0, 0.0]
    if kind in ("capsule", "cylinder"):
        return [rng.uniform(0.03, 0.25), rng.choice([0.02, rng.uniform(0.05, 0.5)]), 0.0]
    return list(rng.uniform(0.05, 0.4, 3))


def difference(ours, theirs, kinds, sizes, places):
    """What is different about MuJoCo C's contacts, if not a rounding error."""
    if len(ours) and len(theirs):
        along = gap(theirs[0, 4:], kinds, sizes, places)
        if len(theirs) == 1 and abs(along - theirs[0, 0]) > 1e-10:
            return "C did not find the distance along its normal"
        if abs(along - gap(ours[0, 4:], kinds, sizes, places)) < 1e-4 * min(x for size in sizes for x in size if x):
            return "two ways out that are equally short, or corners that are equally far apart"
        if len(theirs) > 1 and ours[:, 4:].mean(0) @ theirs[0, 4:] < np.cos(2 * convex_faces.TOLERANCE):
            return "C cut a side of a cylinder that stands on its cap"
    return None


def some(every, count):
    """Pairs of kinds; all but the first are slow."""
    return [pytest.param(kinds, count, marks=() if kinds == every[0] else pytest.mark.slow) for kinds in every]


@pytest.mark.parametrize(
    ("kinds", "count"), [*some(convex.SMOOTH[::-1], 500), *some(convex_faces.FLAT[::-1], 500)], ids=str
)
def test_searches_find_the_contacts_of_mujoco_c(kinds, count):
    """10,000 states. The accuracy of C's normals is that of its tolerance, by the angle's square."""
    rng, search = np.random.default_rng(0), Searched(kinds)
    seen, different = collections.Counter(), collections.Counter()
    for model in range(20):
        margin, sizes = (0.0, 0.02)[model % 2], np.array([sizes_of(kind, rng) for kind in kinds])
        judge = Judge(kinds, sizes, margin, EXACT)
        positions = states(rng, lambda i, way, s=sizes: REACHES[kinds[i]](s[i], way), count)
        every, expected = judge.every(positions)
        found = search.contacts(every, sizes, margin)
        for qpos, ours, theirs, places in zip(positions, found, expected, every, strict=True):
            seen[len(theirs)] += 1
            if kinds in convex.SMOOTH and len(ours):
                assert unfit(ours[0], kinds, sizes, places) <= 1e-12
            if not same(ours, theirs, 1e-4) or (len(ours) == 1 and not same(ours[:, :1], theirs[:, :1], 1e-10)):
                why = difference(ours, theirs, kinds, sizes, places)
                different[why or ("wavers" if judge.wavers(qpos, rng, 1e-7) else "unknown")] += 1
    assert different["unknown"] <= 20 * count // 1000 and different.total() < 20 * count // 20, different
    assert seen[0] > count and seen[1] > count and (kinds in convex.SMOOTH or seen[2] > count)
    one_by_one = Searched(kinds, 1).contacts(every, sizes, margin)
    assert all(np.array_equal(a, b) for a, b in zip(found, one_by_one, strict=True))


def test_normals_turn_with_a_wide_box_in_float32():
    kinds, sizes = ("ellipsoid", "box"), np.array([[0.1, 0.2, 0.15], [1000.0, 1000.0, 1.0]])
    rng, given = np.random.default_rng(0), []
    for _ in range(40):  # 2 mm deep in the top of the box
        frame = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        apart = [0.0, 0.0, 0.002 - sizes[1, 2] - np.linalg.norm(sizes[0] * frame[2])]
        numbers = [0.0, *(float(KINDS.index(kind)) for kind in kinds), 1.0]
        given.append([*apart, *frame.ravel(), *np.eye(3).ravel(), *sizes.ravel(), *numbers])
    rows = Searched(kinds, real="float").features(np.array(given))[:, 0]
    lifts = rows[:, [convex_search.FEATURES.index(f"lift{j}_{k}") for j in (1, 2) for k in range(3)]]
    assert np.allclose(abs(lifts), [1.0, 0.0, 0.0, 0.0, 1.0, 0.0], atol=1e-5)


class Ovals(Body):
    """Two ellipsoids on a box, a capsule and a ball that fall on them, and a cylinder that swings against them."""

    name, frame_skip = "Ovals", 2
    mjcf = f"""<mujoco><option timestep=".005" {EXACT}/><default><geom density="300"/></default><worldbody>
<geom type="box" size="2 2 .1" pos="0 0 -.1"/>
<body pos="0 0 .205"><freejoint/>
  <geom type="ellipsoid" size=".3 .25 .2" contype="7" conaffinity="7" condim="4" friction=".8 .01 .01"/></body>
<body pos=".05 .02 .53"><freejoint/><geom type="ellipsoid" size=".2 .15 .12" contype="7" conaffinity="7"/></body>
<body pos="-.2 .02 .53" euler="80 20 0"><freejoint/><geom type="capsule" size=".08 .1" margin=".01"/></body>
<body pos=".3 0 .3"><freejoint/><geom size=".1" contype="2" conaffinity="2"/></body>
<body pos="0 .4 .3" euler="40 20 0"><joint name="push" type="slide" axis="0 1 .3" damping="5"/>
  <joint type="hinge" axis="1 0 1"/><geom type="cylinder" size=".1 .2" contype="4" conaffinity="4"/></body>
</worldbody><actuator><motor joint="push" gear="100" ctrlrange="-1 1"/></actuator></mujoco>"""


class Drums(Body):
    """A drum that stands and one that lies on a box, capsule, drum and box on the first; another hits them."""

    name, frame_skip = "Drums", 2
    mjcf = f"""<mujoco><option timestep=".005" {EXACT}/><default><geom density="300"/></default><worldbody>
<geom type="box" size="2 2 .1" pos="0 0 -.1"/>
<body pos="0 0 .098"><freejoint/><geom type="cylinder" size=".3 .1" contype="3" conaffinity="3"/></body>
<body pos="-.5 .4 .118" euler="90 0 0"><freejoint/><geom type="cylinder" size=".12 .2" margin=".01" condim="4"/></body>
<body pos="-.05 .15 .276" euler="0 90 0"><freejoint/>
  <geom type="capsule" size=".08 .1" contype="2" conaffinity="2"/></body>
<body pos="0 -.1 .276" euler="90 0 0"><freejoint/><geom type="cylinder" size=".08 .1"/></body>
<body pos=".2 .1 .24"><freejoint/><geom type="box" size=".08 .08 .04"/></body>
<body pos="-.6 -.2 .25" euler="0 80 10"><joint name="push" type="slide" axis="1 0 0" damping="5"/>
  <geom type="cylinder" size=".1 .2" contype="3" conaffinity="3"/></body>
</worldbody><actuator><motor joint="push" gear="250" ctrlrange="-1 1"/></actuator></mujoco>"""


MODELS = [Ovals, pytest.param(Drums, marks=pytest.mark.slow)]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_convex_geoms_step_as_in_mujoco_c(model):
    """To the accuracy of C's normals, and to what C's own step changes from starts moved by 1e-12: a drum that stands
    has contacts at four of 16 corners, and a rounding error decides at which."""
    task, state, action = samples(model)
    reference, generator = make_physics(task, "mujoco", dtype=torch.float64), torch.Generator().manual_seed(0)
    expected = reference.step(state, action)
    noise = torch.zeros(len(state), dtype=torch.float64)
    for _ in range(8):
        moved = state + 1e-12 * torch.randn(state.shape, dtype=torch.float64, generator=generator)
        noise = noise.maximum(scaled(reference.step(moved, action) - expected, expected))
    error = (scaled(physics_of(model).step(state, action) - expected, expected) - 3.0 * noise).sort().values
    assert error[-3] <= 1e-4 and error.median() <= 1e-6, error[-10:]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_derivatives_of_convex_geoms_are_those_of_their_step(model):
    """Central differences of the step, of fourth order, along random ways."""
    task, state, action = samples(model)
    step, generator = physics_of(model).step, torch.Generator().manual_seed(0)
    weights = torch.randn(state.shape, dtype=torch.float64, generator=generator)
    x = state.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((step(x, action) * weights).sum(), x)
    assert torch.isfinite(gradient).all()
    for _ in range(4):
        way = torch.randn(state.shape, dtype=torch.float64, generator=generator)
        way = (with_unit_quaternions(task.simulation, state + 1e-7 * way) - state) / 1e-7

        def along(h, way=way):
            moved = with_unit_quaternions(task.simulation, state + h * way)
            return (step(moved, action) * weights).sum(1)

        h = 1e-7
        expected = (8.0 * (along(h) - along(-h)) - (along(2.0 * h) - along(-2.0 * h))) / (12.0 * h)
        error = ((gradient * way).sum(1) - expected).abs() / expected.abs().clamp(min=1.0)
        assert error.sort().values[-5] <= 1e-6, error.sort().values[-10:]


@pytest.mark.slow
@pytest.mark.parametrize("model", [Ovals, Drums], ids=str)
def test_adjoint_and_tangents_of_convex_geoms_agree(model):
    assert_adjoint_and_tangents_agree(model)


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_convex_geoms_in_float32_are_close_to_float64(model):
    _, state, action = samples(model)
    expected = physics_of(model).step(state, action)
    found = physics_of(model, torch.float32).step(state.float(), action.float())
    error = scaled(found.double() - expected, expected).sort().values
    assert torch.isfinite(found).all() and error[-5] <= 1e-4, error[-10:]
