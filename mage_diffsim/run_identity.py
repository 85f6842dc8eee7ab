"""What a run is trained with, and whether that is still the same when it goes on."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import mage_diffsim
from mage_diffsim.config import TrainConfig
from mage_diffsim.devices import environment_of
from mage_diffsim.envs.identity.options import plain
from mage_diffsim.envs.identity.reference import reference_of
from mage_diffsim.envs.identity.sources import changed_parts, sources_of
from mage_diffsim.envs.task import Task
from mage_diffsim.errors import InputError
from mage_diffsim.files import AnyPath, as_path, read_json
from mage_diffsim.policy import describe_task

HARMLESS = frozenset({"steps", "checkpoint_every", "compile", "graphs", "device", "matmul"})
"""Fields that may change while a run goes on: they decide how long, where and with what rounding it trains."""


def differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The fields in which two configurations (:meth:`TrainConfig.to_dict`) differ, as ``name X and not Y``."""

    def flat(data: dict[str, Any]) -> dict[str, Any]:
        rest = {k: v for k, v in data.items() if k != "hyper"}
        return plain(rest | {f"hyper.{k}": v for k, v in data.get("hyper", {}).items()})

    old, new = flat(was), flat(now)
    return [f"{k} {old.get(k)} and not {new.get(k)}" for k in {**new, **old} if old.get(k) != new.get(k)]


def with_environment(config: TrainConfig, task: Task) -> TrainConfig:
    """The configuration with the real environment's backend written out, so that no other device changes it."""
    return dataclasses.replace(config, environment=environment_of(config, task))


def identity_of(config: TrainConfig, task: Task) -> dict[str, Any]:
    """What a run is trained with, as plain values: what must be the same when it goes on."""
    return {
        "mage_diffsim": mage_diffsim.__version__,
        "config": with_environment(config, task).to_dict(),
        "task": describe_task(task, config.task_options),
        "sources": sources_of(task),
    }


def read_identity(run_dir: AnyPath) -> dict[str, Any] | None:
    """What a run is trained with, see :func:`identity_of`; None for a run of an older version.

    Raises:
        InputError: the file is damaged.
    """
    path = as_path(run_dir) / "identity.json"
    if not path.is_file():
        return None
    identity = read_json(path)
    if not {"mage_diffsim", "config", "sources"} <= identity.keys():
        raise InputError(f"{path} is damaged (it lacks an entry): delete it to take the run as it is")
    return identity


def require_unchanged(run_dir: Path, config: TrainConfig, task: Task, identity: dict[str, Any] | None) -> None:
    """Refuse to go on with what a run was not trained with.

    Args:
        run_dir: the run folder, for the message.
        config: the configuration now.
        task: the task now.
        identity: what :func:`identity_of` was for it; None for a run of an older version, which is let pass with a
            warning.

    Raises:
        InputError: names what has changed.
    """
    if identity is None:
        logging.getLogger(__name__).warning(
            f"{run_dir} was trained by an older version of mage_diffsim, which did not record with what: whether its "
            "configuration and its task are still the same is not known"
        )
        return
    changed = changes(identity, config, task)
    if changed:
        version = identity["mage_diffsim"]
        other = f" by mage_diffsim {version}" if version != mage_diffsim.__version__ else ""
        raise InputError(
            f"{run_dir} was trained{other} with {', '.join(changed)}: restore that to go on, or train anew into "
            "another folder"
        )


def changes(identity: dict[str, Any], config: TrainConfig, task: Task) -> list[str]:
    """The differences of a configuration and a task from those of a run, worded to follow "it was trained with"."""
    config = with_environment(config, task)
    was, now = ({k: v for k, v in c.items() if k not in HARMLESS} for c in (identity["config"], config.to_dict()))
    was = {k: v for k, v in now.items() if k not in was} | was  # a field that is newer than the run
    sources, sources_now = identity["sources"], sources_of(task)
    (file, _, name), (file_now, _, name_now) = (r.rpartition(":") for r in (was["task"], reference_of(type(task))))
    if file.endswith(".py") and file_now.endswith(".py") and name == name_now:
        before, after = Path(file).name, Path(file_now).name
        if before in sources and before not in sources_now:  # a file may be moved, and called otherwise
            sources = {after if part == before else part: digest for part, digest in sources.items()}
        if not changed_parts(sources, sources_now) and now["task"].rpartition(":")[2] == name:
            now["task"] = was["task"]
    parts = changed_parts(sources, sources_now)
    return differences(was, now) + [f"another {part} of task {task.name}" for part in parts]
