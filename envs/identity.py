"""What makes a task the same task again: where its class is found, the options it was made with, and its source."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import json
import math
import pickle
import platform
import sys
import types
import xml.etree.ElementTree
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mage_diffsim.envs.files import TaskFileLoader, executed_source, source_file
from mage_diffsim.envs.task import GIVEN, Task
from mage_diffsim.errors import InputError

RECORDABLE = "numbers, text, true, false, None, and lists or dicts of these"
"""What a task's option may be, so that config.json can hold it."""


# --- options ---------------------------------------------------------------------------------------------------------


def options_of(task: Task) -> dict[str, Any]:
    """The options that a task was made with and that differ from their defaults: ``make_task`` takes them again.

    Lists are tuples in it, and NumPy's numbers plain ones.

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
    return _is_plain(default) and plain(default) == option and isinstance(default, bool) == isinstance(option, bool)


def plain(value: Any) -> Any:
    """The value as JSON gives it back, with tuples for lists.

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


def _is_plain(value: Any) -> bool:
    try:
        plain(value)
    except TypeError:
        return False
    return True


def short(value: Any) -> str:
    """A value in one line of an error message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """A task's options from a command line: ``name=value`` each, the value as JSON or else as text.

    True, False and None may be spelt as Python spells them; as text they stand in quotes.

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
    """The inverse of :func:`parse_options`."""
    return [
        f"{name}={value if isinstance(value, str) and _value_of(value) == value else json.dumps(value)}"
        for name, value in options.items()
    ]


def require_reproducible(task: Task) -> None:
    """Refuse a task that its options do not make again, as its runs could not go on with it.

    It is made again from its options, and the attributes are compared. Private attributes that are empty in a new task,
    and in the class, are taken for caches.

    Raises:
        InputError: an option cannot be recorded, or an attribute was changed after the task was made.
    """
    options = options_of(task)
    try:
        again = type(task)(**options)
    except Exception as error:
        raise InputError(
            f"task {task.name} cannot be made a second time with its options {options}, as going on with a run of it "
            f"needs ({type(error).__name__}: {short(error)})"
        ) from error
    mine, fresh = ({k: v for k, v in vars(x).items() if k != GIVEN} for x in (task, again))
    for name in sorted(mine.keys() | fresh.keys()):
        static = inspect.getattr_static(type(task), name, None)
        if isinstance(static, functools.cached_property):
            if name != "simulation" or name not in mine:
                continue  # it follows from the rest
            fresh[name] = getattr(again, name)
        elif name.startswith("_") and _is_empty(fresh.get(name, static)):
            continue
        if name not in mine or name not in fresh or not _same(mine[name], fresh[name], set()):
            missing = "absent" if static is None else short(static)
            was, now = (short(held[name]) if name in held else missing for held in (fresh, mine))
            raise InputError(
                f"attribute {name} of this task {task.name} is {now}, and {was} in one made with its options "
                f"{options}: what is set after a task is made cannot be recorded with a run, so make it an option of "
                "the constructor or write it into the body of the class"
            )
    _require_found_again(task)


def _require_found_again(task: Task) -> None:
    """Refuse a task whose class is not what its reference leads to: a run makes its task from that one.

    Compared are class attributes, the code of methods, and the plain globals that it uses. A class that its reference
    does not lead to at all is asked for when the run goes on.

    Raises:
        InputError: a class was changed after its file was read, or its file or a definition of the same name has.
    """
    from mage_diffsim.envs.registry import task_class_again

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
    """What differs between a class and the same one made anew, as the start of a sentence."""
    if cls is fresh:
        return None
    mine, theirs = vars(cls), vars(fresh)
    # What a loader of its own made of the source, as pytest's rewriting of assert does, is not comparable.
    loader = getattr(sys.modules.get(cls.__module__), "__loader__", None)
    own = (SourceFileLoader.get_code, TaskFileLoader.get_code)
    comparable = loader is None or getattr(type(loader), "get_code", None) in own
    for name in sorted(mine.keys() | theirs.keys()):
        if name.startswith("__") and name.endswith("__") and not (_functions(mine.get(name)) and theirs.get(name)):
            continue  # what Python itself notes of a class
        if name.startswith("_") and name in theirs and _is_empty(theirs[name]):
            continue  # a cache
        if name not in mine or name not in theirs:
            there = mine.get(name, theirs.get(name))
            return f"{'method' if _functions(there) else 'attribute'} {name} is"
        if not _alike(mine[name], theirs[name], comparable, set()):
            is_code = _functions(mine[name]) or _functions(theirs[name])
            return f"method {name} is" if is_code else f"attribute {name} = {short(mine[name])} is"
    return None


def _alike(a: Any, b: Any, comparable: bool, seen: set[int]) -> bool:
    """Whether two values say the same, where classes and functions of one file stand for those of its other reading."""
    if a is b or id(a) in seen:
        return True
    seen.add(id(a))
    if _is_plain(a) or _is_plain(b):
        return _is_plain(a) and _is_plain(b) and plain(a) == plain(b) and isinstance(a, bool) == isinstance(b, bool)
    if _functions(a) or _functions(b):
        return _same_functions(_functions(a), _functions(b), comparable)
    if type(a).__qualname__ != type(b).__qualname__:
        return False
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_alike(a[key], b[key], comparable, seen) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_alike(x, y, comparable, seen) for x, y in zip(a, b, strict=True))
    if isinstance(a, functools.partial):
        mine, theirs = ([x.func, x.args, x.keywords] for x in (a, b))
        return _alike(mine, theirs, comparable, seen)
    if isinstance(a, type):
        return True
    if isinstance(a, torch.Tensor | np.ndarray) or not hasattr(a, "__dict__"):
        return type(a) is not type(b) or _same(a, b, set())
    return _alike(vars(a), vars(b), comparable, seen)


def _same_functions(mine: list[types.FunctionType], theirs: list[types.FunctionType], comparable: bool) -> bool:
    if len(mine) != len(theirs):
        return False
    for a, b in zip(mine, theirs, strict=True):
        places = [(f.__qualname__, f.__code__.co_firstlineno, Path(f.__code__.co_filename).name) for f in (a, b)]
        if not comparable and places[0] == places[1]:
            continue
        caches = {k for k, v in b.__globals__.items() if k.startswith("_") and _is_empty(v)}
        if list(_code_texts([a.__code__], a.__globals__, caches)) != list(
            _code_texts([b.__code__], b.__globals__, caches)
        ):
            return False
    return True


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, dict | list | set | tuple) and not value)


def _python_number(x: Any) -> Any:
    return x.item() if isinstance(x, np.generic) else x


def _both_are(kind: Any, a: Any, b: Any) -> bool:
    return isinstance(a, kind) and isinstance(b, kind)


def _same(a: Any, b: Any, seen: set[tuple[int, int]]) -> bool:
    """Whether two attributes hold the same, as far as it can be told."""
    from mage_diffsim.envs.mujoco.model import Simulation

    if a is b or (id(a), id(b)) in seen:
        return True
    seen.add((id(a), id(b)))
    a, b = _python_number(a), _python_number(b)
    if _both_are(list | tuple, a, b):
        return len(a) == len(b) and all(_same(x, y, seen) for x, y in zip(a, b, strict=True))
    if _both_are(int | float, a, b) and isinstance(a, bool) == isinstance(b, bool):
        return a == b or (a != a and b != b)
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, torch.Generator):
        return torch.equal(a.get_state(), b.get_state())
    if isinstance(a, np.ndarray):
        if a.dtype == object:
            return _same(a.tolist(), b.tolist(), seen)
        return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key], seen) for key in a)
    if isinstance(a, types.FunctionType):
        cells = [[c.cell_contents for c in f.__closure__ or ()] for f in (a, b)]
        return (
            a.__code__ == b.__code__ and _same(a.__defaults__, b.__defaults__, seen) and _same(cells[0], cells[1], seen)
        )
    if isinstance(a, types.MethodType):
        return a.__func__ is b.__func__ and _same(a.__self__, b.__self__, seen)
    if isinstance(a, functools.partial):
        return _same((a.func, a.args, a.keywords), (b.func, b.args, b.keywords), seen)
    if isinstance(a, Simulation):
        return a.fingerprint == b.fingerprint
    if type(a).__eq__ is not object.__eq__:
        try:
            return bool(a == b)
        except Exception:  # compares elementwise, or not at all
            pass
    if hasattr(a, "__dict__"):
        return _same(vars(a), vars(b), seen)
    try:
        return pickle.dumps(a) == pickle.dumps(b)
    except Exception:  # an opaque object, such as a lock
        return True


# --- where the class is found ----------------------------------------------------------------------------------------


def reference_of(cls: type[Task]) -> str:
    """By what ``make_task`` finds a class again.

    The registered name of a task of this package or of an entry point; else ``/path/to/file.py:Class``, or
    ``package.module:Class``. A class of a notebook, a script or a function gets ``module:Class`` too, by which other
    processes do not find it (see :func:`is_elsewhere`).
    """
    from mage_diffsim.envs import registry

    known = registry._known().get(cls.name)
    module, _, attribute = known.partition(":") if isinstance(known, str) else ("", "", "")
    if getattr(sys.modules.get(module), attribute, None) is cls:
        return cls.name
    file = file_of(cls)
    if file is None or cls.__module__ == "__main__" or "." in cls.__qualname__ or _is_packaged(cls.__module__):
        return f"{cls.__module__}:{cls.__qualname__}"
    return f"{file}:{cls.__qualname__}"


def is_elsewhere(reference: str) -> bool:
    """Whether only the process that defined the class can find it: a notebook's, a script's, a function's, exec's."""
    module, _, name = reference.rpartition(":")
    if module.endswith(".py") or not module:
        return False
    return module in ("__main__", "builtins") or "." in name or not _is_there(module)


def _is_there(module: str) -> bool:
    """Whether a new process, too, can import a module: ``exec`` makes classes of modules that never existed."""
    if "." in module and not _is_there(module.rpartition(".")[0]):
        return False
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def absolute(reference: str) -> str:
    """A task in a file by its absolute path, so that a run can go on from another folder; others as they are."""
    file, colon, name = reference.rpartition(":")
    return f"{Path(file).expanduser().resolve()}{colon}{name}" if file.endswith(".py") else reference


def file_of(definition: Any) -> Path | None:
    """The file that a class or function was read from; None also for one executed by ``exec`` in a file's module."""
    path = source_file(definition)
    codes = [definition.__code__] if isinstance(definition, types.FunctionType) else list(_codes_of(definition))
    if path is None or (codes and not any(Path(code.co_filename).resolve() == path for code in codes)):
        return None
    return path


# --- source ----------------------------------------------------------------------------------------------------------


def sources_of(task: Task) -> dict[str, str]:
    """Digests of everything that decides what a task computes, by the name of the file or part.

    That is the files of its class and of the bases below :class:`Task`, the modules beside them that they import and
    those named in ``physics``, the MJCF model with the files it includes, and plain class attributes. Comments,
    docstrings and layout do not count. A class without a file is known by its compiled functions.
    """
    return _Sources().of(task)


def code_part(name: str) -> str:
    """The part that stands for a class without a file; bytecode is that of one Python version only."""
    return f"class {name} (compiled by Python {'.'.join(platform.python_version_tuple()[:2])})"


def changed_parts(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The parts in which two digests of a task differ."""
    if any("(compiled by" in part for part in was.keys() ^ now.keys()):
        # another Python made the code, which can then not be compared
        was, now = ({k: v for k, v in parts.items() if "(compiled by" not in k} for parts in (was, now))
    return sorted(part for part in was.keys() | now.keys() if was.get(part) != now.get(part))


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update((part.encode() if isinstance(part, str) else part) + b"\0")
    return digest.hexdigest()[:16]


class _Sources:
    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.files: set[Path] = set()

    def of(self, task: Task) -> dict[str, str]:
        from mage_diffsim.envs.mujoco.task import MujocoTask

        attributes: dict[str, str] = {}
        roots = []
        for cls in type(task).__mro__:
            if cls in (Task, MujocoTask) or cls.__module__ in ("builtins", "abc", "typing"):
                continue
            for name, value in vars(cls).items():
                if not name.startswith("__") and _is_plain(value):
                    attributes.setdefault(name, repr(plain(value)))
            file = file_of(cls)
            if file is None or cls.__module__ == "__main__":
                self.found[code_part(cls.__qualname__)] = _digest(*_code_texts(_codes_of(cls), vars_of_module(cls)))
            else:
                roots.append(self._root(file, cls.__module__))
                self._add(file, cls.__module__)
        for implementation in task.physics.values():
            self._add_physics(implementation, roots)
        if isinstance(task, MujocoTask):
            self._add_model(task)
        for name, text in attributes.items():
            self.found[f"attribute {name}"] = text if len(text) <= 60 else _digest(text)
        return self.found

    def _root(self, file: Path, module: str) -> Path:
        """The folder that absolute imports of a file's neighbours start from."""
        depth = module.count(".") + (file.name == "__init__.py")
        return file.parents[depth] if _is_packaged(module) else file.parent

    def _add(self, file: Path, module: str) -> None:
        """A file, and what it imports from beside itself."""
        if file in self.files:
            return
        self.files.add(file)
        text = (executed_source(file) or file.read_bytes()).decode(errors="replace")
        try:
            tree: ast.Module | None = ast.parse(text)
        except SyntaxError:
            tree = None
        packaged = _is_packaged(module)
        name = module if packaged else file.name
        while name in self.found:
            name += " "
        self.found[name] = _digest(ast.unparse(_Meaning().visit(tree)) if tree else text)
        if tree is None or module.partition(".")[0] == "mage_diffsim":
            return
        root = self._root(file, module)
        if not packaged and any(part in ("site-packages", "dist-packages") for part in root.parts):
            return
        for imported in _imports(tree, module if packaged else "", file.name == "__init__.py"):
            if not packaged or imported.partition(".")[0] == module.partition(".")[0]:
                self._add_module(root, imported, packaged)

    def _add_module(self, root: Path, module: str, packaged: bool) -> bool:
        top = module.partition(".")[0]
        if not packaged and (top == "mage_diffsim" or top in sys.stdlib_module_names or _is_shadowed(root, top)):
            return False
        place = root.joinpath(*module.split("."))
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if module and file.is_file():
                self._add(file.resolve(), module if packaged or "." in module else file.stem)
                return True
        return False

    def _add_physics(self, implementation: Any, roots: Iterable[Path]) -> None:
        if not isinstance(implementation, str):
            if isinstance(implementation, types.FunctionType | type):
                file = file_of(implementation)
                if file is None or implementation.__module__ == "__main__":
                    codes = _codes_of(implementation) if isinstance(implementation, type) else [implementation.__code__]
                    texts = _code_texts(codes, vars_of_module(implementation))
                    self.found[code_part(implementation.__qualname__)] = _digest(*texts)
                else:
                    self._add(file, implementation.__module__)
            return
        module = implementation.partition(":")[0]
        if module == "mage_diffsim.envs.mujoco.task" or any(self._add_module(r, module, False) for r in roots):
            return
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError, AttributeError):
            return
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            self._add(Path(spec.origin).resolve(), module)

    def _add_model(self, task: Any) -> None:
        from mage_diffsim.envs.mujoco.loading import find

        if not isinstance(task.mjcf, str):
            return
        path = find(task.mjcf, task.model_folder)
        if path is None:
            self.found["MJCF text"] = _digest(_canonical(task.mjcf.encode()))
            return
        todo = [path]
        while todo:
            path = todo.pop()
            content = path.read_bytes()
            self.found[f"model {path.name}"] = _digest(_canonical(content))
            if path.suffix == ".xml":
                todo += [p for p in _files_of_model(content, path.parent) if f"model {p.name}" not in self.found]


class _Meaning(ast.NodeTransformer):
    """Drops what does not decide what a file's definitions do: docstrings, and what runs as a script only."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node

    def visit_If(self, node: ast.If) -> ast.AST | None:
        if ast.unparse(node.test) in ("__name__ == '__main__'", "'__main__' == __name__"):
            return None
        return self.generic_visit(node)


def _is_shadowed(root: Path, top: str) -> bool:
    """Whether a folder without __init__.py gives way to an installed module of this name, as it does in Python."""
    if not (root / top).is_dir() or (root / top / "__init__.py").is_file() or (root / f"{top}.py").is_file():
        return False
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


def _is_packaged(module: str) -> bool:
    return bool(getattr(sys.modules.get(module), "__package__", "")) or "." in module


def _imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[str]:
    """Absolute names of the modules that a file may import."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            if base:
                yield base
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names)


def _canonical(content: bytes) -> str | bytes:
    """A model without comments and layout."""
    try:
        return xml.etree.ElementTree.canonicalize(content.decode("utf-8-sig"), strip_text=True)
    except (xml.etree.ElementTree.ParseError, UnicodeDecodeError):
        return content


def _files_of_model(content: bytes, folder: Path) -> Iterator[Path]:
    """The files that a model names (includes, meshes, textures, height fields) and that are there."""
    try:
        root = xml.etree.ElementTree.fromstring(content)
    except xml.etree.ElementTree.ParseError:
        return
    folders = ["", *(c.get(k) or "" for c in root.iter("compiler") for k in ("assetdir", "meshdir", "texturedir"))]
    for element in root.iter():
        name = element.get("file")
        if name:
            yield from {p for d in folders if (p := (folder / d / name)).is_file()}


# --- definitions without a file --------------------------------------------------------------------------------------


def _codes_of(cls: type) -> Iterator[types.CodeType]:
    """The compiled functions of a class body."""
    for value in vars(cls).values():
        yield from (function.__code__ for function in _functions(value))


def _functions(value: Any) -> list[types.FunctionType]:
    """The functions, without their decorators, of a value in a class body."""
    found: list[Any] = [value]
    if isinstance(value, staticmethod | classmethod):
        found = [value.__func__]
    elif isinstance(value, property):
        found = [value.fget, value.fset]
    elif isinstance(value, functools.cached_property):
        found = [value.func]
    found = [inspect.unwrap(function) if callable(function) else function for function in found]
    return [function for function in found if isinstance(function, types.FunctionType)]


def vars_of_module(definition: Any) -> Mapping[str, Any]:
    """The global names that a class or function sees."""
    functions = [definition, *(vars(definition).values() if isinstance(definition, type) else ())]
    return next((f.__globals__ for f in functions if isinstance(f, types.FunctionType)), {})


def _code_texts(
    codes: Iterable[types.CodeType], names: Mapping[str, Any], without: Collection[str] = ()
) -> Iterator[str | bytes]:
    """What compiled functions do, with the plain values and functions that they use by a global name.

    Of the names in ``without`` the values do not count.
    """
    todo, seen = list(codes), set()
    while todo:
        code = todo.pop(0)
        if code in seen:
            continue
        seen.add(code)
        yield code.co_code
        docstring = code.co_consts[0] if code.co_consts and not code.co_name.startswith("<") else None
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                todo.append(constant)
            elif not (isinstance(constant, str) and constant is docstring):
                yield repr(sorted(constant, key=repr)) if isinstance(constant, frozenset) else repr(constant)
        yield repr((code.co_names, code.co_varnames))
        for name in code.co_names:
            value: Any = names.get(name)
            if isinstance(value, types.FunctionType) and value.__globals__ is names:
                todo.append(value.__code__)
            elif value is not None and name not in without and _is_plain(value):
                yield f"{name} = {plain(value)!r}"
