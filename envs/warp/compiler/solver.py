"""Stage 6, the constraint solver: Newton's method for the acceleration, emitted with the model's sparsity written out.

The accelerations minimise 1/2 (a - a0)' M (a - a0) plus a function of J a - aref for each row, as in MuJoCo. Within a
zone of the row it is quadratic: for a contact's edge 1/2 D (J a - aref)^2 where that is negative, else 0. A Newton step
that is taken in full and changes no row's zone is exact, and the factored Hessian is the one at the solution, which the
derivative sweeps use. Other steps are shortened by an exact search along the line.

An elliptic cone is curved (:mod:`.cones`): close to the solution the error of a step is about the square of the last
one's. The Hessian is factored once more at the solution where such a contact slides.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler import zones
from mage_diffsim.envs.warp.compiler.contact_code import ContactCode
from mage_diffsim.envs.warp.compiler.contact_loops import ContactLoops
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics
from mage_diffsim.envs.warp.compiler.emit import Writer, literal, reference, total, vector
from mage_diffsim.envs.warp.compiler.graph import is_zero, neg
from mage_diffsim.envs.warp.compiler.loops import Branches, Hessian
from mage_diffsim.envs.warp.compiler.rows import Row, stiffness_of

ITERATIONS = 200
"""Newton steps after which a solve counts as failed; the tasks here need 1 to 8, elliptic cones with an impedance
of .9999 more than 30."""
SEARCHES = 20
"""Evaluations of the derivative along a line."""
STIFF = 50.0
"""Stiffness of a row (:func:`.rows.stiffness_of`) from which Newton's steps are refined."""
SETTLED = 1e-4
"""Length of a refined solve's last step, relative to the acceleration, both in the norm of the mass matrix."""


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

    def fill(self, w: Writer, matrix: Sequence[Sequence[Any]]) -> None:
        """Set the entries to those of a matrix of expressions, computed before."""
        for i, j in sorted(self.entries):
            w(f"{self[i, j]} = {vector(matrix[i][j])};")

    def _row(self, k: int) -> list[int]:
        return [i for i in range(k) if (k, i) in self.entries]

    @property
    def factors(self) -> list[str]:
        """The variables that hold the factors."""
        beside = [self[i, j] for i, j in self.places if i != j]
        return [*beside, *(f"{self.name}inv{k}" for k in range(self.size))]

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


class Solver:
    """Emits the solve for one model; its variables are a{i} (the acceleration) and the matrix ``H`` (the Hessian)."""

    def __init__(
        self,
        kinematics: Kinematics,
        mass: list[list[Any]],
        rows: Sequence[Row],
        contacts: ContactCode | ContactLoops,
        exact: bool,
    ) -> None:
        self.mass, self.rows = mass, rows
        self.stiff = zones.with_unbounded(mass, rows)
        self.nv, self.contacts = len(mass), contacts
        self.body_dofs = [kinematics.dofs(b) for b in range(kinematics.model.model.nbody)]
        self.hessian: Matrix | Hessian
        if isinstance(contacts, ContactLoops):
            branches = Branches([int(d) for d in kinematics.model.model.dof_parentid])
            linked = [branches.mask(chain) for chain in map(kinematics.chain, range(len(self.body_dofs)))]
            linked += [branches.mask(row.direction) for row in rows]
            by_contact = [branches.mask(d for d, _ in moved) for moved in contacts.lists]
            self.hessian = Hessian(branches, linked, by_contact, contacts.words)
        else:
            entries = {(i, j) for i, row in enumerate(mass) for j, m in enumerate(row) if not is_zero(m)}
            for dofs in (*contacts.moved, *(row.direction for row in rows)):
                entries |= {(i, j) for i in dofs for j in dofs}
            self.hessian = Matrix("H", self.nv, entries)
        impedances = (pair.impedance for pair in kinematics.model.pairs)
        stiff = max([*map(stiffness_of, impedances), *(row.stiffness for row in rows)], default=0.0) > STIFF
        self.refined = (stiff and not exact) or any(not row.bounded for row in rows)
        """Whether exact steps go on until one is short. In float32 the Hessian has few digits of the mass matrix where
        rows are much stiffer; the gradient has them, so that each step takes off what rounding left of the last."""
        self.tolerance, self.rounding = (1e-10, 1e-14) if exact else (1e-5, 1e-8 if stiff else 1e-6)

    def declare(self, w: Writer, which: str) -> None:
        """Variables that live through the whole kernel, and tables."""
        if isinstance(self.contacts, ContactLoops) and isinstance(self.hessian, Hessian):
            self.contacts.declare(w, which)
            self.hessian.declare(w, which)
            w.vectors(("a", "x"), self.nv)
        else:
            self.hessian.declare(w)
            w.declare([f"{name}{i}" for name in ("a", "x") for i in range(self.nv)])

    @property
    def kept(self) -> int:
        """Numbers in arrays on the tape of a pass: of the Hessian's factors, and of the marks of contacts."""
        if isinstance(self.contacts, ContactLoops) and isinstance(self.hessian, Hessian):
            return self.hessian.kept + self.contacts.marks
        return 0

    def keep(self, w: Writer, first: int) -> None:
        """Emit the arrays to the tape, from a number of the pass on."""
        if isinstance(self.contacts, ContactLoops) and isinstance(self.hessian, Hessian):
            self.hessian.keep(w, first)
            first += self.hessian.kept
            w(f"for (int i = 0; i < {self.contacts.marks}; ++i) keep(pass, {first} + i, mark[i].number);")

    def recall(self, w: Writer, first: int) -> None:
        """Emit what reads the arrays from the tape."""
        if isinstance(self.contacts, ContactLoops) and isinstance(self.hessian, Hessian):
            self.hessian.recall(w, first)
            first += self.hessian.kept
            w(f"for (int i = 0; i < {self.contacts.marks}; ++i) mark[i].number = kept(pass, {first} + i);")

    def solve_kept(self, w: Writer, x: str) -> None:
        """Emit the solve of an adjoint: replace the vector ``x`` by the solution with the factors on the tape."""
        if isinstance(self.hessian, Hessian):
            self.hessian.solve(w, x, taped=True)
        else:
            self.hessian.solve(w, x)

    def solve(self, w: Writer, smooth: Sequence[Any]) -> None:
        """Emit the solve: a{i} becomes the acceleration, H the factored Hessian there, ``failed`` grows.

        Args:
            w: where the code is written.
            smooth: forces other than the constraints', [nv].
        """
        self.find(w, smooth)
        if isinstance(self.contacts, ContactLoops) and isinstance(self.hessian, Hessian):
            self.hessian.link(w, len(self.contacts.cones))
        w("mask done = splat(1) < splat(0);")
        curved = any(cone.curved for cone in self.contacts.cones)
        forces, least = [reference(x) for x in smooth], ""
        if curved or self.refined:
            # At rest the energy of a is 0, while that of the forces is not.
            parts = [f"over(splat(0) + {f} * {f}, {vector(self.mass[i][i])})" for i, f in enumerate(forces)]
            w(f"const vec least = {total(parts)};")
            least = " + least"
        with w.loop(f"int newton = 0; newton < {ITERATIONS + curved}; ++newton"):
            if curved:
                w("mask curved = splat(1) < splat(0);")
            self._system(w, smooth)
            if isinstance(self.hessian, Hessian):
                self.hessian.factor(w, "x")
            else:
                self.hessian.factor(w)
            if curved:
                w(f"if (newton == {ITERATIONS} || !any(!done)) break;")
            if isinstance(self.hessian, Hessian):
                self.hessian.finish(w, "x")
            else:
                self.hessian.solve(w, "x")
            self._search(w)
            # In float32, rows at the edge can go on and off for ever: steps within rounding end the solve too.
            w(f"const vec energy = {total([f'a{i} * (s{i} + {f})' for i, f in enumerate(forces)])}{least};")
            w(f"const mask still = size * size * bend <= {literal(self.rounding**2)} * energy;")
            for i in range(self.nv):
                w(f"a{i} = select(done, a{i}, a{i} + size * x{i});")
            if self.refined:
                w(f"changed = changed | !(size * size * bend <= {literal(SETTLED**2)} * energy);")
            w("done = done | !changed | still;")
            w(f"if (!any(!done{' | curved' if curved else ''})) break;")
        w("failed = failed | !done;")

    def find(self, w: Writer, smooth: Sequence[Any] = ()) -> None:
        """Emit mass matrix, rows, the contacts that are present, and the other forces ``smooth`` if given."""

        def compute(body: int) -> None:
            for d in self.body_dofs[body]:
                w.compute(*self.mass[d], *self.stiff[d], *smooth[d : d + 1])
                for row in self.rows:
                    if max(row.direction) == d:
                        w.compute(*row.direction.values(), row.sign, row.weight, row.offset)
                        if row.bounded and not row.one_sided:
                            w.compute(neg(row.high), neg(row.low))

        self.contacts.find(w, compute)

    def _system(self, w: Writer, smooth: Sequence[Any]) -> None:
        """Gradient and Hessian at a: ``s`` = M a - smooth, x = -gradient."""
        self.hessian.fill(w, self.stiff)
        for i, (product, force) in enumerate(zip(times_mass(self.mass, "a"), smooth, strict=True)):
            w(f"const vec s{i} = {product} - {reference(force)};")
            w(f"x{i} = -s{i};")
        for n, row in enumerate(self.rows):
            zones.at(w, n, row, self.hessian)
        self.contacts.add(w, self.hessian)

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
        self.contacts.step(w)
        w("vec size = splat(1), below = splat(0), above = splat(1e30);")
        w("mask changed = splat(1) < splat(0), open = changed;")
        with w.loop(f"int search = 0; search < {SEARCHES}; ++search"):
            w(f"vec first_order = {start} + size * {curve}, second_order = {curve};")
            w("mask flips = splat(1) < splat(0);")
            for n, row in enumerate(self.rows):
                if row.bounded:
                    zones.search(w, n, row)
            self.contacts.along(w)
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
