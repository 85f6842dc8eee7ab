"""Linear algebra in loops over arrays, for models whose code would be too long written out.

*Branches* are the longest runs of degrees of freedom that follow one another without a fork. Two branches are *linked*
if the matrix can have entries between them, which is known once the contacts are found. What does not touch costs
nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler.emit import Writer, vector

WRITTEN = 3000
"""Multiplications of a factorisation up to which its rows are written out, which is faster."""

PANEL = 4
"""Rows that are eliminated together at most."""

MOST = 64
"""Branches at most, one for each bit of a number; where a model has more, neighbours count as one."""


class Branches:
    """The branches of a model's degrees of freedom."""

    def __init__(self, parents: Sequence[int]) -> None:
        """``parents`` are MuJoCo's dof_parentid: the degree of freedom before each, -1 for a root."""
        children = [list(parents).count(d) for d in range(len(parents))]
        starts = [d for d, p in enumerate(parents) if d == 0 or p != d - 1 or children[d - 1] > 1]
        starts = starts[:: -(-len(starts) // MOST) or 1]
        self.begin = [*starts, len(parents)]
        self.of = [s for s, (a, b) in enumerate(zip(starts, self.begin[1:], strict=True)) for _ in range(a, b)]

    def __len__(self) -> int:
        return len(self.begin) - 1

    def mask(self, dofs: Iterable[int]) -> int:
        """The branches of these degrees of freedom, as the bits of a number."""
        return sum(1 << s for s in {self.of[d] for d in dofs})

    def columns(self, links: Sequence[int]) -> list[list[int]]:
        """For each row, the columns left of the diagonal in which it can have entries, given the branches' links."""
        found = []
        for row, s in enumerate(self.of):
            near = [t for t in range(s) if links[s] >> t & 1]
            dofs = [d for t in near for d in range(self.begin[t], self.begin[t + 1])]
            found.append([*dofs, *range(self.begin[s], row)])
        return found


def place(i: int, j: int) -> int:
    """Where entry (i, j) of a matrix lies in its array."""
    i, j = max(i, j), min(i, j)
    return i * (i + 1) // 2 + j


class LoopedMatrix:
    """Code for a symmetric matrix in the array ``{name}_``, factored in place as L' D L.

    Row k has entries in the first ``{name}length[k]`` columns of the list that starts at
    ``{name}columns[{name}start[k]]``.

    Args:
        name: of the arrays and tables.
        columns: of each row, those left of the diagonal that the factors have; ascending.
        begins: rows that begin a panel.
        most: multiplications of the factorisation up to which rows are written out, each once; longer matrices are in
            loops alone.
    """

    def __init__(
        self, name: str, columns: Sequence[Sequence[int]], begins: Container[int] = (), most: int = WRITTEN
    ) -> None:
        self.name, self.size, self.columns = name, len(columns), columns
        self.panels: list[list[int]] = []
        """Rows that follow one another and have the same columns left of them all."""
        for k, x in enumerate(columns):
            above = self.panels[-1] if self.panels else []
            if above and k not in begins and len(above) < PANEL and [*x] == [*columns[k - 1], k - 1]:
                above.append(k)
            else:
                self.panels.append([k])
        self._written = sum(len(x) * (len(x) + 1) // 2 for x in columns) <= most

    def __getitem__(self, entry: tuple[int, int]) -> str:
        return f"{self.name}_[{place(*entry)}]"

    @property
    def places(self) -> list[tuple[int, int]]:
        """The places (row, column) that have entries."""
        return [(i, j) for i, columns in enumerate(self.columns) for j in (*columns, i)]

    factors: tuple[str, ...] = ()
    """The variables that hold the factors."""

    @property
    def arrays(self) -> dict[str, int]:
        """The arrays that hold the factors, and their lengths."""
        return {f"{self.name}_": place(self.size, 0), f"{self.name}inv_": self.size}

    def declare(self, w: Writer) -> None:
        """Declare the arrays and tables."""
        self.declare_arrays(w)
        w.table(f"{self.name}start", [sum(map(len, self.columns[:k])) for k in range(self.size)])
        w.table(f"{self.name}length", list(map(len, self.columns)))
        w.table(f"{self.name}columns", [d for x in self.columns for d in x])

    def declare_arrays(self, w: Writer, factors: bool = True) -> None:
        """Declare the arrays, those of the factors if wanted, and the tables of what is written out."""
        for array, length in self.arrays.items() if factors else ():
            w(f"vec {array}[{length}]; for (int i = 0; i < {length}; ++i) {array}[i] = splat(0);")
        w.table(f"{self.name}least", list(map(len, self.columns)))
        w.table(f"{self.name}first", [*(rows[0] for rows in self.panels), self.size])

    def factor(self, w: Writer, x: str = "") -> None:
        """Replace the matrix by its factors; with the array ``{x}_``, do the first half of its solve, too."""
        m = self.name
        with w.loop(f"int b = {len(self.panels) - 1}; b >= 0; --b"):
            w(f"const int begin = {m}first[b];")
            with self._by_length(w, "begin", "b", [list(self._eliminate(rows, x)) for rows in self.panels]):
                w(f"int k = {m}first[b + 1] - 1;")
                with w.loop("; k > begin; k -= 2"):
                    self._eliminate_two(w, x)
                with w.block("if (k == begin)"):
                    self._eliminate_one(w, x)

    def _eliminate(self, rows: Sequence[int], x: str) -> Iterator[str]:
        """Code that takes a panel's rows off those above, two at a time: every entry there is read and written once."""
        columns, m = self.columns[rows[0]], self.name
        targets = [[i] for i in reversed(rows)] + [[*reversed(columns)][n : n + 2] for n in range(0, len(columns), 2)]
        for target in targets:
            taken = [k for k in reversed(rows) if k > target[0]]
            with_part = [(k, i, f"part{k}_{i}") for k in taken for i in target]
            yield "{"
            for k, i, part in with_part:
                yield f"const vec {part} = {self[k, i]} * inverse{k};"
            for j in [j for j in (*columns, *rows) if taken and j <= target[0]]:
                for i in target:
                    if j <= i:
                        terms = [f" - part{k}_{i} * {self[k, j]}" for k in taken]
                        yield f"{self[i, j]} = {self[i, j]}{''.join(terms)};"
            for i in target:
                if x and taken:
                    yield f"{x}_[{i}] = {x}_[{i}]{''.join(f' - part{k}_{i} * {x}_[{k}]' for k in taken)};"
            for k, i, part in with_part:
                yield f"{self[k, i]} = {part};"
            yield "}"
            if target[0] in rows:
                (k,) = target
                yield f"const vec inverse{k} = over(splat(1), {self[k, k]}); {m}inv_[{k}] = inverse{k};"

    def _eliminate_one(self, w: Writer, x: str) -> None:
        """Code that takes row k off those above."""
        m = self.name
        w(f"vec* const row = {m}_ + k * (k + 1) / 2; const int* const column = {m}columns + {m}start[k];")
        w(f"const vec inverse = over(splat(1), row[k]); {m}inv_[k] = inverse;")
        with w.loop(f"int x = {m}length[k] - 1; x >= 0; --x"):
            w("const int i = column[x]; const vec part = row[i] * inverse;")
            w(f"vec* const other = {m}_ + i * (i + 1) / 2;")
            w("for (int y = 0; y <= x; ++y) { const int j = column[y]; other[j] -= part * row[j]; }")
            w("row[i] = part;")
            if x:
                w(f"{x}_[i] -= part * {x}_[k];")

    def _eliminate_two(self, w: Writer, x: str) -> None:
        """Code that takes rows k and k - 1 off those above, two at a time."""
        m = self.name
        w(f"const int l = k - 1, count = {m}length[l]; const int* const column = {m}columns + {m}start[k];")
        w(f"vec *const row = {m}_ + k * (k + 1) / 2, *const next = {m}_ + l * (l + 1) / 2;")
        w("const vec inverse = over(splat(1), row[k]), own = row[l] * inverse;")
        w("for (int y = 0; y < count; ++y) next[column[y]] -= own * row[column[y]];")
        w("next[l] -= own * row[l]; row[l] = own;")
        w(f"const vec second = over(splat(1), next[l]); {m}inv_[k] = inverse; {m}inv_[l] = second;")
        if x:
            w(f"{x}_[l] -= own * {x}_[k];")
        w("int x = count - 1;")
        with w.loop("; x > 0; x -= 2"):
            w("const int i = column[x], h = column[x - 1];")
            w("const vec part = row[i] * inverse, part_next = next[i] * second;")
            w("const vec beside = row[h] * inverse, beside_next = next[h] * second;")
            w(f"vec *const other = {m}_ + i * (i + 1) / 2, *const another = {m}_ + h * (h + 1) / 2;")
            with w.loop("int y = 0; y < x; ++y"):
                w("const int j = column[y]; const vec a = row[j], b = next[j];")
                w("other[j] = other[j] - part * a - part_next * b;")
                w("another[j] = another[j] - beside * a - beside_next * b;")
            w("other[i] = other[i] - part * row[i] - part_next * next[i];")
            w("row[i] = part; next[i] = part_next; row[h] = beside; next[h] = beside_next;")
            if x:
                w(f"{x}_[i] = {x}_[i] - part * {x}_[k] - part_next * {x}_[l];")
                w(f"{x}_[h] = {x}_[h] - beside * {x}_[k] - beside_next * {x}_[l];")
        with w.block("if (x == 0)"):
            w("const int i = column[0]; const vec part = row[i] * inverse, part_next = next[i] * second;")
            w(f"vec* const other = {m}_ + i * (i + 1) / 2;")
            w("other[i] = other[i] - part * row[i] - part_next * next[i]; row[i] = part; next[i] = part_next;")
            if x:
                w(f"{x}_[i] = {x}_[i] - part * {x}_[k] - part_next * {x}_[l];")

    def solve(self, w: Writer, x: str, transposed: bool = False, taped: bool = False) -> None:
        """Replace the vector in the array ``{x}_`` by the solution; the transpose is the same.

        Args:
            w: where the code is written.
            x: the start of the array's name.
            transposed: whether the transposed matrix is meant.
            taped: whether the factors are where :meth:`Hessian.recall` says, instead of in the arrays.
        """
        with w.loop(f"int b = {len(self.panels) - 1}; b >= 0; --b"):
            w(f"const int begin = {self.name}first[b], end = {self.name}first[b + 1];")
            written = [list(self._upwards(rows, x, taped)) for rows in self.panels]
            loop = "int k = end - 1; k >= begin; --k"
            with self._by_length(w, "begin", "b", written), self._rows(w, loop, taped):
                w(f"const vec given = {x}_[k];")
                w(f"for (int y = 0; y < {self.name}length[k]; ++y)")
                w(f"    {x}_[column[y]] -= row[{'beside * ' * taped}column[y]] * given;")
        self.finish(w, x, taped)

    def finish(self, w: Writer, x: str, taped: bool = False) -> None:
        """The second half of a solve."""
        m, at = self.name, "beside * " * taped
        with self._rows(w, f"int k = 0; k < {self.size}; ++k", taped):
            w(f"vec found = {x}_[k] * {f'{m}taped' if taped else f'{m}inv_'}[{at}k];")
            written = [[f"found -= row[{at}{i}] * {x}_[{i}];" for i in columns] for columns in self.columns]
            with self._by_length(w, "k", "k", written):
                w(f"for (int y = 0; y < {m}length[k]; ++y) found -= row[{at}column[y]] * {x}_[column[y]];")
            w(f"{x}_[k] = found;")

    def _upwards(self, rows: Sequence[int], x: str, taped: bool) -> Iterator[str]:
        for i in (*reversed(rows), *self.columns[rows[0]]):
            terms = [f" - {self._factor(k, i, taped)} * x{k}" for k in reversed(rows) if k > i]
            if i in rows:
                yield f"const vec x{i} = {x}_[{i}]{''.join(terms)}; {x}_[{i}] = x{i};"
            else:
                yield f"{x}_[{i}] = {x}_[{i}]{''.join(terms)};"

    def _factor(self, k: int, i: int, taped: bool) -> str:
        """Code of an entry of the factors left of the diagonal."""
        return f"{self.name}taped[beside * {self.size + place(k - 1, 0) + i}]" if taped else self[k, i]

    @contextlib.contextmanager
    def _rows(self, w: Writer, header: str, taped: bool) -> Iterator[None]:
        m = self.name
        with w.loop(header):
            row = f"{m}taped + beside * ({self.size} + k * (k - 1) / 2)" if taped else f"{m}_ + k * (k + 1) / 2"
            w(f"const vec* const row = {row}; const int* const column = {m}columns + {m}start[k];")
            yield

    @contextlib.contextmanager
    def _by_length(self, w: Writer, row: str, number: str, written: Sequence[Sequence[str]]) -> Iterator[None]:
        """A context for loops over row ``row``; if it is no longer than ``columns``, code ``written[number]`` runs."""
        if not self._written:
            yield
            return
        w(f"switch ({self.name}length[{row}] == {self.name}least[{row}] ? {number} : {len(written)}) {{")
        for n, lines in enumerate(written):
            w(f"case {n}: {{ {' '.join(lines)} break; }}")
        with w.block("default:"):
            yield
        w("}")


class Hessian(LoopedMatrix):
    """The Hessian, in the array ``H_``. Its shape follows the contacts.

    Args:
        branches: of the model.
        always: masks of branches that are linked with one another whatever touches.
        by_contact: those that a contact links.
        words: words of 32 bits in a vector.
    """

    def __init__(self, branches: Branches, always: Sequence[int], by_contact: Sequence[int], words: int) -> None:
        self.branches, self._by_contact = branches, list(by_contact)
        self._always = linked(len(branches), always)
        super().__init__("H", branches.columns(self._always), branches.begin)
        self.links = -(-2 * len(branches) // words)
        """Vectors that the branches' links take, two words each."""
        self.kept = self.links + self.size + place(self.size - 1, 0)
        """Numbers on the tape of a pass, of which those of branches that are not linked are left out."""

    def declare(self, w: Writer, which: str = "forward") -> None:
        """Declare the arrays and tables."""
        count = len(self.branches)
        self.declare_arrays(w, which != "adjoint")
        w.table("Hbegin", self.branches.begin)
        w.table("Hstart", [b * self.size for b in self.branches.of])
        w(f"unsigned long long Hlink[{count}]; unsigned long long Hbefore[{count}];")
        w(f"for (int s = 0; s < {count}; ++s) Hbefore[s] = ~0ull;")
        w(f"int Hcolumns[{count * self.size}]; int Hlength[{self.size}]; Mark Hlinks[{self.links}];")
        if which != "adjoint":
            w.table("Halways", self._always, "unsigned long long")
            w.table("Hcontact", self._by_contact, "unsigned long long")

    def link(self, w: Writer, lists: int) -> None:
        """Emit which entries a solve has, given the arrays list{n} and touching{n} of ``lists`` groups of contacts."""
        count = len(self.branches)
        w(f"for (int s = 0; s < {count}; ++s) Hlink[s] = Halways[s];")
        for n in range(lists):
            with w.loop(f"int k = 0; k < touching{n}; ++k"):
                w(f"if (k && list{n}[k] == list{n}[k - 1]) continue;")
                w(f"const unsigned long long both = Hcontact[list{n}[k]];")
                w(f"for (int s = 0; s < {count}; ++s) Hlink[s] |= both & ((1ull << s) - 1) & -(both >> s & 1);")
        with w.loop(f"int s = {count - 1}; s > 0; --s"):
            w("for (int t = 1; t < s; ++t) Hlink[t] |= Hlink[s] & ((1ull << t) - 1) & -(Hlink[s] >> t & 1);")
        self._shape(w)

    def _shape(self, w: Writer) -> None:
        """Emit the columns of each row, given the branches' links."""
        count = len(self.branches)
        w(f"bool same = true; for (int s = 0; s < {count}; ++s) same = same && Hlink[s] == Hbefore[s];")
        with w.block("if (!same)"), w.loop(f"int s = 0; s < {count}; ++s"):
            w(f"int n = 0; int* const column = Hcolumns + s * {self.size};")
            with w.loop("int t = 0; t < s; ++t"):
                w("if (Hlink[s] >> t & 1) for (int d = Hbegin[t]; d < Hbegin[t + 1]; ++d) column[n++] = d;")
            w("for (int d = Hbegin[s]; d < Hbegin[s + 1]; ++d) { Hlength[d] = n; column[n++] = d; }")
            w("Hbefore[s] = Hlink[s];")

    def fill(self, w: Writer, matrix: Sequence[Sequence[Any]]) -> None:
        """Set the entries to a matrix's, which is 0 between branches that are not always linked."""
        with w.loop(f"int k = 0; k < {self.size}; ++k"):
            w("if (Hlength[k] == Hleast[k]) continue;")
            w("vec* const row = H_ + k * (k + 1) / 2; const int* const column = Hcolumns + Hstart[k];")
            w("for (int y = 0; y < Hlength[k]; ++y) row[column[y]] = splat(0);")
        for i, j in self.places:
            w(f"{self[i, j]} = {vector(matrix[i][j])};")

    def keep(self, w: Writer, first: int) -> None:
        """Emit the factors to the tape, from a number of the pass on."""
        w(f"for (int i = 0; i < {2 * len(self.branches)}; ++i)")
        w("    Hlinks[i / words].words[i % words] = (unsigned)(Hlink[i / 2] >> i % 2 * 32);")
        w(f"for (int i = 0; i < {self.links}; ++i) keep(pass, {first} + i, Hlinks[i].number);")
        begin = first + self.links
        with self._rows(w, f"int k = 0; k < {self.size}; ++k", taped=False):
            w(f"const int left = {begin + self.size} + k * (k - 1) / 2; keep(pass, {begin} + k, Hinv_[k]);")
            w("for (int y = 0; y < Hlength[k]; ++y) keep(pass, left + column[y], row[column[y]]);")

    def recall(self, w: Writer, first: int) -> None:
        """Emit ``Htaped``, where the factors are on the tape (the inverses, then row by row), and their shape."""
        w(f"for (int i = 0; i < {self.links}; ++i) Hlinks[i].number = kept(pass, {first} + i);")
        with w.loop(f"int s = 0; s < {len(self.branches)}; ++s"):
            w("Hlink[s] = 0;")
            w("for (int i = 2 * s + 1; i >= 2 * s; --i)")
            w("    Hlink[s] = Hlink[s] << 32 | Hlinks[i / words].words[i % words];")
        self._shape(w)
        w(f"const vec* const Htaped = &kept(pass, {first + self.links});")


def linked(count: int, masks: Iterable[int]) -> list[int]:
    """For each of ``count`` branches a bit for each one before it with which it has entries in the factors.

    Branches in one mask are linked with one another; elimination from the last branch up links more.
    """
    links = [0] * count
    for mask in masks:
        for s in range(count):
            if mask >> s & 1:
                links[s] |= mask & ((1 << s) - 1)
    for s in reversed(range(count)):
        for t in range(s):
            if links[s] >> t & 1:
                links[t] |= links[s] & ((1 << t) - 1)
    return links
