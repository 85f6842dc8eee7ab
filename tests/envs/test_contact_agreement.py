"""Contacts of two geoms whose faces, edges, rims and tips are together, beside MuJoCo C."""

from __future__ import annotations

import collections

import numpy as np
import pytest

mujoco = pytest.importorskip("mujoco")
pytest.importorskip("warp")

from contact_pairs.finding import Judge, finder, same  # noqa: E402
from contact_pairs.judging import is_exact, verdict  # noqa: E402
from contact_pairs.states import PAIRS, poses, shapes  # noqa: E402

STATES = 200


@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
def test_contacts_are_those_of_mujoco_c_or_the_difference_is_explained(kinds):
    rng, verdicts, find = np.random.default_rng(0), collections.Counter(), finder(kinds)
    for model in range(10):
        judge = Judge(kinds, shapes(kinds, rng), (0.0, 0.02)[model % 2])
        states, _ = poses(kinds, judge.sizes, judge.margin, rng, STATES // 10)
        places, expected = judge.every(states)
        found = find.contacts(places, judge.sizes, judge.margin)
        for state, place, ours, theirs in zip(states, places, found, expected, strict=True):
            verdicts[verdict(ours, theirs, judge, state, place, rng)] += 1
    assert verdicts["equal"] >= (0.9 if is_exact(kinds) else 0.75) * STATES, verdicts
    assert verdicts["rest"] <= (0.0 if is_exact(kinds) else 0.02) * STATES, verdicts


def contacts_of(kinds, sizes, state, margin=0.0):
    """Contacts of one state that warp finds, and those of MuJoCo C."""
    judge = Judge(kinds, np.array(sizes), margin)
    places, (expected,) = judge.every(np.array([state]))
    (found,) = finder(kinds).contacts(places, judge.sizes, margin)
    return found, expected


EGGS = [
    (
        [
            [0.20924042183036357, 0.20924042183036357, 0.010462021091518179],
            [0.20924042183036357, 1.2554425309821813, 0.0],
        ],
        [0.0, 0.0, 0.0, 0.8735990841405801, 0.11649934367259003, -0.19444076777915065, 0.4306336388835061],
        [1.3735598796645645, 0.12379949696047961, 0.5314325027695519],
        [-0.49151503040515604, -0.5183208467196648, 0.661824774668153, 0.22747404770012067],
    ),
    (
        [
            [0.20306684061550642, 0.14672432594626683, 0.24738638283024966],
            [0.2704365300935421, 1.6226191805612529, 0.0],
        ],
        [-0.9498668317144681, 2.45897150835003, 0.3761916161778296, 1.0, 0.0, 0.0, 0.0],
        [0.729374415959692, 2.0857092459085673, 1.0382466185226287],
        [-0.4762033947754528, 0.6826229711126052, 0.45461620126645996, -0.3171439983032741],
    ),
]


@pytest.mark.parametrize(("sizes", "first", "place", "turn"), EGGS, ids=["coin", "egg"])
def test_an_ellipsoid_touches_the_cap_of_a_cylinder(sizes, first, place, turn):
    """Normals next to the cap's axis were taken for the axis, where the gap is larger than along them."""
    found, expected = contacts_of(("ellipsoid", "cylinder"), sizes, [*first, *place, *turn])
    assert len(found) == 1 and same(found, expected, 1e-6)


def test_a_capsule_along_an_edge_or_a_slab_of_a_box_has_finite_contacts():
    """There rounding errors of the axis, divided by one another, would say where."""
    rng, sizes = np.random.default_rng(0), np.array([[0.24, 1.45, 0.0], [4.84, 3.87, 0.24]])
    kinds = ("capsule", "box")
    judge = Judge(kinds, sizes, 0.02)
    states = poses(kinds, sizes, 0.02, rng, 1000)[0]
    places, expected = judge.every(states)
    found = finder(kinds).contacts(places, sizes, 0.02)
    assert all(np.isfinite(x).all() for x in found) and sum(map(len, expected)) > 500


def test_a_cylinder_that_lies_on_a_face_touches_it_below_its_axis():
    """Also where its axis and the face are exactly parallel."""
    sizes, state = [[0.14, 0.85, 0.0], [0.14, 0.14, 0.14]], np.zeros(14)
    state[3], state[8] = 1.0, -0.281
    for turn in np.linspace(0.0, 3.0, 20):
        quarter, about = np.sqrt(0.5) * np.array([1.0, 1.0, 0.0, 0.0]), np.array([np.cos(turn), 0.0, 0.0, np.sin(turn)])
        mujoco.mju_mulQuat(state[10:14], quarter, about)
        found, expected = contacts_of(("cylinder", "box"), sizes, state, 0.02)
        assert len(found) == 2 == len(expected) and abs(found[:, 1]).max() <= 1e-9
        assert same(found, expected, 1e-6)
