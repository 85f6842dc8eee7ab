"""Paths as they are given, files as they are written: UTF-8, in one go, and one sentence where that fails."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mage_diffsim.bridges.errors import InputError

AnyPath = str | os.PathLike[str]
"""What every public function takes for a path; ``~`` is the home folder."""


def as_path(path: AnyPath) -> Path:
    """The path as a :class:`~pathlib.Path`.

    Raises:
        InputError: it is none.
    """
    given: Any = path
    if not isinstance(given, str | os.PathLike) or not isinstance(os.fspath(given), str) or not os.fspath(given):
        raise InputError(f"a path is {given!r}; accepted is text or a path object that is not empty")
    try:
        return Path(given).expanduser()
    except RuntimeError:  # no such user, or no home: then ~ is a name like any other
        return Path(given)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system has against a write (a full disk, no permission) into one sentence.

    Raises:
        InputError: names the file and the cause.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """A temporary file beside ``path`` to write to, which takes its place in the end; on any failure it is removed.

    Raises:
        InputError: it cannot be written.
    """
    temporary = temporary or path.with_name(path.name + ".tmp")
    try:
        with writing(path):
            yield temporary
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
