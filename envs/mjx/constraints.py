"""Makes the rows of the constraint problem as MuJoCo C does. Arrays are those of one environment, of n rows each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mage_diffsim.envs.mjx.contacts import Group
from mage_diffsim.envs.mjx.private import private
from mage_diffsim.envs.mjx.solver import Cones
from mage_diffsim.envs.mujoco.impedance import Impedance, friction_damping
from mage_diffsim.envs.mujoco.mixing import SMALLEST
from mage_diffsim.envs.mujoco.model import load_mujoco

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Rows:
    """Constraint rows, with everything that the solver needs of them."""

    jacobian: Any
    """[n, nv]."""
    reference: Any
    """aref, [n]."""
    stiffness: Any
    """D = 1 / R, [n]."""
    friction: Any
    """Largest force of a friction-loss row, 0 in the others, [n]."""


def curve(impedance: Impedance, x: Array) -> Array:
    """MuJoCo's d(r) at the violations x [n]."""
    least, largest, width, middle, power = (
        jnp.asarray(column, x.dtype)
        for column in (impedance.smallest, impedance.largest, impedance.width, impedance.midpoint, impedance.power)
    )
    flat = (least == largest) | (width <= SMALLEST)
    x = jnp.abs(x) / jnp.where(flat, 1.0, width)
    within = (x > 0.0) & (x < 1.0)
    inner = jnp.where(within, x, 0.5)
    below = inner**power / middle ** (power - 1.0)
    above = 1.0 - (1.0 - inner) ** power / (1.0 - middle) ** (power - 1.0)
    share = jnp.where(within, jnp.where(inner <= middle, below, above), jnp.where(x > 0.0, 1.0, 0.0))
    return jnp.where(flat, 0.5 * (least + largest), least + share * (largest - least))


class Constraints:
    """All constraints of a model."""

    def __init__(self, model: Any, groups: tuple[Group, ...]) -> None:
        """From a ``mujoco.MjModel`` and :func:`.contacts.groups`."""
        mujoco = load_mujoco()
        flags = mujoco.mjtDisableBit

        def enabled(flag: Any) -> bool:
            return not model.opt.disableflags & (flag | flags.mjDSBL_CONSTRAINT)

        self.model = model
        self.groups = groups
        self._equalities = [
            (kind, np.flatnonzero(model.eq_type == kind), np.asarray(model.eq_active0[model.eq_type == kind], bool))
            for kind in (mujoco.mjtEq.mjEQ_JOINT, mujoco.mjtEq.mjEQ_TENDON)
            if enabled(flags.mjDSBL_EQUALITY)
        ]
        lossy, limited = enabled(flags.mjDSBL_FRICTIONLOSS), enabled(flags.mjDSBL_LIMIT)
        self._lossy_dofs = np.flatnonzero(model.dof_frictionloss * lossy)
        self._lossy_tendons = np.flatnonzero(model.tendon_frictionloss * lossy)
        ball = model.jnt_type == mujoco.mjtJoint.mjJNT_BALL
        scalar = (model.jnt_type == mujoco.mjtJoint.mjJNT_SLIDE) | (model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE)
        self._limited_balls = np.flatnonzero(model.jnt_limited * ball * limited)
        self._limited_joints = np.flatnonzero(model.jnt_limited * scalar * limited)
        self._limited_tendons = np.flatnonzero(model.tendon_limited * limited)
        self.quadratic = sum(active.sum() for _, _, active in self._equalities) + len(self._lossy_dofs)
        self.quadratic = int(self.quadratic + len(self._lossy_tendons))

    def rows(self, m: Any, d: Any) -> tuple[Rows, Array | None, Cones | None]:
        """The rows; and, if there are elliptic contacts, their friction (mu, then 5 coefficients) [k, 6] and rows.

        Args:
            m, d: MJX's model and data, up to the tendons and the mass matrix.
        """
        parts = [
            *self._equality_rows(m, d),
            *self._friction_rows(d),
            *self._ball_limits(d),
            *self._joint_limits(d),
            *self._tendon_limits(d),
        ]
        contacts, friction, cones = self._contact_rows(m, d, sum(part.jacobian.shape[0] for part in parts))
        parts += contacts
        if not parts:
            empty = jnp.zeros(0, d.qvel.dtype)
            return Rows(jnp.zeros((0, len(d.qvel)), d.qvel.dtype), empty, empty, empty), None, None
        joined = {f.name: jnp.concatenate([getattr(part, f.name) for part in parts]) for f in dataclasses.fields(Rows)}
        return Rows(**joined), friction, cones

    def _made(
        self, d: Any, jacobian: Array, position: Array, weight: Any, impedance: Impedance, loss: Any = None
    ) -> Rows:
        """Rows of a Jacobian and a position (distance less margin) [n]; weight is about the diagonal of A."""
        kind = jacobian.dtype
        d_r = curve(impedance, position)
        stiffness, damping, weight = (
            jnp.asarray(x, kind) for x in (impedance.stiffness, impedance.damping, np.asarray(weight, np.float64))
        )
        regular = jnp.maximum(weight * (1.0 - d_r) / d_r, SMALLEST)
        reference = -damping * (jacobian @ d.qvel) - stiffness * d_r * position
        friction = jnp.zeros_like(position) if loss is None else jnp.asarray(loss, kind)
        return Rows(jacobian, reference, 1.0 / regular, friction)

    def _equality_rows(self, m: Any, d: Any) -> list[Rows]:
        model, rows = self.model, []
        of_joints = "_efc_equality_joint", "_efc_equality_tendon"
        weights = model.dof_invweight0[model.jnt_dofadr], model.tendon_invweight0
        for (_, which, active), name, weight in zip(self._equalities, of_joints, weights, strict=False):
            if not active.any():
                continue
            made, which = private("constraint", name)(m, d), which[active]
            one, other = model.eq_obj1id[which], model.eq_obj2id[which]
            inverse = weight[one] + np.where(other >= 0, weight[other], 0.0)
            impedance = Impedance.of(model, model.eq_solref[which], model.eq_solimp[which])
            keep = np.flatnonzero(active)
            rows.append(self._made(d, made.J[keep], made.pos_aref[keep], inverse, impedance))
        return rows

    def _friction_rows(self, d: Any) -> list[Rows]:
        model, rows = self.model, []
        for which, jacobian, weight, solref, solimp, loss in (
            (
                self._lossy_dofs,
                jnp.eye(model.nv, dtype=d.qvel.dtype),
                model.dof_invweight0,
                model.dof_solref,
                model.dof_solimp,
                model.dof_frictionloss,
            ),
            (
                self._lossy_tendons,
                d._impl.ten_J,
                model.tendon_invweight0,
                model.tendon_solref_fri,
                model.tendon_solimp_fri,
                model.tendon_frictionloss,
            ),
        ):
            if len(which):
                still = jnp.zeros(len(which), d.qvel.dtype)
                impedance = Impedance.of(model, solref[which], solimp[which])
                rows.append(self._made(d, jacobian[which], still, weight[which], impedance, loss[which]))
        return rows

    def _ball_limits(self, d: Any) -> list[Rows]:
        model, which = self.model, self._limited_balls
        if not len(which):
            return []
        distances, axes = [], []
        for joint in which:
            first = int(model.jnt_qposadr[joint])
            axis, angle = private("math", "quat_to_axis_angle")(d.qpos[first : first + 4])
            # MuJoCo C's angle is positive.
            axes.append(jnp.where(angle < 0.0, -axis, axis))
            distances.append(model.jnt_range[joint].max() - jnp.abs(angle))
        dofs = model.jnt_dofadr[which]
        jacobian = jnp.zeros((len(which), model.nv), d.qvel.dtype)
        jacobian = jacobian.at[np.arange(len(which))[:, None], dofs[:, None] + np.arange(3)].set(-jnp.stack(axes))
        impedance = Impedance.of(model, model.jnt_solref[which], model.jnt_solimp[which])
        return [
            self._pushing(
                d, jacobian, jnp.stack(distances), model.jnt_margin[which], model.dof_invweight0[dofs], impedance
            )
        ]

    def _joint_limits(self, d: Any) -> list[Rows]:
        model, which = self.model, self._limited_joints
        dofs = model.jnt_dofadr[which]
        return self._ends(
            d,
            d.qpos[model.jnt_qposadr[which]],
            jnp.eye(model.nv, dtype=d.qvel.dtype)[dofs],
            model.jnt_range[which],
            model.jnt_margin[which],
            model.dof_invweight0[dofs],
            (model.jnt_solref[which], model.jnt_solimp[which]),
        )

    def _tendon_limits(self, d: Any) -> list[Rows]:
        model, which = self.model, self._limited_tendons
        return self._ends(
            d,
            d.ten_length[which],
            d._impl.ten_J[which] if len(which) else None,
            model.tendon_range[which],
            model.tendon_margin[which],
            model.tendon_invweight0[which],
            (model.tendon_solref_lim[which], model.tendon_solimp_lim[which]),
        )

    def _ends(
        self, d: Any, value: Array, jacobian: Any, ends: Any, margin: Any, weight: Any, soft: tuple[Any, Any]
    ) -> list[Rows]:
        """Rows of values [n] within ends [n, 2]: of the nearer end, or of both where both can be within the margin."""
        rows = []
        both = np.flatnonzero(ends[:, 1] - ends[:, 0] < 2.0 * margin)
        for which, farther in ((np.arange(len(ends)), False), (both, True)):
            if not len(which):
                continue
            low, high = (jnp.asarray(end, value.dtype) for end in ends[which].T)
            below, above = value[which] - low, high - value[which]
            at_low = (below < above) != farther
            distance, sign = jnp.where(at_low, below, above), jnp.where(at_low, 1.0, -1.0)
            impedance = Impedance.of(self.model, soft[0][which], soft[1][which])
            rows.append(
                self._pushing(d, sign[:, None] * jacobian[which], distance, margin[which], weight[which], impedance)
            )
        return rows

    def _pushing(
        self, d: Any, jacobian: Array, distance: Array, margin: Any, weight: Any, impedance: Impedance
    ) -> Rows:
        """Rows that act below a margin."""
        position = distance - jnp.asarray(margin, distance.dtype)
        active = position < 0.0
        return self._made(d, jacobian * active[:, None], jnp.where(active, position, 0.0), weight, impedance)

    def _contact_rows(self, m: Any, d: Any, first: int) -> tuple[list[Rows], Array | None, Cones | None]:
        """The rows of all contacts; ``first`` rows come before them."""
        elliptic = self.model.opt.cone == load_mujoco().mjtCone.mjCONE_ELLIPTIC
        rows, frictions, starts, dims = [], [], [], []
        for dim in (1, 3, 4, 6):
            groups = [group for group in self.groups if group.dim == dim]
            if not groups:
                continue
            found = [group.collide(m.geom_size, d.geom_xpos, d.geom_xmat) for group in groups]
            distance, position, frame = (jnp.concatenate(part) for part in zip(*found, strict=True))

            def parameter(name: str, groups: list[Group] = groups) -> np.ndarray:
                return np.concatenate([np.repeat(getattr(g, name), g.slots, axis=0) for g in groups])

            moved = _relative_motion(m, d, position, parameter("bodies"), dim)
            along = jnp.einsum("kij,kjv->kiv", frame, moved[:, :3])
            if dim > 3:
                along = jnp.concatenate([along, jnp.einsum("kij,kjv->kiv", frame, moved[:, 3:])], axis=1)
            made = self._of_contacts(d, distance, along, parameter, dim, elliptic)
            if elliptic and dim > 1:
                k = len(distance)
                mu = parameter("friction")[:, :1] / np.sqrt(max(SMALLEST, self.model.opt.impratio))
                frictions.append(np.concatenate([mu, parameter("friction")], axis=1))
                starts.append(first + dim * np.arange(k))
                dims.append(np.full(k, dim))
            first += made.jacobian.shape[0]
            rows.append(made)
        if not frictions:
            return rows, None, None
        start, dim = np.concatenate(starts), np.concatenate(dims)
        used = np.arange(6) < dim[:, None]
        cones = Cones(start[:, None] + np.where(used, np.arange(6), 0), used)
        return rows, jnp.asarray(np.concatenate(frictions), d.qvel.dtype), cones

    def _of_contacts(
        self, d: Any, distance: Array, along: Array, parameter: Callable[[str], np.ndarray], dim: int, elliptic: bool
    ) -> Rows:
        """Rows of k contacts of one dimension with the motion [k, dim or 6, nv] along their frames."""
        model, kind, k = self.model, distance.dtype, len(distance)
        weight = model.body_invweight0[parameter("bodies"), 0].sum(1)
        friction, impratio = parameter("friction")[:, : dim - 1], max(SMALLEST, model.opt.impratio)
        impedance = Impedance.of(model, parameter("solref"), parameter("solimp"))
        if dim > 1 and not elliptic:
            pushed = jnp.asarray(np.repeat(friction, 2, axis=1) * np.tile([1.0, -1.0], dim - 1), kind)[..., None]
            jacobian = along[:, :1] + pushed * jnp.repeat(along[:, 1:dim], 2, axis=1)
            weight = weight * (1.0 + friction[:, 0] ** 2)
            scale = np.repeat(2.0 * friction[:, :1] ** 2 / impratio, 2 * (dim - 1), axis=1)
            stiff, damping = (
                np.repeat(x[:, None], 2 * (dim - 1), axis=1) for x in (impedance.stiffness, impedance.damping)
            )
        else:
            jacobian = along[:, :dim]
            scale, stiff, damping = (
                np.repeat(x[:, None], dim, axis=1) for x in (np.ones(k), impedance.stiffness, impedance.damping)
            )
            if dim > 1:
                scale[:, 1:] = friction[:, :1] ** 2 / friction**2 / impratio
                stiff[:, 1:] = 0.0
                damping[:, 1:] = friction_damping(model, parameter("solreffriction"), impedance)[:, None]
        position = distance - jnp.asarray(parameter("margin"), kind)
        active = distance < jnp.asarray(np.minimum(parameter("margin"), parameter("reach")), kind)
        position = jnp.where(active, position, 0.0)
        jacobian = jacobian * active[:, None, None]
        d_r = curve(impedance, position)
        regular = jnp.maximum(jnp.asarray(weight, kind) * (1.0 - d_r) / d_r, SMALLEST)
        regular = regular[:, None] * jnp.asarray(scale, kind)
        reference = -jnp.asarray(damping, kind) * (jacobian @ d.qvel)
        reference = reference - jnp.asarray(stiff, kind) * (d_r * position)[:, None]
        flat = jacobian.reshape(-1, jacobian.shape[-1])
        return Rows(flat, reference.reshape(-1), 1.0 / regular.reshape(-1), jnp.zeros(len(flat), kind))


def _relative_motion(m: Any, d: Any, position: Array, bodies: np.ndarray, dim: int) -> Array:
    """Velocity of the second body's point less the first's by qvel [k, 3, nv], and the angular one from dim 4 on."""
    jac = jax.vmap(private("support", "jac"), in_axes=(None, None, 0, 0))
    (one, turn1), (other, turn2) = (jac(m, d, position, jnp.asarray(body)) for body in bodies.T)
    moved = other - one
    if dim > 3:
        moved = jnp.concatenate([moved, turn2 - turn1], axis=2)
    return moved.transpose(0, 2, 1)
