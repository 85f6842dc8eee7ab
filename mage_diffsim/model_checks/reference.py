"""MuJoCo C, called directly: states, next states, contacts and true derivatives of one model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from mage_diffsim.envs.differences import TrueJacobian, true_jacobians, value_error
from mage_diffsim.envs.mujoco.controls import control_ranges
from mage_diffsim.envs.mujoco.convergence import inexactness, with_solver
from mage_diffsim.envs.mujoco.model import load_mujoco, quiet
from mage_diffsim.envs.sampling import INSIDE
from mage_diffsim.shapes import Bool, Float, Int, Tensor

Kind = Literal["visited", "thrown"]
KINDS: tuple[Kind, ...] = ("visited", "thrown")
ROLLOUT_S, ROLLOUT_STEPS = 3.0, 1500
"""Visited states come from rollouts of this many seconds, and of at most this many steps."""
HELD_S = 0.05
"""Duration of a random action of a rollout [s]."""
PER_ROLLOUT = 8
"""States from one rollout."""
NOISE = 0.02
"""Standard deviation of positions and velocities at the start of a rollout."""
SPEED = 5.0
"""Largest velocity of a thrown state [m/s, rad/s]."""
NUDGE, MOVED = 1e-14, 1e-10
"""A state is ill-posed if changes of its positions (relative above 1), or of geoms' places, by NUDGE move C's next
state by MOVED."""

SCATTER, SCATTERED = 1e-8, 6
"""Relative change of positions that shows how exact MuJoCo C is, and how often it is tried."""


class Points(NamedTuple):
    """States with actions, rounded to float32 but for the quaternions, which have length 1."""

    state: np.ndarray
    """qpos | qvel | activations | poses of mocap bodies, [N, S]."""
    action: np.ndarray

    def joined(self) -> Float[Tensor, "N X"]:
        """state | action."""
        return torch.from_numpy(np.concatenate(self, axis=1))


class Reference:
    """One model in MuJoCo C. It does not clamp controls, does not reset diverged states and starts every step anew.

    Actions are scaled as a task scales them; where nothing bounds some control, actions are the controls.

    Args:
        path: the MJCF file.
    """

    def __init__(self, path: Path) -> None:
        mujoco = load_mujoco()
        with quiet():
            self.own = mujoco.MjModel.from_xml_path(str(path))
        self.own.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CLAMPCTRL | mujoco.mjtDisableBit.mjDSBL_AUTORESET
        self.model = with_solver(self.own, "converged")
        self._data = mujoco.MjData(self.model)
        ranges = control_ranges(mujoco, self.own)
        low, high = np.array(ranges if len(ranges) == self.own.nu else [(-1.0, 1.0)] * self.own.nu).reshape(-1, 2).T
        self._centre, self._half = 0.5 * (low + high), 0.5 * (high - low)
        m = self.own
        ends = np.cumsum([0, m.nq, m.nv, m.na, 7 * m.nmocap]).tolist()
        self._q, self._v, self._a, self._mocap = (slice(*ends[i : i + 2]) for i in range(4))
        self._width: int = ends[-1]

    def step(self, points: Points, model: Any = None) -> np.ndarray:
        """The next states [N, S]; NaN where MuJoCo warns that it diverged.

        Args:
            points: states and actions.
            model: one with other settings than :attr:`model`, whose solvers converge.
        """
        mujoco, data, model = load_mujoco(), self._data, self.model if model is None else model
        rows = points.state.copy()
        controls = self._controls(points)
        with quiet():
            for row, control in zip(rows, controls, strict=True):
                self._place(model, row)
                data.ctrl[:] = control
                mujoco.mj_step(model, data)
                row[self._q], row[self._v], row[self._a] = data.qpos, data.qvel, data.act
                if any(w.number for w in data.warning):
                    row[:] = np.nan
        return rows

    def _controls(self, points: Points) -> np.ndarray:
        return self._centre + self._half * points.action

    def inexactness(self, points: Points) -> Float[Tensor, "N S"]:
        """Errors of C's own next states, see :func:`.convergence.inexactness`."""
        found = []
        with quiet():
            for row, control in zip(points.state, self._controls(points), strict=True):
                self._place(self.model, row)
                self._data.ctrl[:] = control
                found.append(inexactness(self.model, self._data, 1) * np.maximum(1.0, np.abs(row)))
        errors = np.array(found).reshape(points.state.shape)
        if (off := errors.any(1)).any():
            errors[off] += self._scatter(Points(points.state[off], points.action[off]))
        return torch.from_numpy(errors)

    def _scatter(self, points: Points) -> np.ndarray:
        """How much next states scatter, twice the second difference for changes of the positions that leave a smooth
        function straight: the smaller the geoms, the less exact their contacts."""
        here, rng, found = self.step(points), np.random.default_rng(0), np.zeros(points.state.shape)
        positions = points.state[:, self._q]
        for _ in range(SCATTERED):
            by = np.zeros(points.state.shape)
            by[:, self._q] = SCATTER * rng.choice([-1.0, 1.0], positions.shape) * np.maximum(1.0, np.abs(positions))
            ahead, behind = (self.step(points._replace(state=points.state + x)) for x in (by, -by))
            found = np.fmax(found, 2.0 * np.abs(ahead + behind - 2.0 * here))
        return found

    def ill_posed(self, points: Points) -> Bool[Tensor, " N"]:
        """States from which rounding errors change C's own step, as that of a cylinder that stands on end."""
        here, rng = torch.from_numpy(self.step(points)), np.random.default_rng(0)
        inexactness = self.inexactness(points)
        moved = torch.zeros(len(here), dtype=torch.float64)
        positions = points.state[:, self._q]

        def take(near: Points, model: Any = None) -> Float[Tensor, " N"]:
            return value_error(torch.from_numpy(self.step(near, model)), here, inexactness)

        for _ in range(4):
            by = NUDGE * rng.choice([-1.0, 1.0], positions.shape) * np.maximum(1.0, np.abs(positions))
            for change in (by, -by):
                near = points.state.copy()
                near[:, self._q] += change
                moved = moved.maximum(take(points._replace(state=near)))
        # A geom that lies on a plane without a joint that lifts it.
        by = NUDGE * rng.uniform(-1.0, 1.0, self.model.geom_pos.shape)  # of no two geoms the same
        for change in (by, -by):
            model = copy.copy(self.model)
            model.geom_sameframe[:] = 0  # else MuJoCo does not read the places of geoms in their bodies' frames
            model.geom_pos += change
            moved = moved.maximum(take(points, model))
        return here.isfinite().all(1) & (moved > MOVED)

    def contacts(self, points: Points) -> Int[Tensor, " N"]:
        """Number of contacts that push at each state."""
        mujoco, data, found = load_mujoco(), self._data, []
        with quiet():
            for row in points.state:
                self._place(self.model, row)
                mujoco.mj_fwdPosition(self.model, data)
                found.append(int((data.contact.exclude == 0).sum()) if data.ncon else 0)
        return torch.tensor(found)

    def _place(self, model: Any, row: np.ndarray) -> None:
        load_mujoco().mj_resetData(model, self._data)  # a model may keep more than its state, such as plastic springs
        data, poses = self._data, row[self._mocap].reshape(-1, 7)
        data.qpos[:], data.qvel[:], data.act[:] = row[self._q], row[self._v], row[self._a]
        data.mocap_pos[:], data.mocap_quat[:] = poses[:, :3], poses[:, 3:]

    def points(self, state: np.ndarray, action: np.ndarray) -> Points:
        """Rounds numbers to float32, then normalises the quaternions."""
        state, action = (x.astype(np.float32).astype(np.float64) for x in (state, action))
        for row in state:
            positions = np.ascontiguousarray(row[self._q])
            load_mujoco().mj_normalizeQuat(self.own, positions)
            row[self._q] = positions
            turned = row[self._mocap].reshape(-1, 7)[:, 3:]
            turned /= np.linalg.norm(turned, axis=1, keepdims=True)
        return Points(state, action)

    def visited(self, n: int, rng: np.random.Generator) -> Points:
        """States of rollouts with random actions, at random times, each with a random action.

        Rollouts begin close to the model's initial configuration or to one of its keyframes.
        """
        m = self.model
        steps = int(min(ROLLOUT_S / m.opt.timestep, ROLLOUT_STEPS))
        held = max(1, round(HELD_S / m.opt.timestep))
        found = np.empty((n, self._width))
        for first in range(0, n, PER_ROLLOUT):
            wanted = np.sort(rng.integers(1, steps + 1, min(PER_ROLLOUT, n - first)))
            now = self._start(rng)
            for t in range(steps + 1):
                for i in np.flatnonzero(wanted == t):
                    found[first + i] = now.state[0]
                if t % held == 0:
                    action = rng.uniform(-1.0, 1.0, (1, m.nu))
                row = self.step(now._replace(action=action))
                now = self._start(rng) if np.isnan(row).any() else Points(row, action)
        return self.points(found, self._actions(n, rng))

    def _start(self, rng: np.random.Generator) -> Points:
        """A state close to the initial configuration or to a keyframe."""
        mujoco, m, data = load_mujoco(), self.model, self._data
        key = int(rng.integers(-1, m.nkey))
        if key < 0:
            mujoco.mj_resetData(m, data)
        else:
            mujoco.mj_resetDataKeyframe(m, data, key)
        qpos = data.qpos.copy()
        mujoco.mj_integratePos(m, qpos, NOISE * rng.standard_normal(m.nv), 1.0)
        qvel = data.qvel + NOISE * rng.standard_normal(m.nv)
        poses = np.concatenate([data.mocap_pos, data.mocap_quat], axis=1).ravel()
        return Points(np.concatenate([qpos, qvel, data.act, poses])[None], np.zeros((1, m.nu)))

    def thrown(self, n: int, rng: np.random.Generator) -> Points:
        """Random joint angles within their ranges, heights, orientations, velocities, activations and mocap poses."""
        mujoco, m = load_mujoco(), self.model
        qpos = np.tile(m.qpos0, (n, 1))
        for kind, at, limited, (low, high) in zip(m.jnt_type, m.jnt_qposadr, m.jnt_limited, m.jnt_range, strict=True):
            match mujoco.mjtJoint(kind).name.removeprefix("mjJNT_"):
                case "FREE":
                    qpos[:, at : at + 2] += rng.uniform(-0.5, 0.5, (n, 2))
                    qpos[:, at + 2] += rng.uniform(-0.6, 0.4, n) * max(m.qpos0[at + 2], 0.5)
                    qpos[:, at + 3 : at + 7] = rng.standard_normal((n, 4))
                case "BALL":
                    qpos[:, at : at + 4] = rng.standard_normal((n, 4))
                case "SLIDE" if not limited:
                    qpos[:, at] += rng.uniform(-0.5, 0.5, n)
                case _:
                    qpos[:, at] = rng.uniform(low, high, n) if limited else rng.uniform(-math.pi, math.pi, n)
        poses = np.tile(self._start(rng).state[:, self._mocap], (n, 1)).reshape(n, -1, 7)
        poses[..., :3] += rng.uniform(-0.2, 0.2, poses[..., :3].shape)
        poses[..., 3:] += 0.2 * rng.standard_normal(poses[..., 3:].shape)
        velocity = rng.uniform(-SPEED, SPEED, (n, m.nv))
        state = np.concatenate([qpos, velocity, rng.uniform(0.0, 1.0, (n, m.na)), poses.reshape(n, -1)], axis=1)
        return self.points(state, self._actions(n, rng))

    def _actions(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(-INSIDE, INSIDE, (n, self.model.nu))

    def truth(self, points: Points, exact: Callable[[Points], np.ndarray] | None = None) -> dict[str, TrueJacobian]:
        """True Jacobians by action and by state: along the tangents of positions and mocap poses, and by the rest.

        Args:
            points: states and actions.
            exact: a step whose differences are taken where C's own next states are not exact.
        """
        off = np.zeros(len(points.state), bool) if exact is None else (self.inexactness(points) > 0.0).any(1).numpy()
        m, mujoco, n = self.model, load_mujoco(), len(points.state)
        ends = np.cumsum([0, m.nv, m.nv, m.na, 6 * m.nmocap, m.nu]).tolist()
        q, v, a, mocap, u = (slice(*ends[i : i + 2]) for i in range(5))

        def moved(x: Tensor) -> Tensor:  # rows of displacements of qpos | qvel | act | mocap | action
            by = x.numpy()
            state = points.state.copy()
            state[:, self._v] += by[:, v]
            state[:, self._a] += by[:, a]
            for row, way in zip(state, by, strict=True):
                positions = np.ascontiguousarray(row[self._q])
                mujoco.mj_integratePos(m, positions, np.ascontiguousarray(way[q]), 1.0)
                row[self._q] = positions
                for pose, shift in zip(row[self._mocap].reshape(-1, 7), way[mocap].reshape(-1, 6), strict=True):
                    pose[:3] += shift[:3]
                    turned = np.ascontiguousarray(pose[3:])
                    mujoco.mju_quatIntegrate(turned, np.ascontiguousarray(shift[3:]), 1.0)
                    pose[3:] = turned
            there = Points(state, points.action + by[:, u])
            found = self.step(there)
            if exact is not None and off.any():
                found[off] = exact(Points(there.state[off], there.action[off]))
            return torch.from_numpy(found)

        nothing = torch.zeros(n, ends[-1], dtype=torch.float64)
        blocks = {"action": range(ends[4], ends[5]), "state": range(ends[4])}
        return true_jacobians(moved, nothing, {name: columns for name, columns in blocks.items() if columns})

    def tangents(self, points: Points) -> Float[Tensor, "N X T"]:
        """The derivative of state | action by the displacements of :meth:`truth`."""
        mujoco, m, n = load_mujoco(), self.model, len(points.state)
        whole = np.zeros((n, self._width + m.nu, 2 * m.nv + m.na + 6 * m.nmocap + m.nu))

        def turning(first: int, column: int) -> None:  # turned by w: q' = q (0, w / 2)
            for i, axis in enumerate(np.eye(4)[1:]):
                for row, found in zip(points.state, whole, strict=True):
                    product = np.empty(4)
                    mujoco.mju_mulQuat(product, np.ascontiguousarray(row[first : first + 4]), 0.5 * axis)
                    found[first : first + 4, column + i] = product

        def straight(first: int, column: int, width: int) -> None:
            whole[:, range(first, first + width), range(column, column + width)] = 1.0

        for kind, at, dof in zip(m.jnt_type, m.jnt_qposadr.tolist(), m.jnt_dofadr.tolist(), strict=True):
            free, ball = (kind == k for k in (mujoco.mjtJoint.mjJNT_FREE, mujoco.mjtJoint.mjJNT_BALL))
            width = 3 if free else 0 if ball else 1
            straight(at, dof, width)
            if free or ball:
                turning(at + width, dof + width)
        straight(self._v.start, m.nv, m.nv + m.na)
        for i in range(m.nmocap):
            first, column = self._mocap.start + 7 * i, 2 * m.nv + m.na + 6 * i
            straight(first, column, 3)
            turning(first + 3, column + 3)
        straight(self._width, 2 * m.nv + m.na + 6 * m.nmocap, m.nu)
        return torch.from_numpy(whole)
