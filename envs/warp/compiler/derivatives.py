"""Stage 1, derivatives: forward and reverse mode on expressions (see :mod:`.graph`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler.graph import (
    Node,
    add,
    cos,
    div,
    is_zero,
    mul,
    neg,
    power,
    reachable,
    reflection,
    sin,
    sub,
    where,
)


def jvp(outputs: Sequence[Any], tangents: Mapping[Node, Any]) -> list[Any]:
    """Forward mode: the tangents of ``outputs`` as expressions, given those of inputs; other inputs are constant."""
    known: dict[int, Any] = {node.index: tangent for node, tangent in tangents.items()}

    def of(x: Any) -> Any:
        return known[x.index] if isinstance(x, Node) else 0.0

    for node in reachable(outputs, set(known)):
        a = node.args
        match node.kind:
            case "input" | "less":
                t: Any = 0.0
            case "add":
                t = add(of(a[0]), of(a[1]))
            case "sub":
                t = sub(of(a[0]), of(a[1]))
            case "mul":
                t = add(mul(of(a[0]), a[1]), mul(a[0], of(a[1])))
            case "neg":
                t = neg(of(a[0]))
            case "div":
                t = div(sub(of(a[0]), mul(node, of(a[1]))), a[1])
            case "where":
                t = where(a[0], of(a[1]), of(a[2]))
            case _:
                t = 0.0
                for x, slope in zip(a, _slopes(node), strict=False):
                    t = add(t, mul(slope, of(x)))
        known[node.index] = t
    return [of(x) for x in outputs]


def vjp(cotangents: Iterable[tuple[Any, Any]], cuts: Iterable[Any] = ()) -> dict[Node, Any]:
    """Reverse mode: the derivative of a scalar with respect to inputs and ``cuts``, as expressions.

    Args:
        cotangents: pairs (expression, derivative of the scalar with respect to it).
        cuts: expressions at which the sweep stops.

    Returns:
        derivative of the scalar with respect to each input and cut that it depends on.
    """
    cut = {x.index for x in cuts if isinstance(x, Node)}
    adjoint: dict[int, Any] = {}

    def accumulate(x: Any, cotangent: Any) -> None:
        if isinstance(x, Node) and not is_zero(cotangent):
            adjoint[x.index] = add(adjoint.get(x.index, 0.0), cotangent)

    seeds = [(x, c) for x, c in cotangents if isinstance(x, Node)]
    for x, c in seeds:
        accumulate(x, c)
    found: dict[Node, Any] = {}
    for node in reversed(_reachable_to(cut, [x for x, _ in seeds])):
        c, a = adjoint.get(node.index, 0.0), node.args
        if is_zero(c):
            continue
        if node.index in cut or node.kind == "input":
            found[node] = c
            continue
        match node.kind:
            case "add":
                accumulate(a[0], c)
                accumulate(a[1], c)
            case "sub":
                accumulate(a[0], c)
                accumulate(a[1], neg(c))
            case "mul":
                accumulate(a[0], mul(c, a[1]))
                accumulate(a[1], mul(c, a[0]))
            case "neg":
                accumulate(a[0], neg(c))
            case "div":
                share = div(c, a[1])
                accumulate(a[0], share)
                accumulate(a[1], neg(mul(share, node)))
            case "where":
                accumulate(a[1], where(a[0], c, 0.0))
                accumulate(a[2], where(a[0], 0.0, c))
            case "less":
                pass
            case _:
                for x, slope in zip(a, _slopes(node), strict=False):
                    accumulate(x, mul(c, slope))
    return found


def _reachable_to(cut: set[int], outputs: Iterable[Node]) -> list[Node]:
    """As :func:`reachable`, with the cut nodes themselves but nothing that only they depend on."""
    found: dict[int, Node] = {}
    stack = list(outputs)
    while stack:
        node = stack.pop()
        if node.index not in found:
            found[node.index] = node
            if node.index not in cut:
                stack += [x for x in node.args if isinstance(x, Node)]
    return [found[i] for i in sorted(found)]


def _slopes(node: Node) -> tuple[Any, ...]:
    """The derivatives of a function by its arguments, without those that are always numbers."""
    a = node.args
    match node.kind:
        case "sin":
            return (cos(a[0]),)
        case "cos":
            return (neg(sin(a[0])),)
        case "sqrt":
            return (div(0.5, node),)
        case "power":
            return (mul(a[1], power(a[0], a[1] - 1.0)),)
        case "atan2":
            square = add(mul(a[0], a[0]), mul(a[1], a[1]))
            return div(a[1], square), neg(div(a[0], square))
        case "floor":
            return (0.0,)
        case "reflection0":
            return tuple(reflection(*a, n=n) for n in (1, 2, 3))
    raise AssertionError(f"no derivative of {node.kind}")
