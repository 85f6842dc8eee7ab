"""One physics is one function: what the solver of constraints is, for values, derivatives, backends and runs."""

import copy
import dataclasses
import logging

import mujoco
import numpy as np
import pytest
import torch

from mage_diffsim import InputError, make_config, make_physics, make_task
from mage_diffsim.bridges.fd import FiniteDifference
from mage_diffsim.envs.contract import check_task
from mage_diffsim.envs.mujoco import MujocoPhysics, _Stepper, convergence
from mage_diffsim.training import Trainer
from tests.envs.small_models import Body, jacobian
from tests.marks import slow_but

CAPPED = """
<mujoco><option timestep="0.004" {}/>
  <worldbody>
    <geom type="plane" size="5 5 1"/>
    <body pos="0 0 .42"><joint name="z" type="slide" axis="0 0 1"/><joint name="x" type="slide" axis="1 0 0"/>
      <joint name="turn" axis="0 1 0"/><geom type="capsule" size=".06 .2" euler="90 0 0"/>
      <body pos="0 0 -.05"><joint name="hip" axis="0 1 0" damping=".1"/>
        <geom type="capsule" fromto="0 0 0 .2 0 -.2" size=".04"/>
        <body pos=".2 0 -.2"><joint name="knee" axis="0 1 0" range="-80 -10" limited="true" damping=".1"/>
          <geom type="capsule" fromto="0 0 0 -.2 0 -.2" size=".04"/></body></body></body>
  </worldbody>
  <actuator><motor joint="hip" gear="20" ctrlrange="-1 1"/><motor joint="knee" gear="20" ctrlrange="-1 1"/></actuator>
</mujoco>"""


class CappedLeg(Body):
    """A leg whose model allows its solver as little as those made for speed do."""

    name = "CappedLeg"
    mjcf = CAPPED.format('iterations="1" ls_iterations="5"')

    def reward(self, obs, action, next_obs):
        return 2.0 * next_obs[..., 0]


class Leg(CappedLeg):
    name = "Leg"
    mjcf = CAPPED.format("")


def stepped_by_mujoco(task, state, action, **option):
    """One environment step of MuJoCo C called directly, solver started anew, with changes of the model's options."""
    model = mujoco.MjModel.from_xml_string(task.mjcf)
    for key, value in option.items():
        setattr(model.opt, key, value)
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
    data, rows = mujoco.MjData(model), []
    for row, control in zip(state.numpy(), action.numpy(), strict=True):
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:], data.ctrl[:] = row[: model.nq], row[model.nq : model.nq + model.nv], control
        mujoco.mj_step(model, data, task.frame_skip)
        rows.append(np.concatenate([data.qpos, data.qvel]))
    return torch.from_numpy(np.stack(rows))


CONVERGED = dict(tolerance=1e-15, iterations=200, ls_iterations=200, solver=mujoco.mjtSolver.mjSOL_NEWTON)


def some(task, n=24, steps=15):
    """States with the ground and the limit in play, and actions."""
    generator = torch.Generator().manual_seed(0)
    state = task.reset(n, generator)
    physics = make_physics(task, "mujoco", dtype=torch.float64)
    with torch.no_grad():
        for _ in range(steps):
            state = physics.step(state, 2.0 * torch.rand(n, task.action_dim, generator=generator).double() - 1.0)
    return state, 1.98 * torch.rand(n, task.action_dim, generator=generator).double() - 0.99


def test_each_solver_is_mujoco_c_with_these_settings():
    task = CappedLeg()
    state, action = some(task)
    own, converged = stepped_by_mujoco(task, state, action), stepped_by_mujoco(task, state, action, **CONVERGED)
    assert (own - converged).abs().max() > 0.1
    step = {s: make_physics(task, "mujoco", dtype=torch.float64, solver=s).step for s in ("converged", "model")}
    torch.testing.assert_close(step["model"](state, action), own, rtol=0.0, atol=1e-13)
    torch.testing.assert_close(step["converged"](state, action), converged, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("backend", slow_but(["mujoco", "warp"], ["mujoco", "warp", "mjx"]))
def test_environment_and_oracle_are_one_function_by_default(backend):
    pytest.importorskip({"mjx": "mujoco.mjx"}.get(backend, backend))
    task = CappedLeg()
    state, action = some(task, 8)
    expected = stepped_by_mujoco(task, state, action, **CONVERGED)
    physics = make_physics(task, backend, dtype=torch.float64)
    torch.testing.assert_close(physics.step(state, action), expected, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("solver", ["converged", "model"])
@pytest.mark.parametrize("derivative", ["fd", "fd-forward"])
def test_the_derivative_is_of_the_value(derivative, solver):
    task = CappedLeg()
    state, action = some(task, 12)
    physics = make_physics(task, "mujoco", dtype=torch.float64, derivative=derivative, solver=solver)
    option = CONVERGED if solver == "converged" else {}
    found, apart = jacobian(physics.step, state, action)[..., -task.action_dim :], []
    for k in range(task.action_dim):
        h = torch.zeros_like(action)
        h[:, k] = 1e-5
        up, down = (stepped_by_mujoco(task, state, action + s * h, **option) for s in (1.0, -1.0))
        apart.append(((up - down) / 2e-5 - found[..., k]).abs().amax(1))
    error = torch.stack(apart).amax(0) / found.abs().amax((1, 2))
    assert error.median() < 1e-6
    assert (error < 1e-4).sum() >= 10  # a step of 1e-5 may cross a kink


def test_the_gap_of_a_model_is_named_once(caplog):
    convergence._named.clear()
    task = CappedLeg()
    with caplog.at_level(logging.WARNING, "mage_diffsim"):
        for solver in ("converged", "model", "converged"):
            make_physics(task, "mujoco", solver=solver)
        make_physics(CappedLeg(), "warp" if "warp" in task.physics else "mujoco")
        make_physics(Leg(), "mujoco")
    (record,) = caplog.records
    text = record.getMessage()
    assert "CappedLeg" in text
    assert "iterations 1, ls_iterations 5" in text
    assert "the converged step is used" in text
    assert "leave the next state up to" in text
    assert f"up to {convergence.solver_gap(task.simulation):.2g}" in text
    assert convergence.solver_gap(task.simulation) > 0.01
    assert convergence.solver_gap(Leg().simulation) < 1e-6


@pytest.mark.parametrize("name", ["HalfCheetah", "Ant", "Walker2d"])
def test_the_models_of_gymnasium_converge_by_themselves(name):
    assert convergence.solver_gap(make_task(name).simulation) < 1e-6


class OwnExplodes(Leg):
    name = "OwnExplodes"


def test_a_model_whose_own_step_alone_explodes_has_an_infinite_gap(monkeypatch):
    simulation = OwnExplodes().simulation

    def with_solver(model, solver):
        model = copy.copy(model)
        if solver == "model":
            model.opt.gravity[:] = 1e300
        return model

    monkeypatch.setattr(convergence, "with_solver", with_solver)
    assert convergence.solver_gap(simulation) == np.inf


class Mismatched:
    """MuJoCo C with the model's own solver in its values and the converged one in its differences."""

    def __init__(self, simulation, **options):
        self.value, self.differences = (_Stepper(simulation, s) for s in ("model", "converged"))
        self.op = FiniteDifference(self.differences, name="mismatched", **options)

    def __call__(self, *inputs):
        class Op(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *x):
                ctx.save_for_backward(*x)
                return self.value(*x)

            @staticmethod
            def backward(ctx, cotangent):
                return self.op.vjp(ctx.saved_tensors, cotangent, ctx.needs_input_grad)

        return Op.apply(*inputs)


def test_check_task_fails_where_value_and_derivative_are_two_functions(monkeypatch):
    def failures(task):
        report = check_task(task, "mujoco", "fd", samples=12, steps=20)
        return {c.name for c in report.failures}

    task = CappedLeg()
    assert failures(task) == set()
    made = MujocoPhysics.__init__

    def broken(self, *args, **options):
        made(self, *args, **options)
        self._op = Mismatched(self.simulation, step=self.task.difference_steps)

    monkeypatch.setattr(MujocoPhysics, "__init__", broken)
    assert failures(task) >= {"gradient action"}


def test_check_task_of_the_models_own_solver():
    report = check_task(CappedLeg(), "mujoco", "fd", samples=12, steps=20, solver="model")
    assert report.passed, report.failures
    assert report.solver == "model"
    (row,) = (c for c in report.checks if c.name == "solver")
    assert row.worst is not None
    assert row.worst > 0.01
    assert "iterations 1" in row.detail


def test_check_task_compares_the_backends_with_each_other(monkeypatch):
    pytest.importorskip("warp")
    report = check_task(CappedLeg(), "warp", "adjoint", samples=12, steps=20)
    assert report.passed, report.failures
    monkeypatch.setattr("mage_diffsim.envs.mujoco.with_solver", lambda model, solver: model)  # the model's own
    report = check_task(CappedLeg(), "warp", "adjoint", samples=12, steps=20)
    assert {c.name for c in report.failures} == {"agreement"}


@pytest.mark.parametrize("backend", ["warp", "mjx"])
def test_a_backend_without_the_models_solver_says_who_has_it(backend):
    with pytest.raises(InputError, match=f"backend {backend} of task CappedLeg has only converged: use backend mujoco"):
        make_physics(CappedLeg(), backend, solver="model")
    with pytest.raises(InputError, match="use backend mujoco"):
        check_task(CappedLeg(), backend, solver="model")


@pytest.mark.parametrize("of", ["physics", "check", "config"])
def test_unknown_solvers_are_refused(of):
    with pytest.raises(InputError, match=r"solver 'newton'.* converged, model"):
        if of == "physics":
            make_physics(make_task("Pendulum"), solver="newton")
        elif of == "check":
            check_task("Pendulum", solver="newton")
        else:
            make_config("Pendulum", solver="newton")


def test_a_task_without_constraints_has_no_other_solver():
    with pytest.raises(InputError, match="backend torch of task Pendulum has only converged: use solver 'converged'"):
        make_physics(make_task("Pendulum"), solver="model")
    with pytest.raises(InputError, match="has only converged"):
        check_task("Pendulum", solver="model")


def test_a_run_has_one_solver_in_environment_and_oracle():
    settings = dict(dynamics="oracle", preset="cpu", steps=10, hyper=dict(warmup_steps=4, batch_size=8))
    config = make_config("HalfCheetah", backend="mujoco", solver="model", **settings)
    trainer = Trainer(config)
    assert trainer.physics.solver == trainer.truth_physics.solver == trainer.agent.dynamics.physics.solver == "model"
    assert trainer.used["solver"] == "model"
    assert Trainer(dataclasses.replace(config, solver="converged")).physics.solver == "converged"
    pytest.importorskip("warp")
    with pytest.raises(InputError, match="use backend mujoco"):
        Trainer(make_config("HalfCheetah", backend="warp", solver="model", **settings))


RESTING = """
<mujoco><worldbody><geom type="plane" size="5 5 1"/><body pos="0 0 .1"><joint name="z" type="slide" axis="0 0 1"/>
  <joint name="r" axis="0 1 0"/><geom type="capsule" size=".1 .2" euler="90 0 0"/></body></worldbody>
  <actuator><motor joint="r" ctrlrange="-1 1"/></actuator></mujoco>"""


class Resting(CappedLeg):
    """Its state hardly depends on the action: what is left is the rounding of the differences."""

    name, mjcf, frame_skip, position_noise, velocity_noise = "Resting", RESTING, 1, 0.0, 1e-5


@pytest.mark.parametrize("derivative", ["fd", "fd-forward"])
def test_rounding_is_not_held_against_differences(derivative):
    report = check_task(Resting(), "mujoco", derivative, samples=12, steps=40)
    assert report.passed, report.failures
