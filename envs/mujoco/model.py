"""Holds a compiled MuJoCo model with what a step needs of it, and imports the ``mujoco`` package."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mage_diffsim.errors import InputError, import_extra

LARGEST = 1e10
"""MuJoCo's mjMAXVAL: a state or an acceleration beyond it has diverged, and every backend returns NaN for it."""


@dataclasses.dataclass(frozen=True)
class BodyPosition:
    """World position (x, y, z) [m] of a body's frame at the end of the step."""

    body: str


@dataclasses.dataclass(frozen=True)
class SitePosition:
    """World position (x, y, z) [m] of a site at the end of the step."""

    site: str


@dataclasses.dataclass(frozen=True)
class MeanVelocity:
    """Mean velocity of one coordinate of a joint over the step, (q' - q) / dt [m/s or rad/s]."""

    joint: str
    coordinate: int = 0
    """Which of the joint's coordinates: 0, or 0 to 2 (x, y, z) of a free joint."""


@dataclasses.dataclass(frozen=True)
class CentreOfMass:
    """World position (x, y, z) [m] of the centre of mass of a body with all that it carries, at the end of the step."""

    body: str


@dataclasses.dataclass(frozen=True)
class CentreOfMassVelocity:
    """World velocity (x, y, z) [m/s] of that centre of mass at the end of the step."""

    body: str


FIELDS: dict[type, str] = {
    BodyPosition: "xpos",
    SitePosition: "site_xpos",
    CentreOfMass: "subtree_com",
    CentreOfMassVelocity: "subtree_linvel",
}
"""Kind of readout to the field of ``mujoco.MjData`` that has its vectors, of all bodies or sites."""
Readout = BodyPosition | SitePosition | MeanVelocity | CentreOfMass | CentreOfMassVelocity


@dataclasses.dataclass(frozen=True)
class Simulation:
    """A compiled model, one environment step long, and its names. Treat it as read only."""

    name: str
    """The task's name, for error messages."""
    model: Any
    """``mujoco.MjModel``, which neither clamps controls (torch clips the action) nor resets an unstable state."""
    frame_skip: int
    readouts: tuple[tuple[type, int], ...]
    """(kind, id of the body or site, or address of the coordinate in qpos), in state order."""
    readout_slices: Mapping[str, slice]
    """Where each readout lies in the state."""
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    quaternions: tuple[int, ...]
    """Where the quaternions of free and ball joints, then of mocap bodies, start in the state."""

    @property
    def nq(self) -> int:
        """Number of generalised positions."""
        return self.model.nq

    @property
    def nv(self) -> int:
        """Number of generalised velocities."""
        return self.model.nv

    @property
    def na(self) -> int:
        """Number of activations."""
        return self.model.na

    @property
    def nmocap(self) -> int:
        """Number of mocap bodies."""
        return self.model.nmocap

    @property
    def moving(self) -> int:
        """Width of the state without its readouts: nq + nv + na + 7 nmocap."""
        return self.nq + self.nv + self.na + 7 * self.nmocap

    @property
    def dt(self) -> float:
        """Time between two actions [s]."""
        return self.model.opt.timestep * self.frame_skip

    @property
    def qpos0(self) -> np.ndarray:
        """The model's initial positions, [nq]."""
        return self.model.qpos0.copy()

    def reads(self, *kinds: type) -> bool:
        """Whether there is a readout of one of these kinds."""
        return any(kind in kinds for kind, _ in self.readouts)

    @property
    def reads_places(self) -> bool:
        """Whether a readout needs more than qpos."""
        return any(kind is not MeanVelocity for kind, _ in self.readouts)

    @property
    def fingerprint(self) -> str:
        """A hash of name, model and readouts, by which compilations are shared. It is taken of the model as it is now,
        because a copy may have been changed."""
        mujoco = load_mujoco()
        buffer = np.empty(mujoco.mj_sizeModel(self.model), np.uint8)
        mujoco.mj_saveModel(self.model, None, buffer)
        rest = repr((self.name, self.frame_skip, self.readouts))
        return hashlib.sha256(buffer.tobytes() + rest.encode()).hexdigest()

    @functools.cached_property
    def has_contacts(self) -> bool:
        """Whether any two geoms can come into contact."""
        return contacts_enabled(self.model) and bool(self.model.npair or colliding_geoms(self.model))

    def split(self, state: Any) -> tuple[Any, Any, Any, Any]:
        """qpos, qvel, act and mocap of numpy, JAX or torch states [..., S]."""
        ends = itertools.accumulate((self.nq, self.nv, self.na, 7 * self.nmocap), initial=0)
        qpos, qvel, act, mocap = (state[..., a:b] for a, b in itertools.pairwise(ends))
        return qpos, qvel, act, mocap

    def assemble(
        self, qpos: Any, qvel: Any, act: Any, mocap: Any, found: Mapping[type, Any], start: Any, concatenate: Any
    ) -> Any:
        """Joins the state ``qpos | qvel | act | mocap | readouts`` from numpy, JAX or torch arrays with leading axes.

        Args:
            qpos, qvel, act, mocap: at the end of the step; mocap [..., 7 nmocap] has position and quaternion by turns.
            found: vectors of all bodies or sites there, [..., number, 3], of the kinds of readouts that have one.
            start: qpos at the beginning of the step.
            concatenate: the function of the arrays' framework.
        """
        parts = [qpos, qvel, act, mocap]
        for kind, i in self.readouts:
            if kind is MeanVelocity:
                parts.append((qpos[..., i : i + 1] - start[..., i : i + 1]) / self.dt)
            else:
                parts.append(found[kind][..., i, :])
        return concatenate(parts, -1)

    def start(
        self, qpos: np.ndarray, qvel: np.ndarray, act: np.ndarray | None = None, mocap: np.ndarray | None = None
    ) -> np.ndarray:
        """States [n, S] of starts: mean velocities 0, quaternions normalised.

        Args:
            qpos, qvel: shapes [n, nq] and [n, nv].
            act, mocap: shapes [n, na] and [n, 7 nmocap]; None takes the model's own (as ``mj_resetData`` does).
        """
        mujoco = load_mujoco()
        qpos = qpos.copy()
        data = mujoco.MjData(self.model)
        act = np.tile(data.act, (len(qpos), 1)) if act is None else act
        if mocap is None:
            mocap = np.tile(np.concatenate([data.mocap_pos, data.mocap_quat], 1).ravel(), (len(qpos), 1))
        mocap = mocap.copy()
        for quaternion in mocap.reshape(-1, 7)[:, 3:]:
            mujoco.mju_normalize4(quaternion)
        found = {
            kind: np.zeros((len(qpos), self.model.nsite if kind is SitePosition else self.model.nbody, 3))
            for kind in {kind for kind, _ in self.readouts}
        }
        for i, row in enumerate(qpos):
            mujoco.mj_normalizeQuat(self.model, row)
            if not self.reads_places:
                continue
            self.put(data, np.concatenate([row, qvel[i], act[i], mocap[i]]))
            for stage in (mujoco.mj_kinematics, mujoco.mj_comPos, mujoco.mj_comVel, mujoco.mj_subtreeVel):
                stage(self.model, data)
            for kind in found.keys() & FIELDS.keys():
                found[kind][i] = getattr(data, FIELDS[kind])
        return self.assemble(qpos, qvel, act, mocap, found, qpos, np.concatenate)

    def put(self, data: Any, state: np.ndarray) -> None:
        """Write a state [S] into a ``mujoco.MjData``; its readouts are left out."""
        data.qpos[:], data.qvel[:], data.act[:], mocap = self.split(state)
        data.mocap_pos[:], data.mocap_quat[:] = np.split(mocap.reshape(-1, 7), [3], axis=1)

    def render(self, state: np.ndarray) -> np.ndarray:
        """A picture of the state [S] from the model's first camera if it has one, uint8 [240, 320, 3].

        Raises:
            InputError: there is no OpenGL here.
        """
        data, renderer = self._stage
        self.put(data, state)
        load_mujoco().mj_forward(self.model, data)
        renderer.update_scene(data, camera=0 if self.model.ncam else -1)
        return renderer.render().copy()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_stage"}

    @functools.cached_property
    def _stage(self) -> tuple[Any, Any]:
        """Data and renderer for pictures; their OpenGL context lives as long as the simulation."""
        mujoco = load_mujoco()
        try:
            return mujoco.MjData(self.model), mujoco.Renderer(self.model, 240, 320)
        except Exception as error:  # GLFW, EGL and OSMesa each raise their own
            raise InputError(
                f"task {self.name} cannot be drawn: MuJoCo finds no OpenGL; set the environment variable MUJOCO_GL "
                f"(it is {os.environ.get('MUJOCO_GL', '')!r}) to egl, osmesa or glfw before Python starts"
            ) from error


@functools.cache
def load_mujoco() -> Any:
    """The ``mujoco`` module, imported on the first call; without a screen it renders through EGL.

    Raises:
        MissingExtra: mujoco is not installed.
    """
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform == "linux" and not screen and "mujoco" not in sys.modules:  # it is read on import
        os.environ.setdefault("MUJOCO_GL", "egl")
    return import_extra("mujoco", "mujoco", "mjx")


_quiet = threading.Lock()
_before: list[Any] = []
"""MuJoCo's own logging settings, once for every caller inside :func:`quiet`."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A context that keeps MuJoCo's warnings, in all threads, off the console and out of the file MUJOCO_LOG.TXT.

    A state that MuJoCo warns of comes back as not finite, and its user reports it.
    """
    config = load_mujoco().MjLogConfig
    with _quiet:
        _before.append(_before[0] if _before else config.get())
        silent = config.get()
        silent.logto_console = silent.logto_file = False
        silent.set()
    try:
        yield
    finally:
        with _quiet:
            before = _before.pop()
            if not _before:
                before.set()


def contacts_enabled(model: Any) -> bool:
    """Whether the model's flags let contacts act."""
    flags = load_mujoco().mjtDisableBit
    return not model.opt.disableflags & (flags.mjDSBL_CONTACT | flags.mjDSBL_CONSTRAINT)


def colliding_geoms(model: Any) -> list[tuple[int, int]]:
    """Pairs of geoms that MuJoCo's filters let touch, the lower type first; explicit pairs are not among them."""
    if not contacts_enabled(model):
        return []
    mujoco = load_mujoco()
    parents = not model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_FILTERPARENT
    excluded = {int(s) for s in model.exclude_signature}
    found = []
    for g1, g2 in itertools.combinations(range(model.ngeom), 2):
        b1, b2 = sorted((int(model.geom_bodyid[g1]), int(model.geom_bodyid[g2])))
        w1, w2 = int(model.body_weldid[b1]), int(model.body_weldid[b2])
        if w1 == w2 or (b1 << 16) + b2 in excluded or not (model.body_dofnum[w1] or model.body_dofnum[w2]):
            continue
        p1, p2 = (int(model.body_weldid[model.body_parentid[w]]) for w in (w1, w2))
        if parents and w1 and w2 and (w1 == p2 or w2 == p1):
            continue
        matching = model.geom_contype[g1] & model.geom_conaffinity[g2]
        if not (matching or model.geom_contype[g2] & model.geom_conaffinity[g1]):
            continue
        if model.geom_type[g1] > model.geom_type[g2]:
            g1, g2 = g2, g1
        if model.geom_type[g1] == model.geom_type[g2] == mujoco.mjtGeom.mjGEOM_PLANE:
            continue
        found.append((g1, g2))
    return found


def element_name(mujoco: Any, model: Any, kind: str, i: int) -> str:
    """The element's name, or its kind and number if it has none."""
    return mujoco.mj_id2name(model, getattr(mujoco.mjtObj, f"mjOBJ_{kind}"), i) or f"{kind.lower()}{i}"
