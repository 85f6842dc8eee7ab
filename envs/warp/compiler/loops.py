"""Linear algebra in loops over arrays, for models whose code would be too long written out.

*Branches* are the longest runs of degrees of freedom that follow one another without a fork. Two branches are *linked*
if the matrix can have entries between them, which is known once the contacts are found. What does not touch costs
nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler.emit import Writer, vector
from mage_diffsim.envs.warp.compiler.graph import is_zero

WRITTEN = 3000
"""Multiplications of a factorisation up to which its rows are written out, which is faster."""

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
        most: multiplications of the factorisation up to which rows are written out, each once; longer matrices are in
            loops alone.
    """

    def __init__(self, name: str, columns: Sequence[Sequence[int]], most: int = WRITTEN) -> None:
        self.name, self.size, self.columns = name, len(columns), columns
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
    def factor_arrays(self) -> dict[str, int]:
        """The arrays that hold the factors: code for number i, and the length."""
        return {f"{self.name}_[i]": place(self.size, 0), f"{self.name}inv_[i]": self.size}

    def declare(self, w: Writer) -> None:
        """Declare the arrays and tables."""
        self.declare_arrays(w)
        self.declare_columns(w, self.columns)

    def declare_arrays(self, w: Writer) -> None:
        """Declare the arrays, and the table of the lengths of written rows."""
        for code, length in self.factor_arrays.items():
            array = code.removesuffix("[i]")
            w(f"vec {array}[{length}]; for (int i = 0; i < {length}; ++i) {array}[i] = splat(0);")
        w.table(f"{self.name}least", list(map(len, self.columns)))

    def declare_columns(self, w: Writer, columns: Sequence[Sequence[int]]) -> None:
        """Declare tables of the columns of each row."""
        w.table(f"{self.name}start", [sum(map(len, columns[:k])) for k in range(self.size)])
        w.table(f"{self.name}length", list(map(len, columns)))
        w.table(f"{self.name}columns", [d for x in columns for d in x])

    def factor(self, w: Writer) -> None:
        """Replace the matrix by its factors."""
        m = self.name
        with self._rows(w, f"int k = {self.size - 1}; k >= 0; --k"):
            w(f"const vec inverse = over(splat(1), row[k]); {m}inv_[k] = inverse;")
            with self._by_length(w, self._eliminate), w.loop(f"int x = {m}length[k] - 1; x >= 0; --x"):
                w("const int i = column[x]; const vec part = row[i] * inverse;")
                w(f"vec* const other = {m}_ + i * (i + 1) / 2;")
                w("for (int y = 0; y <= x; ++y) { const int j = column[y]; other[j] -= part * row[j]; }")
                w("row[i] = part;")

    def _eliminate(self, k: int) -> Iterator[str]:
        columns = self.columns[k]
        for i in reversed(columns):
            terms = [f"{self[i, j]} -= part * row[{j}];" for j in columns if j <= i]
            yield f"{{ const vec part = row[{i}] * inverse; {' '.join(terms)} row[{i}] = part; }}"

    def solve(self, w: Writer, x: str, transposed: bool = False) -> None:
        """Replace the vector in the array ``{x}_`` by the solution; the transpose is the same."""
        m = self.name
        with self._rows(w, f"int k = {self.size - 1}; k >= 0; --k"):
            w(f"const vec given = {x}_[k];")
            with self._by_length(w, lambda k: (f"{x}_[{i}] -= row[{i}] * given;" for i in self.columns[k])):
                w(f"for (int y = 0; y < {m}length[k]; ++y) {x}_[column[y]] -= row[column[y]] * given;")
        with self._rows(w, f"int k = 0; k < {self.size}; ++k"):
            w(f"vec found = {x}_[k] * {m}inv_[k];")
            with self._by_length(w, lambda k: (f"found -= row[{i}] * {x}_[{i}];" for i in self.columns[k])):
                w(f"for (int y = 0; y < {m}length[k]; ++y) found -= row[column[y]] * {x}_[column[y]];")
            w(f"{x}_[k] = found;")

    @contextlib.contextmanager
    def _rows(self, w: Writer, header: str) -> Iterator[None]:
        m = self.name
        with w.loop(header):
            w(f"vec* const row = {m}_ + k * (k + 1) / 2; const int* const column = {m}columns + {m}start[k];")
            yield

    @contextlib.contextmanager
    def _by_length(self, w: Writer, written: Callable[[int], Iterable[str]]) -> Iterator[None]:
        """A context for the loops of a row k; rows with no more than ``columns`` run the code ``written`` out."""
        if not self._written:
            yield
            return
        w(f"switch ({self.name}length[k] == {self.name}least[k] ? k : {self.size}) {{")
        for k in range(self.size):
            w(f"case {k}: {' '.join(written(k))} break;")
        with w.block("default:"):
            yield
        w("}")


class Hessian(LoopedMatrix):
    """The Hessian, in the array ``H_``. Its shape follows the contacts.

    Args:
        branches: of the model.
        always: masks of branches that are linked with one another whatever touches.
        by_contact: those that a contact links.
    """

    def __init__(self, branches: Branches, always: Sequence[int], by_contact: Sequence[int]) -> None:
        self.branches, self._by_contact = branches, list(by_contact)
        self._always, most = (linked(len(branches), x) for x in (always, [*always, *by_contact]))
        super().__init__("H", branches.columns(self._always))
        self._most = branches.columns(most)

    def declare(self, w: Writer, forward: bool = True) -> None:
        """Declare the arrays; without a forward pass, with all columns that any contact can need."""
        self.declare_arrays(w)
        if forward:
            w.table("Hbegin", self.branches.begin)
            w.table("Halways", self._always, "unsigned long long")
            w.table("Hcontact", self._by_contact, "unsigned long long")
            w.table("Hstart", [b * self.size for b in self.branches.of])
            w(f"unsigned long long Hlink[{len(self.branches)}]; unsigned long long Hbefore[{len(self.branches)}];")
            w(f"for (int s = 0; s < {len(self.branches)}; ++s) Hbefore[s] = ~0ull;")
            w(f"int Hcolumns[{len(self.branches) * self.size}]; int Hlength[{self.size}];")
            return
        self.declare_columns(w, self._most)

    def link(self, w: Writer, lists: int) -> None:
        """Emit which entries a solve has, given the arrays list{n} and touching{n} of ``lists`` groups of contacts."""
        count = len(self.branches)
        w(f"for (int s = 0; s < {count}; ++s) Hlink[s] = Halways[s];")
        for n in range(lists):
            with w.loop(f"int k = 0; k < touching{n}; ++k"):
                w(f"const unsigned long long both = Hcontact[list{n}[k]];")
                w(f"for (int s = 0; s < {count}; ++s) if (both >> s & 1) Hlink[s] |= both & ((1ull << s) - 1);")
        with w.loop(f"int s = {count - 1}; s > 0; --s"):
            w("for (int t = 1; t < s; ++t) if (Hlink[s] >> t & 1) Hlink[t] |= Hlink[s] & ((1ull << t) - 1);")
        w(f"bool same = true; for (int s = 0; s < {count}; ++s) same = same && Hlink[s] == Hbefore[s];")
        with w.block("if (!same)"):
            w("for (int i = 0; i < sizeof(H_) / sizeof(vec); ++i) H_[i] = splat(0);")
            with w.loop(f"int s = 0; s < {count}; ++s"):
                w(f"int n = 0; int* const column = Hcolumns + s * {self.size};")
                with w.loop("int t = 0; t < s; ++t"):
                    w("if (Hlink[s] >> t & 1) for (int d = Hbegin[t]; d < Hbegin[t + 1]; ++d) column[n++] = d;")
                w("for (int d = Hbegin[s]; d < Hbegin[s + 1]; ++d) { Hlength[d] = n; column[n++] = d; }")
                w("Hbefore[s] = Hlink[s];")

    def fill(self, w: Writer, matrix: Sequence[Sequence[Any]]) -> None:
        """Set the entries to a matrix's, which is 0 between branches that are not always linked."""
        with w.loop(f"int k = 0; k < {self.size}; ++k"):
            w("vec* const row = H_ + k * (k + 1) / 2; const int* const column = Hcolumns + Hstart[k];")
            w("for (int y = 0; y < Hlength[k]; ++y) row[column[y]] = splat(0);")
            w("row[k] = splat(0);")
        for i, row in enumerate(matrix):
            for j, x in enumerate(row[: i + 1]):
                if not is_zero(x):
                    w(f"{self[i, j]} = {vector(x)};")


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
