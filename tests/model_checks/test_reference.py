"""MuJoCo C called directly: states with activations and mocap poses, and derivatives along their tangents."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

pytest.importorskip("mujoco")

from mage_diffsim.envs.mujoco import MujocoPhysics
from mage_diffsim.model_checks.comparing import compare
from mage_diffsim.model_checks.finding import task_of
from mage_diffsim.model_checks.reference import KINDS, Points, Reference
from tests.model_checks.tiny_models import FALLING, HELD


@pytest.fixture
def held(tmp_path):
    path = tmp_path / "held.xml"
    path.write_text(HELD)
    return path


def compared(reference, physics, points, value, truth):
    known = value, reference.inexactness(points), truth
    return compare(physics, points.joined(), *known, reference.tangents(points))


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_derivatives_agree_with_the_backend_by_activation_and_mocap_pose_too(held, kind):
    reference, physics = Reference(held), MujocoPhysics(task_of(held), dtype=torch.float64)
    points = getattr(reference, kind)(6, np.random.default_rng(0))
    assert points.state.shape == (6, 5 + 4 + 1 + 7) == (6, physics.task.state_dim)
    quaternions = points.state.reshape(6, -1)[:, [*range(4)]], points.state[:, -4:]
    assert all(np.allclose(np.linalg.norm(q, axis=1), 1.0, atol=1e-15) for q in quaternions)
    value, truth = torch.from_numpy(reference.step(points)), reference.truth(points)
    assert truth["state"].jacobian.shape == (6, 17, 4 + 4 + 1 + 6) and truth["action"].jacobian.shape == (6, 17, 1)
    found = compared(reference, physics, points, value, truth)
    assert (found["count"], found["nonfinite_values"], found["nonfinite_gradients"]) == (6, 0, 0)
    assert found["value_worst"] < 1e-12 and found["state_worst"] < 1e-5 and found["action_worst"] < 1e-5
    assert found["state_clean"] + found["state_kinks"] == 6


def test_actions_of_controls_without_a_range_are_scaled_as_a_tasks(tmp_path):
    path = tmp_path / "held.xml"
    path.write_text(HELD.replace('ctrlrange="-1 1"', 'forcerange="-10 15"'))
    reference, physics = Reference(path), MujocoPhysics(task_of(path), dtype=torch.float64)
    assert (physics.task.action_low, physics.task.action_high) == ((-2.0,), (3.0,))
    points = reference.visited(4, np.random.default_rng(0))
    torch.testing.assert_close(
        physics.step(*map(torch.from_numpy, points)), torch.from_numpy(reference.step(points)), rtol=0.0, atol=1e-12
    )


def test_rollouts_begin_at_keyframes_too(held):
    reference = Reference(held)
    rng = np.random.default_rng(0)
    activations = {round(float(reference._start(rng).state[0, 9]), 6) for _ in range(20)}
    assert activations == {0.0, 0.4}


def test_errors_beside_a_kink_are_kept_apart(held):
    reference, physics = Reference(held), MujocoPhysics(task_of(held), dtype=torch.float64)
    points = reference.visited(4, np.random.default_rng(0))
    value, truth = torch.from_numpy(reference.step(points)), reference.truth(points)
    broken = truth["state"]
    broken.jacobian[1] += 10.0
    broken.clean[1] = False
    found = compared(reference, physics, points, value, truth | {"state": broken})
    assert (found["state_clean"], found["state_kinks"]) == (3, 1)
    assert found["state_worst"] < 1e-5 < 0.5 < found["state_kink"]


def test_what_diverges_in_c_is_counted_and_not_judged(tmp_path):
    path = tmp_path / "falling.xml"
    path.write_text(FALLING)
    reference = Reference(path)
    points = reference.visited(4, np.random.default_rng(0))
    value = torch.from_numpy(reference.step(points))
    physics = MujocoPhysics(task_of(path), dtype=torch.float64)
    found = compared(reference, physics, points, value, reference.truth(points))
    assert found["count"] + found["diverged_in_c"] == 4 and found["nonfinite_values"] == 0


STANDING = """<mujoco><worldbody><geom type="plane" size="9 9 1"/><body pos="0 0 .1"><joint type="slide" axis="0 0 1"/>
 <joint name="tilt" axis="0 1 0"/><joint axis="1 0 0"/><geom type="cylinder" size=".1 .1"/></body></worldbody><actuator>
 <motor joint="tilt" gear="20" ctrlrange="-1 1"/></actuator></mujoco>"""


def test_a_cylinder_on_end_is_ill_posed_where_rounding_decides_where_its_rim_touches(tmp_path):
    path = tmp_path / "standing.xml"
    path.write_text(STANDING)
    state = np.array([[-1e-3, tilt, 0.5 * tilt, 0.0, 0.0, 0.0] for tilt in (1e-10, 1e-8, 0.1, 1.0)])
    found = Reference(path).ill_posed(Points(state, np.ones((4, 1))))
    assert found.tolist() == [True, True, False, False]


SLIDING = """<mujoco><worldbody><geom type="plane" size="9 9 1"/><body><joint type="slide" axis="1 0 0"/>
 <joint name="turn" axis="0 0 1"/><geom size=".5" pos="0 0 HEIGHT"/></body></worldbody><actuator><motor joint="turn"
 ctrlrange="-1 1"/></actuator></mujoco>"""


@pytest.mark.parametrize(("height", "ill"), [(0.5, True), (0.499, False), (0.501, False)])
def test_a_ball_on_a_plane_from_which_no_joint_lifts_it_is_ill_posed(tmp_path, height, ill):
    """Rounding decides whether its friction holds it."""
    path = tmp_path / "sliding.xml"
    path.write_text(SLIDING.replace("HEIGHT", str(height)))
    points = Points(np.array([[0.1, 0.2, 1.0, 2.0]]), np.ones((1, 1)))
    assert Reference(path).ill_posed(points).tolist() == [ill]


@pytest.mark.parametrize(("height", "ill"), [(0.5, True), (0.499, False), (0.501, False)])
def test_a_ball_at_the_origin_of_its_body_is_as_ill_posed(tmp_path, height, ill):
    path = tmp_path / "sliding.xml"
    path.write_text(SLIDING.replace("<body>", f'<body pos="0 0 {height}">').replace(' pos="0 0 HEIGHT"', ""))
    points = Points(np.array([[0.1, 0.2, 1.0, 2.0]]), np.ones((1, 1)))
    assert Reference(path).ill_posed(points).tolist() == [ill]


CURVED = """<mujoco><option timestep="0.005"/><worldbody><geom type="plane" size="9 9 1"/>
 <geom type="box" size=".3 .3 .1" pos="0 0 .1"/><body><freejoint/><geom type="ellipsoid" size=".2 .15 .1"/></body>
 <body pos="2 0 1"><joint name="h" axis="0 1 0"/><geom type="capsule" size=".1 .1"/></body></worldbody>
 <actuator><motor joint="h" gear="20" ctrlrange="-1 1"/></actuator></mujoco>"""


def test_steps_are_inexact_in_c_where_an_ellipsoid_touches_a_box(tmp_path):
    path = tmp_path / "curved.xml"
    path.write_text(CURVED)
    reference = Reference(path)
    at = np.array([[0.1, 0.05, 0.32], [2.0, 2.0, 0.1], [0.0, 0.0, 2.0]])  # on the box, on the plane, above
    state = np.zeros((3, 15))
    state[:, :3], state[:, 3:7] = at, [0.8, 0.4, 0.4, 0.2]
    points = reference.points(state, np.full((3, 1), 0.5))
    assert (reference.contacts(points) > 0).tolist() == [True, True, False]
    inexact = reference.inexactness(points)
    assert (inexact > 0.0).any(1).tolist() == [True, False, False]
    task = task_of(path)
    physics = MujocoPhysics(task, dtype=torch.float64)
    known = physics.inexactness(*map(torch.from_numpy, points))
    torch.testing.assert_close(known, inexact)
    own = reference.step(points, reference.own)  # at the default ccd_tolerance
    value = torch.from_numpy(reference.step(points))
    finer = copy.copy(reference.model)
    finer.opt.ccd_tolerance = 1e-17
    assert np.abs(own - value.numpy()).max() > 2e-5
    assert np.abs(reference.step(points, finer) - value.numpy()).max() < 0.1 * float(inexact.max())
    # The differences are those of the step that is exact, where MuJoCo C is not.
    asked = []

    def exact(there):
        asked.append(there)
        return 2.0 * reference.step(there)

    truth, doubled = (reference.truth(points, step)["state"].jacobian for step in (None, exact))
    assert asked
    torch.testing.assert_close(doubled[1:], truth[1:])
    torch.testing.assert_close(doubled[0], 2.0 * truth[0], rtol=1e-2, atol=1e-2)
    shifted = value.clone()
    shifted[0] += 5e-6
    beyond = compared(reference, physics, points, shifted, reference.truth(points))
    assert beyond["value_beyond"] < 1e-12 < 4e-6 < beyond["value_worst"]
