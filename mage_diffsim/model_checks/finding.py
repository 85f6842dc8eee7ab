"""Finding MJCF models and making tasks of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

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


def find_models(paths: Sequence[str], look: Callable[[Path], str] | None = None) -> tuple[list[Model], dict[str, str]]:
    """Finds the models below the paths, and says by name why other MJCF files are none.

    Names are unique: where two files of different folders would have one, the later one begins a folder further up.

    Args:
        paths: MJCF files, folders that are searched for them, ``gymnasium:FILE.xml``, or :data:`GYMNASIUM` for all.
        look: :func:`look_at`, or a function that calls it where a crash does no harm.

    Raises:
        InputError: a path does not exist, holds no MJCF file, or is a file that is no model by itself.
    """
    models: list[Model] = []
    left_out: dict[str, str] = {}
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
        for file in files:
            model = Model(_name(file, root, {*seen.values(), *left_out}), file)
            found = (look or look_at)(file)
            if not found.startswith("="):
                if file == folder:
                    raise InputError(f"{given} is not a model by itself: {found}")
                by = included.get(file.resolve())
                left_out[model.name] = found if by is None else f"it is included by {by}"
            elif found in seen:
                left_out[model.name] = f"the same model as {seen[found]}"
            else:
                seen[found] = model.name
                models.append(model)
    return models, left_out


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


def look_at(file: Path) -> str:
    """``=`` and a hash of the compiled model, or the reason why this is no whole model."""
    mujoco = load_mujoco()
    try:
        with quiet():
            model = mujoco.MjModel.from_xml_path(str(file))
    except ValueError as error:
        return f"MuJoCo does not load it: {one_line(error, file)}"
    if not model.nv:
        return "it has no joint: an include or a scene"
    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return "=" + hashlib.sha256(buffer.tobytes()).hexdigest()


def one_line(error: BaseException, file: Path) -> str:
    """The error in one line, without the model's folder on this machine."""
    text = " ".join(str(error).split())
    for folder in (file.resolve().parent, file.parent, *file.resolve().parents[1:3]):
        text = text.replace(f"{folder}/", "")
    return text


def task_of(path: Path) -> MujocoTask:
    """Makes a task of a file's unchanged model: one step per action, the state as observation, reward 0.

    Episodes start at the model's initial configuration, with noise.
    """
    name = "".join(c if c.isalnum() else "_" for c in path.stem)

    def observe(self: MujocoTask, state: Tensor) -> Tensor:
        return state

    def reward(self: MujocoTask, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return torch.zeros_like(obs[..., 0])

    def terminated(self: MujocoTask, next_obs: Tensor) -> Tensor:
        return torch.zeros_like(next_obs[..., 0], dtype=torch.bool)

    return type(f"Model_{name}", (MujocoTask,), {
        "name": f"Model_{name}", "mjcf": str(path.resolve()), "frame_skip": 1, "horizon": 1000, "source": path.name,
        "position_noise": NOISE, "velocity_noise": NOISE,
        "observe": observe, "reward": reward, "terminated": terminated,
    })()  # fmt: skip
