"""How a sweep of MuJoCo's noslip solver updates the friction of one block of rows, as expressions and as code.

A block has forces ``old{t}`` and residuals ``res{t}`` along its ways, t = 0 and on, and ``gram{t}_{u}`` (t <= u), the
entries of J M^-1 J'. The update minimises 1/2 d' gram d + res' d over new forces old + d within a ``bound``. Variables
of derivatives have names with ``by_`` (reverse) or ``along_`` (forward mode) in front.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, final

from mage_diffsim.envs.mujoco.mixing import SMALLEST
from mage_diffsim.envs.warp.compiler.derivatives import jvp, vjp
from mage_diffsim.envs.warp.compiler.emit import Writer, literal, total
from mage_diffsim.envs.warp.compiler.graph import (
    Graph,
    Node,
    add,
    div,
    less,
    maximum,
    minimum,
    mul,
    neg,
    sqrt,
    sub,
    where,
)

NEAR = 1e-10
"""MuJoCo's threshold in the update of elliptic friction: for pivots, squares of forces and steps alike."""
STEPS = 20
"""Newton steps at most for the multiplier of an elliptic bound, as in MuJoCo."""


class Block(ABC):
    """One block; its derivatives are those of the arithmetic that the update executes."""

    def __init__(self, ways: int) -> None:
        self.ways = range(ways)
        self.gram_names = [f"gram{t}_{u}" for t in self.ways for u in self.ways[t:]]

    @property
    def inputs(self) -> list[str]:
        """The variables that the new forces depend on."""
        kinds = [f"{kind}{t}" for kind in ("res", "old") for t in self.ways]
        return [*kinds, *self.gram_names, "bound"]

    @abstractmethod
    def forward(self, w: Writer) -> None:
        """Emit ``new{t}``, and by how much the cost falls, ``gain``."""

    @abstractmethod
    def reverse(self, w: Writer) -> None:
        """Emit ``by_{input}`` for all inputs, from ``by_new{t}``."""

    @abstractmethod
    def tangent(self, w: Writer) -> None:
        """Emit what :meth:`forward` does, and ``along_new{t}`` from ``along_{input}``."""


@final
class Box(Block):
    """One way whose force is within +-bound: friction loss, or a pair of opposite edges of a pyramid.

    The force along a pair of edges is the difference of theirs. The sum of theirs, which stays, is its bound.
    """

    def __init__(self) -> None:
        super().__init__(1)
        graph = Graph()
        self._given = x = {name: graph.input(name) for name in self.inputs}
        moves = less(SMALLEST, x["gram0_0"])
        step = div(x["res0"], where(moves, x["gram0_0"], 1.0))
        free = where(moves, sub(x["old0"], step), x["old0"])
        self._new = maximum(minimum(free, x["bound"]), neg(x["bound"]))

    def forward(self, w: Writer) -> None:
        w(f"const vec new0 = splat(0) + {w.compute(self._new)[0]}, change = new0 - old0;")
        w("const vec gain = -change * (real(0.5) * change * gram0_0 + res0);")

    def reverse(self, w: Writer) -> None:
        found = vjp([(self._new, self._new.graph.input("by_new0"))])
        values = w.compute(*(found.get(x, 0.0) for x in self._given.values()))
        for name, value in zip(self._given, values, strict=True):
            w(f"const vec by_{name} = splat(0) + {value};")

    def tangent(self, w: Writer) -> None:
        along = {x: x.graph.input(f"along_{name}") for name, x in self._given.items()}
        self.forward(w)
        w(f"const vec along_new0 = splat(0) + {w.compute(*jvp([self._new], along))[0]};")


@final
class Ellipse(Block):
    """The friction of an elliptic contact, in an ellipse whose size is its normal force, the bound.

    In MuJoCo's scale the ellipse is a sphere of radius ``bound``, and forces are those here over ``slope``. MuJoCo
    looks for the multiplier la of the bound by Newton's method and stops early; so its steps are taken as they are.
    ``floor{t}`` is MuJoCo's least entry on gram's diagonal, in its scale.
    """

    def __init__(self, ways: int) -> None:
        super().__init__(ways)
        graph = self._graph = Graph()
        names = [*self.inputs, "slope", *(f"floor{t}" for t in self.ways)]
        x = {name: graph.input(name) for name in names}
        self._given = {name: x[name] for name in self.inputs}
        self._matrix: dict[tuple[int, int], Any] = {}
        square = mul(x["slope"], x["slope"])
        for t in self.ways:
            for u in self.ways[t:]:
                entry = mul(square, x[f"gram{t}_{u}"])
                self._matrix[t, u] = maximum(entry, x[f"floor{t}"]) if t == u else entry
        self._linear = []
        for t in self.ways:
            value = mul(x["slope"], x[f"res{t}"])
            for u in self.ways:
                entry = self._matrix[min(t, u), max(t, u)]
                value = sub(value, mul(entry, div(x[f"old{u}"], x["slope"])))
            self._linear.append(value)
        # The same as variables of the code: what comes after depends on these.
        self._a = {(t, u): graph.input(f"a{t}_{u}") for t, u in self._matrix}
        self._b = [graph.input(f"b{t}") for t in self.ways]
        self._bound, self._slope = x["bound"], x["slope"]
        self._la, self._along_la = graph.input("la"), graph.input("along_la")
        self._x, self._fails, self._excess, self._step = self._at()
        self._new = self._scaled(self._x)

    def _at(self) -> tuple[list[Any], Any, Any, Any]:
        """At a multiplier la: x = -(a + la)^-1 b, whether a + la is singular to MuJoCo, |x|^2 - bound^2, la's step."""
        n = len(self.ways)
        lower: dict[tuple[int, int], Any] = {}
        pivots: list[Any] = []
        for j in self.ways:
            pivot = add(self._a[j, j], self._la)
            for k in range(j):
                pivot = sub(pivot, mul(mul(lower[j, k], lower[j, k]), pivots[k]))
            pivots.append(where(less(0.0, pivot), pivot, 1.0))
            lower[j, j] = pivot
            for i in range(j + 1, n):
                entry = self._a[j, i]
                for k in range(j):
                    entry = sub(entry, mul(mul(lower[i, k], lower[j, k]), pivots[k]))
                lower[i, j] = div(entry, pivots[j])

        def solve(given: Sequence[Any]) -> list[Any]:
            y = list(given)
            for i in range(n):
                for k in range(i):
                    y[i] = sub(y[i], mul(lower[i, k], y[k]))
            y = [div(value, pivot) for value, pivot in zip(y, pivots, strict=True)]
            for i in reversed(range(n)):
                for k in range(i + 1, n):
                    y[i] = sub(y[i], mul(lower[k, i], y[k]))
            return y

        determinant, smallest = lower[0, 0], lower[0, 0]
        for j in self.ways[1:]:
            determinant, smallest = mul(determinant, lower[j, j]), minimum(smallest, lower[j, j])
        fails = less(determinant if n < 4 else smallest, NEAR)
        x = solve([neg(b) for b in self._b])
        further = solve(x)
        square: Any = 0.0
        product: Any = 0.0
        for value, other in zip(x, further, strict=True):
            square, product = add(square, mul(value, value)), add(product, mul(value, other))
        excess = sub(square, mul(self._bound, self._bound))
        outside = less(0.0, product)
        return x, fails, excess, div(mul(0.5, excess), where(outside, product, 1.0))

    def _scaled(self, x: Sequence[Any]) -> list[Any]:
        """The forces of x: on the ellipse where the bound is ``active``, 0 where the update ``fails``, and what they
        were where it is ``undone``."""
        square: Any = 0.0
        for value in x:
            square = add(square, mul(value, value))
        size = div(self._bound, sqrt(where(less(square, SMALLEST), SMALLEST, square)))
        scale = mul(self._slope, where(self._graph.input("active"), size, 1.0))
        fails, undone = self._graph.input("fails"), self._graph.input("undone")
        found = [where(fails, 0.0, mul(scale, value)) for value in x]
        return [where(undone, self._given[f"old{t}"], value) for t, value in enumerate(found)]

    def _newton(self, w: Writer, history: bool = False, along: Mapping[Node, Any] | None = None) -> None:
        """Emit a, b, the multiplier la, the masks ``active``, ``fails`` and ``undone``, and the cost's ``rise``.

        Args:
            w: where the code is written.
            history: whether to keep the multiplier before each of ``steps`` in an array, ``multiplier``.
            along: the tangents of a, b and the bound, if that of la is wanted, ``along_la``.
        """
        with_tangent = along is not None
        names = [*(x.args[0] for x in self._a.values()), *(x.args[0] for x in self._b)]
        for name, value in zip(names, w.compute(*self._matrix.values(), *self._linear), strict=True):
            w(f"const vec {name} = splat(0) + {value};")
        w("vec next = splat(0), la = next; mask fails = splat(1) < splat(0), open = !fails; int steps = 0;")
        if history:
            w(f"vec multiplier[{STEPS}];")
        if with_tangent:
            w("vec along_next = splat(0), along_la = next;")
        with w.loop(f"; steps < {STEPS} && any(open); ++steps", fresh=True):
            w("la = select(open, next, la);")
            bad, excess, step = w.compute(self._fails, self._excess, self._step)
            if history:
                w("multiplier[steps] = la;")
            if with_tangent:
                w("along_la = select(open, along_next, along_la);")
                w(f"along_next = along_la + {w.compute(*jvp([self._step], {**along, self._la: self._along_la}))[0]};")
            w(f"fails = fails | (open & {bad});")
            w(f"open = open & !{bad} & !({excess} < {literal(NEAR)}) & !({step} < {literal(NEAR)});")
            w(f"next = la + {step};")
        w(f"fails = fails | (bound < {literal(SMALLEST)});")
        w("const mask active = la > real(0);")
        w.declare([f"change{t}" for t in self.ways])
        with w.block("", fresh=True):
            w("const mask undone = splat(1) < splat(0);")
            for t, value in enumerate(w.compute(*self._new)):
                w(f"change{t} = {value} - old{t};")
        terms = [f"change{t} * res{t}" for t in self.ways]
        for t, u in self._matrix:
            share = "real(0.5) * " if t == u else ""
            terms.append(f"over({share}change{t} * a{t}_{u} * change{u}, slope * slope)")
        w(f"const vec rise = {total(terms)};")
        w(f"const mask undone = rise > {literal(NEAR)};")

    def forward(self, w: Writer) -> None:
        self._newton(w)
        self._end(w)

    def _end(self, w: Writer) -> None:
        w("const vec gain = select(undone, splat(0), -rise);")
        for t in self.ways:
            w(f"const vec new{t} = select(undone, old{t}, old{t} + change{t});")

    def reverse(self, w: Writer) -> None:
        self._newton(w, history=True)
        inner = {**{x: f"by_{x.args[0]}" for x in (*self._a.values(), *self._b)}, self._la: "by_la"}
        outer = {x: f"by_{name}" for name, x in self._given.items()}
        w.declare([*inner.values(), *outer.values()])

        def gather(seeds: Sequence[tuple[Any, str]], line: str = "{0} += {1};") -> None:
            by = vjp([(x, self._graph.input(name)) for x, name in seeds])
            found = {name: by[x] for x, name in (inner | outer).items() if x in by}
            for name, value in zip(found, w.compute(*found.values()), strict=True):
                w(line.format(name, value))

        with w.block("", fresh=True):
            gather([(x, f"by_new{t}") for t, x in enumerate(self._new)])
        with w.loop("int k = steps - 1; k >= 0; --k", fresh=True):
            w("const mask taken = multiplier[k] < la;")
            w("if (!any(taken)) continue;")
            with w.block("", fresh=True):
                w("const vec by_step = select(taken, by_la, splat(0)), la = multiplier[k];")
                gather([(self._step, "by_step")], "{0} += select(taken, splat(0) + {1}, splat(0));")
        with w.block("", fresh=True):
            seeds = [(x, f"by_a{t}_{u}") for (t, u), x in self._matrix.items()]
            gather([*seeds, *((x, f"by_b{t}") for t, x in enumerate(self._linear))])

    def tangent(self, w: Writer) -> None:
        given = {x: x.graph.input(f"along_{name}") for name, x in self._given.items()}
        along = dict(given)
        for x, value in zip((*self._a.values(), *self._b), (*self._matrix.values(), *self._linear), strict=True):
            along[x] = self._graph.input(f"along_{x.args[0]}")
            w(f"const vec along_{x.args[0]} = splat(0) + {w.compute(*jvp([value], given))[0]};")
        self._newton(w, along=along)
        w.declare([f"along_new{t}" for t in self.ways])
        with w.block("", fresh=True):
            tangents = w.compute(*jvp(self._new, {**along, self._la: self._along_la}))
            for t, value in enumerate(tangents):
                w(f"along_new{t} = splat(0) + {value};")
        self._end(w)
