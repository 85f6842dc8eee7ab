"""The errors a user can cause, each one sentence: what was given, what is accepted.

The command line turns both into that sentence and exit code 2. This module and :mod:`mage_diffsim.shapes` serve the
learner, the environments and the bridges alike, so neither imports anything of the package.
"""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """Something the user gave is not accepted; the message says what was given and what is."""


class MissingExtra(ImportError):
    """An optional backend is not installed; the message names the extra that installs it."""


def unknown_name(kind: str, given: object, accepted: Iterable[str]) -> InputError:
    """The error for a name that is not in a closed list, which it spells out."""
    return InputError(f"unknown {kind} {given!r}: choose one of {', '.join(sorted(accepted))}")


def reason_of(error: BaseException) -> str:
    """A foreign error in a few words: its first sentence, whole if it is short, or else its first words."""
    lines = str(error).strip().splitlines()
    sentence = lines[0].partition(". ")[0].rstrip(".") if lines else type(error).__name__
    return textwrap.shorten(sentence, 100, placeholder=" ...")


def missing_extra(package: str, extra: str) -> MissingExtra:
    """The error for an optional package that is absent."""
    return MissingExtra(f"{package} is not installed: pip install -e '.[{extra}]' in the project's folder")


def import_extra(module: str, package: str, extra: str, *needed: str) -> Any:
    """Imports the module of an optional package; errors inside the package pass through.

    Args:
        module: the module's name.
        package: the name under which the package is installed.
        extra: the extra that installs it.
        needed: modules of other packages without which this one cannot be imported either.

    Raises:
        MissingExtra: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (module, *needed):
            raise
        raise missing_extra(package, extra) from error
