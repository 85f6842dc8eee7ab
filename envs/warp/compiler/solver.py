"""Stage 6, the constraint solver: Newton's method for the acceleration, emitted with the model's sparsity written out.

The accelerations minimise 1/2 (a - a0)' M (a - a0) plus a function of J a - aref for each row, as in MuJoCo. Within a
zone of the row it is quadratic: for a contact's edge 1/2 D (J a - aref)^2 where that is negative, else 0. A Newton step
that is taken in full and changes no row's zone is exact, and the factored Hessian is the one at the solution, which the
derivative sweeps use. Other steps are shortened by an exact search along the line.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler import zones
from mage_diffsim.envs.warp.compiler.cones import Pyramid
from mage_diffsim.envs.warp.compiler.constraints import Contact
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics
from mage_diffsim.envs.warp.compiler.emit import Writer, literal, reference, total, vector
from mage_diffsim.envs.warp.compiler.graph import is_zero, mul
from mage_diffsim.envs.warp.compiler.repeat import constant_part
from mage_diffsim.envs.warp.compiler.rows import Row

ITERATIONS = 30
"""Newton steps after which a solve counts as failed; the tasks here need 1 to 8."""
SEARCHES = 20
"""Evaluations of the derivative along a line."""


class Matrix:
    """Code for a matrix of variables ``{name}{i}_{j}``, with fill-in, factored in place as L' D L.

    Blocks in which it is not symmetric become U D L, without pivoting.

    Args:
        name: the start of the variables' names.
        size: number of rows.
        entries: the places that are not 0; with (i, j) also (j, i) may be.
        skew: the rows, and columns, of blocks that are not symmetric.
    """

    def __init__(
        self, name: str, size: int, entries: set[tuple[int, int]], skew: Collection[int] = frozenset()
    ) -> None:
        self.name, self.size, self.skew = name, size, skew
        self.entries = filled(size, entries)

    def __getitem__(self, place: tuple[int, int]) -> str:
        i, j = place if place[0] in self.skew else (max(place), min(place))
        return f"{self.name}{i}_{j}"

    @property
    def places(self) -> list[tuple[int, int]]:
        """The places (row, column) that have variables, the lower triangle first."""
        lower = sorted(self.entries)
        return [*lower, *((j, i) for i, j in lower if i != j and i in self.skew)]

    def _row(self, k: int) -> list[int]:
        return [i for i in range(k) if (k, i) in self.entries]

    @property
    def factors(self) -> list[str]:
        """The variables that hold the factors."""
        below = [self[e] for e in sorted(self.entries) if e[0] != e[1]]
        return [*below, *(f"{self.name}inv{k}" for k in range(self.size))]

    def declare(self, w: Writer) -> None:
        """Declare the entries and the inverses of D, named ``{name}inv{k}``."""
        w.declare([self[place] for place in self.places])
        w.declare([f"{self.name}inv{k}" for k in range(self.size)])

    def factor(self, w: Writer) -> None:
        """Replace the matrix by its factors."""
        for k in reversed(range(self.size)):
            w(f"{self.name}inv{k} = over(splat(1), {self[k, k]});")
            for i in reversed(self._row(k)):
                w(f"{{ const vec part = {self[i, k]} * {self.name}inv{k};")
                for j in self._row(k):
                    if j <= i or k in self.skew:
                        w(f"  {self[i, j]} -= part * {self[k, j]};")
                w(f"  {self[i, k]} = part; }}")
            if k in self.skew:
                for i in self._row(k):
                    w(f"{self[k, i]} *= {self.name}inv{k};")

    def solve(self, w: Writer, x: str, transposed: bool = False) -> None:
        """Replace the vector of variables ``{x}{i}`` by the solution, with the matrix or its transpose."""
        for k in reversed(range(self.size)):
            for i in self._row(k):
                w(f"{x}{i} -= {self[(k, i) if transposed else (i, k)]} * {x}{k};")
        for k in range(self.size):
            w(f"{x}{k} *= {self.name}inv{k};")
        for k in range(self.size):
            for i in self._row(k):
                w(f"{x}{k} -= {self[(i, k) if transposed else (k, i)]} * {x}{i};")


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


@dataclasses.dataclass
class Group:
    """Contacts of one cone whose rows are zero but for the degrees of freedom ``dofs``, and the layout of a record.

    A record holds the rows along normal and tangents, their offsets, values at a and values along the step, and the
    weight. The records of group n are the rows of the array ``contact{n}``; ``touching{n}`` counts those present.
    """

    dofs: tuple[int, ...]
    contacts: dict[int, Contact]
    """By their numbers in the model."""
    cone: Pyramid

    @property
    def kinds(self) -> int:
        """Tangents per contact."""
        return self.cone.tangents

    @property
    def offset(self) -> int:
        """The place in a record of the first offset."""
        return len(self.dofs) * (1 + self.kinds)

    @property
    def value(self) -> int:
        """The place of the first value at a."""
        return self.offset + 1 + self.kinds

    @property
    def step(self) -> int:
        """The place of the first value along the step."""
        return self.value + 1 + self.kinds

    @property
    def weight(self) -> int:
        """The place of the weight, the last number of a record."""
        return self.step + 1 + self.kinds


def grouped(moved: Sequence[frozenset[int]], size: int) -> list[tuple[frozenset[int], list[int]]]:
    """Groups contacts by the degrees of freedom that move them: (their union, numbers of the contacts).

    Code is written once per group, with as many operations as the union has pairs. So few contacts do more than their
    own share, while the code stays about as long as for one group of all ``size`` degrees of freedom.
    """
    groups: list[tuple[frozenset[int], list[int]]] = []
    for n in sorted(range(len(moved)), key=lambda n: -len(moved[n])):
        place = next((g for g in groups if moved[n] <= g[0]), None)
        if place is None:
            groups.append((moved[n], [n]))
        else:
            place[1].append(n)

    def growth(pair: tuple[int, int]) -> int:
        a, b = (groups[i][0] for i in pair)
        return len(a | b) ** 2 - len(a) ** 2 - len(b) ** 2

    while sum(len(dofs) ** 2 for dofs, _ in groups) > 1.5 * size**2:
        i, j = min(itertools.combinations(range(len(groups)), 2), key=growth)
        (a, first), (b, second) = groups[i], groups.pop(j)
        groups[i] = a | b, first + second
    return groups


def by_dim(contacts: Sequence[Contact]) -> dict[int, list[int]]:
    """The numbers of the contacts by their condim.

    Those without friction are with those of the next condim. They are pyramids whose edges are all along the normal.
    """
    dims = sorted({c.pair.dim for c in contacts})
    taken = {dim: dims[1] if dim == 1 and len(dims) > 1 else dim for dim in dims}
    return {dim: [n for n, c in enumerate(contacts) if taken[c.pair.dim] == dim] for dim in sorted(set(taken.values()))}


class Solver:
    """Emits the solve for one model; its variables are a{i} (the acceleration) and the matrix ``H`` (the Hessian)."""

    def __init__(
        self,
        kinematics: Kinematics,
        mass: list[list[Any]],
        rows: Sequence[Row],
        contacts: Sequence[Contact],
        exact: bool,
    ) -> None:
        self.mass, self.rows = mass, rows
        self.stiff = zones.with_unbounded(mass, rows)
        self.nv = len(mass)
        self.body_dofs = [kinematics.dofs(b) for b in range(kinematics.model.model.nbody)]
        motions = [[kinematics.axes[d] for d in kinematics.chain(b)] for b in range(len(self.body_dofs))]
        self.shared = [[x for motion in m for vector in motion for x in vector] for m in motions]
        """What several contacts of a body need, and the mass matrix: the axes of the joints that move it."""
        entries = {(i, j) for i, row in enumerate(mass) for j, m in enumerate(row) if not is_zero(m)}
        moved = [frozenset(d for body in c.pair.bodies for d in kinematics.chain(body)) for c in contacts]
        for dofs in (*moved, *(row.direction for row in rows)):
            entries |= {(i, j) for i in dofs for j in dofs}
        self.hessian = Matrix("H", self.nv, entries)
        self.tolerance, self.rounding = (1e-10, 1e-14) if exact else (1e-5, 1e-6)
        self.groups: list[Group] = []
        for dim, members in by_dim(contacts).items():
            for dofs, places in grouped([moved[n] for n in members], self.nv):
                some = {members[place]: contacts[members[place]] for place in places}
                cone = Pyramid(dim, max(c.cone.tangents for c in some.values()))
                self.groups.append(Group(tuple(sorted(dofs)), some, cone))

    @property
    def records(self) -> dict[str, tuple[int, int]]:
        """The arrays of contact records, and their shapes: contacts at most, and numbers of each."""
        return {
            f"contact{n}": (sum(c.copies for c in g.contacts.values()), g.weight + 1) for n, g in enumerate(self.groups)
        }

    def declare(self, w: Writer) -> None:
        """Variables that live through the whole kernel."""
        self.hessian.declare(w)
        w.declare([f"x{i}" for i in range(self.nv)])

    def solve(self, w: Writer, smooth: Sequence[Any], offsets: Sequence[Sequence[Any]]) -> None:
        """Emit the solve: a{i} becomes the acceleration, H the factored Hessian there, ``failed`` grows.

        Args:
            w: where the code is written.
            smooth: forces other than the constraints', [nv].
            offsets: -aref of each contact along normal and tangents.
        """
        nv = self.nv
        for n in range(len(self.groups)):
            w(f"int touching{n} = 0;")
        # What belongs to a body is computed together, so that little has to be kept meanwhile.
        for body in reversed(range(len(self.body_dofs))):
            for n, group in enumerate(self.groups):
                for number, c in group.contacts.items():
                    if max(c.pair.bodies) == body:
                        w.compute(*(x for b in c.pair.bodies for x in self.shared[b]))
                        w.compute(*constant_part(c.present, c.numbers))
                        with w.copies(c.copies, c.numbers):
                            self._record(w, n, c, offsets[number])
            for d in self.body_dofs[body]:
                w.compute(*self.mass[d], *self.stiff[d], smooth[d])
                for row in self.rows:
                    if max(row.direction) == d:
                        w.compute(*row.direction.values(), row.sign, row.weight, row.offset)
        w("mask done = splat(1) < splat(0);")
        with w.loop(f"int newton = 0; newton < {ITERATIONS}; ++newton"):
            self._system(w, smooth)
            self.hessian.factor(w)
            self.hessian.solve(w, "x")
            self._search(w)
            # In float32, rows at the edge can go on and off for ever: steps within rounding end the solve too.
            forces = [reference(x) for x in smooth]
            w(f"const vec energy = {total([f'a{i} * (s{i} + {f})' for i, f in enumerate(forces)])};")
            w(f"const mask still = size * size * bend <= {literal(self.rounding**2)} * energy;")
            for i in range(nv):
                w(f"a{i} = select(done, a{i}, a{i} + size * x{i});")
            w("done = done | !changed | still;")
            w("if (!any(!done)) break;")
        w("failed = failed | !done;")

    def _record(self, w: Writer, n: int, c: Contact, offset: Sequence[Any]) -> None:
        """Emit that a contact of group n, if it is present in any lane, gets a record."""
        group = self.groups[n]
        (present,) = w.compute(c.present)
        with w.block(f"if (any({present}))"):
            rows = [[row[d] for d in group.dofs] for row in c.rows]
            missing = group.kinds - c.cone.tangents
            rows += [[0.0] * len(group.dofs)] * missing
            values = [*(x for row in rows for x in row), *offset, *[0.0] * missing]
            values.append(mul(c.cone.edges / group.cone.edges, c.weight))
            places = [*range(len(values) - 1), group.weight]
            w.compute(*values)
            for place, x in zip(places, values, strict=True):
                w(f"contact{n}[touching{n}][{place}] = {vector(x)};")
            w(f"++touching{n};")

    def _system(self, w: Writer, smooth: Sequence[Any]) -> None:
        """Gradient and Hessian at a: ``s`` = M a - smooth, x = -gradient."""
        for place in sorted(self.hessian.entries):
            w(f"{self.hessian[place]} = {vector(self.stiff[place[0]][place[1]])};")
        for i, (product, force) in enumerate(zip(times_mass(self.mass, "a"), smooth, strict=True)):
            w(f"const vec s{i} = {product} - {reference(force)};")
            w(f"x{i} = -s{i};")
        for n, row in enumerate(self.rows):
            zones.at(w, n, row, self.hessian)
        for n, group in enumerate(self.groups):
            with w.loop(f"int k = 0; k < touching{n}; ++k"):
                self._add(w, f"contact{n}[k]", group)

    def _add(self, w: Writer, record: str, group: Group) -> None:
        """Add a contact to gradient and Hessian, and write its values at a."""
        ways, dofs = group.cone.ways, group.dofs
        for t in ways:
            for place, i in enumerate(dofs):
                w(f"const vec row{t}_{i} = {record}[{t * len(dofs) + place}];")
        w(f"const vec weight = {record}[{group.weight}];")
        for t in ways:
            products = [f"row{t}_{i} * a{i}" for i in dofs]
            w(f"const vec value{t} = {record}[{group.offset + t}] + {total(products)};")
            w(f"{record}[{group.value + t}] = value{t};")
        group.cone.push(w)
        for i in dofs:
            w(f"x{i} -= {total([f'row{t}_{i} * force{t}' for t in ways])};")
        for place, i in enumerate(dofs):
            for t in ways:
                products = [f"h{min(t, u)}_{max(t, u)} * row{u}_{i}" for u in group.cone.coupled(t)]
                w(f"const vec y{t}_{i} = {total(products)};")
            for j in dofs[: place + 1]:
                w(f"{self.hessian[i, j]} += {total([f'y{t}_{i} * row{t}_{j}' for t in ways])};")

    def _search(self, w: Writer) -> None:
        """Find the ``size`` of the step x, and whether it ``changed`` the zone of any row."""
        nv = self.nv
        w(f"const vec slope = {total([f's{i} * x{i}' for i in range(nv)])};")
        bends = [f"x{i} * ({product})" for i, product in enumerate(times_mass(self.mass, "x"))]
        w(f"const vec bend = {total(bends)};")
        first, second = zones.along_unbounded(w, self.rows)
        start, curve = "slope", "bend"
        if first:
            start, curve = "start", "curve"
            w(f"const vec start = slope{first}, curve = bend{second};")
        for n, group in enumerate(self.groups):
            with w.loop(f"int k = 0; k < touching{n}; ++k"):
                for t in range(1 + group.kinds):
                    products = [f"contact{n}[k][{t * len(group.dofs) + p}] * x{i}" for p, i in enumerate(group.dofs)]
                    w(f"contact{n}[k][{group.step + t}] = {total(products)};")
        w("vec size = splat(1), below = splat(0), above = splat(1e30);")
        w("mask changed = splat(1) < splat(0), open = changed;")
        with w.loop(f"int search = 0; search < {SEARCHES}; ++search"):
            w(f"vec first_order = {start} + size * {curve}, second_order = {curve};")
            w("mask flips = splat(1) < splat(0);")
            for n, row in enumerate(self.rows):
                if row.bounded:
                    zones.search(w, n, row)
            for n, group in enumerate(self.groups):
                with w.loop(f"int k = 0; k < touching{n}; ++k"):
                    self._along(w, f"contact{n}[k]", group)
            with w.block("if (search == 0)"):
                w("changed = flips;")
                w("open = flips & !done;")
            w("const vec error = select(first_order < real(0), -first_order, first_order);")
            w(f"const vec scale = select({start} < real(0), -{start}, {start});")
            w(f"open = open & !(error <= {literal(self.tolerance)} * scale);")
            w("if (!any(open)) break;")
            w("below = select(open & (first_order < real(0)), size, below);")
            w("above = select(open & (first_order >= real(0)), size, above);")
            w("const vec guess = size - over(first_order, second_order);")
            w("const vec reach = real(2) * size + real(1);")
            w("const vec half = real(0.5) * (below + select(above < reach, above, reach));")
            w("const vec next = select((guess > below) & (guess < above), guess, half);")
            w("size = select(open, next, size);")

    @staticmethod
    def _along(w: Writer, record: str, group: Group) -> None:
        """Add a contact to the derivatives along the step, and to ``flips`` whether its edges change."""
        w(f"const vec weight = {record}[{group.weight}];")
        for t in range(1 + group.kinds):
            w(f"const vec value{t} = {record}[{group.value + t}], step{t} = {record}[{group.step + t}];")
        group.cone.along(w)
