"""Executes the file of a task, whose code finds the modules that lie beside it."""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

PREFIX = "mage_diffsim_task_"
"""Start of the names that these files' modules have in ``sys.modules``; a hash of the path follows."""


def source_file(definition: Any) -> Path | None:
    """The file that a class or function was defined in; None for a notebook, ``python -c`` or ``exec``."""
    name = getattr(sys.modules.get(definition.__module__), "__file__", None)
    if name is None or not name.endswith(".py") or not Path(name).is_file():
        return None
    return Path(name).resolve()


def load_file(path: Path) -> ModuleType:
    """Execute a file again, as a module of its own.

    Its code imports the modules beside it by their plain names, as a script does, whenever it runs; so do those
    modules. Modules beside another file are never found, and the standard library is never taken from the folder. The
    modules are executed once, and again when one of them has changed. While the file is executed, the import system
    finds them too, for calls such as ``importlib.import_module``.
    """
    path = path.resolve()
    _forget_changed(path.parent)
    name = _private_name(path)
    spec = importlib.util.spec_from_file_location(name, path, loader=TaskFileLoader(name, str(path)))
    assert spec is not None and spec.loader is not None  # a .py file always has both
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickle look the module up by name
    try:
        with _importable(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """A context in which the import system finds modules of a folder that it finds nowhere else."""
    known, last = set(sys.modules), _Last(folder)
    sys.meta_path.append(last)
    try:
        yield
    finally:
        sys.meta_path.remove(last)
        for name in last.found - known:  # the next file's folder may hold another module of this name
            sys.modules.pop(name, None)


class _Last(importlib.abc.MetaPathFinder):
    """Finds the top-level modules of a folder that no other finder knows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: set[str] = set()

    def find_spec(
        self, fullname: str, path: Iterable[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if path is not None:
            return None
        found = importlib.machinery.PathFinder.find_spec(fullname, [str(self.folder)])
        if found is not None:
            self.found.add(fullname)
        return found


def reduce_class(definition: type) -> str | tuple[Any, ...]:
    """What pickle keeps of a class: where to import it. For a class of a task file that is the file and the class's
    name, so that another process executes the file."""
    file = source_file(definition) if definition.__module__.startswith(PREFIX) else None
    if file is None:
        return definition.__qualname__
    return _class_of_file, (str(file), definition.__module__, definition.__qualname__)


def _class_of_file(path: str, module: str, qualname: str) -> Any:
    return functools.reduce(getattr, qualname.split("."), sys.modules.get(module) or load_file(Path(path)))


def import_beside(definitions: Iterable[Any], name: str) -> ModuleType:
    """Import a module as the code of these classes or functions would; the first that finds it decides."""
    top, dot, rest = name.partition(".")
    for definition in definitions:
        folder = _folder_of(sys.modules.get(definition.__module__))
        private = None if folder is None else _beside(folder, top)
        if private is not None:
            return importlib.import_module(f"{private}{dot}{rest}")
    return importlib.import_module(name)


def _private_name(path: Path) -> str:
    return f"{PREFIX}{path.stem}_{zlib.crc32(str(path).encode()):08x}"  # one module per file


def _folder_of(module: ModuleType | None) -> Path | None:
    """The folder where absolute imports of a task file's module, or of one beside it, look first."""
    top = sys.modules.get(module.__name__.partition(".")[0]) if module is not None else None
    if top is None or not top.__name__.startswith(PREFIX):
        return None
    if hasattr(top, "__path__"):
        return Path(next(iter(top.__path__))).parent
    return Path(str(top.__file__)).parent


def _beside(folder: Path, top: str) -> str | None:
    """The private name of a module in a folder; None if it is not there, or if an ordinary import finds the same."""
    if top in sys.stdlib_module_names or top == __name__.partition(".")[0]:
        return None
    found = importlib.machinery.PathFinder.find_spec(top, [str(folder)])
    if found is None or not (found.origin is None or isinstance(found.loader, importlib.machinery.SourceFileLoader)):
        return None
    try:
        ordinary = importlib.util.find_spec(top)
    except ValueError:  # a module that was made by hand
        ordinary = None
    if any(top in finder.found for finder in sys.meta_path if isinstance(finder, _Last)) and top not in sys.modules:
        ordinary = None  # found here again
    if ordinary is not None and (found.origin is None or _same_file(found.origin, ordinary.origin)):
        return None  # a folder without __init__.py gives way to any other module, as it does in Python
    place = folder / top if found.origin is None else Path(found.origin)
    name = _private_name(place.parent if place.name == "__init__.py" else place)
    _PLACES[name] = (top, folder)
    return name


def _same_file(a: str, b: str | None) -> bool:
    return b is not None and Path(a).resolve() == Path(b).resolve()


def _importer(folder: Path) -> Any:
    """The function that import statements call in code of this folder."""

    def import_(
        name: str, globals: Any = None, locals: Any = None, fromlist: Sequence[str] | None = (), level: int = 0
    ) -> ModuleType:
        top, dot, rest = name.partition(".")
        private = _beside(folder, top) if level == 0 else None
        if private is not None:
            name = f"{private}{dot}{rest}"
        return builtins.__import__(name, globals, locals, fromlist or (), level)

    return import_


_PLACES: dict[str, tuple[str, Path]] = {}
"""Private name of an imported module, to its plain name and its folder."""
_SOURCES: dict[str, bytes] = {}
"""Name of a module, to the content of its file when it was executed."""


def executed_source(path: Path) -> bytes | None:
    """The content of a task file, or of one beside it, when it was executed; None if it is not loaded."""
    for name, source in _SOURCES.items():
        if name in sys.modules and Path(str(sys.modules[name].__file__)).resolve() == path:
            return source
    return None


class TaskFileLoader(importlib.machinery.SourceFileLoader):
    """Executes task files and the modules beside them."""

    def get_code(self, fullname: str) -> Any:
        """Compile the file again: cached bytecode looks valid after an edit within the same second."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)

    def exec_module(self, module: ModuleType) -> None:
        folder = _folder_of(module)
        assert folder is not None
        _SOURCES[module.__name__] = self.get_data(self.path)
        # An import function of its own: statements that run later, in a function, find the same modules.
        vars(module)["__builtins__"] = vars(builtins) | {"__import__": _importer(folder)}
        super().exec_module(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules by their private names."""

    def find_spec(
        self, fullname: str, path: Iterable[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(PREFIX):
            return None
        if fullname in _PLACES:
            plain, folder = _PLACES[fullname]
            found = importlib.machinery.PathFinder.find_spec(plain, [str(folder)])
        else:  # within a package
            found = importlib.machinery.PathFinder.find_spec(fullname, None if path is None else list(path))
        if found is None or (found.origin is None and found.submodule_search_locations is None):
            return None
        if found.origin is None:
            namespace = importlib.machinery.ModuleSpec(fullname, None, is_package=True)
            namespace.submodule_search_locations = list(found.submodule_search_locations or ())
            return namespace
        if not isinstance(found.loader, importlib.machinery.SourceFileLoader):
            return found
        return importlib.util.spec_from_file_location(
            fullname,
            found.origin,
            loader=TaskFileLoader(fullname, found.origin),
            submodule_search_locations=found.submodule_search_locations,
        )


sys.meta_path.insert(0, _Finder())


def _forget_changed(folder: Path) -> None:
    """Let the modules of a folder be executed again if the file of one of them has changed."""
    importlib.invalidate_caches()  # a file may have been added within the same second
    tops = {name for name, (_, place) in _PLACES.items() if place == folder}
    loaded = [name for name in sys.modules if name.partition(".")[0] in tops]
    if any(name in _SOURCES and _read(sys.modules[name]) != _SOURCES[name] for name in loaded):
        for name in loaded:
            del sys.modules[name]


def _read(module: ModuleType) -> bytes | None:
    try:
        return Path(str(module.__file__)).read_bytes()
    except OSError:
        return None
