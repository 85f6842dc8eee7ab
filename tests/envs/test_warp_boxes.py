"""Contacts of boxes with boxes and capsules: searches, steps and derivatives beside MuJoCo C."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch

mujoco = pytest.importorskip("mujoco")
pytest.importorskip("warp")

from contact_pairs.finding import Judge, same, searched  # noqa: E402
from contact_pairs.judging import REACHES  # noqa: E402

from tests.envs.searched import states  # noqa: E402
from tests.envs.small_models import Body  # noqa: E402
from tests.envs.warp_models import (  # noqa: E402
    assert_a_rollout_stays_beside_mujoco_c,
    assert_adjoint_and_tangents_agree,
    assert_step_and_derivatives_are_those_of_mujoco_c,
    physics_of,
    samples,
    scaled,
)


def sizes_of(kind, rng):
    if kind == "capsule":
        return [rng.uniform(0.02, 0.2), rng.choice([0.02, rng.uniform(0.05, 0.6), 1.5]), 0.0]
    return list(rng.uniform(0.05, 0.4, 3))


@pytest.mark.parametrize("kinds", [("box", "box"), ("capsule", "box")], ids="-".join)
def test_searches_find_the_contacts_of_mujoco_c(kinds):
    """10,000 states. Some lie where a rounding error decides, in C as well: equal boxes stacked, faces in one plane."""
    rng, seen, ties = np.random.default_rng(0), collections.Counter(), 0
    for model in range(20):
        margin, sizes = (0.0, 0.02)[model % 2], np.array([sizes_of(kind, rng) for kind in kinds])
        if kinds == ("box", "box") and model % 5 == 0:
            sizes[1] = sizes[0]
        judge = Judge(kinds, sizes, margin)
        positions = states(rng, lambda i, way, s=sizes: REACHES[kinds[i]](s[i], way), 500)
        places, expected = judge.every(positions)
        found = searched(kinds).contacts(places, sizes, margin)
        for qpos, ours, theirs in zip(positions, found, expected, strict=True):
            seen[len(theirs)] += 1
            if not same(ours, theirs):
                assert judge.wavers(qpos, rng), (sizes, margin, qpos, ours, theirs)
                ties += 1
    assert ties < 300
    one_by_one = searched(kinds, 1).contacts(places, sizes, margin)
    assert all(np.array_equal(a, b) for a, b in zip(found, one_by_one, strict=True))
    most = 8 if kinds == ("box", "box") else 2
    assert all(seen[n] >= 3 for n in range(most + 1)), seen
    order = sum(len(a) > 1 and np.allclose(a, b, atol=1e-9) for a, b in zip(found, expected, strict=True))
    assert order > 0.9 * sum(len(b) > 1 for b in expected)


RAMP = """<mujoco><worldbody><geom type="plane" size="9 9 1" euler="20 -35 0"/><body pos="0 0 .2"><freejoint/>
 <geom type="box" size=".3 .2 .1" margin=".02"/></body></worldbody></mujoco>"""


def test_corners_on_a_plane_are_found_in_mujocos_order():
    """The noslip solver's sweeps depend on it."""
    m = mujoco.MjModel.from_xml_string(RAMP)
    d, rng, places, expected = mujoco.MjData(m), np.random.default_rng(0), [], []
    for _ in range(1000):
        turned = rng.normal(size=4) if rng.random() < 0.5 else [1.0, *rng.normal(0.0, 0.02, 3)]
        d.qpos[:] = *rng.normal(0.0, 0.1, 3), *(turned / np.linalg.norm(turned))
        mujoco.mj_fwdPosition(m, d)
        places.append(np.concatenate([d.geom_xpos, d.geom_xmat], 1))
        expected.append(np.array([[c.dist, *c.pos, *c.frame[:3]] for c in d.contact]).reshape(-1, 7))
    found = searched(("plane", "box")).contacts(np.array(places), m.geom_size, 0.02)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0.0, atol=1e-14)
    assert {len(x) for x in expected} == {0, 1, 2, 3, 4}


BOXES = """<mujoco><option timestep=".005" {option}/><default><geom density="100" {geom}/></default><worldbody>
<geom type="box" size="2 2 .1" pos="0 0 -.1"/>
<body pos="0 0 .205"><freejoint/><geom type="box" size=".3 .25 .2"/></body>
<body pos=".05 .02 .53"><freejoint/><geom type="box" size=".2 .15 .12"/></body>
<body pos="-.05 0 .8"><freejoint/><geom type="box" size=".15 .1 .14"/></body>
<body pos=".1 .3 1.1" euler="80 20 0"><freejoint/><geom type="capsule" size=".08 .2"/></body>
<body pos="-.6 0 .25"><joint name="push" type="slide" axis="1 0 0" damping="5"/>
  <geom type="box" size=".1 .2 .2" friction="1.2"/></body>
</worldbody><actuator><motor joint="push" gear="250" ctrlrange="-1 1"/></actuator></mujoco>"""
"""Three boxes on a fourth, a capsule that falls on them, and a box that pushes."""


class Boxes(Body):
    name, mjcf, frame_skip = "Boxes", BOXES.format(option="", geom=""), 2


class RoundBoxes(Body):
    """Elliptic cones, friction about the normal and rolling, margins."""

    name = "RoundBoxes"
    mjcf = BOXES.format(
        option='cone="elliptic" impratio="2"',
        geom='condim="6" friction=".7 .02 .01" margin=".01" gap=".004"',
    )


@pytest.mark.parametrize("model", [Boxes, pytest.param(RoundBoxes, marks=pytest.mark.slow)], ids=str)
def test_boxes_step_as_in_mujoco_c_with_its_derivatives(model):
    assert_step_and_derivatives_are_those_of_mujoco_c(model)


@pytest.mark.slow
@pytest.mark.parametrize("model", [Boxes, RoundBoxes], ids=str)
def test_adjoint_and_tangents_of_boxes_agree(model):
    assert_adjoint_and_tangents_agree(model)


def test_a_pushed_stack_stays_beside_mujoco_c():
    """200 steps: it is pushed, and the pusher goes back."""
    actions = torch.ones(200, 1, dtype=torch.float64)
    actions[120:] = -1.0
    path = assert_a_rollout_stays_beside_mujoco_c(Boxes, actions)
    assert abs(path[:, :7] - path[0, :7]).max() > 0.05


def test_boxes_in_float32_are_close_to_float64():
    _, state, action = samples(Boxes)
    expected, found = (
        physics_of(Boxes).step(state, action),
        physics_of(Boxes, torch.float32).step(state.float(), action.float()),
    )
    error = scaled(found.double() - expected, expected).sort().values
    assert torch.isfinite(found).all() and error[-1] <= 1e-4, error[-5:]
