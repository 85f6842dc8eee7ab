"""Where the class of a task is found again, by this process and by others."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

from mage_diffsim.envs import registry
from mage_diffsim.envs.files import source_file
from mage_diffsim.envs.identity.bytecode import codes_of
from mage_diffsim.envs.task import Task


def reference_of(cls: type[Task]) -> str:
    """The text by which ``make_task`` finds a class again.

    That is the registered name of a task of this package or of an entry point, else ``/path/to/file.py:Class`` or
    ``package.module:Class``. Other processes do not find ``module:Class`` of a notebook, a script or a function (see
    :func:`is_elsewhere`).
    """
    known = registry.known_tasks().get(cls.name)
    module, _, attribute = known.partition(":") if isinstance(known, str) else ("", "", "")
    if getattr(sys.modules.get(module), attribute, None) is cls:
        return cls.name
    file = file_of(cls)
    if file is None or cls.__module__ == "__main__" or "." in cls.__qualname__ or is_packaged(cls.__module__):
        return f"{cls.__module__}:{cls.__qualname__}"
    return f"{file}:{cls.__qualname__}"


def is_elsewhere(reference: str) -> bool:
    """Whether only the process that defined the class finds it: it is of a notebook, a script, a function or exec."""
    module, _, name = reference.rpartition(":")
    if module.endswith(".py") or not module:
        return False
    return module in ("__main__", "builtins") or "." in name or not _is_there(module)


def _is_there(module: str) -> bool:
    """Whether a new process can import a module: ``exec`` makes classes of modules that never existed."""
    if "." in module and not _is_there(module.rpartition(".")[0]):
        return False
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def absolute(reference: str) -> str:
    """The reference with an absolute path, so that a run can go on from another folder; without a path as it is."""
    file, colon, name = reference.rpartition(":")
    return f"{Path(file).expanduser().resolve()}{colon}{name}" if file.endswith(".py") else reference


def file_of(definition: Any) -> Path | None:
    """The file that a class or function was read from; None also if ``exec`` executed it in a file's module."""
    path = source_file(definition)
    codes = [definition.__code__] if isinstance(definition, types.FunctionType) else list(codes_of(definition))
    if path is None or (codes and not any(Path(code.co_filename).resolve() == path for code in codes)):
        return None
    return path


def is_packaged(module: str) -> bool:
    return bool(getattr(sys.modules.get(module), "__package__", "")) or "." in module
