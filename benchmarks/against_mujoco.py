"""Is a backend right on models that it has never seen? Every MJCF model of a folder against MuJoCo C, called directly.

    python benchmarks/against_mujoco.py gymnasium:                   # the models that come with gymnasium
    python benchmarks/against_mujoco.py tests/envs/models --quick    # small models, a minute
    python benchmarks/against_mujoco.py my_models robot.xml --backends warp --dtypes float64

Each model becomes a task around its unchanged XML: one simulator step per action, the observation qpos | qvel. What it
is compared with is ``mujoco.mj_step`` with the solver converged (Newton, tolerance 1e-15), started anew for every
state; nothing of this package stands between. States are *visited* (random actions from the model's initial
configuration) and *thrown* (random joint angles, heights, orientations and velocities, some of them in the ground).
Derivatives are held against central differences of those same steps, in the tangent space where there are quaternions,
at *clean* states: where the one-sided differences agree at some step size.

One model and backend is measured in a process of its own with a time limit, so that a crash is a row of the table.
Interrupt it at any time; the same command goes on where it stopped. Writes results.csv and summary.md. Columns: value,
|x - x_C| / max(1, |x_C|) of the next qpos | qvel, median and worst; contacts, states whose number of contacts differs;
by action and by state, max|J - J_C| / max|J_C| at clean states; non-finite, states whose value and whose derivative is
not a finite number. States at which MuJoCo C itself warns of divergence are left out, and counted with those of them
from which the backend steps to finite numbers.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import hashlib
import math
import multiprocessing
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from rich.console import Console

from mage_diffsim.display import show_log
from mage_diffsim.doctor import versions
from mage_diffsim.envs.differences import TrueJacobian, jacobian_error, jacobian_of, true_jacobians, value_error
from mage_diffsim.envs.mujoco.model import Simulation, load_mujoco, quiet
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.envs.physics import make_physics
from mage_diffsim.envs.sampling import INSIDE
from mage_diffsim.errors import InputError, MissingExtra, unknown_name
from mage_diffsim.experiments import quality
from mage_diffsim.experiments.command import exit_code, provenance
from mage_diffsim.experiments.report import markdown_table, rich_table, write_csv
from mage_diffsim.experiments.sweep_display import make_sweep_display
from mage_diffsim.files import make_folder, write_atomically
from mage_diffsim.shapes import Bool, Float, Int, Tensor

Kind = Literal["visited", "thrown"]
KINDS: tuple[Kind, ...] = ("visited", "thrown")
DTYPES = {"float64": torch.float64, "float32": torch.float32}
GYMNASIUM = "gymnasium:"
ROLLOUT_S, ROLLOUT_STEPS = 3.0, 1500
"""Visited states come from rollouts of this many seconds, and of at most this many steps."""
HELD_S = 0.05
"""How long a random action of a rollout lasts [s]."""
PER_ROLLOUT = 8
"""States that one rollout gives."""
DIFFERENCED = 8
"""States of a kind at which the derivative of a backend that takes differences itself is measured."""
SPEED = 5.0
"""Largest velocity of a thrown state [m/s, rad/s]."""

FIELDS = (
    "model", "backend", "dtype", "states", "status", "count", "diverged_in_c", "finite_there", "value_median",
    "value_worst", "contacts_in_c", "contacts_differ", "action_clean", "action_median", "action_worst", "state_clean",
    "state_median", "state_worst", "nonfinite_values", "nonfinite_gradients", "solver_gap_median", "solver_gap_worst",
    "build_s", "seconds", "commit",
)  # fmt: skip
"""Columns of results.csv, one row per model, backend, dtype and kind of states; a refusal is a row without states.
``finite_there``: states from which MuJoCo C diverges and the backend gives numbers. ``contacts_in_c``: the most in a
state. ``contacts_differ``: empty where the backend does not tell. ``solver_gap``: how
far a step with the model's own solver settings is from the converged one, both by MuJoCo C."""


@dataclass(frozen=True)
class Options:
    """What to measure."""

    paths: tyro.conf.Positional[tuple[str, ...]]
    """MJCF files, folders that are searched for them, or ``gymnasium:`` for its assets."""
    backends: tuple[str, ...] = ("warp", "mjx", "mujoco")
    """Physics backends, each with its default derivative source."""
    states: int | None = None
    """States of each kind, by default 48 (with --quick 8)."""
    dtypes: tuple[Literal["float64", "float32"], ...] = ("float64", "float32")
    """Precisions."""
    limit: float = 900.0
    """Seconds that one model may take in one backend, compilation included."""
    seed: int = 0
    """Of the states."""
    title: str | None = None
    """What the models are and of which version, for the heading of summary.md; by default the paths."""
    out: Path = Path("runs/against_mujoco")
    """Folder for results."""
    fresh: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Measure anew what is in the out folder already."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Few states, float64 only."""

    def resolved(self) -> Options:
        """With the defaults that depend on other flags.

        Raises:
            InputError: a flag has a value that cannot be measured.
        """
        known = MujocoTask.physics
        for flag, given in (("paths", self.paths), ("backends", self.backends), ("dtypes", self.dtypes)):
            if not given or len(set(given)) < len(given):
                raise InputError(f"--{flag} is {given}; accepted is one or more different values")
        for backend in self.backends:
            if backend not in known:
                raise unknown_name("backend of MuJoCo models", backend, known)
        states = self.states if self.states is not None else 8 if self.quick else 48
        if states < 1 or not self.limit > 0.0:
            raise InputError(f"--states is {states} and --limit {self.limit}; accepted are positive numbers")
        return replace(self, states=states, dtypes=self.dtypes[:1] if self.quick else self.dtypes)


# --- the models ------------------------------------------------------------------------------------------------------


class Model(NamedTuple):
    """A file that holds a whole model."""

    name: str
    """Its path from the folder that was given, without the ending."""
    path: Path


def find_models(paths: Sequence[str]) -> tuple[list[Model], dict[str, str]]:
    """The models below the paths, and by name why other MJCF files are none.

    Raises:
        InputError: a path does not exist, or holds no MJCF file.
    """
    models: list[Model] = []
    left_out: dict[str, str] = {}
    seen: dict[str, str] = {}
    for given in paths:
        folder = _gymnasium_assets() if given == GYMNASIUM else Path(given)
        if not folder.exists():
            raise InputError(f"there is no file or folder {given}; accepted is MJCF, a folder of it, or {GYMNASIUM}")
        files = [folder] if folder.is_file() else sorted(folder.rglob("*.xml"))
        if not files:
            raise InputError(f"no .xml file lies in {given}")
        root = folder.parent if folder.is_file() or len(paths) > 1 else folder
        for file in files:
            model = Model(file.relative_to(root).with_suffix("").as_posix(), file)
            found = _look_at(file)
            if found.startswith("="):
                if found in seen:
                    left_out[model.name] = f"the same model as {seen[found]}"
                else:
                    seen[found] = model.name
                    models.append(model)
            else:
                left_out[model.name] = found
    return models, left_out


def _gymnasium_assets() -> Path:
    package = find_spec("gymnasium")
    assert package is not None and package.origin is not None
    return Path(package.origin).parent / "envs" / "mujoco" / "assets"


def _look_at(file: Path) -> str:
    """``=`` and a hash of the compiled model, or why this is no whole model."""
    mujoco = load_mujoco()
    try:
        with quiet():
            model = mujoco.MjModel.from_xml_path(str(file))
    except ValueError as error:
        return f"MuJoCo does not load it: {_one_line(error, file)}"
    if not model.nv:
        return "it has no joint: an include or a scene"
    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return "=" + hashlib.sha256(buffer.tobytes()).hexdigest()


def _one_line(error: BaseException, file: Path) -> str:
    """The error's text without the place of the model on this machine."""
    text = " ".join(str(error).split())
    for folder in (file.resolve().parent, file.parent, *file.resolve().parents[1:3]):
        text = text.replace(f"{folder}/", "")
    return text


def task_of(path: Path) -> MujocoTask:
    """A task around a file's unchanged model: one step per action, the observation qpos | qvel, no reward."""
    name = "".join(c if c.isalnum() else "_" for c in path.stem)

    def observe(self: MujocoTask, state: Tensor) -> Tensor:
        return state

    def reward(self: MujocoTask, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return torch.zeros_like(obs[..., 0])

    def terminated(self: MujocoTask, next_obs: Tensor) -> Tensor:
        return torch.zeros_like(next_obs[..., 0], dtype=torch.bool)

    return type(f"Model_{name}", (MujocoTask,), {
        "name": f"Model_{name}", "mjcf": str(path.resolve()), "frame_skip": 1, "horizon": 1000, "source": path.name,
        "observe": observe, "reward": reward, "terminated": terminated,
    })()  # fmt: skip


# --- MuJoCo C --------------------------------------------------------------------------------------------------------


class Points(NamedTuple):
    """States with actions; the numbers are float64 that float32 holds, but for the quaternions, which are of length
    1."""

    qpos: np.ndarray
    qvel: np.ndarray
    action: np.ndarray

    def joined(self) -> Float[Tensor, "N X"]:
        """qpos | qvel | action."""
        return torch.from_numpy(np.concatenate(self, axis=1))


class Reference:
    """One model in MuJoCo C. Controls are not clamped, a diverged state is not reset, and every step starts anew.

    Args:
        path: of the MJCF file.
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
            points: where from.
            converged: whether the solver converges; else it takes the model's own settings.
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
        """How many contacts push at each state."""
        mujoco, data, found = load_mujoco(), self._data, []
        with quiet():
            for qpos, qvel in zip(points.qpos, points.qvel, strict=True):
                self._place(self.model, qpos, qvel)
                mujoco.mj_fwdPosition(self.model, data)
                found.append(int((data.contact.exclude == 0).sum()) if data.ncon else 0)
        return torch.tensor(found)

    def _place(self, model: Any, qpos: np.ndarray, qvel: np.ndarray) -> None:
        load_mujoco().mj_resetData(model, self._data)  # a model may keep more than its state, plastic springs for one
        self._data.qpos[:], self._data.qvel[:] = qpos, qvel

    def points(self, qpos: np.ndarray, qvel: np.ndarray, action: np.ndarray) -> Points:
        """The numbers rounded to what float32 holds, then the quaternions normalised."""
        qpos, qvel, action = (x.astype(np.float32).astype(np.float64) for x in (qpos, qvel, action))
        for row in qpos:
            load_mujoco().mj_normalizeQuat(self.own, row)
        return Points(qpos, qvel, action)

    def visited(self, n: int, rng: np.random.Generator) -> Points:
        """States of rollouts with random actions, spread over their time, each with a random action."""
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
        """Close to the initial configuration."""
        m, qpos = self.model, self.model.qpos0.copy()
        load_mujoco().mj_integratePos(m, qpos, 0.02 * rng.standard_normal(m.nv), 1.0)
        return Points(qpos[None], 0.02 * rng.standard_normal((1, m.nv)), np.zeros((1, m.nu)))

    def thrown(self, n: int, rng: np.random.Generator) -> Points:
        """States far from any rollout: angles within their ranges, roots at random heights, random orientations."""
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
        """Differences by action and by state, the latter along the tangents of qpos and along qvel."""
        m, n = self.model, len(points.qpos)

        def moved(x: Tensor) -> Tensor:  # rows of (displacement of qpos, of qvel, of the action), all points in turn
            by = x.numpy()
            at = np.arange(len(by)) % n
            qpos = points.qpos[at]
            for row, way in zip(qpos, by[:, : m.nv], strict=True):
                load_mujoco().mj_integratePos(m, row, way, 1.0)
            qvel, action = points.qvel[at] + by[:, m.nv : 2 * m.nv], points.action[at] + by[:, 2 * m.nv :]
            return torch.from_numpy(self.step(Points(qpos, qvel, action)))

        nothing = torch.zeros(n, 2 * m.nv + m.nu, dtype=torch.float64)
        blocks = {"action": range(2 * m.nv, nothing.shape[1]), "state": range(2 * m.nv)}
        return true_jacobians(moved, nothing, blocks)

    def tangents(self, points: Points) -> Float[Tensor, "N X T"]:
        """The derivative of qpos | qvel | action by what :meth:`truth` moves."""
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


# --- a backend's contacts --------------------------------------------------------------------------------------------


def contacts_of(backend: str, simulation: Simulation, qpos: np.ndarray) -> Int[Tensor, " N"] | None:
    """How many contacts a backend sees at each qpos [N, nq], in float64; None if it does not tell.

    ``mujoco`` has them from MuJoCo C itself; ``mujoco-warp`` is not asked.
    """
    if not simulation.has_contacts:
        return torch.zeros(len(qpos), dtype=torch.int64) if backend in _CONTACTS else None
    return _CONTACTS[backend](simulation, qpos) if backend in _CONTACTS else None


def _warp_contacts(simulation: Simulation, qpos: np.ndarray) -> Int[Tensor, " N"]:
    """From the conditions that the compiler emits, evaluated by numpy."""
    from mage_diffsim.envs.warp.compiler.constraints import contacts
    from mage_diffsim.envs.warp.compiler.dynamics import Kinematics
    from mage_diffsim.envs.warp.compiler.graph import Graph, evaluate
    from mage_diffsim.envs.warp.compiler.intake import read

    every = contacts(Kinematics(read(simulation), Graph().inputs("q", simulation.nq)))
    present = evaluate([c.present for c in every], {f"q{i}": column for i, column in enumerate(qpos.T)})
    found = np.zeros(len(qpos), np.int64)
    for one in present:
        found += np.broadcast_to(np.asarray(one, bool), found.shape)
    return torch.from_numpy(found)


def _mjx_contacts(simulation: Simulation, qpos: np.ndarray) -> Int[Tensor, " N"]:
    """From the contacts that the step makes constraints of."""
    import jax
    from mujoco import mjx

    from mage_diffsim.bridges.jax import x64
    from mage_diffsim.envs.mjx import step
    from mage_diffsim.envs.mjx.contacts import groups

    with x64():
        model = mjx.put_model(step.oracle_model(simulation.model), impl="jax")
        data, size = mjx.make_data(model, impl="jax"), jax.numpy.asarray(simulation.model.geom_size)

        def count(q: Any) -> Any:
            moved, found = mjx.kinematics(model, data.replace(qpos=q)), 0
            for group in groups(simulation.model):
                distance = group.collide(size, moved.geom_xpos, moved.geom_xmat)[0]
                found += (distance < np.repeat(group.margin, group.slots)).sum()
            return found

        return torch.from_numpy(np.broadcast_to(jax.jit(jax.vmap(count))(qpos), len(qpos)).astype(np.int64))


_CONTACTS = {"warp": _warp_contacts, "mjx": _mjx_contacts}


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(model: Model, backend: str, options: Options) -> Iterator[dict[str, Any]]:
    """The rows of one model in one backend, as they come.

    Args:
        model: which.
        backend: which.
        options: resolved ones.
    """
    reference = Reference(model.path)
    rng = np.random.default_rng(options.seed)
    assert options.states is not None
    points = {kind: getattr(reference, kind)(options.states, rng) for kind in KINDS}
    values = {kind: torch.from_numpy(reference.step(points[kind])) for kind in KINDS}
    base: dict[str, Any] = dict.fromkeys(FIELDS) | {"model": model.name, "backend": backend}
    gaps = {kind: _solver_gap(reference, points[kind], values[kind]) for kind in KINDS}
    truths: dict[Kind, dict[str, TrueJacobian]] = {}
    counts: dict[Kind, tuple[Tensor, Tensor | None]] = {}
    for dtype in options.dtypes:
        began = time.perf_counter()
        row = base | {"dtype": dtype}
        try:
            task = task_of(model.path)
            simulation = task.simulation
            physics = make_physics(task, backend, dtype=DTYPES[dtype])
        except (InputError, MissingExtra) as error:
            reason = _one_line(error, model.path).removeprefix(f"task {task.name}: ")
            yield row | {"states": "", "status": f"refused: {reason}"} | gaps["visited"]
            continue
        build = time.perf_counter() - began
        for kind in KINDS:
            began = time.perf_counter()
            here = points[kind]
            if kind not in truths:
                truths[kind] = reference.truth(here)
                counts[kind] = reference.contacts(here), contacts_of(backend, simulation, here.qpos)
            found = _compare(physics, here.joined(), values[kind], truths[kind], reference.tangents(here))
            in_c, seen = counts[kind]
            fine = values[kind].isfinite().all(1)
            found |= {"contacts_in_c": int(in_c.max()), "build_s": round(build, 1)}
            found["contacts_differ"] = None if seen is None else int(((in_c != seen) & fine).sum())
            seconds = {"seconds": round(time.perf_counter() - began, 1)}
            yield row | {"states": kind, "status": "ok"} | found | gaps[kind] | seconds


def _solver_gap(reference: Reference, points: Points, value: Float[Tensor, "N S"]) -> dict[str, float]:
    own = torch.from_numpy(reference.step(points, converged=False))
    fine = value.isfinite().all(1) & own.isfinite().all(1)
    return _spread("solver_gap", value_error(own, value)[fine])


def _spread(name: str, errors: Float[Tensor, " N"]) -> dict[str, float]:
    return {f"{name}_{k}": quality.quantile(errors, q) for k, q in (("median", 0.5), ("worst", 1.0))}


def _compare(
    physics: Any,
    x: Float[Tensor, "N X"],
    value: Float[Tensor, "N S"],
    truths: Mapping[str, TrueJacobian],
    tangents: Float[Tensor, "N X T"],
) -> dict[str, Any]:
    """Values and derivatives of physics at qpos | qvel | action against those of MuJoCo C."""
    step, x = quality.step_of(physics), x.to(physics.dtype)
    with torch.no_grad():
        mine = step(x).double()
    # Differences cost a sweep over all columns for every row of the Jacobian.
    differenced = physics.derivative.startswith("fd")
    at = torch.arange(0, len(x), math.ceil(len(x) / DIFFERENCED) if differenced else 1)
    jacobian = jacobian_of(step, x[at]).double()
    fine: Bool[Tensor, " N"] = value.isfinite().all(1)
    finite, smooth = mine.isfinite().all(1), jacobian.isfinite().all(2).all(1)
    found: dict[str, Any] = {"count": int(fine.sum()), "diverged_in_c": int((~fine).sum())}
    found["finite_there"] = int((~fine & finite).sum())
    found |= {"nonfinite_values": int((fine & ~finite).sum()), "nonfinite_gradients": int((fine[at] & ~smooth).sum())}
    found |= _spread("value", value_error(mine, value)[fine & finite])
    along = jacobian @ tangents[at]
    done = 0
    for block in ("state", "action"):
        truth = truths[block]
        columns = slice(done, done + truth.jacobian.shape[2])
        done = columns.stop
        clean = (truth.clean & fine)[at]
        found[f"{block}_clean"] = int(clean.sum())
        errors = jacobian_error(along[..., columns], truth.jacobian[at])
        found |= _spread(block, errors[clean & smooth])
    return found


def _in_child(model: Model, backend: str, options: Options, connection: Any) -> None:
    torch.set_num_threads(1)
    try:
        with show_log(lambda text: None):
            for row in measure(model, backend, options):
                connection.send(row)
        connection.send(None)
    except Exception as error:  # hours of other results must not depend on one model
        connection.send(f"{type(error).__name__}: {_one_line(error, model.path)}")


def measure_apart(model: Model, backend: str, options: Options) -> Iterator[dict[str, Any]]:
    """As :func:`measure`, in a process of its own; if it crashes or is late, the last row says so."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_in_child, args=(model, backend, options, theirs), daemon=True)
    deadline = time.monotonic() + options.limit
    child.start()
    theirs.close()
    failed = dict.fromkeys(FIELDS) | {"model": model.name, "backend": backend, "states": ""}
    try:
        while ours.poll(max(0.0, deadline - time.monotonic())):
            row = ours.recv()
            if row is None:
                return
            if isinstance(row, str):
                yield failed | {"status": f"failed: {row}"}
                return
            yield row
        yield failed | {"status": f"failed: not done after {options.limit:.0f} s"}
    except EOFError:
        child.join()
        code = child.exitcode or 0
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        yield failed | {"status": f"failed: {how}"}
    finally:
        child.kill()
        child.join()
        ours.close()


def measure_all(models: Sequence[Model], options: Options) -> list[dict[str, Any]]:
    """All rows: those that are in the out folder already, and what is missing, kept as it comes."""
    path, commit = options.out / "results.csv", versions().get("commit")
    rows = [] if options.fresh else _read(path)
    todo = [(m, b) for m in models for b in options.backends if not _is_done(rows, m, b, options)]
    display = make_sweep_display()
    names = [f"{model.name} {backend}" for model, backend in todo]
    with display:
        display.begin(dict.fromkeys(names, 0), dict.fromkeys(names, 1))
        for name, (model, backend) in zip(names, todo, strict=True):
            display.start(name)
            rows = [r for r in rows if not _is_of(r, model, backend, (*options.dtypes, ""))]
            text = ""
            for row in measure_apart(model, backend, options):
                rows.append(row | {"commit": commit})
                write_csv(path, FIELDS, rows)
                text = row["status"]
            display.update(name, 1)
            display.finish(name, text)
    write_csv(path, FIELDS, rows)
    return _read(path)


def _read(path: Path) -> list[dict[str, Any]]:
    """The rows of results.csv, numbers as numbers; none if there is no such file."""
    if not path.exists():
        return []

    def number(name: str, text: str) -> Any:
        if name in ("model", "backend", "dtype", "states", "status", "commit"):
            return text
        with contextlib.suppress(ValueError):
            return int(text)
        return float(text) if text else None

    with path.open(encoding="utf-8", newline="") as file:
        return [{name: number(name, text) for name, text in row.items()} for row in csv.DictReader(file)]


def _is_of(row: Mapping[str, Any], model: Model, backend: str, dtypes: Sequence[str]) -> bool:
    return (row["model"], row["backend"]) == (model.name, backend) and (row["dtype"] or "") in dtypes


def _is_done(rows: Sequence[Mapping[str, Any]], model: Model, backend: str, options: Options) -> bool:
    for dtype in options.dtypes:
        mine = [r for r in rows if _is_of(r, model, backend, (dtype,))]
        if not any(r["status"].startswith("refused") for r in mine) and len(mine) < len(KINDS):
            return False
    return True


# --- reporting -------------------------------------------------------------------------------------------------------

LEGEND = (
    "Two numbers are: of values and derivatives median and worst (derivatives at clean states), of clean states those "
    "by action and by state, of non-finite states those of values and of derivatives, of states from which MuJoCo C "
    "diverges their number and how many of them the backend steps to finite numbers. Contacts: states with another "
    "number of them than in C (and the most in a state). How it is measured is in the head of the script."
)
PIPE_WIDTH = 170
"""Columns of text where no terminal says how many there are: what the table needs to stay in one piece."""
HEADER = ("model", "source", "states", "value", "contacts", "by action", "by state", "clean", "non-finite",
          "diverged in C")  # fmt: skip
GAP_HEADER = ("model", "states", "median", "worst")


def _number(x: float | None) -> str:
    return "-" if x is None or math.isnan(x) else "0" if x == 0.0 else f"{x:.0e}"


def _median_and_worst(row: Mapping[str, Any], name: str) -> str:
    return f"{_number(row[f'{name}_median'])}, {_number(row[f'{name}_worst'])}"


def tables(rows: Sequence[Mapping[str, Any]], left_out: Mapping[str, str]) -> list[tuple[str, Any, Any]]:
    """(heading, header, rows of text) of every table of the summary. What two numbers in
    a cell are is in LEGEND."""
    measured = [
        (
            r["model"], f"{r['backend']} {r['dtype']}", f"{r['count']} {r['states']}", _median_and_worst(r, "value"),
            "-" if r["contacts_differ"] is None else f"{r['contacts_differ']} (up to {r['contacts_in_c']})",
            _median_and_worst(r, "action"), _median_and_worst(r, "state"), f"{r['action_clean']}, {r['state_clean']}",
            f"{r['nonfinite_values']}, {r['nonfinite_gradients']}", f"{r['diverged_in_c']}, {r['finite_there']}",
        )
        for r in rows
        if r["status"] == "ok"
    ]  # fmt: skip
    refused: dict[tuple[str, str], str] = {}
    for r in rows:
        if r["status"] != "ok":
            refused.setdefault((r["model"], r["backend"]), r["status"])
    gaps: dict[tuple[str, str], tuple[Any, Any]] = {}
    for r in sorted(rows, key=lambda r: -((r["count"] or 0) + (r["diverged_in_c"] or 0))):  # of the most states
        if r["solver_gap_worst"] is not None:
            gaps.setdefault((r["model"], r["states"] or "visited"), (r["solver_gap_median"], r["solver_gap_worst"]))
    found: list[tuple[str, Any, Any]] = [("Differences from MuJoCo C", HEADER, measured)]
    found.append(("Not measured", ("model", "backend", "why"), [(*key, why) for key, why in refused.items()]))
    far = [(*key, *map(_number, gap)) for key, gap in gaps.items() if gap[1] > quality.NEGLIGIBLE]
    found.append((f"Own solver settings more than {quality.NEGLIGIBLE:.0e} from the converged step", GAP_HEADER, far))
    found.append(("Files that are no model of their own", ("file", "why"), list(left_out.items())))
    return [part for part in found if part[2]]


def findings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences that follow from the rows: how many models a backend takes, and its largest errors."""
    sentences = []
    for backend in dict.fromkeys(r["backend"] for r in rows):
        mine = [r for r in rows if r["backend"] == backend]
        models = {r["model"] for r in mine}
        fine = {r["model"] for r in mine if r["status"] == "ok"}
        failed = sum(r["status"].startswith("failed") for r in mine)
        sentences.append(f"{backend}: {len(fine)} of {len(models)} models measured, {failed} crashed or not done.")
        for dtype in dict.fromkeys(r["dtype"] for r in mine if r["status"] == "ok"):
            for kind in KINDS:
                part = [r for r in mine if (r["status"], r["dtype"], r["states"]) == ("ok", dtype, kind)]
                if not part:
                    continue
                worst = {
                    name: max(part, key=lambda r, name=name: r[name] or 0.0)
                    for name in ("value_worst", "action_worst", "state_worst")
                }
                parts = [
                    f"{what} {_number(worst[name][name])} ({worst[name]['model']})"
                    for name, what in (
                        ("value_worst", "value"),
                        ("action_worst", "by action"),
                        ("state_worst", "by state"),
                    )
                ]
                told = [r["contacts_differ"] for r in part if r["contacts_differ"] is not None]
                contacts = f"; contacts differ in {sum(told)} states" if told else ""
                bad = sum(r["nonfinite_values"] + r["nonfinite_gradients"] for r in part)
                sentences.append(
                    f"{backend} {dtype}, {kind}: largest errors: {', '.join(parts)}{contacts}; {bad} rows not finite."
                )
    return sentences


def write_summary(options: Options, rows: Sequence[Mapping[str, Any]], left_out: Mapping[str, str]) -> None:
    """Tables and sentences to the screen and, with all commands and the versions, into summary.md."""
    command = shlex.join(["python", "benchmarks/against_mujoco.py", *sys.argv[1:]])
    kept = options.out / "commands.txt"
    earlier = [line for line in (kept.read_text().splitlines() if kept.exists() else []) if line != command]
    write_atomically(kept, "\n".join([*earlier, command]) + "\n")
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH)
    lines = [f"# Backends against MuJoCo C: {options.title or ', '.join(options.paths)}", "", LEGEND, ""]
    lines += [f"- {sentence}" for sentence in findings(rows)] + [""]
    for heading, header, table in tables(rows, left_out):
        console.print(rich_table(console, heading, header, table))
        lines += [f"## {heading}", "", markdown_table(header, table)]
    for sentence in findings(rows):
        print(f"- {sentence}")
    if earlier:
        lines += ["Earlier commands into the same folder:", "", *(f"    {line}" for line in earlier)]
    write_atomically(options.out / "summary.md", "\n".join(lines + provenance()) + "\n")
    print(f"Written to {options.out}")


def run(options: Options) -> int:
    """Measure what is not finished and report everything in the out folder; 1 if something crashed, else 0."""
    options = options.resolved()
    models, left_out = find_models(options.paths)
    make_folder(options.out)
    rows = measure_all(models, options)
    order = {model.name: i for i, model in enumerate(models)}
    rows.sort(key=lambda r: (order.get(r["model"], len(order)), r["backend"]))
    write_csv(options.out / "results.csv", FIELDS, rows)
    write_summary(options, rows, left_out)
    return int(any(r["status"].startswith("failed") for r in rows))


if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(tyro.cli(Options, description=__doc__))))
