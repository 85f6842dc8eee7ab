"""The code of contacts in loops over tables: finding them, their part in the solve, and their reverse sweep.

Places and motions of bodies, and places of geoms, lie in arrays. A *record* of a contact that is present holds, way by
way, the offsets, the values at a and the values along the step. Then come the numbers that its cone needs, and its rows
of J, all ways of one degree of freedom after another. Contacts of one cone are one group: the records of group n lie in
the array ``record{n}``; ``touching{n}`` counts them; ``list{n}`` has the number of each one's list of dofs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler.adhesion_loops import AdhesionLoops
from mage_diffsim.envs.warp.compiler.cones import Cone
from mage_diffsim.envs.warp.compiler.contact_places import ContactPlaces
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics, Spatial
from mage_diffsim.envs.warp.compiler.emit import Writer, reference, total, vector
from mage_diffsim.envs.warp.compiler.graph import is_zero, number
from mage_diffsim.envs.warp.compiler.noslip_records import sliding
from mage_diffsim.envs.warp.compiler.pairs import AXES, BODY, GEOM, declare, inputs_of, kinds, of_geoms
from mage_diffsim.envs.warp.compiler.repeat import constant_part
from mage_diffsim.envs.warp.compiler.rigid import geom_place


class ContactLoops(ContactPlaces):
    """The contacts of one model.

    Args:
        kinematics: where the bodies are.
        exact: whether the code computes in float64.
        velocities: the bodies' spatial velocities.
        most: numbers that an environment's records may take; a state that needs more fails.
        words: words of 32 bits in a vector.
    """

    def __init__(
        self, kinematics: Kinematics, exact: bool, velocities: Sequence[Spatial], most: int, words: int
    ) -> None:
        model = kinematics.model
        self.kinematics, self.pairs, self.velocities = kinematics, model.pairs, velocities
        self.words = words
        self.kinds = kinds(model, exact)
        self.adhesion = AdhesionLoops(self)
        pairs = list(dict.fromkeys(tuple(k.pairs) for k in self.kinds))
        self.together = [[n for n, k in enumerate(self.kinds) if tuple(k.pairs) == x] for x in pairs]
        """Numbers of the kinds whose items are of the same pairs."""
        self.cones: list[Cone] = list(dict.fromkeys(k.cone for k in self.kinds))
        self.geoms = sorted({g for pair in model.pairs for g in pair.geoms})
        fields = [getattr(model.model, name) for name in of_geoms(model)]
        self.fields = [[number(x) for field in fields for x in field[g]] for g in self.geoms]
        self.places = [geom_place(model.model, g) for g in self.geoms]
        self.bodies = sorted({0, *(body for body, _ in self.places)})
        lists = [self._moved(*pair.bodies) for pair in model.pairs]
        self.lists = list(dict.fromkeys(lists))
        numbers = {x: n for n, x in enumerate(self.lists)}
        self.list_of = [numbers[x] for x in lists]
        self.ranks: list[list[int]] = []
        """For the noslip solver, the number in ``slot`` of each item of each kind (:mod:`.contact_slots`)."""
        self.capacity, wanted = [], sum(self._total(n) * self._number_of_items(n) for n in range(len(self.cones)))
        for n in range(len(self.cones)):
            share = 1.0 if wanted <= most else most / wanted
            self.capacity.append(int(self._number_of_items(n) * share))

    def _moved(self, first: int, second: int) -> tuple[tuple[int, int], ...]:
        """(degree of freedom, 0 or 1 for the body that it moves), ascending; for the noslip solver also 2 for both."""
        k = self.kinematics
        a, b = set(k.chain(first)), set(k.chain(second))
        both = a & b if k.model.noslip else ()
        return tuple(sorted([(d, 0) for d in a - b] + [(d, 1) for d in b - a] + [(d, 2) for d in both]))

    def _number_of_items(self, n: int) -> int:
        return sum(len(k.pairs) * k.slots for k in self.kinds if k.cone == self.cones[n])

    def rank(self, k: int) -> str:
        """Code of an item's number in ``slot``: of its contact, the nth one where they are searched."""
        return f"rank{k}[i]{' + nth' if self.kinds[k].search else ''}"

    def longest(self, n: int) -> int:
        """Degrees of freedom of an item of group n at most."""
        return max(len(self.lists[self.list_of[p]]) for k in self.kinds if k.cone == self.cones[n] for p in k.pairs)

    def _size(self, n: int) -> int:
        """Numbers in a record of group n."""
        return self.head(n) + len(self.cones[n].ways) * self.longest(n)

    def _total(self, n: int) -> int:
        """The same with those in a record of the noslip solver."""
        if not self.kinematics.model.noslip:
            return self._size(n)
        sweeps = int(self.kinematics.model.model.opt.noslip_iterations)
        return self._size(n) + sliding(n + 1, self.cones[n], self.longest(n), 1).width("adjoint", sweeps)

    def head(self, n: int) -> int:
        """The place in a record of the rows of J."""
        return 3 * len(self.cones[n].ways) + len(self.cones[n].numbers)

    @property
    def marks(self) -> int:
        """Length of the array ``mark``, whose bits say which items a pass found; a vector has 32 bits at least."""
        return -(-self._first_word(len(self.together)) // self.words)

    @property
    def records(self) -> dict[str, tuple[int, int]]:
        """The arrays of records, and their shapes."""
        return {f"record{n}": (self.capacity[n], self._size(n)) for n in range(len(self.cones))}

    def arrays(self, which: str) -> dict[str, tuple[int, int]]:
        """The other arrays that a kernel needs, and their shapes."""
        nv = int(self.kinematics.model.model.nv)
        numbers = max(map(len, self.fields), default=0)
        found = {"body": (len(self.bodies), BODY), "geom": (len(self.geoms), GEOM + numbers), "axis": (nv, 6)}
        if which == "adjoint":
            pulled = ["axis"] if self.ranks or self.adhesion else []
            found |= {f"by_{name}": found[name] for name in ("body", "geom", *pulled)}
        if which == "tangent":
            found |= {f"along_{name}": shape for name, shape in found.items()}
        return found

    def declare(self, w: Writer, which: str) -> None:
        """Declare the tables and small arrays."""
        for name, (rows, columns) in self.arrays(which).items():
            w(f"vec {name}[{rows}][{columns}];")
        carriers = [self.bodies.index(body) for body, _ in self.places]
        w.table("carrier", carriers)
        w.table("mount", [x for _, p in self.places for x in (*p.position, *p.rotation.reshape(-1))], "real")
        w("union Mark { vec number; unsigned words[sizeof(vec) / 4]; };")
        w(f"const int words = sizeof(vec) / 4; Mark mark[{self.marks}];")
        for n, together in enumerate(self.together):
            rows = []
            for p in self.kinds[together[0]].pairs:
                ends = [self.geoms.index(g) for g in self.pairs[p].geoms]
                rows += [*ends, *(carriers[end] for end in ends), self.list_of[p]]
            w.table(f"item{n}", rows)
        for n, kind in enumerate(self.kinds):
            values = list(zip(*kind.numbers.values(), strict=True))
            w.table(f"number{n}", [x for row in values for x in row], "real")
        self.adhesion.declare(w, which)
        if which != "adjoint" or self.ranks or self.adhesion:
            begin = [0]
            for x in self.lists:
                begin.append(begin[-1] + len(x))
            w.table("list_begin", begin)
            w.table("list_dof", [d for x in self.lists for d, _ in x])
            w.table("list_side", [side for x in self.lists for _, side in x])

    @contextlib.contextmanager
    def items(self, w: Writer, n: int, found: bool, along: bool = False) -> Iterator[set[str]]:
        """A context whose code runs for each item i of kinds with the same pairs; yields the inputs that are declared.

        Args:
            w: where the code is written.
            n: number in ``together``.
            found: whether only items run that :meth:`find` found; else those that are near in any lane.
            along: whether tangents are needed.
        """
        kind, begin = self.kinds[self.together[n][0]], self._first_word(n)
        declared: set[str] = set()
        with contextlib.ExitStack() as blocks:
            if found:
                blocks.enter_context(
                    w.loop(f"int word = {begin}; word < {self._first_word(n + 1)}; ++word", fresh=True)
                )
                w("const unsigned long long marked = mark[word / words].words[word % words];")
                blocks.enter_context(w.loop("int bit = 0; marked >> bit; ++bit"))
                w("if (!(marked >> bit & 1)) continue;")
                w(f"const int i = 32 * (word - {begin}) + bit;")
            else:
                blocks.enter_context(w.loop(f"int i = 0; i < {len(kind.pairs)}; ++i", fresh=True))
            w(f"const int* const entry = item{n} + 5 * i;")
            w("const vec *const geom1 = geom[entry[0]], *const geom2 = geom[entry[1]];")
            w("const vec *const body1 = body[entry[2]], *const body2 = body[entry[3]];")
            if along:
                w("const vec *const along_geom1 = along_geom[entry[0]], *const along_geom2 = along_geom[entry[1]];")
                w("const vec *const along_body1 = along_body[entry[2]], *const along_body2 = along_body[entry[3]];")
            if not found and not isinstance(kind.item.near, bool):
                self._number(w, self.together[n][0])
                for condition in (kind.item.near, kind.item.closer):
                    if not isinstance(condition, bool):
                        declare(w, condition, declared)
                        blocks.enter_context(w.block(f"if (any({w.compute(condition)[0]}))"))
            yield {x for x in declared if not x.startswith("number")}

    @contextlib.contextmanager
    def present(self, w: Writer, k: int, declared: set[str], listed: bool = False) -> Iterator[tuple[set[str], str]]:
        """A context whose code runs if a kind's contact is present, or listed, in any lane; yields this condition."""
        item, search, declared = self.kinds[k].item, self.kinds[k].search, set(declared)
        there = item.listed if listed else item.present
        with w.block("", fresh=True), contextlib.ExitStack() as blocks:
            self._number(w, k)
            if search:
                declare(w, item.given, declared)
                w.compute(*item.given)
                w(f"const vec given[] = {{{', '.join(map(vector, item.given))}}};")
                w(f"vec features[{search.slots}][{search.features}];")
                w(f"const int slots = {search.name}(given, features);")
                blocks.enter_context(w.loop("int nth = 0; nth < slots; ++nth"))
                w("const vec* const feature = features[nth];")
            for condition, sense in ((item.absent, "!"), (there, "")):
                if not isinstance(condition, bool):
                    declare(w, condition, declared)
                    blocks.enter_context(w.block(f"if (any({sense}{w.compute(condition)[0]}))"))
            yield declared, reference(there)

    def _number(self, w: Writer, k: int) -> None:
        w(f"const real* const number = number{k} + {len(self.kinds[k].numbers)} * i;")

    def _first_word(self, n: int) -> int:
        """The word of marks at which the items of the n-th kinds begin."""
        return sum(-(-len(self.kinds[together[0]].pairs) // 32) for together in self.together[:n])

    def find(self, w: Writer, compute: Callable[[int], None]) -> None:
        """As :meth:`.ContactCode.find`."""
        bodies = reversed(range(self.kinematics.model.model.nbody))
        for body in [] if self.adhesion else bodies:
            compute(body)
        self.place(w, [self.velocities], axes=True)
        self.adhesion.clear(w)
        for n in range(len(self.cones)):
            w(f"int touching{n} = 0; int list{n}[{self.capacity[n]}];")
        w(f"for (int i = 0; i < {self.marks}; ++i) mark[i].number = splat(0);")
        for n, together in enumerate(self.together):
            with self.items(w, n, found=False) as near:
                for k in together:
                    with self.present(w, k, near, listed=self.kinds[k].counts) as (declared, present):
                        w(f"mark[({self._first_word(n)} + i / 32) / words]")
                        w(f"    .words[({self._first_word(n)} + i / 32) % words] |= 1u << i % 32;")
                        if self.kinds[k].counts:
                            self.adhesion.found(w, k, declared, present)
                        else:
                            self.record(w, k, declared, present)
        self.adhesion.finish(w)
        for body in bodies if self.adhesion else []:
            compute(body)

    def record(self, w: Writer, k: int, declared: set[str], present: str) -> None:
        """Emit that a contact that is present in any lane gets a record."""
        group = self.cones.index(self.kinds[k].cone)
        if self.capacity[group] == self._number_of_items(group):
            self._record(w, group, k, declared)
            return
        with w.block(f"if (touching{group} == {self.capacity[group]})"):
            w(f"failed = failed | {present};")
        with w.block("else"):
            self._record(w, group, k, declared)

    def _record(self, w: Writer, group: int, k: int, declared: set[str]) -> None:
        item = self.kinds[k].item
        ways, head = len(item.rows), self.head(group)
        if self.ranks:
            w(f"slot[{self.rank(k)}] = touching{group};")
        declare(w, item.record, declared)
        w.compute(*item.record)
        w(f"vec* const own = record{group}[touching{group}];")
        for i, x in enumerate(item.record):
            w(f"own[{i if i < ways else 2 * ways + i}] = {vector(x)};")
        w(f"vec* row = own + {head};")
        rest = f"for (int t = 0; t < {ways}; ++t) *row++ = splat(0);" if self.ranks else ""
        self.each_dof(
            w, [[row[side] for row in item.rows] for side in (0, 1)], declared, "*row++ = splat(0) + {};", rest
        )
        w(f"list{group}[touching{group}++] = entry[4];")

    @staticmethod
    def each_dof(w: Writer, values: Sequence[Sequence[Any]], declared: set[str], line: str, rest: str = "") -> None:
        """Emit ``line`` for each degree of freedom and value of its side; ``rest`` where it moves both sides."""
        fixed = [x for side in values for value in side for x in constant_part(value, AXES)]
        declare(w, fixed, declared)
        w.compute(*fixed)
        with w.loop("int p = list_begin[entry[4]]; p < list_begin[entry[4] + 1]; ++p"):
            w("const int dof = list_dof[p]; const vec* const own_axis = axis[dof];")
            if any(x.args[0].startswith("along_axis") for x in inputs_of(list(values))):
                w("const vec* const along_own_axis = along_axis[dof];")
            for side, wanted in enumerate(values):
                if any(not is_zero(x) for x in wanted):
                    with w.block(f"if (list_side[p] == {side})"):
                        declare(w, wanted, set(declared))
                        for text in w.compute(*wanted):
                            w(line.format(text))
            if rest:
                w(f"if (list_side[p] == 2) {{ {rest} }}")

    def add(self, w: Writer, hessian: Any) -> None:
        """Add the contacts to gradient and Hessian, and write their values at a."""
        for n, cone in enumerate(self.cones):
            ways = len(cone.ways)
            with w.loop(f"int k = 0; k < touching{n}; ++k"):
                self._rows(w, n)
                self._values(w, ways, "value", [f"record[{t}]" for t in cone.ways], "a", ways)
                self.numbers(w, cone)
                cone.push(w)
                w("int p = 0;")
                with w.loop("; p + 1 < count; p += 2"):
                    self._add_rows(w, cone, ("p", "p + 1"))
                with w.block("if (p < count)"):
                    self._add_rows(w, cone, ("p",))

    @staticmethod
    def _add_rows(w: Writer, cone: Cone, rows: Sequence[str]) -> None:
        """Add J' h J of a contact to rows of the Hessian, and its forces to x there."""
        for n, p in enumerate(rows):
            w(f"const vec* const own{n} = row + {len(cone.ways)} * ({p}); const int i{n} = dof[{p}];")
            w(f"x_[i{n}] -= {total([f'own{n}[{t}] * force{t}' for t in cone.ways])};")
            for t in cone.ways:
                products = [f"h{min(t, u)}_{max(t, u)} * own{n}[{u}]" for u in cone.coupled(t)]
                w(f"const vec y{n}_{t} = {total(products)};")
            w(f"vec* const to{n} = H_ + i{n} * (i{n} + 1) / 2;")
        with w.loop("int r = 0; r <= p; ++r"):
            w(f"const vec* const other = row + {len(cone.ways)} * r; const int j = dof[r];")
            for n in range(len(rows)):
                w(f"to{n}[j] += {total([f'y{n}_{t} * other[{t}]' for t in cone.ways])};")
        if len(rows) > 1:
            w(f"to1[i1] += {total([f'y1_{t} * own1[{t}]' for t in cone.ways])};")

    def step(self, w: Writer) -> None:
        """Write the contacts' values along the step x."""
        for n, cone in enumerate(self.cones):
            ways = len(cone.ways)
            with w.loop(f"int k = 0; k < touching{n}; ++k"):
                self._rows(w, n)
                self._values(w, ways, "step", ["splat(0)"] * ways, "x", 2 * ways)

    @staticmethod
    def _values(w: Writer, ways: int, name: str, start: Sequence[str], x: str, place: int) -> None:
        """Emit {name}{t} = start + J x of record k, by way t, and keep them from a place of the record on."""
        for t in range(ways):
            w(f"vec {name}{t} = {start[t]};")
        with w.loop("int p = 0; p < count; ++p"):
            w(f"const vec x = {x}_[dof[p]];")
            w(" ".join(f"{name}{t} += row[{ways} * p + {t}] * x;" for t in range(ways)))
        for t in range(ways):
            w(f"record[{place + t}] = {name}{t};")

    def along(self, w: Writer) -> None:
        """Add the contacts to the derivatives along the step, and to ``flips``."""
        for n, cone in enumerate(self.cones):
            ways = len(cone.ways)
            with w.loop(f"int k = 0; k < touching{n}; ++k"):
                w(f"const vec* const record = record{n}[k];")
                for t in cone.ways:
                    w(f"const vec value{t} = record[{ways + t}], step{t} = record[{2 * ways + t}];")
                self.numbers(w, cone)
                cone.along(w)

    def _rows(self, w: Writer, n: int) -> None:
        """Declare of record k: where it is, its rows, and its degrees of freedom."""
        w(f"vec* const record = record{n}[k]; const vec* const row = record + {self.head(n)};")
        w(f"const int begin = list_begin[list{n}[k]], count = list_begin[list{n}[k] + 1] - begin;")
        w("const int* const dof = list_dof + begin;")

    @staticmethod
    def numbers(w: Writer, cone: Cone) -> None:
        for i, name in enumerate(cone.numbers):
            w(f"const vec {name} = record[{3 * len(cone.ways) + i}];")
