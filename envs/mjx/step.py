"""One environment step in JAX: MJX's kinematics, dynamics and collisions, and this package's solver and integrators."""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.metadata
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from mujoco import mjx

from mage_diffsim.bridges.errors import InputError
from mage_diffsim.bridges.jax import x64
from mage_diffsim.envs.mjx.solver import Cones, Problem, inverse_factor, solve, solve_with
from mage_diffsim.envs.mujoco.model import Simulation, load_mujoco

mujoco: Any = load_mujoco()

PRIVATE = {
    "smooth": ("kinematics", "com_pos", "tendon", "crb", "tendon_armature", "transmission"),
    "collision_driver": ("collision", "geom_pairs"),
    "constraint": ("make_constraint",),
    "forward": ("fwd_velocity", "fwd_actuation"),
    "derivative": ("deriv_smooth_vel",),
    "math": ("make_frame",),
    "types": ("DataJAX", "ModelJAX"),
}
"""Everything used here that ``mujoco.mjx`` does not export: module in ``mujoco.mjx._src`` to names."""

Array = jax.Array


def private(module: str, name: str) -> Any:
    """One of the :data:`PRIVATE` names.

    Raises:
        ImportError: the installed mujoco-mjx does not have it.
    """
    if name not in PRIVATE[module]:
        raise ImportError(f"mujoco.mjx._src.{module}.{name} is not among the private names that are checked")
    try:
        return getattr(importlib.import_module(f"mujoco.mjx._src.{module}"), name)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"mujoco-mjx {importlib.metadata.version('mujoco-mjx')} has no mujoco.mjx._src.{module}.{name}, which "
            "backend mjx is built on: install the version this package was tested with"
        ) from error


def missing_names() -> list[str]:
    """What the installed mujoco-mjx lacks of the :data:`PRIVATE` names, one sentence each."""
    missing = []
    for module, names in PRIVATE.items():
        for name in names:
            try:
                private(module, name)
            except ImportError as error:
                missing.append(str(error))
    return missing


ITERATED = {
    frozenset(pair)
    for pair in (
        ("capsule", "cylinder"),
        ("capsule", "ellipsoid"),
        ("cylinder", "cylinder"),
        ("ellipsoid", "cylinder"),
        ("ellipsoid", "ellipsoid"),
        ("sphere", "cylinder"),
        ("sphere", "ellipsoid"),
    )
}
"""Pairs of geoms that MJX collides by descending a signed distance: a second and more per state on a CPU."""

EXACT = {
    frozenset(pair)
    for pair in (
        ("plane", "sphere"),
        ("plane", "capsule"),
        ("plane", "ellipsoid"),
        ("plane", "cylinder"),
        ("sphere", "sphere"),
        ("sphere", "capsule"),
        ("sphere", "box"),
        ("capsule", "capsule"),
        ("capsule", "box"),
    )
}
"""Pairs of geoms whose contacts were found to be MuJoCo C's; boxes and meshes on planes, for one, are not."""

IGNORED = {
    "actuator_armature": "actuator armature",
    "actuator_damping": "actuator damping",
    "actuator_dampingpoly": "nonlinear actuator damping",
    "actuator_delay": "actuator delay",
    "dof_dampingpoly": "nonlinear joint damping",
    "flg_adhesion": "contact adhesion",
    "geom_fluid": "ellipsoid fluid forces (fluidshape)",
    "geom_surfacevel": "surface velocity of a geom",
    "jnt_springyield": "plastic joint springs",
    "jnt_stiffnesspoly": "nonlinear joint stiffness",
    "nplugin": "plugins",
    "tendon_dampingpoly": "nonlinear tendon damping",
    "tendon_springyield": "plastic tendon springs",
    "tendon_stiffnesspoly": "nonlinear tendon stiffness",
}
"""What MJX accepts and leaves out of the equations: field of ``mujoco.MjModel`` that is 0 without it, to its name."""


def unsupported(model: Any) -> str | None:
    """Why MJX cannot serve as this model's physics, as far as can be seen without calling it; None if it may."""
    for field, feature in IGNORED.items():
        if np.any(getattr(model, field, 0)):
            return f"MJX ignores {feature}"
    if model.opt.noslip_iterations:
        return "MJX ignores noslip_iterations"
    if model.opt.disableactuator:
        return "MJX ignores actuatorgroupdisable"
    for kind in (mujoco.mjtEq.mjEQ_CONNECT, mujoco.mjtEq.mjEQ_WELD):
        if np.any(model.eq_type == kind):
            name = kind.name.removeprefix("mjEQ_").lower()
            return f"MJX holds the equality constraint {name} by another rule than MuJoCo C"
    if model.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST and np.any(model.actuator_forcelimited):
        return "MJX integrates actuators with a forcerange by another rule than MuJoCo C (integrator implicitfast)"
    bits = mujoco.mjtDisableBit
    if bool(model.opt.disableflags & bits.mjDSBL_SPRING) != bool(model.opt.disableflags & bits.mjDSBL_DAMPER):
        return "MJX leaves out springs and dampers both where only one of them is disabled"
    if not model.opt.disableflags & (bits.mjDSBL_CONTACT | bits.mjDSBL_CONSTRAINT):
        for first, second, _ in private("collision_driver", "geom_pairs")(model):
            types = [mujoco.mjtGeom(model.geom_type[g]).name.removeprefix("mjGEOM_").lower() for g in (first, second)]
            if frozenset(types) not in EXACT:
                names = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_GEOM, g) or f"geom{g}" for g in (first, second)]
                how = (
                    "by an iteration that takes a second per state"
                    if frozenset(types) in ITERATED
                    else "by another rule than MuJoCo C"
                )
                return f"MJX collides a {types[0]} ({names[0]}) with a {types[1]} ({names[1]}) {how}"
    return None


def check_supported(simulation: Simulation) -> None:
    """Look for what MJX leaves out or gets wrong, as far as can be seen without calling it.

    Raises:
        InputError: there is something.
    """
    reason = unsupported(simulation.model)
    if reason is not None:
        raise refusal(simulation, reason)


def refusal(simulation: Simulation, reason: str) -> InputError:
    """The error for a model that MJX is not used for."""
    return InputError(f"task {simulation.name}: {reason}; use backend mujoco")


def checked_step(simulation: Simulation, implicit: bool) -> Callable[[Array, Array], Array]:
    """:func:`make_step` of a model that MJX is known to step.

    Raises:
        InputError: it does not, or wrongly, or too slowly.
    """
    check_supported(simulation)
    try:
        step = make_step(simulation, implicit)
        shapes = ((1, simulation.nq + simulation.nv), (1, simulation.model.nu))
        with x64():
            jax.eval_shape(step, *(jax.ShapeDtypeStruct(shape, jnp.float64) for shape in shapes))
        return step
    except (NotImplementedError, ValueError, RuntimeError) as error:
        raise refusal(simulation, f"MJX does not support it ({' '.join(str(error).split())})") from error


def oracle_model(model: Any) -> Any:
    """A copy of the ``mujoco.MjModel`` in the form that is stepped here: dense matrices, no sensors."""
    model = copy.copy(model)
    model.opt.jacobian = mujoco.mjtJacobian.mjJAC_DENSE
    # The problem is convex, so its solution does not depend on who solves it: Newton's method, see solver.py.
    model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    return model


def make_step(simulation: Simulation, implicit: bool) -> Callable[[Array, Array], Array]:
    """``(qpos | qvel [N, nq + nv], control [N, nu]) -> next state [N, S]``, traceable for float32 and float64.

    Args:
        simulation: what is stepped.
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
    """MJX calls ``logging.debug``, which gives a root logger without a handler one that prints: here it has one."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


class _Environment:
    """The model of one trace; steps one environment."""

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
        kinds = set(map(mujoco.mjtGeom, simulation.model.geom_type))
        self._capsule_on_plane = (
            mujoco.mjtGeom.mjGEOM_PLANE in kinds and mujoco.mjtGeom.mjGEOM_CAPSULE in kinds and data._impl.ncon > 0
        )
        pairs = private("collision_driver", "geom_pairs")(simulation.model) if data._impl.ncon else ()
        both = [{mujoco.mjtGeom(simulation.model.geom_type[g]) for g in pair[:2]} for pair in pairs]
        self._capsule_pairs = {mujoco.mjtGeom.mjGEOM_CAPSULE} in both
        # Where the angular velocities of free and ball joints start in qvel.
        self._rotations = []
        for kind, v in zip(map(mujoco.mjtJoint, simulation.model.jnt_type), simulation.model.jnt_dofadr, strict=True):
            if kind == mujoco.mjtJoint.mjJNT_FREE:
                self._rotations.append(int(v) + 3)
            elif kind == mujoco.mjtJoint.mjJNT_BALL:
                self._rotations.append(int(v))

    def step(self, moving: Array, control: Array) -> Array:
        """The state [S] one environment step after qpos | qvel [nq + nv]."""
        nq = self.model.nq
        start = moving[:nq]

        def substep(carry: Any, _: None) -> tuple[Any, None]:
            return self.integrate(control, *carry), None

        carry = (start, moving[nq:], jnp.zeros_like(moving[nq:]))
        (qpos, qvel, _), _ = lax.scan(substep, carry, None, length=self.simulation.frame_skip)
        end = self.data
        if self.simulation.bodies or self.simulation.sites:
            end = private("smooth", "kinematics")(self.model, self.data.replace(qpos=qpos))
        return self.simulation.assemble(qpos, qvel, end.xpos, end.site_xpos, start, jnp.concatenate)

    def _accelerate(self, control: Array, qpos: Array, qvel: Array, warm: Array) -> tuple[Array, Any]:
        """The acceleration [nv], and MJX's data it was computed from."""
        m, d = self.model, self.data.replace(qpos=qpos, qvel=qvel, ctrl=control)
        for stage in ("kinematics", "com_pos", "tendon", "crb", "tendon_armature"):
            d = private("smooth", stage)(m, d)
        d = private("collision_driver", "collision")(m, d)
        if self._capsule_on_plane:
            d = _align_with_capsules(m, d)
        if self._capsule_pairs:
            d = _exact_capsule_pairs(m, d)
        d = private("constraint", "make_constraint")(m, d)
        d = private("smooth", "transmission")(m, d)
        d = private("forward", "fwd_velocity")(m, d)
        d = private("forward", "fwd_actuation")(m, d)
        return solve(self._problem(d), warm, self.implicit), d

    def _problem(self, d: Any) -> Problem:
        x = d._impl
        cone, cones = _cones(self.model, x)
        return Problem(
            inertia=x.M,
            smooth=d.qfrc_passive - d.qfrc_bias + d.qfrc_actuator,
            jacobian=x.efc_J,
            reference=x.efc_aref,
            stiffness=x.efc_D,
            friction=x.efc_frictionloss,
            cone=cone,
            quadratic=int(x.ne + x.nf),
            cones=cones,
        )

    def _euler(self, control: Array, qpos: Array, qvel: Array, warm: Array) -> tuple[Array, Array, Array]:
        """Semi-implicit; joint damping implicit in the velocity."""
        m, dt = self.model, self.model.opt.timestep
        qacc, d = self._accelerate(control, qpos, qvel, warm)
        change = qacc
        off = mjx.DisableBit.EULERDAMP | mjx.DisableBit.DAMPER
        if not m.opt.disableflags & off and bool(np.any(self.simulation.model.dof_damping)):
            change = _damped(d._impl.M, jnp.diag(dt * m.dof_damping), qacc)
        qvel = qvel + dt * change
        return self._move(qpos, qvel, dt), qvel, qacc

    def _implicit_fast(self, control: Array, qpos: Array, qvel: Array, warm: Array) -> tuple[Array, Array, Array]:
        """Implicit in the velocity, for the forces of actuators and dampers."""
        dt = self.model.opt.timestep
        qacc, d = self._accelerate(control, qpos, qvel, warm)
        slope = private("derivative", "deriv_smooth_vel")(self.model, d)
        change = qacc if slope is None else _damped(d._impl.M, -dt * slope, qacc)
        qvel = qvel + dt * change
        return self._move(qpos, qvel, dt), qvel, qacc

    def _runge_kutta(self, control: Array, qpos: Array, qvel: Array, warm: Array) -> tuple[Array, Array, Array]:
        """The classical fourth-order method. Its stages are one scan, so that the dynamics are compiled once."""
        dt = self.model.opt.timestep

        def stage(carry: Any, tableau: Array) -> tuple[Any, None]:
            rate, acceleration, mean_rate, mean_acceleration = carry
            step, weight = tableau[0] * dt, tableau[1]
            velocity = qvel + step * acceleration
            moved = step * rate
            acceleration, _ = self._accelerate(control, self._move(qpos, rate, step), velocity, acceleration)
            rate = self._rate(moved, velocity)
            return (rate, acceleration, mean_rate + weight * rate, mean_acceleration + weight * acceleration), None

        tableau = jnp.asarray([[0.0, 1 / 6], [0.5, 1 / 3], [0.5, 1 / 3], [1.0, 1 / 6]], qpos.dtype)
        zero = jnp.zeros_like(qvel)
        (_, acceleration, mean_rate, mean_acceleration), _ = lax.scan(stage, (qvel, warm, zero, zero), tableau)
        return self._move(qpos, mean_rate, dt), qvel + dt * mean_acceleration, acceleration

    def _rate(self, moved: Array, velocity: Array) -> Array:
        """The rate [nv] at which ``moved``, the way come from a step's start, grows at a velocity.

        It is the velocity but for quaternions, whose rotation vector grows at dexp^-1 of the angular velocity
        (Munthe-Kaas; MuJoCo from 4.0 on, MJX 3.17 takes the velocity).
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


def _damped(inertia: Array, added: Array, qacc: Array) -> Array:
    """(M + added)^-1 (M q): M q are all forces, the constraints' included, because q solves the constrained problem."""
    a = inertia + added
    return solve_with(inverse_factor(lax.stop_gradient(a)), a, inertia @ qacc)


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


def _align_with_capsules(m: Any, d: Any) -> Any:
    """The contacts of planes and capsules with their tangents along the capsule, as in MuJoCo C.

    MJX does so only where the capsule is less than 60 degrees steep, which turns the friction pyramid elsewhere.
    """
    kinds, contact = jnp.asarray(m.geom_type), d._impl.contact
    # As numbers, because an array and one of MuJoCo's enumerators are never equal.
    plane, capsule = int(mujoco.mjtGeom.mjGEOM_PLANE), int(mujoco.mjtGeom.mjGEOM_CAPSULE)
    capsules = (kinds[contact.geom1] == plane) & (kinds[contact.geom2] == capsule)
    normal, axis = contact.frame[:, 0], d.geom_xmat[contact.geom2, :, 2]
    along = axis - (axis * normal).sum(-1, keepdims=True) * normal
    squared = (along**2).sum(-1, keepdims=True)
    # On end, a capsule has no direction along the plane: MJX's own tangents stay.
    clear = squared > 1e-12
    along = along / jnp.sqrt(jnp.where(clear, squared, 1.0))
    frame = jnp.stack([normal, along, jnp.cross(normal, along)], axis=1)
    frame = jnp.where((capsules[:, None] & clear)[..., None], frame, contact.frame)
    return d.tree_replace({"_impl.contact": contact.replace(frame=frame)})


def _exact_capsule_pairs(m: Any, d: Any) -> Any:
    """The contacts of two capsules that are not parallel, at the nearest points of their axes, as in MuJoCo C.

    MJX regularises the linear system for these points, which leaves errors of 1e-6 m.
    """
    kinds, contact = jnp.asarray(m.geom_type), d._impl.contact
    first, second = contact.geom1, contact.geom2
    capsule = int(mujoco.mjtGeom.mjGEOM_CAPSULE)
    size = jnp.asarray(m.geom_size)
    axis1, axis2 = (d.geom_xmat[g, :, 2] * size[g, 1:2] for g in (first, second))
    centre1, centre2 = d.geom_xpos[first], d.geom_xpos[second]

    def dot(a: Array, b: Array) -> Array:
        return (a * b).sum(-1)

    apart = centre1 - centre2
    aa, ab, bb = dot(axis1, axis1), -dot(axis1, axis2), dot(axis2, axis2)
    u, v = -dot(axis1, apart), dot(axis2, apart)
    determinant = aa * bb - ab * ab
    replaced = (kinds[first] == capsule) & (kinds[second] == capsule) & (determinant > mujoco.mjMINVAL)
    aa, bb, determinant = (jnp.where(replaced, x, 1.0) for x in (aa, bb, determinant))
    # Along the axes in half lengths, -1 to 1: the free minimum, then with either end reached.
    x1, x2 = (bb * u - ab * v) / determinant, (aa * v - ab * u) / determinant
    end1 = jnp.where(x1 > 1.0, 1.0, -1.0)
    beyond = jnp.abs(x1) > 1.0
    x1, x2 = jnp.where(beyond, end1, x1), jnp.where(beyond, (v - ab * end1) / bb, x2)
    end2 = jnp.where(x2 > 1.0, 1.0, -1.0)
    beyond = jnp.abs(x2) > 1.0
    x1, x2 = jnp.where(beyond, jnp.clip((u - ab * end2) / aa, -1.0, 1.0), x1), jnp.where(beyond, end2, x2)

    nearest1, nearest2 = centre1 + axis1 * x1[:, None], centre2 + axis2 * x2[:, None]
    across = nearest2 - nearest1
    squared = dot(across, across)
    replaced = replaced & (squared > mujoco.mjMINVAL**2)
    length = jnp.sqrt(jnp.where(replaced, squared, 1.0))
    normal = across / length[:, None]
    radius1 = size[first, 0]
    dist = length - radius1 - size[second, 0]
    pos = nearest1 + normal * (radius1 + 0.5 * dist)[:, None]
    frame = jax.vmap(private("math", "make_frame"))(jnp.where(replaced[:, None], normal, contact.frame[:, 0]))
    contact = contact.replace(
        dist=jnp.where(replaced, dist, contact.dist),
        pos=jnp.where(replaced[:, None], pos, contact.pos),
        frame=jnp.where(replaced[:, None, None], frame, contact.frame),
    )
    return d.tree_replace({"_impl.contact": contact})


def _cones(m: Any, x: Any) -> tuple[Array | None, Cones | None]:
    """Friction of the elliptic contacts [k, 6], and their rows."""
    contact = x.contact
    frictional = np.asarray(contact.dim) > 1
    if m.opt.cone != mjx.ConeType.ELLIPTIC or not frictional.any():
        return None, None
    dim, first = np.asarray(contact.dim)[frictional], np.asarray(contact.efc_address)[frictional]
    used = np.arange(6) < dim[:, None]
    rows = first[:, None] + np.where(used, np.arange(6), 0)
    friction = contact.friction[np.nonzero(frictional)[0]]
    mu = friction[:, :1] / jnp.sqrt(m.opt.impratio)
    return jnp.concatenate([mu, friction], axis=1), Cones(rows, used)
