"""MJCF models: how they are found, what is read from them, what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import itertools
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mage_diffsim.errors import InputError, missing_extra, unknown_name

AXES = ("x", "y", "z")
LARGEST = 1e10
"""MuJoCo's mjMAXVAL: a state or an acceleration beyond it has diverged, and every backend makes NaN of it."""
CONTACT_MARGINS = ("sum", "maximum")
"""How the margins of two geoms make the margin of their contact: as MuJoCo 3.5 and later combine them, or as earlier
versions did."""


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


HIDDEN = {
    "mjSTATE_PLUGIN": "plugins with a state of their own",
    "mjSTATE_PLASTIC": "plastic springs or flexes (springyield, yield)",
}
"""Parts of MuJoCo's state that a step reads and changes besides qpos, qvel and what has an error of its own here."""

Readout = BodyPosition | SitePosition | MeanVelocity


@dataclasses.dataclass(frozen=True)
class Simulation:
    """A compiled model, one environment step long, and its names. Treat it as read only."""

    name: str
    """Of the task, for error messages."""
    model: Any
    """``mujoco.MjModel``. Controls are not clamped in the simulator (torch clips the action), and an unstable state
    stays what it is instead of being reset."""
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
    """Where the quaternions of free and ball joints start in qpos."""

    @property
    def nq(self) -> int:
        """Number of generalised positions."""
        return self.model.nq

    @property
    def nv(self) -> int:
        """Number of generalised velocities."""
        return self.model.nv

    @property
    def dt(self) -> float:
        """Time between two actions [s]."""
        return self.model.opt.timestep * self.frame_skip

    @property
    def qpos0(self) -> np.ndarray:
        """The model's initial positions, [nq]."""
        return self.model.qpos0.copy()

    @property
    def bodies(self) -> tuple[int, ...]:
        """The bodies whose positions are read out."""
        return tuple(i for kind, i in self.readouts if kind is BodyPosition)

    @property
    def sites(self) -> tuple[int, ...]:
        """The sites whose positions are read out."""
        return tuple(i for kind, i in self.readouts if kind is SitePosition)

    @property
    def fingerprint(self) -> str:
        """Equal for simulations with the same name, model and readouts: what compilations are shared by. Taken of the
        model as it is now, as a copy may have been changed."""
        mujoco = load_mujoco()
        buffer = np.empty(mujoco.mj_sizeModel(self.model), np.uint8)
        mujoco.mj_saveModel(self.model, None, buffer)
        rest = repr((self.name, self.frame_skip, self.readouts))
        return hashlib.sha256(buffer.tobytes() + rest.encode()).hexdigest()

    @functools.cached_property
    def has_contacts(self) -> bool:
        """Whether any two geoms can come into contact."""
        return contacts_enabled(self.model) and bool(self.model.npair or colliding_geoms(self.model))

    def assemble(self, qpos: Any, qvel: Any, xpos: Any, site_xpos: Any, start: Any, concatenate: Any) -> Any:
        """The state ``qpos | qvel | readouts`` of numpy, JAX or torch arrays with any leading axes.

        Args:
            qpos, qvel: at the end of the step.
            xpos, site_xpos: all bodies' and sites' positions there, [..., number, 3].
            start: qpos at the beginning of the step.
            concatenate: the arrays' own.
        """
        parts = [qpos, qvel]
        for kind, i in self.readouts:
            if kind is MeanVelocity:
                parts.append((qpos[..., i : i + 1] - start[..., i : i + 1]) / self.dt)
            else:
                parts.append((xpos if kind is BodyPosition else site_xpos)[..., i, :])
        return concatenate(parts, -1)

    def start(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        """States [n, S] of starts: mean velocities 0, quaternions normalised. ``qpos`` [n, nq], ``qvel`` [n, nv]."""
        mujoco = load_mujoco()
        qpos = qpos.copy()
        data = mujoco.MjData(self.model)
        xpos = np.zeros((len(qpos), self.model.nbody, 3))
        site_xpos = np.zeros((len(qpos), self.model.nsite, 3))
        for i, row in enumerate(qpos):
            mujoco.mj_normalizeQuat(self.model, row)
            if self.bodies or self.sites:
                data.qpos[:] = row
                mujoco.mj_kinematics(self.model, data)
                xpos[i], site_xpos[i] = data.xpos, data.site_xpos
        return self.assemble(qpos, qvel, xpos, site_xpos, qpos, np.concatenate)

    def render(self, state: np.ndarray) -> np.ndarray:
        """A picture of the state [S] from the model's first camera if it has one, uint8 [240, 320, 3].

        Raises:
            InputError: there is no OpenGL here.
        """
        data, renderer = self._stage
        data.qpos[:] = state[: self.nq]
        data.qvel[:] = state[self.nq : self.nq + self.nv]
        load_mujoco().mj_forward(self.model, data)
        renderer.update_scene(data, camera=0 if self.model.ncam else -1)
        return renderer.render().copy()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_stage"}

    @functools.cached_property
    def _stage(self) -> tuple[Any, Any]:
        """What pictures are made with; an OpenGL context lives as long as the simulation."""
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
    try:
        import mujoco
    except ModuleNotFoundError as error:
        if error.name != "mujoco":
            raise
        raise missing_extra("mujoco", "mjx") from error
    return mujoco


_quiet = threading.Lock()
_before: list[Any] = []
"""MuJoCo's logging as it was, once for every caller of :func:`quiet` that is inside it."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep MuJoCo's warnings off the console and out of a file in the working directory, in all threads.

    A state that MuJoCo warns about comes back as not finite and is reported by whoever uses it.
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


def find(mjcf: str, folder: Path) -> Path | None:
    """The file that ``mjcf`` names (see :attr:`.task.MujocoTask.mjcf`); None if it is the XML itself.

    Raises:
        InputError: there is no such file.
    """
    if mjcf.lstrip("\ufeff \t\r\n").startswith("<"):
        return None
    if mjcf.startswith("gymnasium:"):
        package = importlib.util.find_spec("gymnasium")
        assert package is not None and package.origin is not None
        path = Path(package.origin).parent / "envs" / "mujoco" / "assets" / mjcf.removeprefix("gymnasium:")
        if not path.is_file() and path.parent.is_dir():
            raise unknown_name("model of gymnasium", path.name, (p.name for p in path.parent.glob("*.xml")))
    else:
        path = folder / Path(mjcf).expanduser()
    if not path.is_file():
        raise InputError(
            f"there is no MJCF file {path}: give the path of one, the XML itself, or gymnasium:FILE.xml for an asset "
            "of gymnasium's"
        )
    return path


def load_simulation(
    name: str, mjcf: Any, folder: Path, frame_skip: Any, readouts: Any, contact_margin: Any = "sum"
) -> Simulation:
    """Compile a model and read what a task needs from it.

    Args:
        name: of the task, for error messages.
        mjcf: which model, see :attr:`.task.MujocoTask.mjcf`.
        folder: where relative paths start.
        frame_skip: simulator steps per action.
        readouts: name to :data:`Readout`.
        contact_margin: one of :data:`CONTACT_MARGINS`, see :attr:`.task.MujocoTask.contact_margin`.

    Raises:
        InputError: the model does not load, has no joint or no actuator, has an actuator without a control range or
            with a state of its own, has other state than qpos and qvel, lacks what a readout names, or has margins that
            cannot be combined as asked.
        MissingExtra: mujoco is not installed.
    """
    mujoco = load_mujoco()
    where = f"task {name}"
    if type(frame_skip) is not int or frame_skip < 1:
        raise InputError(f"{where}: frame_skip is {frame_skip!r}; accepted is a whole number of 1 or more")
    if not isinstance(mjcf, str) or not mjcf:
        raise InputError(f"{where}: mjcf is {mjcf!r}; accepted is text: a path, the XML, or gymnasium:FILE.xml")
    if not isinstance(readouts, Mapping):
        raise InputError(f"{where}: readouts is {readouts!r}; accepted is a mapping from names to readouts")
    if contact_margin not in CONTACT_MARGINS:
        raise unknown_name(f"contact_margin of {where}", contact_margin, CONTACT_MARGINS)
    path = find(mjcf, folder)
    try:
        with quiet():
            model = mujoco.MjModel.from_xml_string(mjcf) if path is None else mujoco.MjModel.from_xml_path(str(path))
    except ValueError as error:
        what = "its MJCF text" if path is None else f"the MJCF file {path}"
        raise InputError(f"{where}: MuJoCo cannot load {what}: {' '.join(str(error).split())}") from error
    if contact_margin == "maximum":
        _take_larger_margins(mujoco, model, where)
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CLAMPCTRL | mujoco.mjtDisableBit.mjDSBL_AUTORESET

    if not model.nv:
        raise InputError(f"{where}: the model has no joint, so there is nothing to control; give it one")
    if not model.nu:
        raise InputError(f"{where}: the model has no actuator, so there is nothing to control; give it one")
    if getattr(model, "nactuator", model.nu) != model.nu:
        raise InputError(
            f"{where}: the model has an actuator of several controls, which actions are not mapped to; use actuators "
            "of one control"
        )
    if model.na:
        stateful = next(i for i in range(model.nu) if model.actuator_actadr[i] >= 0)
        raise InputError(
            f"{where}: actuator {element_name(mujoco, model, 'ACTUATOR', stateful)!r} has an activation state of its "
            "own (muscle, filter, integrator or cylinder), which the state qpos | qvel leaves out; use actuators "
            "without"
        )
    if np.any(model.actuator_delay):
        late = _actuator_names(mujoco, model)[int(np.argmax(model.actuator_delay > 0))]
        raise InputError(
            f"{where}: actuator {late!r} has a delay, whose history the state qpos | qvel leaves out; use actuators "
            "without"
        )
    for part, what in HIDDEN.items():
        if mujoco.mj_stateSize(model, getattr(mujoco.mjtState, part)):
            raise InputError(f"{where}: the model has {what}, whose state qpos | qvel leaves out; use a model without")
    if model.opt.enableflags & mujoco.mjtEnableBit.mjENBL_SLEEP:
        raise InputError(f"{where}: the model lets bodies sleep, which the state qpos | qvel leaves out; disable it")
    if model.opt.enableflags & mujoco.mjtEnableBit.mjENBL_IPC:
        raise InputError(f"{where}: the flag ipc keeps multipliers that the state qpos | qvel leaves out; disable it")
    joint_names, quaternions = _joint_names(mujoco, model)
    actions = _actuator_names(mujoco, model)
    for i, action in enumerate(actions):
        low, high = model.actuator_ctrlrange[i]
        if not model.actuator_ctrllimited[i] or not low < high or not np.isfinite(high - low):
            raise InputError(
                f"{where}: actuator {action!r} has no finite control range, which actions in [-1, 1] are scaled to; "
                "give it ctrlrange='LOW HIGH'"
            )
    resolved, slices, names = [], {}, [*joint_names]
    for key, readout in readouts.items():
        kind, i = _resolve(mujoco, model, where, key, readout)
        width = 1 if kind is MeanVelocity else 3
        slices[key] = slice(len(names), len(names) + width)
        names += [key] if width == 1 else [f"{key}_{axis}" for axis in AXES]
        resolved.append((kind, i))
    twice = sorted({x for x in names if names.count(x) > 1})
    if twice:
        raise InputError(
            f"{where}: the readout name {twice[0]!r} names a component of the state already; give the readout another"
        )
    return Simulation(
        name=name,
        model=model,
        frame_skip=frame_skip,
        readouts=tuple(resolved),
        readout_slices=slices,
        state_names=tuple(names),
        action_names=actions,
        action_low=tuple(model.actuator_ctrlrange[:, 0].tolist()),
        action_high=tuple(model.actuator_ctrlrange[:, 1].tolist()),
        quaternions=quaternions,
    )


def _take_larger_margins(mujoco: Any, model: Any, where: str) -> None:
    """Change the geoms' margins so that their sum in each contact is the larger of the two as they were.

    Two equal margins are halved, and one beside a margin of 0 stays; no other two can be served. Explicit contact pairs
    have a margin of their own, which MuJoCo has always taken from the larger one.

    Raises:
        InputError: two geoms that can touch have other margins, or a gap, whose meaning changed as well; or the model
            has a flex.
    """
    halved: set[int] = set()
    kept: set[int] = set()
    advice = "give geoms that can touch the same margin and no gap, or take contact_margin = 'sum'"
    if model.nflex and contacts_enabled(model):
        raise InputError(f"{where}: contact_margin = 'maximum' does not cover flexes; take contact_margin = 'sum'")
    for pair in colliding_geoms(model):
        first, second = (element_name(mujoco, model, "GEOM", g) for g in pair)
        margins, gaps = model.geom_margin[list(pair)].tolist(), model.geom_gap[list(pair)].tolist()
        if any(gaps):
            raise InputError(
                f"{where}: geoms {first!r} and {second!r} have gaps {gaps[0]:g} and {gaps[1]:g}, which contact_margin "
                f"= 'maximum' does not cover; {advice}"
            )
        if margins[0] == margins[1]:
            halved |= {g for g in pair if model.geom_margin[g]}
        elif min(margins) == 0.0:
            kept |= {g for g in pair if model.geom_margin[g]}
        else:
            raise InputError(
                f"{where}: geoms {first!r} and {second!r} have margins {margins[0]:g} and {margins[1]:g}, which no sum "
                f"makes the larger of; {advice}"
            )
    both = sorted(halved & kept)
    if both:
        raise InputError(
            f"{where}: geom {element_name(mujoco, model, 'GEOM', both[0])!r} can touch geoms of its own margin "
            f"{model.geom_margin[both[0]]:g} and geoms of margin 0, which contact_margin = 'maximum' cannot serve "
            f"together; {advice}"
        )
    model.geom_margin[sorted(halved)] *= 0.5


def contacts_enabled(model: Any) -> bool:
    """Whether the model's flags let contacts act."""
    flags = load_mujoco().mjtDisableBit
    return not model.opt.disableflags & (flags.mjDSBL_CONTACT | flags.mjDSBL_CONSTRAINT)


def colliding_geoms(model: Any) -> list[tuple[int, int]]:
    """Pairs of geoms that MuJoCo's filters let come into contact, the lower type first; explicit pairs apart."""
    if not contacts_enabled(model):
        return []
    mujoco = load_mujoco()
    parents = not model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_FILTERPARENT
    excluded = {int(s) for s in model.exclude_signature}
    found = []
    for g1, g2 in itertools.combinations(range(model.ngeom), 2):
        b1, b2 = sorted((int(model.geom_bodyid[g1]), int(model.geom_bodyid[g2])))
        w1, w2 = int(model.body_weldid[b1]), int(model.body_weldid[b2])
        if w1 == w2 or (b1 << 16) + b2 in excluded:
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


def _actuator_names(mujoco: Any, model: Any) -> tuple[str, ...]:
    """The actuators' names; one without takes that of the joint it drives, with ``_2`` and so on where it is taken."""
    own = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_ACTUATOR, i) for i in range(model.nu)]
    joints = (mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT)
    names = []
    for i, name in enumerate(own):
        if not name and mujoco.mjtTrn(model.actuator_trntype[i]) in joints:
            name = element_name(mujoco, model, "JOINT", int(model.actuator_trnid[i, 0]))
        names.append(name or f"actuator{i}")
    return tuple(_distinct(names, keep=[bool(name) for name in own]))


def _distinct(names: Sequence[str], keep: Sequence[bool]) -> list[str]:
    """The names, all different: of equal ones the later get ``_2``, ``_3``, ...; those to ``keep`` are as given."""
    used = {name for name, kept in zip(names, keep, strict=True) if kept}
    found = []
    for name, kept in zip(names, keep, strict=True):
        place, unique = 2, name
        while not kept and unique in used:
            unique, place = f"{name}_{place}", place + 1
        used.add(unique)
        found.append(unique)
    return found


def _joint_names(mujoco: Any, model: Any) -> tuple[list[str], tuple[int, ...]]:
    """Names of all positions, then of all velocities, all different; and where quaternions start in qpos.

    The position of a hinge or slide joint that has a name keeps it, whatever other names are made of.
    """
    positions: list[str] = []
    given: list[bool] = []
    velocities: list[str] = []
    quaternions = []
    for i in range(model.njnt):
        name, kind = element_name(mujoco, model, "JOINT", i), mujoco.mjtJoint(model.jnt_type[i])
        if kind == mujoco.mjtJoint.mjJNT_FREE:
            positions += [f"{name}_{axis}" for axis in AXES]
            velocities += [f"{name}_v{axis}" for axis in AXES]
        if kind in (mujoco.mjtJoint.mjJNT_FREE, mujoco.mjtJoint.mjJNT_BALL):
            quaternions.append(len(positions))
            positions += [f"{name}_q{axis}" for axis in ("w", *AXES)]
            velocities += [f"{name}_w{axis}" for axis in AXES]
        else:
            positions.append(name)
            velocities.append(f"{name}_velocity")
        own = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_JOINT, i) == positions[-1]
        given += [own] * (len(positions) - len(given))
    return _distinct(positions + velocities, keep=given + [False] * len(velocities)), tuple(quaternions)


def _resolve(mujoco: Any, model: Any, where: str, key: str, readout: Any) -> tuple[type, int]:
    """A readout's kind, and the number it stands for in the compiled model."""
    element, name = {
        BodyPosition: ("BODY", getattr(readout, "body", None)),
        SitePosition: ("SITE", getattr(readout, "site", None)),
        MeanVelocity: ("JOINT", getattr(readout, "joint", None)),
    }.get(type(readout), (None, None))
    coordinate = getattr(readout, "coordinate", 0)
    if element is None or not isinstance(name, str) or type(coordinate) is not int:
        raise InputError(
            f"{where}: readout {key!r} is {readout!r}; accepted are BodyPosition, SitePosition and MeanVelocity of a "
            "name"
        )
    kind = element.lower()
    i = mujoco.mj_name2id(model, getattr(mujoco.mjtObj, f"mjOBJ_{element}"), name)
    if i < 0:
        number: int = getattr(model, {"BODY": "nbody", "SITE": "nsite", "JOINT": "njnt"}[element])
        names = [element_name(mujoco, model, element, j) for j in range(number)]
        raise InputError(
            f"{where}: readout {key!r} names the {kind} {name!r}, which the model does not have; it has: "
            f"{', '.join(names) or 'none'}"
        )
    if not isinstance(readout, MeanVelocity):
        return type(readout), i
    type_of_joint = mujoco.mjtJoint(model.jnt_type[i])
    free = type_of_joint == mujoco.mjtJoint.mjJNT_FREE
    if type_of_joint == mujoco.mjtJoint.mjJNT_BALL or not 0 <= readout.coordinate < (3 if free else 1):
        raise InputError(
            f"{where}: readout {key!r} wants the mean velocity of coordinate {readout.coordinate} of joint {name!r}; "
            "accepted is coordinate 0 of a hinge or slide joint, and 0 to 2 of a free joint"
        )
    return MeanVelocity, int(model.jnt_qposadr[i]) + readout.coordinate
