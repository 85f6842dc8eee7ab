"""Checkpoints: the newest states of a training, as plain dicts of tensors."""

from __future__ import annotations

import errno
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mage_diffsim.errors import InputError, reason_of
from mage_diffsim.files import AnyPath, as_path, replacing

CHECKPOINT_VERSION = 3
"""Raised whenever the layout of a checkpoint changes, or what a run of the same settings does."""

KEPT_CHECKPOINTS = 2
CHECKPOINT_FILES = "step_*.pt"


def newest_checkpoint(run_dir: AnyPath) -> Path | None:
    """The checkpoint with the highest step, if there is one."""
    found = checkpoints_of(as_path(run_dir))
    return found[-1] if found else None


def step_of(checkpoint: Path) -> int:
    """The environment steps done at a checkpoint, which its name says."""
    return int(checkpoint.stem.removeprefix("step_"))


def checkpoints_of(run_dir: Path) -> list[Path]:
    """The checkpoints of a run folder, the newest last."""
    return sorted((run_dir / "checkpoints").glob(CHECKPOINT_FILES))


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old one or the new one, never half of one.

    Raises:
        InputError: it cannot be written, as on a full disk; the old one is left.
    """
    with replacing(path) as temporary:
        path.parent.mkdir(exist_ok=True)
        with open(temporary, "wb") as file:
            told = _Told(file)
            try:
                torch.save({"version": CHECKPOINT_VERSION} | content, told)  # type: ignore[arg-type]
            except RuntimeError as error:  # what torch makes of a full disk
                raise told.error or OSError(errno.EIO, str(error).splitlines()[0]) from error
            file.flush()
            os.fsync(file.fileno())


class _Told:
    """A file that remembers the system's first error in a write, which torch hides behind its own."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.flush = file, file.flush
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint (tensors and plain containers only, never code) onto the CPU.

    Raises:
        InputError: it is damaged, or written by an older or newer version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version = int(content["version"])
        if version == CHECKPOINT_VERSION:
            _ = content["train_s"] + content["wall_s"] + content["trainer"]["env_step"]  # what every reader uses
    except (
        OSError,
        RuntimeError,
        EOFError,
        LookupError,
        TypeError,
        ValueError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        older = any(other < path for other in path.parent.glob(CHECKPOINT_FILES))
        cure = "delete it to resume from the one before" if older else "there is none before it, so train anew"
        raise InputError(f"checkpoint {path} is damaged ({reason_of(error)}): {cure}") from error
    if version != CHECKPOINT_VERSION:
        older = "train the run anew, in a new folder, as the learner has changed since"
        raise InputError(
            f"checkpoint {path} has version {version}, and this mage_diffsim reads version {CHECKPOINT_VERSION}: "
            + (older if version < CHECKPOINT_VERSION else "update it")
        )
    return content
