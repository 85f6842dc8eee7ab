"""Stage 1, expressions: a graph of scalar operations that folds constants and can be evaluated.

An expression is a Python float (a constant) or a :class:`Node`. Equal operations on equal arguments are one node, so
the algorithms of the other stages are written once, in three dimensions, and the structure of a model (a planar body,
an axis along x, a zero offset) disappears by folding. A condition is a Python bool or a node of kind ``less``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mage_diffsim.envs.warp.compiler.reflection import reflection as _reflection

ROUNDING = 1e-14
"""A sum of constants below this share of its terms counts as 0; so does an entry of a rotation below this."""


class Graph:
    """Makes nodes and shares equal ones. A node's arguments come before it in :attr:`nodes`."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._known: dict[tuple[Any, ...], Node] = {}

    def make(self, kind: str, *args: Any) -> Node:
        """The node of this kind and these arguments, made on first use."""
        key = (kind, *args)  # nodes are equal to themselves only
        node = self._known.get(key)
        if node is None:
            node = Node(self, kind, args, len(self.nodes))
            self.nodes.append(node)
            self._known[key] = node
        return node

    def input(self, name: str) -> Node:
        """A variable; in the emitted code it is the local variable of this name."""
        return self.make("input", name)

    def inputs(self, prefix: str, n: int) -> list[Node]:
        """Variables ``prefix0`` to ``prefix{n-1}``."""
        return [self.input(f"{prefix}{i}") for i in range(n)]


class Node:
    """One operation; ``index`` orders the nodes of its graph topologically."""

    __slots__ = ("args", "graph", "index", "kind")

    def __init__(self, graph: Graph, kind: str, args: tuple[Any, ...], index: int) -> None:
        self.graph, self.kind, self.args, self.index = graph, kind, args, index

    def __repr__(self) -> str:
        return f"{self.kind}#{self.index}"

    def __add__(self, other: Any) -> Any:
        return add(self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return sub(self, other)

    def __rsub__(self, other: Any) -> Any:
        return sub(other, self)

    def __mul__(self, other: Any) -> Any:
        return mul(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        return div(self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return div(other, self)

    def __neg__(self) -> Any:
        return neg(self)

    def __pow__(self, exponent: float | int) -> Any:
        return power(self, float(exponent))


def is_constant(x: Any) -> bool:
    """Whether the expression is a number."""
    return not isinstance(x, Node)


def number(x: Any) -> Any:
    """A number of the model as an expression: a float, or the input that stands for it (:mod:`.parameters`)."""
    return x if isinstance(x, Node) else float(x)


def is_zero(x: Any) -> bool:
    """Whether the expression is the number 0."""
    return not isinstance(x, Node) and x == 0.0


def neg(a: Any) -> Any:
    """-a."""
    if is_constant(a):
        return -a if a else 0.0
    return a.args[0] if a.kind == "neg" else a.graph.make("neg", a)


def add(a: Any, b: Any) -> Any:
    """a + b."""
    if is_constant(a) and is_constant(b):
        total = a + b
        return 0.0 if abs(total) < ROUNDING * (abs(a) + abs(b)) else total
    if is_constant(a):
        a, b = b, a
    if is_constant(b):
        return a if b == 0.0 else a.graph.make("add", a, float(b))
    if b.kind == "neg":
        return sub(a, b.args[0])
    if a.kind == "neg":
        return sub(b, a.args[0])
    if a.index > b.index:
        a, b = b, a
    return a.graph.make("add", a, b)


def sub(a: Any, b: Any) -> Any:
    """a - b."""
    if is_constant(b):
        return add(a, -b)
    if is_constant(a):
        return neg(b) if a == 0.0 else b.graph.make("sub", float(a), b)
    if a is b:
        return 0.0
    if b.kind == "neg":
        return add(a, b.args[0])
    return a.graph.make("sub", a, b)


def mul(a: Any, b: Any) -> Any:
    """a * b."""
    if is_constant(a) and is_constant(b):
        return a * b
    if is_constant(a):
        a, b = b, a
    if is_constant(b):
        if b == 0.0:
            return 0.0
        if b == 1.0:
            return a
        if b == -1.0:
            return neg(a)
        if a.kind == "neg":
            return mul(a.args[0], -b)
        return a.graph.make("mul", a, float(b))
    if a.kind == "neg":
        return neg(mul(a.args[0], b))
    if b.kind == "neg":
        return neg(mul(a, b.args[0]))
    if a.index > b.index:
        a, b = b, a
    return a.graph.make("mul", a, b)


def div(a: Any, b: Any) -> Any:
    """a / b."""
    if is_constant(b):
        return mul(a, 1.0 / b)
    return 0.0 if is_zero(a) else b.graph.make("div", a, b)


def _unary(kind: str, a: Any, function: Callable[[float], float]) -> Any:
    return function(a) if is_constant(a) else a.graph.make(kind, a)


def sin(a: Any) -> Any:
    """sin(a), a in rad."""
    return _unary("sin", a, math.sin)


def cos(a: Any) -> Any:
    """cos(a), a in rad."""
    return _unary("cos", a, math.cos)


def sqrt(a: Any) -> Any:
    """The square root; its derivative at 0 is not finite, so guard the argument with :func:`where`."""
    return _unary("sqrt", a, math.sqrt)


def atan2(y: Any, x: Any) -> Any:
    """The angle of the point (x, y) [rad]; its derivative where both are 0 is not finite."""
    if is_constant(y) and is_constant(x):
        return math.atan2(y, x)
    return (y if isinstance(y, Node) else x).graph.make("atan2", y, x)


def floor(a: Any) -> Any:
    """The largest whole number that is not above a, with derivative 0."""
    return _unary("floor", a, math.floor)


def reflection(a: Any, b: Any, angle: Any, n: int = 0) -> Any:
    """The angle at which a path touches a circle, or its derivative by argument n (:mod:`.reflection`)."""
    args = (a, b, angle)
    inner = next((x for x in args if isinstance(x, Node)), None)
    return float(_reflection(n, *args)) if inner is None else inner.graph.make(f"reflection{n}", *args)


def power(a: Any, exponent: float) -> Any:
    """a^exponent for a >= 0 and a constant exponent of 1 or more."""
    if exponent == 1.0:
        return a
    if exponent in (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0):
        half = power(a, exponent // 2)
        return mul(mul(half, half), a if exponent % 2 else 1.0)
    return a**exponent if is_constant(a) else a.graph.make("power", a, float(exponent))


def less(a: Any, b: Any) -> Any:
    """The condition a < b."""
    if is_constant(a) and is_constant(b):
        return a < b
    return (b if is_constant(a) else a).graph.make("less", a, b)


def where(condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, b elsewhere; the other branch has no share in the derivative."""
    if not isinstance(condition, Node):
        return a if condition else b
    if a is b or (is_constant(a) and is_constant(b) and a == b):
        return a
    return condition.graph.make("where", condition, a, b)


def absolute(a: Any) -> Any:
    """|a|, with derivative +-1; at 0 it is 1."""
    return where(less(a, 0.0), neg(a), a)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two."""
    return where(less(a, b), a, b)


def maximum(a: Any, b: Any) -> Any:
    """The larger of two."""
    return where(less(a, b), b, a)


def reachable(outputs: Iterable[Any], known: frozenset[int] | set[int] = frozenset()) -> list[Node]:
    """The nodes that the expressions depend on, in the order of evaluation, without ``known`` ones and theirs.

    Raises:
        ValueError: the expressions are of several graphs, whose nodes have the same numbers.
    """
    found: dict[int, Node] = {}
    stack = [x for x in outputs if isinstance(x, Node)]
    if len({id(x.graph) for x in stack}) > 1:
        raise ValueError("expressions of several graphs")
    while stack:
        node = stack.pop()
        if node.index in found or node.index in known:
            continue
        found[node.index] = node
        stack += [x for x in node.args if isinstance(x, Node)]
    return [found[i] for i in sorted(found)]


_NUMPY: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "sin": np.sin,
    "cos": np.cos,
    "sqrt": np.sqrt,
    "atan2": np.arctan2,
    "floor": np.floor,
    "power": np.power,
    **{f"reflection{n}": functools.partial(_reflection, n) for n in range(4)},
    "less": np.less,
    "where": np.where,
}


def evaluate(outputs: Sequence[Any], values: Mapping[str, Any], real: Any = np.float64) -> list[Any]:
    """The values of expressions, computed by numpy: the tests of the stages use it and compile no kernel.

    Args:
        outputs: expressions.
        values: input name to number, or to an array of any one shape.
        real: numpy's type of all numbers but the constants.
    """
    known: dict[int, Any] = {}

    def of(x: Any) -> Any:
        return known[x.index] if isinstance(x, Node) else x

    with np.errstate(all="ignore"):
        for node in reachable(outputs):
            value = values[node.args[0]] if node.kind == "input" else _NUMPY[node.kind](*(of(a) for a in node.args))
            known[node.index] = value if node.kind == "less" else np.asarray(value, dtype=real)[()]
    return [of(x) for x in outputs]
