"""Compares values: attributes of two tasks, or members of one class read twice from its file."""

from __future__ import annotations

import functools
import pickle
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mage_diffsim.envs.identity.bytecode import code_texts, functions_of
from mage_diffsim.envs.identity.options import is_plain, plain
from mage_diffsim.envs.mujoco.model import Simulation


def alike(a: Any, b: Any, comparable: bool, seen: set[int]) -> bool:
    """Whether two values mean the same, where classes and functions of one reading of a file equal those of another."""
    if a is b or id(a) in seen:
        return True
    seen.add(id(a))
    if is_plain(a) or is_plain(b):
        return is_plain(a) and is_plain(b) and plain(a) == plain(b) and isinstance(a, bool) == isinstance(b, bool)
    if functions_of(a) or functions_of(b):
        return _same_functions(functions_of(a), functions_of(b), comparable)
    if type(a).__qualname__ != type(b).__qualname__:
        return False
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(alike(a[key], b[key], comparable, seen) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(alike(x, y, comparable, seen) for x, y in zip(a, b, strict=True))
    if isinstance(a, functools.partial):
        mine, theirs = ([x.func, x.args, x.keywords] for x in (a, b))
        return alike(mine, theirs, comparable, seen)
    if isinstance(a, type):
        return True
    if isinstance(a, torch.Tensor | np.ndarray) or not hasattr(a, "__dict__"):
        return type(a) is not type(b) or same(a, b, set())
    return alike(vars(a), vars(b), comparable, seen)


def _same_functions(mine: list[types.FunctionType], theirs: list[types.FunctionType], comparable: bool) -> bool:
    if len(mine) != len(theirs):
        return False
    for a, b in zip(mine, theirs, strict=True):
        places = [(f.__qualname__, f.__code__.co_firstlineno, Path(f.__code__.co_filename).name) for f in (a, b)]
        if not comparable and places[0] == places[1]:
            continue
        caches = {k for k, v in b.__globals__.items() if k.startswith("_") and is_empty(v)}
        if list(code_texts([a.__code__], a.__globals__, caches)) != list(
            code_texts([b.__code__], b.__globals__, caches)
        ):
            return False
    return True


def is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, dict | list | set | tuple) and not value)


def _python_number(x: Any) -> Any:
    return x.item() if isinstance(x, np.generic) else x


def _both_are(kind: Any, a: Any, b: Any) -> bool:
    return isinstance(a, kind) and isinstance(b, kind)


def same(a: Any, b: Any, seen: set[tuple[int, int]]) -> bool:
    """Whether two attributes hold the same value, as far as that can be found out."""
    if a is b or (id(a), id(b)) in seen:
        return True
    seen.add((id(a), id(b)))
    a, b = _python_number(a), _python_number(b)
    if _both_are(list | tuple, a, b):
        return len(a) == len(b) and all(same(x, y, seen) for x, y in zip(a, b, strict=True))
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
            return same(a.tolist(), b.tolist(), seen)
        return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key], seen) for key in a)
    if isinstance(a, types.FunctionType):
        cells = [[c.cell_contents for c in f.__closure__ or ()] for f in (a, b)]
        return (
            a.__code__ == b.__code__ and same(a.__defaults__, b.__defaults__, seen) and same(cells[0], cells[1], seen)
        )
    if isinstance(a, types.MethodType):
        return a.__func__ is b.__func__ and same(a.__self__, b.__self__, seen)
    if isinstance(a, functools.partial):
        return same((a.func, a.args, a.keywords), (b.func, b.args, b.keywords), seen)
    if isinstance(a, Simulation):
        return a.fingerprint == b.fingerprint
    if type(a).__eq__ is not object.__eq__:
        try:
            return bool(a == b)
        except Exception:  # compares elementwise, or not at all
            pass
    if hasattr(a, "__dict__"):
        return same(vars(a), vars(b), seen)
    try:
        return pickle.dumps(a) == pickle.dumps(b)
    except Exception:  # an opaque object, such as a lock
        return True
