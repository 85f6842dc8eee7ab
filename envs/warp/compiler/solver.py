"""Stage 6, the constraint solver: Newton's method for the acceleration, emitted with the model's sparsity written out.

The accelerations minimise 1/2 (a - a0)' M (a - a0) + 1/2 sum over violated rows of D (J a - aref)^2, as in MuJoCo. A
Newton step that is taken in full and changes no row's being violated is exact, and the factored Hessian is the one at
the solution, which the derivative sweeps use. Other steps are shortened by an exact search along the line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler.constraints import EDGES, Contact, LimitRow
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics
from mage_diffsim.envs.warp.compiler.emit import Writer, literal, reference, total, vector
from mage_diffsim.envs.warp.compiler.graph import is_zero

ITERATIONS = 30
"""Newton steps after which a solve counts as failed; the tasks here need 1 to 8."""
SEARCHES = 20
"""Evaluations of the derivative along a line."""


class Matrix:
    """Code for a symmetric matrix of variables ``{name}{i}_{j}``, with fill-in, factored in place as L' D L."""

    def __init__(self, name: str, size: int, entries: set[tuple[int, int]]) -> None:
        self.name, self.size = name, size
        self.entries = filled(size, entries)

    def __getitem__(self, place: tuple[int, int]) -> str:
        return f"{self.name}{max(place)}_{min(place)}"

    def _row(self, k: int) -> list[int]:
        return [i for i in range(k) if (k, i) in self.entries]

    def declare(self, w: Writer) -> None:
        """Declare the entries and the inverses of D, named ``{name}inv{k}``."""
        w.declare([self[e] for e in sorted(self.entries)])
        w.declare([f"{self.name}inv{k}" for k in range(self.size)])

    def factor(self, w: Writer) -> None:
        """Replace the matrix by its factors."""
        for k in reversed(range(self.size)):
            w(f"{self.name}inv{k} = over(splat(1), {self[k, k]});")
            for i in reversed(self._row(k)):
                w(f"{{ const vec part = {self[k, i]} * {self.name}inv{k};")
                for j in self._row(k):
                    if j <= i:
                        w(f"  {self[i, j]} -= part * {self[k, j]};")
                w(f"  {self[k, i]} = part; }}")

    def solve(self, w: Writer, x: str) -> None:
        """Replace the vector of variables ``{x}{i}`` by the solution."""
        for k in reversed(range(self.size)):
            for i in self._row(k):
                w(f"{x}{i} -= {self[k, i]} * {x}{k};")
        for k in range(self.size):
            w(f"{x}{k} *= {self.name}inv{k};")
        for k in range(self.size):
            for i in self._row(k):
                w(f"{x}{k} -= {self[k, i]} * {x}{i};")


def filled(size: int, entries: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """The lower triangle's entries (i >= j) that a factorisation from the last row up makes non-zero."""
    result = {(max(e), min(e)) for e in entries} | {(i, i) for i in range(size)}
    for k in reversed(range(size)):
        row = [i for i in range(k) if (k, i) in result]
        result |= {(i, j) for i in row for j in row if j <= i}
    return result


def times_mass(mass: Sequence[Sequence[Any]], x: str) -> list[str]:
    """Code of M x for the vector of variables ``{x}{i}``."""
    return [total([f"{reference(m)} * {x}{j}" for j, m in enumerate(row) if not is_zero(m)]) for row in mass]


class Solver:
    """Emits the solve for one model; its variables are a{i} (the acceleration) and the matrix ``H`` (the Hessian)."""

    def __init__(self, kinematics: Kinematics, mass: list[list[Any]], contacts: list[Contact], exact: bool) -> None:
        self.mass, self.contacts = mass, contacts
        self.nv = len(mass)
        self.kinds = max((len(c.tangents) for c in contacts), default=0)
        """Tangents per contact."""
        entries = {(i, j) for i, row in enumerate(mass) for j, m in enumerate(row) if not is_zero(m)}
        for c in contacts:
            moved = {d for body in c.pair.bodies for d in kinematics.chain(body)}
            entries |= {(i, j) for i in moved for j in moved}
        self.hessian = Matrix("H", self.nv, entries)
        self.tolerance, self.rounding = (1e-10, 1e-14) if exact else (1e-5, 1e-6)
        # One record per contact that is present: rows along normal and tangents, offsets, the weight, and for the
        # search the rows' values at a and along the step.
        n, k = self.nv, 1 + self.kinds
        self.offset, self.value, self.step, self.weight = n * k, n * k + k, n * k + 2 * k, n * k + 3 * k
        self.records = len(contacts), self.weight + 1
        """Contacts at most, and numbers of each."""

    def declare(self, w: Writer) -> None:
        """Variables that live through the whole kernel."""
        self.hessian.declare(w)
        w.declare([f"x{i}" for i in range(self.nv)])
        w("mask failed = splat(1) < splat(0);")

    def solve(
        self, w: Writer, smooth: Sequence[Any], limits: Sequence[LimitRow], offsets: Sequence[Sequence[Any]]
    ) -> None:
        """Emit the solve: a{i} becomes the acceleration, H the factored Hessian there, ``failed`` grows.

        Args:
            w: where the code is written.
            smooth: forces other than the constraints', [nv].
            limits: rows of the limits.
            offsets: -aref of each contact along normal and tangents.
        """
        nv = self.nv
        w.compute(*[m for row in self.mass for m in row], *smooth)
        for row in limits:
            w.compute(row.sign, row.weight, row.offset)
        if self.contacts:
            w("int touching = 0;")
        for c, given in zip(self.contacts, offsets, strict=True):
            (present,) = w.compute(c.present)
            with w.block(f"if (any({present}))"):
                zeros = [0.0] * (self.kinds - len(c.tangents))
                rows = [c.normal_row, *c.tangent_rows, *([0.0] * nv for _ in zeros)]
                values = [*(x for row in rows for x in row), *given, *zeros]
                places = [*range(len(values)), self.weight]
                w.compute(*values, c.weight)
                for place, x in zip(places, [*values, c.weight], strict=True):
                    w(f"contact[touching][{place}] = {vector(x)};")
                w("++touching;")
        w("mask done = splat(1) < splat(0);")
        with w.block(f"for (int newton = 0; newton < {ITERATIONS}; ++newton)"):
            self._system(w, smooth, limits)
            self.hessian.factor(w)
            self.hessian.solve(w, "x")
            self._search(w, limits)
            # In float32, rows at the edge can go on and off for ever: steps within rounding end the solve too.
            forces = [reference(x) for x in smooth]
            w(f"const vec energy = {total([f'a{i} * (s{i} + {f})' for i, f in enumerate(forces)])};")
            w(f"const mask still = size * size * bend <= {literal(self.rounding**2)} * energy;")
            for i in range(nv):
                w(f"a{i} = select(done, a{i}, a{i} + size * x{i});")
            w("done = done | !changed | still;")
            w("if (!any(!done)) break;")
        w("failed = failed | !done;")

    def _system(self, w: Writer, smooth: Sequence[Any], limits: Sequence[LimitRow]) -> None:
        """Gradient and Hessian at a: ``s`` = M a - smooth, x = -gradient."""
        nv = self.nv
        for place in sorted(self.hessian.entries):
            w(f"{self.hessian[place]} = {vector(self.mass[place[0]][place[1]])};")
        for i, (product, force) in enumerate(zip(times_mass(self.mass, "a"), smooth, strict=True)):
            w(f"const vec s{i} = {product} - {reference(force)};")
            w(f"x{i} = -s{i};")
        for n, row in enumerate(limits):
            d, sign, weight, offset = row.dof, *(reference(x) for x in (row.sign, row.weight, row.offset))
            w(f"const vec limit{n} = {sign} * a{d} + {offset};")
            w(f"const vec active{n} = select(limit{n} < real(0), {weight}, splat(0));")
            w(f"{self.hessian[d, d]} += active{n};")
            w(f"x{d} -= {sign} * active{n} * limit{n};")
        if not self.contacts:
            return
        with w.block("for (int k = 0; k < touching; ++k)"):
            self._load(w)
            w(f"const vec weight = contact[k][{self.weight}];")
            for t in range(1 + self.kinds):
                products = [f"row{t}_{i} * a{i}" for i in range(nv)]
                w(f"const vec value{t} = contact[k][{self.offset + t}] + {total(products)};")
                w(f"contact[k][{self.value + t}] = value{t};")
            plain = EDGES - 2 * self.kinds
            w("vec force0 = splat(0), h0_0 = splat(0);")
            if plain:
                w(f"const vec plain = select(value0 < real(0), real({plain}) * weight, splat(0));")
                w("force0 += plain * value0; h0_0 += plain;")
            for t in range(1, 1 + self.kinds):
                w(f"const vec up{t} = value0 + value{t}, down{t} = value0 - value{t};")
                w(f"const vec on{t} = select(up{t} < real(0), weight, splat(0));")
                w(f"const vec off{t} = select(down{t} < real(0), weight, splat(0));")
                w(f"force0 += on{t} * up{t} + off{t} * down{t}; h0_0 += on{t} + off{t};")
                w(f"const vec force{t} = on{t} * up{t} - off{t} * down{t};")
                w(f"const vec h0_{t} = on{t} - off{t}, h{t}_{t} = on{t} + off{t};")
            for i in range(nv):
                w(f"x{i} -= {total([f'row{t}_{i} * force{t}' for t in range(1 + self.kinds)])};")
            for i in range(nv):
                ways = [f"h0_{t} * row{t}_{i}" for t in range(1 + self.kinds)]
                w(f"const vec y0_{i} = {total(ways)};")
                for t in range(1, 1 + self.kinds):
                    w(f"const vec y{t}_{i} = h0_{t} * row0_{i} + h{t}_{t} * row{t}_{i};")
            for i, j in sorted(self.hessian.entries):
                w(f"{self.hessian[i, j]} += {total([f'y{t}_{i} * row{t}_{j}' for t in range(1 + self.kinds)])};")

    def _load(self, w: Writer) -> None:
        for t in range(1 + self.kinds):
            for i in range(self.nv):
                w(f"const vec row{t}_{i} = contact[k][{t * self.nv + i}];")

    def _search(self, w: Writer, limits: Sequence[LimitRow]) -> None:
        """Find the ``size`` of the step x, and whether it ``changed`` which rows are violated."""
        nv = self.nv
        w(f"const vec slope = {total([f's{i} * x{i}' for i in range(nv)])};")
        bends = [f"x{i} * ({product})" for i, product in enumerate(times_mass(self.mass, "x"))]
        w(f"const vec bend = {total(bends)};")
        if self.contacts:
            with w.block("for (int k = 0; k < touching; ++k)"):
                for t in range(1 + self.kinds):
                    products = [f"contact[k][{t * nv + i}] * x{i}" for i in range(nv)]
                    w(f"contact[k][{self.step + t}] = {total(products)};")
        w("vec size = splat(1), below = splat(0), above = splat(1e30);")
        w("mask changed = splat(1) < splat(0), open = changed;")
        with w.block(f"for (int search = 0; search < {SEARCHES}; ++search)"):
            w("vec first_order = slope + size * bend, second_order = bend;")
            w("mask flips = splat(1) < splat(0);")
            for n, row in enumerate(limits):
                sign, weight = reference(row.sign), reference(row.weight)
                with w.block(""):
                    w(f"const vec along = {sign} * x{row.dof};")
                    w(f"const vec value = limit{n} + size * along;")
                    w(f"const vec active = select(value < real(0), {weight}, splat(0));")
                    w("first_order += active * value * along; second_order += active * along * along;")
                    w(f"flips = flips | (active != active{n});")
            if self.contacts:
                with w.block("for (int k = 0; k < touching; ++k)"):
                    w(f"const vec weight = contact[k][{self.weight}];")
                    for t in range(1 + self.kinds):
                        w(f"const vec value{t} = contact[k][{self.value + t}], step{t} = contact[k][{self.step + t}];")
                    plain = EDGES - 2 * self.kinds
                    edges = [("value0", "step0", f"real({plain}) * weight")] if plain else []
                    for t in range(1, 1 + self.kinds):
                        edges += [(f"(value0 {s} value{t})", f"(step0 {s} step{t})", "weight") for s in "+-"]
                    for value, step, weight in edges:
                        with w.block(""):
                            w(f"const vec along = {step}, start = {value}, value = start + size * along;")
                            w(f"const vec active = select(value < real(0), {weight}, splat(0));")
                            w("first_order += active * value * along; second_order += active * along * along;")
                            # A row whose weight is 0 in a lane is not there.
                            w("flips = flips | (((value < real(0)) != (start < real(0))) & (weight > real(0)));")
            with w.block("if (search == 0)"):
                w("changed = flips;")
                w("open = flips & !done;")
            w("const vec error = select(first_order < real(0), -first_order, first_order);")
            w("const vec scale = select(slope < real(0), -slope, slope);")
            w(f"open = open & !(error <= {literal(self.tolerance)} * scale);")
            w("if (!any(open)) break;")
            w("below = select(open & (first_order < real(0)), size, below);")
            w("above = select(open & (first_order >= real(0)), size, above);")
            w("const vec guess = size - over(first_order, second_order);")
            w("const vec reach = real(2) * size + real(1);")
            w("const vec half = real(0.5) * (below + select(above < reach, above, reach));")
            w("const vec next = select((guess > below) & (guess < above), guess, half);")
            w("size = select(open, next, size);")
