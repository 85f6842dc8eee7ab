"""Finding MJCF models and making tasks of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch

from mage_diffsim.envs.mujoco.loading import find
from mage_diffsim.envs.mujoco.model import load_mujoco, quiet
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.errors import InputError
from mage_diffsim.model_checks.reference import NOISE
from mage_diffsim.shapes import Tensor

GYMNASIUM = "gymnasium:"
"""Stands for the folder of Gymnasium's models."""


class Model(NamedTuple):
    """A file that holds a whole model."""

    name: str
    """Its path from the folder that was given, without the ending."""
    path: Path


class Look(NamedTuple):
    """What a file is."""

    kind: Literal["model", "part", "broken"]
    """A part is meant for other files to include, or has nothing that moves."""
    what: str
    """A hash of the compiled model, or why this is none."""


class Found(NamedTuple):
    """What lies below some paths."""

    models: list[Model]
    parts: dict[str, str]
    """Files that are no model by themselves, and copies of other files: name to reason."""
    broken: dict[str, str]
    """Files that cannot be checked: name to reason."""
    barren: list[str]
    """Folders, as they were given, in which no file is a model."""


def find_models(paths: Sequence[str], look: Callable[[Path], Look] | None = None) -> Found:
    """Finds the models below the paths, and says by name why other MJCF files are none.

    Names are unique: where two files of different folders would have one, the later one begins a folder further up.

    Args:
        paths: MJCF files, folders that are searched for them, ``gymnasium:FILE.xml``, or :data:`GYMNASIUM` for all.
        look: :func:`look_at`, or a function that calls it where a crash does no harm.

    Raises:
        InputError: a path does not exist, is a folder without an MJCF file, or is a file that is no model by itself.
    """
    found = Found([], {}, {}, [])
    seen: dict[str, str] = {}
    included: dict[Path, str] = {}
    for given in paths:
        folder = gymnasium_assets() if given == GYMNASIUM else Path(given)
        if given.startswith(GYMNASIUM) and given != GYMNASIUM:
            folder = find(given, Path()) or folder
        if not folder.exists():
            raise InputError(
                f"there is no file or folder {given}; accepted is MJCF, a folder of it, {GYMNASIUM} or "
                f"{GYMNASIUM}FILE.xml"
            )
        files = [folder] if folder.is_file() else sorted(folder.rglob("*.xml"))
        if not files:
            raise InputError(f"no .xml file lies in {given}")
        root = folder.parent if folder.is_file() or len(paths) > 1 else folder
        for file in files:
            for name in _INCLUDE.findall(_text(file)):
                included.setdefault((file.parent / name).resolve(), file.relative_to(root).as_posix())
        barren = True
        for file in files:
            model = Model(_name(file, root, {*seen.values(), *found.parts, *found.broken}), file)
            kind, what = (look or look_at)(file)
            by = included.get(file.resolve())
            if kind != "model" and by is not None and _root(file) is not None:
                kind, what = "part", f"it is included by {by}"
            barren = barren and kind != "model"
            if kind == "model" and what not in seen:
                seen[what] = model.name
                found.models.append(model)
            elif kind == "model":
                found.parts[model.name] = f"the same model as {seen[what]}"
            elif file == folder:
                trouble = {"part": "is not a model by itself", "broken": "cannot be checked"}[kind]
                raise InputError(f"{given} {trouble}: {what}")
            else:
                (found.parts if kind == "part" else found.broken)[model.name] = what
        found.barren.extend([given] * barren)
    return found


def _name(file: Path, root: Path, taken: set[str]) -> str:
    """The file's path from a folder, without the ending; from one further up where the name is taken."""
    while (name := file.relative_to(root).with_suffix("").as_posix()) in taken and root != root.parent:
        root = root.parent
    return name


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from error


_INCLUDE = re.compile(r"""<include\s[^>]*\bfile\s*=\s*["']([^"']+)["']""")


def gymnasium_assets() -> Path:
    """The folder of Gymnasium's models."""
    package = find_spec("gymnasium")
    assert package is not None and package.origin is not None
    return Path(package.origin).parent / "envs" / "mujoco" / "assets"


def look_at(file: Path) -> Look:
    """Tells whether a file holds a whole model."""
    mujoco = load_mujoco()
    root = _root(file)
    tag = None if root is None else root.tag
    if tag == "robot":
        advice = "save it as MJCF with mujoco.mj_saveLastXML and add actuators"
        return Look("broken", f"it is URDF, which has no actuators; {advice}")
    try:
        with quiet():
            model = mujoco.MjModel.from_xml_path(str(file))
    except ValueError as error:
        reason = one_line(error, file)
        if tag == "mujocoinclude":
            return Look("part", "it is an include (mujocoinclude)")
        if root is not None and root.find("worldbody") is None and "Schema violation" not in reason:
            return Look("part", "it has no worldbody: an include")
        return Look("broken", f"MuJoCo does not load it: {reason}")
    if not model.nv:
        return Look("part", "it has no joint: an include or a scene")
    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return Look("model", hashlib.sha256(buffer.tobytes()).hexdigest())


def _root(file: Path) -> ElementTree.Element | None:
    """The root of a file's XML; None if it is not XML."""
    try:
        return ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, ValueError, LookupError):  # the latter two by its encoding
        return None


def one_line(error: BaseException, file: Path) -> str:
    """The error in one line, without the model's folder on this machine."""
    text = " ".join(str(error).split())
    for folder in (file.resolve().parent, file.parent, *file.resolve().parents[1:3]):
        text = text.replace(f"{folder}/", "")
    return text


def reason_of(error: BaseException, file: Path) -> str:
    """:func:`one_line` without the name of the file's task."""
    return one_line(error, file).removeprefix(f"task {_task_name(file)}: ")


def _task_name(path: Path) -> str:
    return "Model_" + "".join(c if c.isalnum() else "_" for c in path.stem)


def task_of(path: Path) -> MujocoTask:
    """Makes a task of a file's unchanged model: one step per action, the state as observation, reward 0.

    Episodes start at the model's initial configuration, with noise.
    """
    name = _task_name(path)

    def observe(self: MujocoTask, state: Tensor) -> Tensor:
        return state

    def reward(self: MujocoTask, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return torch.zeros_like(obs[..., 0])

    def terminated(self: MujocoTask, next_obs: Tensor) -> Tensor:
        return torch.zeros_like(next_obs[..., 0], dtype=torch.bool)

    return type(name, (MujocoTask,), {
        "name": name, "mjcf": str(path.resolve()), "frame_skip": 1, "horizon": 1000, "source": path.name,
        "position_noise": NOISE, "velocity_noise": NOISE,
        "observe": observe, "reward": reward, "terminated": terminated,
    })()  # fmt: skip
