"""The errors a user can cause, each one sentence: what was given, what is accepted.

The command line turns both into that sentence and exit code 2. This module and :mod:`mage_diffsim.shapes` serve the
learner, the environments and the bridges alike, so neither imports anything of the package.
"""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Iterable
from types import UnionType
from typing import Any


class InputError(ValueError):
    """Something the user gave is not accepted; the message says what was given and what is."""


class TooLarge(InputError):
    """A model takes more time or memory than a backend spends on one."""


class MissingExtra(ImportError):
    """An optional backend is not installed; the message names the extra that installs it."""


def unknown_name(kind: str, given: object, accepted: Iterable[str], *, remedy: str = "") -> InputError:
    """The error for a name that is not in a closed list, which it spells out.

    Args:
        kind: what the name is of: ``backend of task Pendulum``.
        given: the name.
        accepted: the list.
        remedy: what the user can do where the list is empty: ``declare it in readouts``.
    """
    names = ", ".join(sorted(accepted))
    choice = f"choose one of {names}" if names else "; ".join(filter(None, ("there is none", remedy)))
    return InputError(f"unknown {kind} {given!r}: {choice}")


def described(value: object) -> str:
    """A value of an unexpected type in words: ``'Pendulum'``, ``the class Pendulum``, ``a numpy.ndarray``."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, (str, int, float)):
        return repr(value)
    return kind_of(value)


def kind_of(value: object) -> str:
    """The type of a value in words: a float, a numpy.ndarray."""
    if value is None:
        return "None"
    kind = type(value)
    module = kind.__module__.partition("._")[0]  # torch._C is no module that users know
    name = kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def require_kind(what: str, given: object, kind: type | UnionType, accepted: str) -> None:
    """Check the type of what a user gave.

    Raises:
        InputError: it is of another type; the message says what is ``accepted``.
    """
    if not isinstance(given, kind):
        raise InputError(f"{what} is {described(given)}; accepted is {accepted}")


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
