"""Folders for what is compiled: the user's, or a temporary one where that cannot be used."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import shutil
import tempfile
from pathlib import Path

_logger = logging.getLogger("mage_diffsim")


def user_cache() -> Path | None:
    """The user's folder for caches, ``XDG_CACHE_HOME`` or ``~/.cache``; None where there is no home folder."""
    named = os.environ.get("XDG_CACHE_HOME")
    if named and Path(named).is_absolute():  # the XDG specification ignores relative ones
        return Path(named)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return None


@functools.cache
def usable_folder(wanted: Path | None, purpose: str, remedy: str) -> Path:
    """Returns ``wanted``, made where it is missing; if it is not writable, a temporary folder, and logs a warning.

    The temporary folder lasts until the process ends. A second call with the same arguments returns the same folder.

    Args:
        wanted: the folder; None where there is not even a name for it.
        purpose: what is kept in the folder, as the warning says.
        remedy: the environment variable that names another folder.

    Raises:
        OSError: there is no temporary folder either.
    """
    why = "there is no home folder" if wanted is None else _why_unusable(wanted)
    if wanted is not None and why is None:
        return wanted
    instead = Path(tempfile.mkdtemp(prefix="mage_diffsim_"))
    atexit.register(_remove, instead, os.getpid())
    _logger.warning(
        "%s cannot be kept%s (%s): %s serves until this process ends; set %s to a folder that can be written",
        purpose,
        "" if wanted is None else f" in {wanted}",
        why,
        instead,
        remedy,
    )
    return instead


def _why_unusable(folder: Path) -> str | None:
    """Why the folder cannot be written, found out by writing: root and read-only disks make permissions useless."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except FileExistsError:
        return "it is a file"
    except OSError as error:
        return error.strerror or str(error)
    return None


def _remove(folder: Path, owner: int) -> None:
    """Remove the folder, unless this process is a forked child of its owner."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
