"""Where the commands write: the console and files that a flag names."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from mage_diffsim.errors import InputError
from mage_diffsim.files import is_replaceable, make_folder, write_atomically


class _Output(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # for the command to end as it does without rich, which would exit with code 1


def make_console() -> Console:
    """Standard output; wide when it is a file or a pipe, whose reader can scroll."""
    console = _Output()
    return console if console.is_terminal else _Output(width=160)


PROBE = 1 << 16
"""Bytes written to see whether a disk is full; a few bytes would fail only after the file is closed."""


def check_writable(path: Path | None) -> None:
    """Refuse an output file before the work for it is done; folders that are not there are created when it is written.

    Raises:
        InputError: it is a folder itself, or its folder cannot be created or written to, or its disk is full.
    """
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give the name of a file")
    folder = next(p for p in Path(os.path.realpath(path)).parents if p.exists())
    if not folder.is_dir():
        raise InputError(f"cannot write {path}: {folder} is a file, not a folder")
    if not is_replaceable(path):  # a device or a pipe, which answers when it is written to
        return
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE))
    except OSError as error:
        raise InputError(
            f"cannot write {path}: nothing can be written into the folder {folder}: {error.strerror or error}"
        ) from error


def write_json(path: Path | None, content: Any) -> None:
    """Write the content to the file that a flag names, if it names one, and say so."""
    if path is not None:
        make_folder(path.parent)
        write_atomically(path, json.dumps(content, indent=2) + "\n")
        say_written(path)


def say_written(path: Path) -> None:
    """Print where a file was written."""
    make_console().print(f"written: {path}", highlight=False, markup=False, soft_wrap=True)
