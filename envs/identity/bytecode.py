"""The compiled code of classes and functions, which stands for their source where there is no file."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from mage_diffsim.envs.identity.options import is_plain, plain


def codes_of(cls: type) -> Iterator[types.CodeType]:
    """The compiled functions of a class body."""
    for value in vars(cls).values():
        yield from (function.__code__ for function in functions_of(value))


def functions_of(value: Any) -> list[types.FunctionType]:
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


def code_texts(
    codes: Iterable[types.CodeType], names: Mapping[str, Any], without: Collection[str] = ()
) -> Iterator[str | bytes]:
    """Texts that tell compiled functions apart: their code, and the plain values and functions of their global names.

    The values of the names in ``without`` do not count.
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
            elif value is not None and name not in without and is_plain(value):
                yield f"{name} = {plain(value)!r}"
