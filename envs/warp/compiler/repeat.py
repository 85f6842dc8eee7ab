"""Expressions that differ only in numbers become one, whose numbers are variables, so that its code can run in a loop.

So one piece of code stands for the two ends of a capsule, and a GPU's cache of instructions holds more of a step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler.constraints import Contact
from mage_diffsim.envs.warp.compiler.graph import Graph, Node, is_constant


class Different(Exception):
    """Expressions differ in more than numbers."""


def join(graph: Graph, items: Sequence[Any], prefix: str) -> tuple[Any, dict[str, tuple[float, ...]]]:
    """Joins expressions, or equal structures of lists and tuples of them, which may be of several graphs.

    Returns:
        the joined expression, in ``graph``; and the variables in which the items differ, ``{prefix}0`` and so on, with
        their values in each.

    Raises:
        Different: the items differ in more than numbers.
    """
    numbers: dict[tuple[float, ...], Node] = {}
    known: dict[tuple[int, ...], Node] = {}

    def joined(xs: Sequence[Any]) -> Any:
        first = xs[0]
        if isinstance(first, Node) and first.graph is graph and all(x is first for x in xs):
            return first
        if isinstance(first, (list, tuple)):
            if len({len(x) for x in xs}) > 1:
                raise Different
            return type(first)(map(joined, zip(*xs, strict=True)))
        if all(is_constant(x) for x in xs):
            values = tuple(map(float, xs))
            if len(set(values)) == 1:
                return first
            return numbers.setdefault(values, graph.input(f"{prefix}{len(numbers)}"))
        if any(is_constant(x) for x in xs) or len({(x.kind, len(x.args)) for x in xs}) > 1:
            raise Different
        key = tuple(x.index for x in xs)
        if key not in known:
            if first.kind in ("input", "power") and len({x.args[-1] for x in xs}) > 1:
                raise Different  # other variables or exponents
            args = first.args if first.kind == "input" else map(joined, zip(*(x.args for x in xs), strict=True))
            known[key] = graph.make(first.kind, *args)
        return known[key]

    result = joined(items)
    return result, {node.args[0]: values for values, node in numbers.items()}


def signature(x: Any) -> int:
    """A number that is the same for expressions (or lists and tuples of them) that :func:`join` can join."""
    known: dict[int, int] = {}

    def of(x: Any) -> int:
        if isinstance(x, (list, tuple)):
            return hash((type(x), *map(of, x)))
        if not isinstance(x, Node):
            return hash(("condition", x) if isinstance(x, bool) else "number")
        if x.index not in known:
            inner = x.args if x.kind == "input" else map(of, x.args)
            exponent = x.args[1] if x.kind == "power" else None
            known[x.index] = hash((x.kind, exponent, *inner))
        return known[x.index]

    return of(x)


def joined(graph: Graph, contacts: Sequence[Contact]) -> list[Contact]:
    """The contacts pair by pair, with those of one pair of geoms joined if they differ in numbers only."""
    groups: dict[tuple[int, int], list[Contact]] = {}
    for c in contacts:
        groups.setdefault((id(c.pair), signature(_expressions(c))), []).append(c)
    joined = enumerate(groups.values())
    return [_join(graph, group, f"number{n}_") if len(group) > 1 else group[0] for n, group in joined]


EXPRESSIONS = ("present", "weight", "push", "points", "normal", "tangents", "spins", "rows")


def _expressions(contact: Contact) -> list[Any]:
    return [getattr(contact, name) for name in EXPRESSIONS]


def _join(graph: Graph, contacts: Sequence[Contact], prefix: str) -> Contact:
    values, numbers = join(graph, [_expressions(c) for c in contacts], prefix)
    fields = dict(zip(EXPRESSIONS, values, strict=True))
    return dataclasses.replace(contacts[0], **fields, copies=len(contacts), numbers=numbers)


def constant_part(x: Any, numbers: Container[str]) -> list[Node]:
    """The largest parts of an expression that are the same in all copies, each once."""
    varying: dict[int, bool] = {}
    visited: set[int] = set()
    found: dict[int, Node] = {}

    def varies(node: Node) -> bool:
        if node.index not in varying:
            inner = [varies(a) for a in node.args if isinstance(a, Node)]
            varying[node.index] = any(inner) or (node.kind == "input" and node.args[0] in numbers)
        return varying[node.index]

    def visit(node: Any) -> None:
        if not isinstance(node, Node) or node.index in visited:
            return
        visited.add(node.index)
        if not varies(node):
            found[node.index] = node
            return
        for a in node.args:
            visit(a)

    visit(x)
    return list(found.values())
