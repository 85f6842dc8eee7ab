"""MuJoCo Warp as a backend: MuJoCo C's values in float32, and differences over the action that are usable."""

from __future__ import annotations

import sys

import pytest
import torch

pytest.importorskip("mujoco")
pytest.importorskip("warp")

from mage_diffsim.envs import make_physics, make_task
from mage_diffsim.envs.sampling import sample_states
from mage_diffsim.errors import InputError, MissingExtra
from tests.envs.test_activations import Arm, states


@pytest.fixture(scope="module")
def task():
    pytest.importorskip("mujoco_warp")
    return make_task("HalfCheetah")


def test_values_and_action_derivatives_are_those_of_mujoco_c(task):
    reference = make_physics(task, "mujoco", dtype=torch.float64)
    state, action, _ = sample_states(reference, 24, ways=("uniform",), steps=40)
    cotangent = torch.randn(state.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    physics = make_physics(task, "mujoco-warp")

    def value_and_gradient(physics, dtype):
        leaf = action.to(dtype).requires_grad_()
        output = physics.step(state.to(dtype), leaf)
        return output.detach().double(), torch.autograd.grad(output, leaf, cotangent.to(dtype))[0].double()

    value, gradient = value_and_gradient(physics, torch.float32)
    expected, exact = value_and_gradient(reference, torch.float64)
    torch.testing.assert_close(value, expected, rtol=0.0, atol=1e-4 * expected.abs().max().item())
    error = (gradient - exact).abs().amax(1) / exact.abs().amax(1)
    assert error.median() <= 1e-3 and error.max() <= 0.1
    assert torch.equal(physics.step(state.float(), action.float()), physics.step(state.float(), action.float()))
    assert physics.step(state[:0].float(), action[:0].float()).shape == (0, task.state_dim)


@pytest.mark.slow
def test_activations_and_mocap_poses_are_those_of_mujoco_c():
    pytest.importorskip("mujoco_warp")
    arm = Arm()
    state, action = states(arm, 6)
    moved = make_physics(arm, "mujoco-warp").step(state.float(), action.float()).double()
    expected = make_physics(arm, "mujoco", dtype=torch.float64).step(state, action)
    torch.testing.assert_close(moved, expected, rtol=0.0, atol=1e-4 * expected.abs().max().item())
    torch.testing.assert_close(arm.act(moved), arm.act(expected), rtol=0.0, atol=1e-6)


def test_what_it_cannot_do_is_refused(task):
    with pytest.raises(InputError, match=r"dtype torch\.float64 was asked for; accepted is torch\.float32"):
        make_physics(task, "mujoco-warp", dtype=torch.float64)
    with pytest.raises(InputError, match="choose one of fd, fd-forward"):
        make_physics(task, "mujoco-warp", derivative="adjoint")


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco_warp", None)
    with pytest.raises(MissingExtra, match=r"pip install -e '\.\[mujoco-warp\]' in"):
        make_physics(make_task("HalfCheetah"), "mujoco-warp")
