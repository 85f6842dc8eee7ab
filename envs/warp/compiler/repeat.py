"""Contacts that differ only in numbers, such as those of a capsule's two ends, become one whose code runs in a loop.

Half the code then stands for a capsule, and a GPU's cache of instructions holds more of a step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler.constraints import Contact
from mage_diffsim.envs.warp.compiler.graph import Graph, Node, is_constant


class Different(Exception):
    """Two expressions differ in more than numbers."""


def joined(graph: Graph, contacts: Sequence[Contact]) -> list[Contact]:
    """The contacts in their order, with those of one pair of geoms joined if they differ in numbers only."""
    result: list[Contact] = []
    for n, group in enumerate(_by_pair(contacts)):
        try:
            result.append(_join(graph, group, f"number{n}_") if len(group) > 1 else group[0])
        except Different:
            result += group
    return result


def _by_pair(contacts: Sequence[Contact]) -> list[list[Contact]]:
    groups: list[list[Contact]] = []
    for c in contacts:
        if groups and groups[-1][0].pair is c.pair:
            groups[-1].append(c)
        else:
            groups.append([c])
    return groups


EXPRESSIONS = ("present", "weight", "push", "points", "normal", "tangents", "spins", "rows")


def _join(graph: Graph, contacts: Sequence[Contact], prefix: str) -> Contact:
    numbers: dict[tuple[float, ...], Node] = {}
    known: dict[tuple[int, ...], Node] = {}

    def join(xs: Sequence[Any]) -> Any:
        first = xs[0]
        if all(x is first for x in xs):
            return first
        if isinstance(first, (list, tuple)):
            if len({len(x) for x in xs}) > 1:
                raise Different
            return type(first)(map(join, zip(*xs, strict=True)))
        if all(is_constant(x) for x in xs):
            values = tuple(map(float, xs))
            if len(set(values)) == 1:
                return first
            return numbers.setdefault(values, graph.input(f"{prefix}{len(numbers)}"))
        if any(is_constant(x) for x in xs) or len({(x.kind, len(x.args)) for x in xs}) > 1:
            raise Different
        if first.kind in ("input", "power"):
            raise Different
        key = tuple(x.index for x in xs)
        if key not in known:
            known[key] = graph.make(first.kind, *map(join, zip(*(x.args for x in xs), strict=True)))
        return known[key]

    fields = {name: join([getattr(c, name) for c in contacts]) for name in EXPRESSIONS}
    values = {node.args[0]: numbers_of for numbers_of, node in numbers.items()}
    return dataclasses.replace(contacts[0], **fields, copies=len(contacts), numbers=values)


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
