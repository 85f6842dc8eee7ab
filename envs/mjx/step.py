"""One environment step in JAX: MJX's kinematics and smooth dynamics, with constraints and integrators of our own."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from mujoco import mjx

from mage_diffsim.bridges.jax import x64
from mage_diffsim.envs.mjx.constraints import Constraints
from mage_diffsim.envs.mjx.contacts import groups
from mage_diffsim.envs.mjx.private import private
from mage_diffsim.envs.mjx.solver import Problem, inverse_factor, solve, solve_with
from mage_diffsim.envs.mjx.unsupported import refusals
from mage_diffsim.envs.mujoco.model import (
    LARGEST,
    BodyPosition,
    CentreOfMass,
    CentreOfMassVelocity,
    Simulation,
    SitePosition,
    load_mujoco,
)
from mage_diffsim.errors import InputError

mujoco: Any = load_mujoco()

Array = jax.Array


_reasons: dict[str, str | None] = {}
"""What :func:`check_supported` found, by the fingerprint of the simulation."""


def check_supported(simulation: Simulation) -> None:
    """Check, without compiling, that MJX supports the whole model and computes it as MuJoCo C does.

    Raises:
        InputError: it does not; the message names the first reason.
    """
    key = simulation.fingerprint
    if key not in _reasons:
        first = next(refusals(simulation.model), None)
        _reasons[key] = _untraceable(simulation) if first is None else first.sentence
    reason = _reasons[key]
    if reason is not None:
        raise InputError(f"task {simulation.name}: {reason}; use backend mujoco")


def _untraceable(simulation: Simulation) -> str | None:
    """MJX's own message if it does not support the model, else None."""
    shapes = ((1, simulation.moving), (1, simulation.model.nu))
    try:
        step = make_step(simulation, implicit=True)
        with x64():
            jax.eval_shape(step, *(jax.ShapeDtypeStruct(shape, jnp.float64) for shape in shapes))
    except (NotImplementedError, ValueError, RuntimeError) as error:
        return f"MJX does not support it ({' '.join(str(error).split())})"
    return None


def checked_step(simulation: Simulation, implicit: bool) -> Callable[[Array, Array], Array]:
    """:func:`make_step` after :func:`check_supported`.

    Raises:
        InputError: see :func:`check_supported`.
    """
    check_supported(simulation)
    return make_step(simulation, implicit)


def oracle_model(model: Any) -> Any:
    """A copy of the ``mujoco.MjModel`` for MJX's smooth dynamics: without contacts, sensors and what MJX refuses."""
    model = copy.copy(model)
    option, flags = model.opt, mujoco.mjtDisableBit
    option.jacobian = mujoco.mjtJacobian.mjJAC_DENSE
    option.solver = mujoco.mjtSolver.mjSOL_NEWTON
    option.enableflags = 0
    springs, dampers = (option.disableflags & flag for flag in (flags.mjDSBL_SPRING, flags.mjDSBL_DAMPER))
    # MJX leaves out all passive forces where one of the two is disabled, MuJoCo where both are.
    if springs and not dampers:
        model.jnt_stiffness[:], model.tendon_stiffness[:] = 0.0, 0.0
        option.disableflags &= ~int(flags.mjDSBL_SPRING)
    if dampers and not springs:
        model.dof_damping[:], model.tendon_damping[:] = 0.0, 0.0
        option.disableflags &= ~int(flags.mjDSBL_DAMPER)
    option.disableflags |= flags.mjDSBL_CONTACT
    model.geom_type[:] = mujoco.mjtGeom.mjGEOM_SPHERE
    model.sensor_type[:] = mujoco.mjtSensor.mjSENS_CLOCK
    # Custom numbers of certain names limit MJX's contacts.
    model.numeric_data[:] = -1.0
    return model


def make_step(simulation: Simulation, implicit: bool) -> Callable[[Array, Array], Array]:
    """``(state without readouts [N, moving], control [N, nu]) -> next state [N, S]``, traceable for both precisions.

    Args:
        simulation: the model.
        implicit: how the constraint solver is differentiated, see :func:`.solver.solve`.

    Raises:
        NotImplementedError, ValueError: MJX does not support the model; it may also do so when the step is traced.
    """
    model = oracle_model(simulation.model)
    with x64(), _root_logger_left_alone():
        on_host = jax.tree.map(np.asarray, mjx.put_model(model, impl="jax"))

    def step(moving: Array, control: Array) -> Array:
        # MJX makes arrays of the default precision everywhere; TF32 products give wrong derivatives.
        with (
            jax.enable_x64(moving.dtype == jnp.float64),
            jax.default_matmul_precision("highest"),
            _root_logger_left_alone(),
        ):
            device = jax.tree.map(lambda x: jnp.asarray(x, moving.dtype if x.dtype.kind == "f" else None), on_host)
            one = _Environment(simulation, device, mjx.make_data(model, impl="jax"), implicit)
            return jax.vmap(one.step)(moving, control)

    return step


@contextlib.contextmanager
def _root_logger_left_alone() -> Iterator[None]:
    """A context in which MJX's calls of ``logging.debug`` do not give the root logger a handler that prints."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


class _Environment:
    """Steps one environment, with the arrays of one trace."""

    def __init__(self, simulation: Simulation, model: Any, data: Any, implicit: bool) -> None:
        self.simulation = simulation
        self.model = model
        self.data = data
        self.implicit = implicit
        self.integrate = {
            mjx.IntegratorType.EULER: self._euler,
            mjx.IntegratorType.RK4: self._runge_kutta,
            mjx.IntegratorType.IMPLICITFAST: self._implicit_fast,
        }[model.opt.integrator]
        # Entries of the mass matrix that MuJoCo C keeps: those of two dofs of which one moves the other.
        rows = np.repeat(np.arange(simulation.nv), simulation.model.M_rownnz)
        self._coupled = np.zeros((simulation.nv, simulation.nv), bool)
        self._coupled[rows, simulation.model.M_colind] = self._coupled[simulation.model.M_colind, rows] = True
        self.constraints = Constraints(simulation.model, groups(simulation.model))
        self._activations = Activations(simulation.model)
        # Where the angular velocities of free and ball joints start in qvel.
        self._rotations = []
        for kind, v in zip(map(mujoco.mjtJoint, simulation.model.jnt_type), simulation.model.jnt_dofadr, strict=True):
            if kind == mujoco.mjtJoint.mjJNT_FREE:
                self._rotations.append(int(v) + 3)
            elif kind == mujoco.mjtJoint.mjJNT_BALL:
                self._rotations.append(int(v))

    def step(self, moving: Array, control: Array) -> Array:
        """The state [S] one environment step after qpos | qvel | act | mocap [moving]."""
        start, velocity, act, mocap = self.simulation.split(moving)
        poses = mocap.reshape(-1, 7)
        data = self.data.replace(ctrl=control, mocap_pos=poses[:, :3], mocap_quat=poses[:, 3:])

        def substep(carry: Any, _: None) -> tuple[Any, None]:
            return self.integrate(data, *carry), None

        carry = (start, velocity, act, jnp.zeros_like(velocity))
        (qpos, qvel, act, _), _ = lax.scan(substep, carry, None, length=self.simulation.frame_skip)
        state = self.simulation.assemble(qpos, qvel, act, mocap, self._read(data, qpos, qvel), start, jnp.concatenate)
        return state * _nan_unless(_bounded(qpos, qvel), state)

    def _read(self, data: Any, qpos: Array, qvel: Array) -> dict[type, Array]:
        """What the readouts need, at the end of a step."""
        if not self.simulation.reads_places:
            return {}
        end = self._kinematics(data.replace(qpos=qpos, qvel=qvel))
        stages = ("com_pos",) if self.simulation.reads(CentreOfMass) else ()
        if self.simulation.reads(CentreOfMassVelocity):
            stages = ("com_pos", "com_vel", "subtree_vel")
        for stage in stages:
            end = private("smooth", stage)(self.model, end)
        found = {BodyPosition: end.xpos, SitePosition: end.site_xpos, CentreOfMass: end.subtree_com}
        return found | {CentreOfMassVelocity: end._impl.subtree_linvel}

    def _accelerate(
        self, data: Any, qpos: Array, qvel: Array, act: Array, warm: Array, first: Array | bool = True
    ) -> tuple[Array, Any]:
        """The acceleration [nv], and the MJX data that it was computed from, with the rate of the activations.

        In the ``first`` stage of a step, the acceleration and its derivative are NaN where MuJoCo C counts the state as
        diverged.
        """
        m, d = self.model, self._kinematics(data.replace(qpos=qpos, qvel=qvel, act=act))
        for stage in ("com_pos", "tendon", "crb"):
            d = private("smooth", stage)(m, d)
        if np.any(self.simulation.model.tendon_armature):
            added = d._impl.ten_J.T @ (m.tendon_armature[:, None] * d._impl.ten_J)
            d = d.tree_replace({"_impl.M": d._impl.M + jnp.where(self._coupled, added, 0.0)})
        d = private("smooth", "transmission")(m, d)
        d = private("forward", "fwd_velocity")(m, d)
        d = self._actuate(d)
        qacc = solve(self._problem(d), warm, self.implicit)
        return qacc * _nan_unless(_bounded(qpos, qvel, qacc) | jnp.logical_not(first), qacc), d

    def _kinematics(self, d: Any) -> Any:
        """The data with all frames. MJX alone would leave the children of mocap bodies where the model has them."""
        mocap = self.simulation.model.body_mocapid
        held = np.flatnonzero(mocap >= 0)
        m = self.model.replace(
            body_pos=self.model.body_pos.at[held].set(d.mocap_pos[mocap[held]]),
            body_quat=self.model.body_quat.at[held].set(d.mocap_quat[mocap[held]]),
        )
        return private("smooth", "kinematics")(m, d)

    def _actuate(self, d: Any) -> Any:
        """The data with the forces of the actuators and the rate of their activations."""
        actuate = private("forward", "fwd_actuation")
        made = actuate(self.model, d)
        if not self._activations.early.any():
            return made
        # Their force follows from the activation at the end of the step.
        after = self._activations.advance(d.act, made.act_dot)
        early = actuate(self.model, d.replace(act=jnp.where(self._activations.early, after, d.act)))
        return early.replace(act_dot=made.act_dot)

    def _problem(self, d: Any) -> Problem:
        rows, cone, cones = self.constraints.rows(self.model, d)
        return Problem(
            inertia=d._impl.M,
            smooth=d.qfrc_passive - d.qfrc_bias + d.qfrc_actuator,
            jacobian=rows.jacobian,
            reference=rows.reference,
            stiffness=rows.stiffness,
            friction=rows.friction,
            cone=cone,
            quadratic=self.constraints.quadratic,
            cones=cones,
        )

    def _euler(self, data: Any, qpos: Array, qvel: Array, act: Array, warm: Array) -> tuple[Array, ...]:
        """Semi-implicit; joint damping implicit in the velocity."""
        m, dt = self.model, self.model.opt.timestep
        qacc, d = self._accelerate(data, qpos, qvel, act, warm)
        change = qacc
        off = mjx.DisableBit.EULERDAMP | mjx.DisableBit.DAMPER
        if not m.opt.disableflags & off and bool(np.any(self.simulation.model.dof_damping > 0.0)):
            change = _damped(d._impl.M, jnp.diag(dt * m.dof_damping), qacc)
        qvel = qvel + dt * change
        return self._move(qpos, qvel, dt), qvel, self._activations.advance(act, d.act_dot), qacc

    def _implicit_fast(self, data: Any, qpos: Array, qvel: Array, act: Array, warm: Array) -> tuple[Array, ...]:
        """Implicit in the velocity, for the forces of actuators and dampers."""
        dt = self.model.opt.timestep
        qacc, d = self._accelerate(data, qpos, qvel, act, warm)
        m, (low, high) = self.model, self.model.actuator_forcerange.T
        # A force that is held at an end of its range does not depend on the velocity.
        held = m.actuator_forcelimited & ((d.actuator_force <= low) | (d.actuator_force >= high))
        gain, bias = (jnp.where(held[:, None], 0.0, x) for x in (m.actuator_gainprm, m.actuator_biasprm))
        m = m.replace(actuator_gainprm=gain, actuator_biasprm=bias)
        slope = private("derivative", "deriv_smooth_vel")(m, d)
        change = qacc if slope is None else _damped(d._impl.M, -dt * jnp.where(self._coupled, slope, 0.0), qacc)
        qvel = qvel + dt * change
        return self._move(qpos, qvel, dt), qvel, self._activations.advance(act, d.act_dot), qacc

    def _runge_kutta(self, data: Any, qpos: Array, qvel: Array, act: Array, warm: Array) -> tuple[Array, ...]:
        """The classical fourth-order method. Its stages are one scan, so that the dynamics are compiled once."""
        dt = self.model.opt.timestep

        def stage(carry: Any, tableau: Array) -> tuple[Any, None]:
            (rate, acceleration, active), means = carry
            step, weight = tableau[0] * dt, tableau[1]
            velocity = qvel + step * acceleration
            moved = step * rate
            moving = self._move(qpos, rate, step)
            activation = act + step * active
            acceleration, d = self._accelerate(data, moving, velocity, activation, acceleration, tableau[0] == 0.0)
            rates = self._rate(moved, velocity), acceleration, d.act_dot
            return (rates, jax.tree.map(lambda mean, rate: mean + weight * rate, means, rates)), None

        tableau = jnp.asarray([[0.0, 1 / 6], [0.5, 1 / 3], [0.5, 1 / 3], [1.0, 1 / 6]], qpos.dtype)
        none = jnp.zeros_like(qvel), jnp.zeros_like(qvel), jnp.zeros_like(act)
        (last, means), _ = lax.scan(stage, ((qvel, warm, jnp.zeros_like(act)), none), tableau)
        rate, acceleration, active = means
        return self._move(qpos, rate, dt), qvel + dt * acceleration, self._activations.advance(act, active), last[1]

    def _rate(self, moved: Array, velocity: Array) -> Array:
        """The rate [nv] at which ``moved``, the displacement since a step's start, grows at a velocity.

        It is the velocity, except for quaternions, whose rotation vector grows at dexp^-1 of the angular velocity
        (Munthe-Kaas, as in MuJoCo 4.0; MJX 3.17 takes the velocity).
        """
        for v in self._rotations:
            part = slice(v, v + 3)
            velocity = velocity.at[part].set(_rotation_rate(moved[part], velocity[part]))
        return velocity

    def _move(self, qpos: Array, velocity: Array, dt: Any) -> Array:
        """qpos after moving with a velocity [nv] for a time."""
        parts, q, v = [], 0, 0
        for kind in map(mujoco.mjtJoint, self.simulation.model.jnt_type):
            if kind == mujoco.mjtJoint.mjJNT_FREE:
                parts.append(qpos[q : q + 3] + dt * velocity[v : v + 3])
                q, v = q + 3, v + 3
            if kind in (mujoco.mjtJoint.mjJNT_FREE, mujoco.mjtJoint.mjJNT_BALL):
                parts.append(_turn(qpos[q : q + 4], dt * velocity[v : v + 3]))
                q, v = q + 4, v + 3
            else:
                parts.append(qpos[q : q + 1] + dt * velocity[v : v + 1])
                q, v = q + 1, v + 1
        return jnp.concatenate(parts)


class Activations:
    """How a model's activations move, as MuJoCo C's mj_nextActivation does it."""

    def __init__(self, model: Any) -> None:
        which = np.flatnonzero(model.actuator_actadr >= 0)
        exact = model.actuator_dyntype[which] == int(mujoco.mjtDyn.mjDYN_FILTEREXACT)
        constant = np.maximum(mujoco.mjMINVAL, model.actuator_dynprm[which, 0])
        time = model.opt.timestep
        limited = np.asarray(model.actuator_actlimited[which], bool)
        if model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_ACTUATION:
            time, limited = 0.0, limited & False
        self.early = np.asarray(model.actuator_actearly[which], bool)
        """Whose force follows from the activation at the end of the step, [na]."""
        self._time = np.where(exact, constant * -np.expm1(-time / constant), time)
        self._low, self._high = np.where(limited[:, None], model.actuator_actrange[which], [-np.inf, np.inf]).T

    def advance(self, act: Array, rate: Array) -> Array:
        """The activations [na] a simulator step later, at a rate [na]."""
        low, high, time = (jnp.asarray(x, act.dtype) for x in (self._low, self._high, self._time))
        return jnp.clip(act + time * rate, low, high)


def _damped(inertia: Array, added: Array, qacc: Array) -> Array:
    """(M + added)^-1 (M q): M q are all forces, the constraints' included, because q solves the constrained problem."""
    a = inertia + added
    return solve_with(inverse_factor(lax.stop_gradient(a)), a, inertia @ qacc)


def _bounded(*arrays: Array) -> Array:
    """Whether no component has diverged by MuJoCo C's rule; NaN has."""
    return jnp.stack([jnp.all(jnp.abs(x) <= LARGEST) for x in arrays]).all()


def _nan_unless(sound: Array, like: Array) -> Array:
    """A factor that leaves values and derivatives as they are where ``sound``, and makes them NaN elsewhere."""
    return jnp.where(sound, 1.0, jnp.nan).astype(like.dtype)


def _turn(quaternion: Array, rotation: Array) -> Array:
    """The unit quaternion after a rotation vector [3] in the body's frame; MJX's has derivative 0 at zero."""
    squared = rotation @ rotation
    small = squared < 1e-8
    angle = jnp.sqrt(jnp.where(small, 1.0, squared))
    # sin(angle / 2) / angle and cos(angle / 2), by their series where rounding would spoil the derivative.
    factor = jnp.where(small, 0.5 - squared / 48.0, jnp.sin(0.5 * angle) / angle)
    w = jnp.where(small, 1.0 - squared / 8.0, jnp.cos(0.5 * angle))
    r, (a, v) = factor * rotation, (quaternion[0], quaternion[1:])
    turned = jnp.concatenate([(a * w - v @ r)[None], a * r + w * v + jnp.cross(v, r)])
    return turned / jnp.sqrt(turned @ turned)


def _rotation_rate(rotation: Array, velocity: Array) -> Array:
    """dexp^-1 of the body-frame angular velocity [3] at a rotation vector [3]."""
    squared = rotation @ rotation
    small = squared < 1e-2
    angle = jnp.sqrt(jnp.where(small, 1.0, squared))
    series = 1.0 / 12.0 + squared / 720.0 + squared**2 / 30240.0 + squared**3 / 1209600.0
    factor = jnp.where(small, series, (1.0 - 0.5 * angle / jnp.tan(0.5 * angle)) / angle**2)
    turning = jnp.cross(rotation, velocity)
    return velocity + 0.5 * turning + factor * jnp.cross(rotation, turning)
