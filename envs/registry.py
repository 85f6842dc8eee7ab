"""Finds tasks by name: this project's, those a caller registered, those of installed packages, those in a file."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from mage_diffsim.envs.definition import check_definition
from mage_diffsim.envs.files import PREFIX, load_file, source_file
from mage_diffsim.envs.task import Task
from mage_diffsim.errors import InputError, described, unknown_name

ENTRY_POINT_GROUP = "mage_diffsim.tasks"
"""Entry-point group under which an installed package offers tasks: ``Name = "module:TaskClass"``."""

TaskClass = TypeVar("TaskClass", bound=type[Task])

_TASKS: dict[str, str | type[Task]] = {
    "Pendulum": "mage_diffsim.envs.tasks.pendulum:Pendulum",
    "CartPole": "mage_diffsim.envs.tasks.cartpole:CartPole",
    "InvertedPendulum": "mage_diffsim.envs.tasks.inverted_pendulum:InvertedPendulum",
    "InvertedDoublePendulum": "mage_diffsim.envs.tasks.inverted_double_pendulum:InvertedDoublePendulum",
    "Reacher": "mage_diffsim.envs.tasks.reacher:Reacher",
    "Swimmer": "mage_diffsim.envs.tasks.swimmer:Swimmer",
    "HalfCheetah": "mage_diffsim.envs.tasks.half_cheetah:HalfCheetah",
    "Hopper": "mage_diffsim.envs.tasks.hopper:Hopper",
    "Walker2d": "mage_diffsim.envs.tasks.walker2d:Walker2d",
    "Ant": "mage_diffsim.envs.tasks.ant:Ant",
    "Humanoid": "mage_diffsim.envs.tasks.humanoid:Humanoid",
    "HumanoidStandup": "mage_diffsim.envs.tasks.humanoid_standup:HumanoidStandup",
    "DmWalker": "mage_diffsim.envs.tasks.dm_control.walker:DmWalker",
    "DmCheetah": "mage_diffsim.envs.tasks.dm_control.cheetah:DmCheetah",
    "DmHopper": "mage_diffsim.envs.tasks.dm_control.hopper:DmHopper",
    "DmHumanoid": "mage_diffsim.envs.tasks.dm_control.humanoid:DmHumanoid",
    "DmQuadruped": "mage_diffsim.envs.tasks.dm_control.quadruped:DmQuadruped",
    "Go1": "mage_diffsim.envs.tasks.unitree_go1.go1:Go1",
    "Pusher": "mage_diffsim.envs.tasks.pusher:Pusher",
}


def known_tasks() -> dict[str, str | type[Task]]:
    """All tasks by name: the class, or a reference to it that is not imported yet."""
    found: dict[str, str | type[Task]] = {e.name: e.value for e in entry_points(group=ENTRY_POINT_GROUP)}
    return found | _TASKS


def register_task(task: TaskClass, *, overwrite: bool = False) -> TaskClass:
    """Make a task available by its ``name``; usable as a class decorator.

    Defining the same class again replaces it, as when a notebook cell runs twice. It is the same if it has the same
    name in the same source file, or in the same module where there is no file.

    Raises:
        InputError: the definition is incomplete or contradicts itself, or the name is taken by another class and
            ``overwrite`` is false.
    """
    check_definition(task)
    taken = known_tasks().get(task.name)
    if taken is not None and not overwrite and not _is_definition_of(taken, task):
        raise InputError(f"a task named {task.name!r} is registered already: rename it or pass overwrite=True")
    _TASKS[task.name] = task
    return task


def _is_definition_of(known: str | type[Task], task: type[Task]) -> bool:
    """Whether what is known under a name, perhaps not imported yet, is an earlier definition of this class."""
    if isinstance(known, str):
        module, _, name = known.rpartition(":")
        try:
            spec = None if module.endswith(".py") else importlib.util.find_spec(module)
        except ImportError:  # an installed package that is broken
            return False
        file = module if spec is None else spec.origin
        place = None if file is None else Path(file).expanduser().resolve()
    else:
        module, name, place = known.__module__, known.__qualname__, source_file(known)
    same_place = module == task.__module__ or (place is not None and place == source_file(task))
    return same_place and name == task.__qualname__


def is_of_this_process(name: str) -> bool:
    """Whether a task was registered by this process: another one does not know it."""
    known = _TASKS.get(name)
    return not (known is None or (isinstance(known, str) and known.startswith("mage_diffsim.")))


def definition_of(name: str) -> str | type[Task]:
    """What another process needs to register the task: a reference to its file, else the class itself.

    Raises:
        InputError: no task of this name is registered.
    """
    known = known_tasks()
    if name not in known:
        raise unknown_name("task", name, known)
    definition = known[name]
    if inspect.isclass(definition) and definition.__module__.startswith(PREFIX) and "." not in definition.__qualname__:
        return f"{source_file(definition)}:{definition.__qualname__}"
    return definition


def adopt(name: str, definition: str | type[Task]) -> None:
    """Register the :func:`definition_of` a task from another process, unless this one has a task of that name."""
    if not is_of_this_process(name):
        _TASKS[name] = definition


def task_names() -> tuple[str, ...]:
    """All registered names, sorted."""
    return tuple(sorted(known_tasks()))


def task_class(name: str) -> type[Task]:
    """Finds the class of a registered task, of ``"path/to/file.py:ClassName"`` or of ``"package.module:ClassName"``.

    A file is executed again at every call; its code may import the modules beside it (see :func:`.files.load_file`).

    Raises:
        InputError: no such task, file, module or attribute; or it is not a complete Task.
    """
    known = known_tasks()
    reference = known.get(name, name)
    if isinstance(reference, str):
        if ":" not in reference:
            raise InputError(f"{unknown_name('task', name, known)}, or give path/to/file.py:ClassName")
        reference = _registered(reference) or _import(reference)
        check_definition(reference)
    return reference


def task_class_again(reference: str, cls: type[Task]) -> type[Task]:
    """As :func:`task_class`, but the registry and the module of ``cls`` stay as they are.

    Raises:
        InputError: see :func:`task_class`.
    """
    tasks, module = dict(_TASKS), sys.modules.get(cls.__module__)
    try:
        return task_class(reference)
    finally:
        _TASKS.clear()
        _TASKS.update(tasks)
        if module is not None:
            sys.modules[cls.__module__] = module


def make_task(name: str, **options: object) -> Task:
    """Makes the named task, e.g. ``make_task("Pendulum", clip_order="v0")`` or ``make_task("my_task.py:MyTask")``.

    Raises:
        InputError: see :func:`task_class`; or the task does not take these options, needs others, or refuses their
            values by a ``ValueError`` or ``TypeError``.
    """
    if not isinstance(name, str):
        raise InputError(
            f"make_task was given {described(name)}; accepted is a task's name, or path/to/file.py:ClassName"
        )
    cls = task_class(name)
    accepted = inspect.signature(cls).parameters
    takes = ", ".join(sorted(accepted)) or "none"
    if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        for option in options:
            if option not in accepted:
                raise InputError(f"task {cls.name} has no option {option!r}: the options it takes are: {takes}")
    for option, parameter in accepted.items():
        required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if required and option not in options:
            raise InputError(f"task {cls.name} needs the option {option!r}: the options it takes are: {takes}")
    try:
        return cls(**options)
    except (ValueError, TypeError) as error:
        if isinstance(error, InputError) or not options:
            raise
        what = " ".join(str(error).split())
        raise InputError(f"task {cls.name} cannot be made with the options {options}: {what}") from error


def _registered(reference: str) -> type[Task] | None:
    """The class registered in this process that no import finds, such as one made in a function or by ``exec``."""
    for cls in _TASKS.values():
        if inspect.isclass(cls) and f"{cls.__module__}:{cls.__qualname__}" == reference:
            found = sys.modules.get(cls.__module__)
            return None if hasattr(found, cls.__qualname__) else cls
    return None


def _import(reference: str) -> Any:
    """The attribute that ``file.py:Class`` or ``module:Class`` names; its own import errors pass through.

    Raises:
        InputError: there is no such file, module or attribute.
    """
    where, _, attribute = reference.rpartition(":")
    if where.endswith(".py"):
        path = Path(where).expanduser().resolve()
        if not path.is_file():
            raise InputError(f"task {reference!r}: there is no file {path}; give path/to/file.py:ClassName")
        try:
            module = load_file(path)
        except ImportError as error:
            if "no known parent package" not in str(error):
                raise
            raise InputError(
                f"task {reference!r}: the file is part of a package, whose modules it imports relatively; give "
                "package.module:ClassName, with the package's folder on the path (PYTHONPATH)"
            ) from error
    else:
        try:
            module = importlib.import_module(where)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{where}.".startswith(f"{error.name}."):
                raise  # the module is there, and something it imports is not
            raise InputError(
                f"task {reference!r}: there is no module {where!r}; give package.module:ClassName of an installed "
                "package, or path/to/file.py:ClassName"
            ) from error
    if not hasattr(module, attribute):
        classes = [
            name
            for name, found in vars(module).items()
            if inspect.isclass(found)
            and issubclass(found, Task)
            and found.__module__ == module.__name__
            and not inspect.isabstract(found)
        ]
        raise InputError(
            f"task {reference!r}: {where} has no {attribute!r}; the tasks in it are: {', '.join(classes) or 'none'}"
        )
    return getattr(module, attribute)
