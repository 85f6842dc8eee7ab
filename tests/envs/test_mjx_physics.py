"""MJX: equal to converged MuJoCo C in value, to its central differences in derivative, without LAPACK."""

from __future__ import annotations

import copy
import functools
import logging
import sys

import numpy as np
import pytest
import torch

jax = pytest.importorskip("jax")
mujoco = pytest.importorskip("mujoco")
pytest.importorskip("mujoco.mjx")

from mage_diffsim.bridges.jax import from_jax, load_jax, x64  # noqa: E402
from mage_diffsim.envs.mjx import MjxPhysics, _load_step, kept_on_disk  # noqa: E402
from mage_diffsim.envs.mujoco.model import BodyPosition, MeanVelocity, SitePosition  # noqa: E402
from mage_diffsim.envs.physics import make_physics  # noqa: E402
from mage_diffsim.envs.tasks.half_cheetah import HalfCheetah  # noqa: E402
from mage_diffsim.envs.tasks.inverted_pendulum import InvertedPendulum  # noqa: E402
from mage_diffsim.errors import InputError, MissingExtra  # noqa: E402
from tests.envs.small_models import Body, jacobian  # noqa: E402

N = 32
"""Environments of every compiled step here, as each number of them is compiled anew."""

# Joint limits, friction loss, damping, springs, an equality and a tendon: everything but contacts.
ARM = """<mujoco><option timestep="0.01"/><worldbody><body><joint name="slide" type="slide" axis="1 0 0" limited="true"
 range="-.2 .2" damping="1" frictionloss=".3"/><geom type="capsule" size=".05" fromto="0 0 0 0 0 .3" contype="0"
 conaffinity="0"/><body pos="0 0 .3"><joint name="hinge" axis="0 1 0" limited="true" range="-60 40" damping=".05"
 stiffness=".5"/><geom type="capsule" size=".04" fromto="0 0 0 .2 0 .3" contype="0" conaffinity="0"/><body
 pos=".2 0 .3"><joint name="tail" axis="0 1 0"/><geom size=".05" contype="0" conaffinity="0"/></body></body></body>
 </worldbody><tendon><fixed name="tendon" stiffness="2"><joint joint="slide" coef="1"/><joint joint="hinge" coef=".3"/>
 </fixed></tendon><equality><joint joint1="tail" joint2="hinge" polycoef="0 .5 0 0 0"/></equality><actuator>
 <motor joint="slide" gear="8" ctrlrange="-1 1"/><motor joint="hinge" ctrlrange="-2 2"/></actuator></mujoco>"""
# Two capsules hopping in a plane: sliding contacts.
LEG = """<mujoco><option timestep="0.005" integrator="RK4"/><default><geom friction="1 .1 .1" solimp=".8 .8 .01"
 solref=".02 1"/></default><worldbody><geom type="plane" size="9 9 1"/><body name="torso" pos="0 0 .6"><joint name="x"
 type="slide" axis="1 0 0"/><joint name="z" type="slide" axis="0 0 1"/><joint name="pitch" axis="0 1 0"/><geom
 type="capsule" size=".07" fromto="-.2 0 0 .2 0 0"/><body pos=".1 0 0"><joint name="hip" axis="0 1 0" damping=".2"
 armature=".02"/><geom type="capsule" size=".05" fromto="0 0 0 .1 0 -.5"/><site name="foot" pos=".1 0 -.5"/></body>
 </body></worldbody><actuator><motor joint="hip" gear="20" ctrlrange="-1 1"/></actuator></mujoco>"""
# Elliptic cones, and a servo whose damping is integrated implicitly.
ELLIPTIC = LEG.replace("<option ", '<option cone="elliptic" impratio="2" ').replace("RK4", "implicitfast")
ELLIPTIC = ELLIPTIC.replace('<motor joint="hip" gear="20"', '<position kp="30" kv="1" joint="hip"')
# A tumbling body with a ball joint, steep capsules on a plane.
FREE = """<mujoco><option timestep="0.005" integrator="RK4"/><default><geom condim="4"
 friction="1 .05 .05"/></default><worldbody><geom type="plane" size="9 9 1"/><body name="root" pos="0 0 .35">
 <freejoint name="root"/><geom size=".1"/><body pos=".1 0 0"><joint name="ball" type="ball"
 damping=".05"/><geom type="capsule" size=".04" fromto="0 0 0 .1 .1 -.3"/><body pos=".1 .1 -.3"><joint name="knee"
 axis="0 1 0" damping=".05" limited="true" range="-90 90"/><geom type="capsule" size=".03" fromto="0 0 0 .1 0 -.1"/>
 </body></body></body></worldbody><actuator><motor joint="knee" gear="2" ctrlrange="-1 1"/></actuator></mujoco>"""
# Drag, and no constraint at all.
FLUID = """<mujoco><option timestep="0.01" integrator="RK4" density="4000" viscosity=".1"/><worldbody><body><joint
 name="x" type="slide" axis="1 0 0"/><joint name="y" type="slide" axis="0 1 0"/><joint name="turn" axis="0 0 1"/><geom
 type="capsule" size=".1" fromto="0 0 0 1 0 0"/><body pos="1 0 0"><joint name="bend" axis="0 0 1"/><geom type="capsule"
 size=".1" fromto="0 0 0 1 0 0"/></body></body></worldbody><actuator><motor joint="bend" gear="50" ctrlrange="-1 1"/>
 </actuator></mujoco>"""


class Small(Body):
    frame_skip = 2
    position_noise = 0.1


class Arm(Small):
    name, mjcf = "Arm", ARM


class Leg(Small):
    name, mjcf = "Leg", LEG
    readouts = {  # noqa: RUF012
        "speed": MeanVelocity("x"),
        "torso": BodyPosition("torso"),
        "foot": SitePosition("foot"),
    }


class EllipticLeg(Small):
    name, mjcf = "EllipticLeg", ELLIPTIC


class EulerLeg(Small):
    name, mjcf = "EulerLeg", LEG.replace("RK4", "Euler")


class Free(Small):
    name, mjcf = "Free", FREE


class Fluid(Small):
    name, mjcf = "Fluid", FLUID


SMALL = (Arm, Leg, EllipticLeg, Free, Fluid)


@functools.cache
def samples(task_class):
    """States of random rollouts [N, S] and actions, the bounds and zero among them."""
    task = task_class()
    generator = torch.Generator().manual_seed(0)
    physics = make_physics(task, "mujoco", dtype=torch.float64)
    state = task.reset(N, generator).double()
    visited = []
    for _ in range(40):
        action = 2.0 * torch.rand(N, task.action_dim, dtype=torch.float64, generator=generator) - 1.0
        state = physics.step(state, action)
        visited.append(state)
    rows = torch.randperm(40, generator=generator)[:N]
    state = torch.stack([visited[t][n] for n, t in enumerate(rows)])
    action = 0.99 * (2.0 * torch.rand(N, task.action_dim, dtype=torch.float64, generator=generator) - 1.0)
    return state, action


def differences(step, state, action, forward, backward):
    """The same by differences with steps forwards and backwards, rows N at a time."""
    inputs = torch.cat([state, action], dim=1)
    columns = []
    for k in range(inputs.shape[1]):
        high, low = inputs.clone(), inputs.clone()
        high[:, k] += forward
        low[:, k] -= backward
        ends = [step(x[:, : state.shape[1]], x[:, state.shape[1] :]) for x in (high, low)]
        columns.append((ends[0] - ends[1]) / (forward + backward))
    return torch.stack(columns, dim=-1).detach()


def error(found, expected):
    """max |J - J_fd| / max |J_fd| per state."""
    return (found - expected).abs().amax((1, 2)) / expected.abs().amax((1, 2))


@functools.cache
def reference(task_class):
    """Next states of converged MuJoCo C, its Jacobians by central differences, and which states are clean.

    Two steps are extrapolated: a joint limit stiffens within 1e-3 rad, which a step of 1e-6 resolves to 1e-6.
    """
    state, action = samples(task_class)
    step = make_physics(task_class(), "mujoco", dtype=torch.float64).step
    h = 1e-6
    wide, up, down, narrow = (
        differences(step, state, action, *ends) for ends in ((h, h), (h, 0.0), (0.0, h), (0.5 * h, 0.5 * h))
    )
    central = (4.0 * narrow - wide) / 3.0
    clean = torch.stack([error(other, central) for other in (wide, up, down, narrow)]).amax(0) < 1e-3
    return step(state, action), central, clean


@functools.cache
def physics_of(task_class, derivative="implicit"):
    return make_physics(task_class(), "mjx", dtype=torch.float64, derivative=derivative)


@functools.cache
def jacobian_of(task_class, derivative="implicit"):
    return jacobian(physics_of(task_class, derivative).step, *samples(task_class))


@pytest.mark.parametrize("task_class", [*SMALL, HalfCheetah])
def test_a_step_is_that_of_converged_mujoco_c(task_class):
    expected, _, _ = reference(task_class)
    found = physics_of(task_class).step(*samples(task_class))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("task_class", [*SMALL, HalfCheetah])
def test_derivatives_are_the_central_differences_of_mujoco_c(task_class):
    _, expected, clean = reference(task_class)
    found = jacobian_of(task_class)
    assert found.isfinite().all()
    assert clean.sum() > 0.6 * N
    assert error(found, expected)[clean].max() < 1e-6


def test_forward_mode_through_the_solver_agrees():
    assert error(jacobian_of(EllipticLeg, "jvp"), jacobian_of(EllipticLeg)).max() < 1e-8
    values = (physics_of(EllipticLeg, derivative).step(*samples(EllipticLeg)) for derivative in ("jvp", "implicit"))
    torch.testing.assert_close(*values, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("task_class", [Leg, EllipticLeg, Free])
def test_samples_are_in_contact(task_class):
    """So that the comparisons above mean something."""
    state, _ = samples(task_class)
    simulation = task_class().simulation
    data = mujoco.MjData(simulation.model)
    touching = 0
    for row in state.numpy():
        data.qpos[:], data.qvel[:] = row[: simulation.nq], row[simulation.nq : simulation.nq + simulation.nv]
        mujoco.mj_forward(simulation.model, data)
        touching += data.ncon > 0
    assert touching > 0.3 * N


def stock_step(simulation, iterations):
    """MJX as it comes, environment by environment: its vmapped LAPACK calls can deadlock on a CPU."""
    from mujoco import mjx

    model = copy.copy(simulation.model)
    model.opt.jacobian, model.opt.solver = mujoco.mjtJacobian.mjJAC_DENSE, mujoco.mjtSolver.mjSOL_NEWTON
    model.opt.iterations = iterations
    with x64():
        device = mjx.put_model(model, impl="jax")
    nq = simulation.nq

    def one(inputs):
        data = mjx.make_data(model, impl="jax").replace(qpos=inputs[0][:nq], qvel=inputs[0][nq:], ctrl=inputs[1])
        data, _ = jax.lax.scan(lambda d, _: (mjx.step(device, d), None), data, None, length=simulation.frame_skip)
        return jax.numpy.concatenate([data.qpos, data.qvel])

    return lambda moving, control: jax.lax.map(one, (moving, control))


def test_one_solver_iteration_is_found_out():
    """The folk remedy for MJX's reverse mode: a step and a derivative that the comparisons here must reject."""
    load_jax()
    simulation = EulerLeg().simulation
    width = simulation.nq + simulation.nv
    state, action = samples(EulerLeg)
    expected, central, clean = reference(EulerLeg)
    stock = from_jax(stock_step(simulation, 1))
    control = EulerLeg().scale_action(action)
    assert (stock(state, control) - expected).abs().max() > 1e-6
    assert error(jacobian(stock, state[:, :width], control), central)[clean].max() > 1e-2


def test_stock_reverse_mode_through_a_converging_solver_raises():
    """Upstream's limitation; when this fails, see whether the rule here is still needed."""
    load_jax()
    simulation = Leg().simulation
    step = stock_step(simulation, 10)
    moving, control = (jax.ShapeDtypeStruct((1, n), "float64") for n in (simulation.nq + simulation.nv, 1))
    with x64(), pytest.raises(ValueError, match=r"Reverse-mode differentiation does not work for lax.while_loop"):
        jax.eval_shape(lambda m, c: jax.vjp(step, m, c)[1](m), moving, control)


def test_kept_residuals_give_the_gradient_of_recomputing(caplog):
    task = InvertedPendulum()
    generator = torch.Generator().manual_seed(0)
    state = task.reset(N, generator).double()
    action = torch.rand(N, task.action_dim, dtype=torch.float64, generator=generator).requires_grad_()
    cotangent = torch.randn(N, task.state_dim, dtype=torch.float64, generator=generator)
    found = []
    with caplog.at_level(logging.INFO, logger="mage_diffsim"):
        for residuals in ("recompute", "keep", "keep"):
            physics = make_physics(task, "mjx", dtype=torch.float64, residuals=residuals)
            y = physics.step(state, action)
            found.append((y.detach(), *torch.autograd.grad(y, action, cotangent, retain_graph=True)))
    assert torch.equal(torch.autograd.grad(y, action, cotangent)[0], found[-1][1])
    for kept in found[1:]:
        for a, b in zip(kept, found[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    h = 1e-6
    ends = [physics.step(state, action.detach() + step) for step in (h, -h)]
    central = ((ends[0] - ends[1]) * cotangent).sum(-1, keepdim=True) / (2.0 * h)
    torch.testing.assert_close(found[-1][1], central, rtol=1e-6, atol=1e-6 * central.abs().max().item())
    messages = [r.getMessage() for r in caplog.records]
    assert sum("(forward with residuals, batch" in m for m in messages) == 1, "compiled once, for both physics"
    assert sum("(implicit derivative from residuals, batch" in m for m in messages) == 1


def test_residuals_of_forward_mode_are_refused():
    with pytest.raises(InputError, match="residuals 'keep' were asked for, and derivative 'jvp' is taken by columns"):
        make_physics(Fluid(), "mjx", derivative="jvp", residuals="keep")


def test_float32_is_close():
    state, action = samples(Leg)
    expected, central, _ = reference(Leg)
    physics = make_physics(Leg(), "mjx")
    found = physics.step(state.float(), action.float())
    assert found.dtype == torch.float32
    assert (found.double() - expected).abs().amax(1).median() < 1e-4
    derivative = jacobian(physics.step, state.float(), action.float()).double()
    assert derivative.isfinite().all()
    assert error(derivative, central).median() < 1e-3


def test_quaternions_stay_unit_and_derivatives_are_tangent():
    state, action = samples(Free)
    simulation = Free().simulation
    assert simulation.quaternions == (3, 7)
    scaled = state.clone()
    scaled[:, 3:7] *= 1.7
    found = physics_of(Free).step(scaled, action)
    torch.testing.assert_close(found, physics_of(Free).step(state, action), rtol=1e-12, atol=1e-12)
    derivative = jacobian_of(Free)
    for first in simulation.quaternions:
        quaternion = found[:, first : first + 4]
        torch.testing.assert_close(quaternion.norm(dim=1), torch.ones(N, dtype=torch.float64), rtol=0, atol=1e-12)
        radial = (derivative[:, :, first : first + 4] * state[:, None, first : first + 4]).sum(-1)
        assert radial.abs().max() < 1e-9 * derivative.abs().max()


@pytest.mark.parametrize("task_class", SMALL)
def test_degenerate_states_have_finite_derivatives(task_class):
    """Zeros, the initial position at rest, no velocity, the action at its bounds; huge values do not hang."""
    task = task_class()
    state, action = (x.clone() for x in samples(task_class))
    simulation = task.simulation
    state[0] = 0.0
    state[1] = task.state_at(torch.as_tensor(simulation.qpos0)[None], torch.zeros(1, simulation.nv))[0]
    state[2, simulation.nq :] = 0.0
    action[0], action[1], action[2] = 0.0, 1.0, -1.0
    assert jacobian(physics_of(task_class).step, state, action).isfinite().all()
    state[3, simulation.nq :], state[4], state[5] = 1e6, 1e30, torch.nan
    found = physics_of(task_class).step(state, action)
    assert found[6:].isfinite().all()
    assert found[5].isnan().any()


def test_a_resting_free_body_turns_with_its_velocity():
    """d q' / d omega = dt / 2 at rest, where the derivative of a norm is not defined."""
    task = Free()
    state, action = samples(Free)
    state = state.clone()
    state[:] = task.state_at(torch.as_tensor(task.simulation.qpos0)[None], torch.zeros(1, task.simulation.nv))
    state[:, 2] = 5.0
    step = make_physics(task, "mujoco", dtype=torch.float64).step
    expected = differences(step, state, action, 1e-6, 1e-6)
    found = jacobian(physics_of(Free).step, state, action)
    assert error(found, expected).max() < 1e-6
    omega = task.simulation.nq + 3
    torch.testing.assert_close(found[0, 4, omega].item(), 0.5 * task.dt, rtol=1e-2, atol=0.0)


@pytest.mark.parametrize("task_class", [Leg, EllipticLeg])
def test_nothing_calls_lapack(task_class):
    """jaxlib's batched LAPACK calls can starve their own threads on a CPU."""
    load_jax()
    simulation = task_class().simulation
    step = _load_step().make_step(simulation, implicit=True)
    moving = jax.ShapeDtypeStruct((N, simulation.nq + simulation.nv), "float64")
    control = jax.ShapeDtypeStruct((N, simulation.model.nu), "float64")
    with x64():
        cotangent = jax.eval_shape(step, moving, control)
        lowered = jax.jit(lambda m, c, w: jax.vjp(step, m, c)[1](w)).lower(moving, control, cotangent).as_text()
    assert "lapack" not in lowered
    assert "custom_call" not in lowered


def test_the_private_names_of_mjx_are_there():
    missing = _load_step().missing_names()
    assert not missing, "\n".join(missing)


def test_a_missing_private_name_is_named(monkeypatch):
    step = _load_step()
    monkeypatch.setitem(step.PRIVATE, "smooth", ("no_such_name",))
    (message,) = step.missing_names()
    assert "mujoco.mjx._src.smooth.no_such_name" in message
    assert "mujoco-mjx 3." in message


def refused(mjcf):
    MjxPhysics(type("Refused", (Body,), {"name": "Refused", "mjcf": mjcf})())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("RK4", "implicit"), "integrator implicit is not covered; accepted are Euler, RK4, implicitfast"),
        (("RK4", "discrete"), "integrator discrete is not covered; accepted are Euler, RK4, implicitfast"),
        (("<option ", '<option noslip_iterations="3" '), "MJX ignores noslip_iterations"),
        (('<geom type="plane"', '<geom type="cylinder" name="post" pos="2 0 0"'), r"a capsule .* a cylinder \(post\)"),
        (('fromto="0 0 0 .1 0 -.5"', 'fromto="0 0 0 .1 0 -.5" fluidshape="ellipsoid"'), "MJX ignores ellipsoid fluid"),
        (('axis="1 0 0"/>', 'axis="1 0 0" stiffness="1 2"/>'), "MJX ignores nonlinear joint stiffness"),
        (
            ('type="capsule" size=".07" fromto="-.2 0 0 .2 0 0"', 'type="box" size=".2 .1 .1"'),
            "of a plane .* with a box",
        ),
        (("<option ", '<option actuatorgroupdisable="0" '), "MJX ignores actuatorgroupdisable"),
        (
            ("</worldbody>", '</worldbody><equality><connect body1="torso" anchor="0 0 0"/></equality>'),
            "equality constraint connect by another rule",
        ),
    ],
)
def test_what_mjx_cannot_do_is_refused_by_name(change, message):
    with pytest.raises(InputError, match=f"task Refused: .*{message}.*; use backend mujoco$"):
        refused(LEG.replace(*change))


def test_saturating_actuators_are_refused_where_their_damping_is_implicit():
    with pytest.raises(
        InputError, match=r"actuators with a forcerange by another rule than MuJoCo C .*; use backend mujoco"
    ):
        refused(ELLIPTIC.replace('kv="1"', 'kv="1" forcerange="-3 3"'))


def test_gymnasiums_pusher_is_refused():
    with pytest.raises(InputError, match=r"a capsule \(.*\) with a cylinder \(.*\).* use backend mujoco"):
        refused("gymnasium:pusher.xml")


def test_physics_of_equal_models_share_what_is_compiled(caplog):
    physics_of(Leg).step(*samples(Leg))
    with caplog.at_level(logging.INFO, logger="mage_diffsim"):
        MjxPhysics(Leg(), dtype=torch.float64).step(*samples(Leg))
        assert not caplog.records
        state, action = (x[:3] for x in samples(Fluid))
        MjxPhysics(Fluid(), dtype=torch.float64).step(state, action)
    (record,) = caplog.records
    assert record.getMessage().startswith("compiling MJX Fluid (forward, batch of 3, float64 on cpu)")


class TestCompilationsOnDisk:
    @pytest.fixture(autouse=True)
    def _without_a_folder_of_jax(self, monkeypatch, tmp_path):
        """As a user has it who has set nothing; small functions are kept too."""
        from jax.experimental.compilation_cache import compilation_cache

        before = {
            name: getattr(load_jax().config, name)
            for name in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
        }
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        jax.config.update("jax_compilation_cache_dir", None)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        compilation_cache.reset_cache()
        yield
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()

    def compile_something(self, number):
        jax.jit(lambda x: x * number)(np.ones(3))

    def kept(self, folder):
        return {path for path in folder.rglob("*") if path.is_file()}

    def test_they_go_to_the_users_cache_folder_and_the_users_own_do_not(self, tmp_path):
        self.compile_something(2)
        assert not self.kept(tmp_path)
        with kept_on_disk(), kept_on_disk():
            self.compile_something(3)
        kept = self.kept(tmp_path / "mage_diffsim" / "jax")
        assert kept
        assert jax.config.jax_compilation_cache_dir is None
        self.compile_something(4)
        assert self.kept(tmp_path) == kept

    def test_a_folder_named_in_the_environment_or_to_jax_comes_first(self, monkeypatch, tmp_path):
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "users"))
        with kept_on_disk():
            assert jax.config.jax_compilation_cache_dir is None
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "users"))
        with kept_on_disk():
            self.compile_something(5)
        assert self.kept(tmp_path / "users") and not (tmp_path / "mage_diffsim").exists()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "users")

    def test_a_file_in_its_place_costs_a_warning(self, monkeypatch, tmp_path, caplog):
        (tmp_path / "mage_diffsim").touch()
        with kept_on_disk():
            self.compile_something(6)
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert record.getMessage().startswith(f"what JAX compiles cannot be kept in {tmp_path}/mage_diffsim/jax (")


def test_unknown_derivative_lists_the_valid_ones():
    with pytest.raises(InputError, match="unknown derivative source of backend mjx 'fd': choose one of implicit, jvp"):
        MjxPhysics(Leg(), derivative="fd")


def test_cuda_without_a_gpu_in_jax_is_refused_at_once():
    if load_jax().default_backend() == "gpu":
        pytest.skip("JAX sees a GPU here")
    with pytest.raises(InputError, match="device cuda was asked for, but JAX sees only cpu devices"):
        MjxPhysics(Leg(), device="cuda")


@pytest.mark.parametrize("module", ["jax", "mujoco.mjx"])
def test_a_missing_package_names_the_extra(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    load_jax.cache_clear()
    _load_step.cache_clear()
    try:
        with pytest.raises(MissingExtra, match=r"pip install 'mage-diffsim\[mjx\]'"):
            MjxPhysics(Leg())
    finally:
        load_jax.cache_clear()
        _load_step.cache_clear()


def test_zero_environments():
    state, action = (x[:0] for x in samples(Fluid))
    assert physics_of(Fluid).step(state, action).shape == state.shape


@pytest.mark.gpu
def test_equal_on_a_gpu():
    if load_jax().default_backend() != "gpu":
        pytest.skip("JAX has no CUDA plugin here")
    state, action = (x.cuda() for x in samples(Leg))
    physics = make_physics(Leg(), "mjx", dtype=torch.float64, device="cuda")
    torch.testing.assert_close(physics.step(state, action).cpu(), reference(Leg)[0], rtol=1e-9, atol=1e-9)
    assert error(jacobian(physics.step, state, action).cpu(), jacobian_of(Leg)).max() < 1e-8
    assert jacobian_of(Leg).isfinite().all()
