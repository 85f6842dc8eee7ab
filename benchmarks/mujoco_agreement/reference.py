"""MuJoCo C, called directly: states, next states, contacts and true derivatives of one model."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from mage_diffsim.envs.differences import TrueJacobian, true_jacobians
from mage_diffsim.envs.mujoco.model import load_mujoco, quiet
from mage_diffsim.envs.sampling import INSIDE
from mage_diffsim.shapes import Float, Int, Tensor

Kind = Literal["visited", "thrown"]
KINDS: tuple[Kind, ...] = ("visited", "thrown")
ROLLOUT_S, ROLLOUT_STEPS = 3.0, 1500
"""Visited states come from rollouts of this many seconds, and of at most this many steps."""
HELD_S = 0.05
"""Duration of a random action of a rollout [s]."""
PER_ROLLOUT = 8
"""States from one rollout."""
SPEED = 5.0
"""Largest velocity of a thrown state [m/s, rad/s]."""


class Points(NamedTuple):
    """States with actions, rounded to float32 but for the quaternions, which have length 1."""

    qpos: np.ndarray
    qvel: np.ndarray
    action: np.ndarray

    def joined(self) -> Float[Tensor, "N X"]:
        """qpos | qvel | action."""
        return torch.from_numpy(np.concatenate(self, axis=1))


class Reference:
    """One model in MuJoCo C. It does not clamp controls, does not reset diverged states and starts every step anew.

    Args:
        path: the MJCF file.
    """

    def __init__(self, path: Path) -> None:
        mujoco = load_mujoco()
        with quiet():
            self.own = mujoco.MjModel.from_xml_path(str(path))
        self.own.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CLAMPCTRL | mujoco.mjtDisableBit.mjDSBL_AUTORESET
        self.model = copy.copy(self.own)
        option = self.model.opt
        option.solver, option.tolerance = mujoco.mjtSolver.mjSOL_NEWTON, 1e-15
        option.iterations = option.ls_iterations = 200
        self._data = mujoco.MjData(self.model)
        limited = self.own.actuator_ctrllimited.astype(bool)
        low = np.where(limited, self.own.actuator_ctrlrange[:, 0], -1.0)
        high = np.where(limited, self.own.actuator_ctrlrange[:, 1], 1.0)
        self._centre, self._half = 0.5 * (low + high), 0.5 * (high - low)

    def step(self, points: Points, *, converged: bool = True) -> np.ndarray:
        """The next qpos | qvel, [N, nq + nv]; NaN where MuJoCo warns that it diverged.

        Args:
            points: states and actions.
            converged: whether the solver converges; otherwise it takes the model's own settings.
        """
        mujoco, data, model = load_mujoco(), self._data, self.model if converged else self.own
        rows = np.empty((len(points.qpos), model.nq + model.nv))
        controls = self._centre + self._half * points.action
        with quiet():
            for row, qpos, qvel, control in zip(rows, points.qpos, points.qvel, controls, strict=True):
                self._place(model, qpos, qvel)
                data.ctrl[:] = control
                mujoco.mj_step(model, data)
                row[: model.nq], row[model.nq :] = data.qpos, data.qvel
                if any(w.number for w in data.warning):
                    row[:] = np.nan
        return rows

    def contacts(self, points: Points) -> Int[Tensor, " N"]:
        """Number of contacts that push at each state."""
        mujoco, data, found = load_mujoco(), self._data, []
        with quiet():
            for qpos, qvel in zip(points.qpos, points.qvel, strict=True):
                self._place(self.model, qpos, qvel)
                mujoco.mj_fwdPosition(self.model, data)
                found.append(int((data.contact.exclude == 0).sum()) if data.ncon else 0)
        return torch.tensor(found)

    def _place(self, model: Any, qpos: np.ndarray, qvel: np.ndarray) -> None:
        load_mujoco().mj_resetData(model, self._data)  # a model may keep more than its state, such as plastic springs
        self._data.qpos[:], self._data.qvel[:] = qpos, qvel

    def points(self, qpos: np.ndarray, qvel: np.ndarray, action: np.ndarray) -> Points:
        """Rounds numbers to float32, then normalises the quaternions."""
        qpos, qvel, action = (x.astype(np.float32).astype(np.float64) for x in (qpos, qvel, action))
        for row in qpos:
            load_mujoco().mj_normalizeQuat(self.own, row)
        return Points(qpos, qvel, action)

    def visited(self, n: int, rng: np.random.Generator) -> Points:
        """States of rollouts with random actions, at random times, each with a random action."""
        m = self.model
        steps = int(min(ROLLOUT_S / m.opt.timestep, ROLLOUT_STEPS))
        held = max(1, round(HELD_S / m.opt.timestep))
        qpos, qvel = np.empty((n, m.nq)), np.empty((n, m.nv))
        for first in range(0, n, PER_ROLLOUT):
            wanted = np.sort(rng.integers(1, steps + 1, min(PER_ROLLOUT, n - first)))
            now = self._start(rng)
            for t in range(steps + 1):
                for i in np.flatnonzero(wanted == t):
                    qpos[first + i], qvel[first + i] = now.qpos[0], now.qvel[0]
                if t % held == 0:
                    action = rng.uniform(-1.0, 1.0, (1, m.nu))
                row = self.step(now._replace(action=action))
                now = self._start(rng) if np.isnan(row).any() else Points(row[:, : m.nq], row[:, m.nq :], action)
        return self.points(qpos, qvel, self._actions(n, rng))

    def _start(self, rng: np.random.Generator) -> Points:
        """A state close to the initial configuration."""
        m, qpos = self.model, self.model.qpos0.copy()
        load_mujoco().mj_integratePos(m, qpos, 0.02 * rng.standard_normal(m.nv), 1.0)
        return Points(qpos[None], 0.02 * rng.standard_normal((1, m.nv)), np.zeros((1, m.nu)))

    def thrown(self, n: int, rng: np.random.Generator) -> Points:
        """Random joint angles within their ranges, heights, orientations and velocities."""
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
        return self.points(qpos, rng.uniform(-SPEED, SPEED, (n, m.nv)), self._actions(n, rng))

    def _actions(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(-INSIDE, INSIDE, (n, self.model.nu))

    def truth(self, points: Points) -> dict[str, TrueJacobian]:
        """True Jacobians by action and by state: along the tangents of qpos, and by qvel."""
        m, n = self.model, len(points.qpos)

        def moved(x: Tensor) -> Tensor:  # rows of displacements of qpos | qvel | action
            by = x.numpy()
            qpos = points.qpos.copy()
            for row, way in zip(qpos, by[:, : m.nv], strict=True):
                load_mujoco().mj_integratePos(m, row, way, 1.0)
            qvel, action = points.qvel + by[:, m.nv : 2 * m.nv], points.action + by[:, 2 * m.nv :]
            return torch.from_numpy(self.step(Points(qpos, qvel, action)))

        nothing = torch.zeros(n, 2 * m.nv + m.nu, dtype=torch.float64)
        blocks = {"action": range(2 * m.nv, nothing.shape[1]), "state": range(2 * m.nv)}
        return true_jacobians(moved, nothing, blocks)

    def tangents(self, points: Points) -> Float[Tensor, "N X T"]:
        """The derivative of qpos | qvel | action by the displacements of :meth:`truth`."""
        mujoco, m = load_mujoco(), self.model
        found = np.zeros((len(points.qpos), m.nq, m.nv))
        for kind, q, v in zip(m.jnt_type, m.jnt_qposadr, m.jnt_dofadr, strict=True):
            free, ball = (kind == k for k in (mujoco.mjtJoint.mjJNT_FREE, mujoco.mjtJoint.mjJNT_BALL))
            straight = 3 if free else 0 if ball else 1
            for i in range(straight):
                found[:, q + i, v + i] = 1.0
            if free or ball:  # turned by w: q' = q (0, w / 2)
                at = int(q) + straight
                for i, axis in enumerate(np.eye(4)[1:]):
                    for row, turned in zip(points.qpos, found, strict=True):
                        product = np.empty(4)
                        mujoco.mju_mulQuat(product, row[at : at + 4], 0.5 * axis)
                        turned[at : at + 4, v + straight + i] = product
        rest = torch.eye(m.nv + m.nu, dtype=torch.float64).expand(len(found), -1, -1)
        whole = torch.zeros(len(found), m.nq + m.nv + m.nu, 2 * m.nv + m.nu, dtype=torch.float64)
        whole[:, : m.nq, : m.nv], whole[:, m.nq :, m.nv :] = torch.from_numpy(found), rest
        return whole
