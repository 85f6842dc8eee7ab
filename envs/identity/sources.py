"""Digests of everything that decides what a task computes."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import platform
import sys
import types
import xml.etree.ElementTree
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mage_diffsim.envs.files import executed_source
from mage_diffsim.envs.identity.bytecode import code_texts, codes_of, vars_of_module
from mage_diffsim.envs.identity.options import is_plain, plain
from mage_diffsim.envs.identity.reference import file_of, is_packaged
from mage_diffsim.envs.mujoco.loading import find
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.envs.task import Task


def sources_of(task: Task) -> dict[str, str]:
    """Digests of everything that decides what a task computes, by the name of the file or part.

    Parts are: the files of its class and of the bases below :class:`Task`; the modules beside them that they import;
    the modules named in ``physics``; the MJCF model with the files it includes; plain class attributes. Comments,
    docstrings and layout do not count. Compiled functions stand for a class without a file.
    """
    return _Sources().of(task)


def code_part(name: str) -> str:
    """The name of the part for a class without a file; another Python version makes other bytecode."""
    return f"class {name} (compiled by Python {'.'.join(platform.python_version_tuple()[:2])})"


def changed_parts(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The parts in which two digests of a task differ."""
    if any("(compiled by" in part for part in was.keys() ^ now.keys()):
        # Another Python version made the code, so it cannot be compared.
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
        attributes: dict[str, str] = {}
        roots = []
        for cls in type(task).__mro__:
            if cls in (Task, MujocoTask) or cls.__module__ in ("builtins", "abc", "typing"):
                continue
            for name, value in vars(cls).items():
                if not name.startswith("__") and is_plain(value):
                    attributes.setdefault(name, repr(plain(value)))
            file = file_of(cls)
            if file is None or cls.__module__ == "__main__":
                self.found[code_part(cls.__qualname__)] = _digest(*code_texts(codes_of(cls), vars_of_module(cls)))
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
        return file.parents[depth] if is_packaged(module) else file.parent

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
        packaged = is_packaged(module)
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
                    codes = codes_of(implementation) if isinstance(implementation, type) else [implementation.__code__]
                    texts = code_texts(codes, vars_of_module(implementation))
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
    """Drops what does not change a file's definitions: docstrings, and code that runs in a script only."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node

    def visit_If(self, node: ast.If) -> ast.AST | None:
        if ast.unparse(node.test) in ("__name__ == '__main__'", "'__main__' == __name__"):
            return None
        return self.generic_visit(node)


def _is_shadowed(root: Path, top: str) -> bool:
    """Whether Python would import an installed module of this name instead of a folder without __init__.py."""
    if not (root / top).is_dir() or (root / top / "__init__.py").is_file() or (root / f"{top}.py").is_file():
        return False
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


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
    """The text of a model without comments and layout."""
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
