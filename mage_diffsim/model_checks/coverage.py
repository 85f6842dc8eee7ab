"""What each backend covers of a model, and every element that is in the way."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from mage_diffsim.envs.mujoco import loading
from mage_diffsim.envs.mujoco.convergence import solver_gap
from mage_diffsim.envs.mujoco.model import load_mujoco, quiet
from mage_diffsim.envs.mujoco.refusals import Refusal
from mage_diffsim.envs.physics import BACKENDS, load
from mage_diffsim.errors import InputError, MissingExtra, TooLarge
from mage_diffsim.model_checks.facts import facts_of
from mage_diffsim.model_checks.finding import reason_of, task_of

TOO_LARGE = "a size beyond what the backend compiles"
"""The feature of a model that is :class:`.TooLarge`."""


class Obstacle(NamedTuple):
    """A feature of a model that a backend does not cover."""

    feature: str
    count: int
    """Elements that have it; 1 for an option."""
    elements: tuple[str, ...]
    """By kind and name; none for an option."""


class Coverage(NamedTuple):
    """What a backend says to a model."""

    backend: str
    reason: str
    """The sentence by which it refuses the model; empty where it covers it."""
    obstacles: tuple[Obstacle, ...]
    """All that is in the way."""


def _of_warp(model: Any) -> Iterable[Refusal]:
    from mage_diffsim.envs.warp.compiler.intake import refusals

    return refusals(model)


def _of_mjx(model: Any) -> Iterable[Refusal]:
    from mage_diffsim.envs.mjx.unsupported import refusals

    return refusals(model)


_REFUSALS = {"warp": _of_warp, "mjx": _of_mjx, "mujoco": lambda model: ()}
CHECKED = tuple(_REFUSALS)
"""Backends that say what they cover of a MuJoCo model."""


def coverage_of(path: Path, backend: str) -> Coverage:
    """What one of :data:`CHECKED` covers of the model in a file, without compiling anything."""
    task, otherwise = task_of(path), ""
    try:
        load(BACKENDS[backend]).check_covers(task)
        task.simulation  # noqa: B018  (what no task can use is refused here)
        return Coverage(backend, "", ())
    except (InputError, MissingExtra) as error:
        reason, missing = reason_of(error, path), isinstance(error, MissingExtra)
        otherwise = TOO_LARGE if isinstance(error, TooLarge) else reason.partition(";")[0]
    model = _load(path)
    found: dict[str, list[tuple[str, ...]]] = {}
    for refusal in () if missing else (*loading.refusals(model), *_REFUSALS[backend](model)):
        found.setdefault(refusal.feature, []).append(refusal.elements)
    obstacles = []
    for feature, groups in found.items():
        elements = tuple(dict.fromkeys(x for group in groups for x in group))
        obstacles.append(Obstacle(feature, max(len(elements), 1), elements))
    return Coverage(backend, reason, tuple(obstacles) or (Obstacle(otherwise, 1, ()),))


def model_facts(path: Path) -> dict[str, Any]:
    """:func:`.facts_of` the model in a file, and its ``solver_gap``: how far its own settings leave a step from the
    converged one; None for a model that no task can use."""
    try:
        gap = solver_gap(task_of(path).simulation)
    except InputError:
        gap = None
    return facts_of(_load(path)) | {"solver_gap": gap}


def _load(path: Path) -> Any:
    with quiet():
        return load_mujoco().MjModel.from_xml_path(str(path))
