"""Checks the definition of a task class, where a class or an object of it is first given."""

from __future__ import annotations

import inspect
import math
from functools import cached_property

from mage_diffsim.envs.task import Task
from mage_diffsim.errors import InputError, require_kind


def require_task(task: object) -> None:
    """Check that this is a task object whose class is defined completely.

    Raises:
        InputError: it is something else, such as a name or a class; or see :func:`check_definition`.
    """
    require_kind("task", task, Task, "a task object, as make_task gives it")
    check_definition(type(task))


def check_definition(task: object) -> None:
    """Check a task class as far as possible without running it.

    Attributes that are properties (a task may read them from a model file) are left to the contract of
    :mod:`mage_diffsim.envs.contract`; ``name`` may not be a property.

    Raises:
        InputError: an attribute or method is missing or contradicts another; the message names the first.
    """
    from mage_diffsim.envs.physics import BACKENDS  # that module imports this one

    if not (inspect.isclass(task) and issubclass(task, Task)):
        raise InputError(f"{task!r} is not a task: give a subclass of mage_diffsim.envs.Task")
    where = f"task class {task.__name__}"
    if task.__abstractmethods__:
        raise InputError(f"{where} lacks the method(s) {', '.join(sorted(task.__abstractmethods__))}: define them")

    values: dict[str, object] = {}
    for attribute in Task.__annotations__:
        if not hasattr(task, attribute):
            raise InputError(f"{where} lacks the attribute {attribute}: set it in the class body")
        if not isinstance(inspect.getattr_static(task, attribute), (property, cached_property)):
            values[attribute] = getattr(task, attribute)
        elif attribute == "name":
            raise InputError(
                f"{where}: name is a property, and a task is found by its name before it is made; accepted is text in "
                "the class body"
            )

    def require(attribute: str, accepted: bool, what: str) -> None:
        if attribute in values and not accepted:
            raise InputError(f"{where}: {attribute} is {values[attribute]!r}; accepted is {what}")

    name = values.get("name")
    require(
        "name",
        isinstance(name, str) and name.isidentifier(),
        "a word of letters, digits and underscores that does not start with a digit",
    )
    for attribute in ("state_names", "obs_names", "action_names"):
        names = values.get(attribute)
        require(
            attribute,
            isinstance(names, (tuple, list))
            and len(names) > 0
            and all(isinstance(n, str) for n in names)
            and len(set(names)) == len(names),
            "a tuple of one distinct name per component, at least one",
        )
    names, low, high = (values.get(a) for a in ("action_names", "action_low", "action_high"))
    for attribute in ("action_low", "action_high"):
        bounds = values.get(attribute)
        require(
            attribute,
            isinstance(bounds, (tuple, list)) and all(_is_number(b) for b in bounds),
            "a tuple of finite numbers",
        )
        if isinstance(names, (tuple, list)) and isinstance(bounds, (tuple, list)):
            require(attribute, len(bounds) == len(names), f"one number for each of the {len(names)} action_names")
    if isinstance(low, (tuple, list)) and isinstance(high, (tuple, list)):
        require("action_low", all(a < b for a, b in zip(low, high, strict=False)), f"less than action_high = {high}")
    dt, horizon = values.get("dt"), values.get("horizon")
    require("dt", _is_number(dt) and dt > 0, "a positive number of seconds")  # type: ignore[operator]
    require("horizon", type(horizon) is int and horizon >= 1, "a whole number of steps, at least 1")
    require("source", isinstance(values.get("source"), str), "text")
    require("network_size", values.get("network_size") in ("small", "full"), "'small' or 'full'")
    cut = values.get("gradient_horizon")
    require("gradient_horizon", cut is None or (type(cut) is int and cut >= 1), "a whole number of steps or None")
    solved = values.get("solved_return")
    require("solved_return", solved is None or _is_number(solved), "a number or None")
    physics = values.get("physics")
    if isinstance(physics, dict):
        for backend in physics:
            require("physics", backend in BACKENDS, f"a mapping from any of {', '.join(sorted(BACKENDS))}")
    if not physics and "physics" in values and task.step is Task.step:
        raise InputError(f"{where} has no physics: define step(state, action) in torch or list a backend in physics")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
