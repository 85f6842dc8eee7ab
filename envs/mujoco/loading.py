"""Loads MJCF models: finds them, refuses what a task cannot use, reads names, ranges and readouts."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mage_diffsim.envs.mujoco.controls import (
    actuator_names,
    control_names,
    control_ranges,
    distinct,
    unbounded_controls,
)
from mage_diffsim.envs.mujoco.model import (
    BodyPosition,
    CentreOfMass,
    CentreOfMassVelocity,
    MeanVelocity,
    Simulation,
    SitePosition,
    colliding_geoms,
    contacts_enabled,
    element_name,
    load_mujoco,
    quiet,
)
from mage_diffsim.envs.mujoco.refusals import Refusal
from mage_diffsim.errors import InputError, unknown_name

AXES = ("x", "y", "z")
QUATERNION = ("qw", "qx", "qy", "qz")
CONTACT_MARGINS = ("sum", "maximum")
"""How the margins of two geoms make the margin of their contact: ``sum`` as in MuJoCo 3.5 and later, ``maximum`` as in
earlier versions."""
HIDDEN = {
    "mjSTATE_PLUGIN": "plugins with a state of their own",
    "mjSTATE_PLASTIC": "plastic springs or flexes (springyield, yield)",
}
"""Parts of MuJoCo's state that a step changes, that the state of a task leaves out, and that have no refusal of their
own below."""


def find(mjcf: str, folder: Path) -> Path | None:
    """Finds the file that ``mjcf`` names (see :attr:`.task.MujocoTask.mjcf`); None if it is the XML itself.

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
        name: the task's name, for error messages.
        mjcf: the model, see :attr:`.task.MujocoTask.mjcf`.
        folder: the folder where relative paths start.
        frame_skip: simulator steps per action.
        readouts: name to :data:`Readout`.
        contact_margin: one of :data:`CONTACT_MARGINS`, see :attr:`.task.MujocoTask.contact_margin`.

    Raises:
        InputError: the model does not load, has no joint or no actuator, has a control that nothing bounds, has state
            that a task's state leaves out, lacks what a readout names, or has margins that cannot be combined as asked.
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

    refusal = next(refusals(model), None)
    if refusal is not None:
        raise InputError(f"{where}: {refusal.sentence}")
    ranges = control_ranges(mujoco, model)
    resolved, named = [], {}
    for key, readout in readouts.items():
        kind, i = _resolve(mujoco, model, where, key, readout)
        named[key] = [key] if kind is MeanVelocity else [f"{key}_{axis}" for axis in AXES]
        resolved.append((kind, i))
    names, quaternions = _moving_names(mujoco, model, [name for part in named.values() for name in part])
    slices = {}
    for key, part in named.items():
        slices[key] = slice(len(names), len(names) + len(part))
        names += part
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
        action_names=control_names(mujoco, model),
        action_low=tuple(low for low, _ in ranges),
        action_high=tuple(high for _, high in ranges),
        quaternions=quaternions,
    )


def refusals(model: Any) -> Iterator[Refusal]:
    """Yields what keeps every backend from a ``mujoco.MjModel``: what a task needs and it lacks, or state left out."""
    mujoco = load_mujoco()
    if not model.nv:
        yield Refusal("the model has no joint, so there is nothing to control; give it one", "no joint")
    if not model.nu:
        what = "no actuator with a control"
        yield Refusal(f"the model has {what}, so there is nothing to do; give it one", what)
    names = actuator_names(mujoco, model)
    for i in np.flatnonzero(model.actuator_dyntype == mujoco.mjtDyn.mjDYN_USER):
        actuator = f"actuator {element_name(mujoco, model, 'ACTUATOR', int(i))!r}"
        sentence = f"{actuator} has dyntype user, whose activation a callback computes; use another dyntype"
        yield Refusal(sentence, "actuators of dyntype user", (actuator,))
    for i in np.flatnonzero(model.actuator_delay):
        late = f"actuator {names[i]!r}"
        sentence = f"{late} has a delay, whose history a task's state leaves out; use actuators without"
        yield Refusal(sentence, "actuators with a delay", (late,))
    for part, what in HIDDEN.items():
        if mujoco.mj_stateSize(model, getattr(mujoco.mjtState, part)):
            yield Refusal(f"the model has {what}, which a task's state leaves out; use a model without", what)
    if model.opt.enableflags & mujoco.mjtEnableBit.mjENBL_SLEEP:
        yield Refusal("the model lets bodies sleep, which a task's state leaves out; disable it", "bodies that sleep")
    if model.opt.enableflags & mujoco.mjtEnableBit.mjENBL_IPC:
        yield Refusal("the flag ipc keeps multipliers that a task's state leaves out; disable it", "the flag ipc")
    yield from _nan(model)
    if not model.opt.timestep > 0.0:
        yield Refusal(f"timestep is {model.opt.timestep:g}; accepted is a positive number", "no time step")
    yield from unbounded_controls(mujoco, model)


def _nan(model: Any) -> Iterator[Refusal]:
    """Yields the first field of a model that is not a number; what MuJoCo computes from it (``dof_M0``) comes last."""
    fields = [(owner, field) for owner in (model.opt, model) for field in dir(owner) if field[0] != "_"]
    for owner, field in sorted(fields, key=lambda x: x[1].endswith("0")):
        value = np.asarray(getattr(owner, field))
        if value.dtype.kind == "f" and np.isnan(value).any():
            row = f"[{np.isnan(value).reshape(len(value), -1).any(1).argmax()}]" if value.ndim else ""
            yield Refusal(f"{field}{row} is nan; give a number", "values that are nan", (field,))
            return


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


def _moving_names(mujoco: Any, model: Any, readouts: list[str]) -> tuple[list[str], tuple[int, ...]]:
    """Names of all positions, velocities, activations and numbers of mocap poses, in this order and all different; and
    where quaternions start among them.

    The position of a hinge or slide joint that has a name keeps it; other names give way. Those of mocap poses give way
    to the names of ``readouts``, too.
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
            positions += [f"{name}_{axis}" for axis in QUATERNION]
            velocities += [f"{name}_w{axis}" for axis in AXES]
        else:
            positions.append(name)
            velocities.append(f"{name}_velocity")
        own = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_JOINT, i) == positions[-1]
        given += [own] * (len(positions) - len(given))
    others = [*velocities]
    for i, name in enumerate(actuator_names(mujoco, model)):
        others += [f"{name}_activation"] * int(model.actuator_actnum[i])
    names = distinct(positions + others, keep=given + [False] * len(others))
    poses: list[str] = []
    for mocap in range(model.nmocap):
        body = element_name(mujoco, model, "BODY", int(np.flatnonzero(model.body_mocapid == mocap)[0]))
        quaternions.append(len(names) + len(poses) + 3)
        poses += [f"{body}_{axis}" for axis in (*AXES, *QUATERNION)]
    taken = [*names, *readouts]
    poses = distinct(taken + poses, keep=[True] * len(taken) + [False] * len(poses))[len(taken) :]
    return names + poses, tuple(quaternions)


def _resolve(mujoco: Any, model: Any, where: str, key: str, readout: Any) -> tuple[type, int]:
    """A readout's kind, and the number of its element in the compiled model."""
    element, name = {
        **dict.fromkeys((BodyPosition, CentreOfMass, CentreOfMassVelocity), ("BODY", getattr(readout, "body", None))),
        SitePosition: ("SITE", getattr(readout, "site", None)),
        MeanVelocity: ("JOINT", getattr(readout, "joint", None)),
    }.get(type(readout), (None, None))
    coordinate = getattr(readout, "coordinate", 0)
    if element is None or not isinstance(name, str) or type(coordinate) is not int:
        raise InputError(
            f"{where}: readout {key!r} is {readout!r}; accepted are BodyPosition, SitePosition, MeanVelocity, "
            "CentreOfMass and CentreOfMassVelocity of a name"
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
