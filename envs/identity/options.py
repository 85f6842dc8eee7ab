"""The options that a task was made with: recorded, and read from a command line."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mage_diffsim.envs.task import GIVEN, Task
from mage_diffsim.errors import InputError

RECORDABLE = "numbers, text, true, false, None, and lists or dicts of these"
"""What a task's option may be, so that config.json can hold it."""


def options_of(task: Task) -> dict[str, Any]:
    """The options that a task was made with and that differ from their defaults, as ``make_task`` takes them.

    Lists become tuples, and NumPy's numbers plain ones.

    Raises:
        InputError: one of them cannot be recorded, or has no name.
    """
    found: dict[str, Any] = {}
    parameters = inspect.signature(type(task)).parameters
    for name, value in vars(task).get(GIVEN, {}).items():
        if name.startswith("*"):
            if not value:
                continue
            raise InputError(
                f"task {task.name} was made with unnamed arguments {value!r} ({name}), which cannot be recorded with a "
                "run: give its constructor named ones"
            )
        default = parameters[name].default if name in parameters else inspect.Parameter.empty
        try:
            option = plain(value)
        except TypeError:
            if value is default:
                continue
            raise InputError(
                f"option {name} of task {task.name} is {short(value)}, which cannot be recorded with a run; accepted "
                f"are {RECORDABLE}: make such a value in the constructor, from options of this kind"
            ) from None
        if _is_default(option, default):
            continue
        if name in parameters and parameters[name].kind is inspect.Parameter.POSITIONAL_ONLY:
            raise InputError(f"option {name} of task {task.name} cannot be given by name: remove the / after it")
        found[name] = option
    return found


def _is_default(option: Any, default: Any) -> bool:
    return is_plain(default) and plain(default) == option and isinstance(default, bool) == isinstance(option, bool)


def plain(value: Any) -> Any:
    """The value as it is after a passage through JSON, with tuples for lists.

    Raises:
        TypeError: JSON cannot hold it.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and not math.isnan(value):  # which is not equal to itself
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)  # str() of an Enum is its name
    if isinstance(value, list | tuple):
        return tuple(plain(entry) for entry in value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {str(key): plain(entry) for key, entry in value.items()}
    raise TypeError(f"{short(value)} is not one of {RECORDABLE}")


def is_plain(value: Any) -> bool:
    try:
        plain(value)
    except TypeError:
        return False
    return True


def short(value: object) -> str:
    """A value in at most 60 characters of one line, for an error message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """Reads a task's options from a command line: ``name=value`` each, where the value is JSON or else text.

    True, False and None may be spelt as in Python; quotes around them make them text.

    Raises:
        InputError: a word is not of this form, or names an option a second time.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"the task option {word!r} was given; accepted is NAME=VALUE, such as mass=20")
        if name in found:
            raise InputError(f"the task option {name} was given twice: give it once")
        found[name] = _value_of(text)
    return found


def _value_of(text: str) -> Any:
    python = {"True": True, "False": False, "None": None}  # the text "False" would be true
    if text in python:
        return python[text]
    try:
        return plain(json.loads(text))
    except (ValueError, TypeError):
        return text


def format_options(options: Mapping[str, Any]) -> list[str]:
    """Writes options as :func:`parse_options` reads them."""
    return [
        f"{name}={value if isinstance(value, str) and _value_of(value) == value else json.dumps(value)}"
        for name, value in options.items()
    ]
