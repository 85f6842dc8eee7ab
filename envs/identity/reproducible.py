"""Refuses a task that a run cannot make again."""

from __future__ import annotations

import functools
import inspect
import sys
from importlib.machinery import SourceFileLoader

from mage_diffsim.envs.files import TaskFileLoader
from mage_diffsim.envs.identity.bytecode import functions_of
from mage_diffsim.envs.identity.options import options_of, short
from mage_diffsim.envs.identity.reference import reference_of
from mage_diffsim.envs.identity.sameness import alike, is_empty, same
from mage_diffsim.envs.registry import task_class_again
from mage_diffsim.envs.task import GIVEN, Task
from mage_diffsim.errors import InputError


def require_reproducible(task: Task) -> None:
    """Refuse a task that its options do not make again: its runs could not go on with it.

    A second task is made from the options, and the attributes of both are compared. Private attributes that are empty
    in the new task and in the class are taken for caches.

    Raises:
        InputError: an option cannot be recorded, or an attribute was changed after the task was made.
    """
    options = options_of(task)
    try:
        again = type(task)(**options)
    except Exception as error:
        raise InputError(
            f"task {task.name} cannot be made a second time with its options {options}, as going on with a run of it "
            f"needs ({type(error).__name__}: {short(error)}): let the constructor depend on its options alone"
        ) from error
    mine, fresh = ({k: v for k, v in vars(x).items() if k != GIVEN} for x in (task, again))
    for name in sorted(mine.keys() | fresh.keys()):
        static = inspect.getattr_static(type(task), name, None)
        if isinstance(static, functools.cached_property):
            if name != "simulation" or name not in mine:
                continue  # it follows from the rest
            fresh[name] = getattr(again, name)
        elif name.startswith("_") and is_empty(fresh.get(name, static)):
            continue
        if name not in mine or name not in fresh or not same(mine[name], fresh[name], set()):
            missing = "absent" if static is None else short(static)
            was, now = (short(held[name]) if name in held else missing for held in (fresh, mine))
            raise InputError(
                f"attribute {name} of this task {task.name} is {now}, and {was} in one made with its options "
                f"{options}: what is set after a task is made cannot be recorded with a run, so make it an option of "
                "the constructor or write it into the body of the class"
            )
    _require_found_again(task)


def _require_found_again(task: Task) -> None:
    """Refuse a task whose class differs from the one that its reference leads to: a run makes its task from that.

    Class attributes, the code of methods and the plain globals that it uses are compared. A class that its reference
    does not lead to passes; it is needed when the run goes on.

    Raises:
        InputError: a class was changed after its file was read, or its file or a definition of the same name has.
    """
    reference = reference_of(type(task))
    try:
        fresh = task_class_again(reference, type(task))
    except InputError:
        if reference.rpartition(":")[0].endswith(".py"):
            raise
        return
    mine, found = ([c for c in cls.__mro__ if c.__module__ != "builtins"] for cls in (type(task), fresh))
    changed = None if len(mine) == len(found) else "its base classes are"
    for ours, theirs in zip(mine, found, strict=False):
        changed = changed or _changed_member(ours, theirs)
    if changed:
        raise InputError(
            f"of the class of this task {task.name}, {changed} not what {reference} defines, by which a run makes its "
            "task: what is changed on a class, or in its file, after the class was made cannot be recorded with a run, "
            "so change it in the file and make the task anew, or make it an option of the constructor"
        )


def _changed_member(cls: type, fresh: type) -> str | None:
    """What differs between a class and the same one read again, as the start of a sentence."""
    if cls is fresh:
        return None
    mine, theirs = vars(cls), vars(fresh)
    # Code from another loader is not comparable: pytest's, for one, rewrites assert.
    loader = getattr(sys.modules.get(cls.__module__), "__loader__", None)
    own = (SourceFileLoader.get_code, TaskFileLoader.get_code)
    comparable = loader is None or getattr(type(loader), "get_code", None) in own
    for name in sorted(mine.keys() | theirs.keys()):
        if name.startswith("__") and name.endswith("__") and not (functions_of(mine.get(name)) and theirs.get(name)):
            continue  # Python's own attributes of a class
        if name.startswith("_") and name in theirs and is_empty(theirs[name]):
            continue  # a cache
        if name not in mine or name not in theirs:
            there = mine.get(name, theirs.get(name))
            return f"{'method' if functions_of(there) else 'attribute'} {name} is"
        if not alike(mine[name], theirs[name], comparable, set()):
            is_code = functions_of(mine[name]) or functions_of(theirs[name])
            return f"method {name} is" if is_code else f"attribute {name} = {short(mine[name])} is"
    return None
