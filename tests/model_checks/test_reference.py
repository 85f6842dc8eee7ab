"""MuJoCo C called directly: states with activations and mocap poses, and derivatives along their tangents."""

from __future__ import annotations

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


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_derivatives_agree_with_the_backend_by_activation_and_mocap_pose_too(held, kind):
    reference, physics = Reference(held), MujocoPhysics(task_of(held), dtype=torch.float64)
    points = getattr(reference, kind)(6, np.random.default_rng(0))
    assert points.state.shape == (6, 5 + 4 + 1 + 7) == (6, physics.task.state_dim)
    quaternions = points.state.reshape(6, -1)[:, [*range(4)]], points.state[:, -4:]
    assert all(np.allclose(np.linalg.norm(q, axis=1), 1.0, atol=1e-15) for q in quaternions)
    value, truth = torch.from_numpy(reference.step(points)), reference.truth(points)
    assert truth["state"].jacobian.shape == (6, 17, 4 + 4 + 1 + 6) and truth["action"].jacobian.shape == (6, 17, 1)
    found = compare(physics, points.joined(), value, truth, reference.tangents(points))
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
    found = compare(physics, points.joined(), value, truth | {"state": broken}, reference.tangents(points))
    assert (found["state_clean"], found["state_kinks"]) == (3, 1)
    assert found["state_worst"] < 1e-5 < 0.5 < found["state_kink"]


def test_what_diverges_in_c_is_counted_and_not_judged(tmp_path):
    path = tmp_path / "falling.xml"
    path.write_text(FALLING)
    reference = Reference(path)
    points = reference.visited(4, np.random.default_rng(0))
    value = torch.from_numpy(reference.step(points))
    physics = MujocoPhysics(task_of(path), dtype=torch.float64)
    found = compare(physics, points.joined(), value, reference.truth(points), reference.tangents(points))
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
