"""Paths as they are given, files as they are written: UTF-8, in one go, and one sentence where that fails."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mage_diffsim.errors import InputError

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
    """Turn the system's error in a write (a full disk, no permission) into one sentence.

    Raises:
        InputError: names the file and the cause.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


MOST_LINKS = 40
"""Links that are followed one after another, as the system does."""


def is_replaceable(path: Path) -> bool:
    """Whether another file may be put in the place of this one, links followed.

    Not so a device, a pipe, and what a process has open (``/dev/stdout``), even if that is a regular file.
    """
    named = str(path)
    for _ in range(MOST_LINKS):
        folder = os.path.realpath(os.path.dirname(named) or ".")
        if folder.startswith("/proc/") and os.path.basename(folder) == "fd":
            return False
        if not os.path.islink(named):
            break
        named = os.path.join(folder, os.readlink(named))
    return os.path.isfile(path) or os.path.isdir(path) or not os.path.exists(path)


@contextlib.contextmanager
def replacing(path: Path, temporary: str | None = None) -> Iterator[Path]:
    """A temporary file to write to, which takes the place of ``path`` in the end; on any failure it is removed.

    A link stays, and what it names is replaced. What cannot be replaced (see :func:`is_replaceable`) is itself given
    to write to.

    Args:
        path: the file.
        temporary: name of the temporary file, beside it; by default ``path``'s and ``.tmp``.

    Raises:
        InputError: it cannot be written.
    """
    if not is_replaceable(path):
        with writing(path):
            yield path
        return
    target = Path(os.path.realpath(path))
    beside = target.with_name(temporary or target.name + ".tmp")
    try:
        with writing(path):
            if target.is_symlink():
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            yield beside
            os.replace(beside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def make_folder(path: Path) -> None:
    """Create a folder with its parents, if it is not there.

    Raises:
        InputError: it cannot be created, as where a file has its name or that of a parent.
    """
    with writing(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            there = next(p for p in (path, *path.parents) if p.exists())
            if there.is_dir():  # a link that leads nowhere
                raise
            raise NotADirectoryError(f"{there} is a file, not a folder") from error


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file in one go; to a device, a pipe or what the process has open, such as /dev/stdout, append.

    Raises:
        InputError: it cannot be written.
    """
    with replacing(path) as temporary, open(temporary, "w" if is_replaceable(path) else "a", encoding="utf-8") as file:
        file.write(text)


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        InputError: it cannot be read, is no JSON object, or has a name twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"{', '.join(sorted(twice))} stands twice in it")
        return dict(pairs)

    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=once)
        if not isinstance(data, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): it must be the JSON that `mage-diffsim train` wrote") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return data
