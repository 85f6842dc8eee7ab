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


class Branches:
    """The branches of a model's degrees of freedom."""

    def __init__(self, parents: Sequence[int]) -> None:
        """``parents`` are MuJoCo's dof_parentid: the degree of freedom before each, -1 for a root."""
        children = [list(parents).count(d) for d in range(len(parents))]
        starts = [d for d, p in enumerate(parents) if d == 0 or p != d - 1 or children[d - 1] > 1]
        self.begin = [*starts, len(parents)]
        self.of = [s for s, (a, b) in enumerate(zip(starts, self.begin[1:], strict=True)) for _ in range(a, b)]

    def __len__(self) -> int:
        return len(self.begin) - 1

    def mask(self, dofs: Iterable[int]) -> int:
        """The branches of these degrees of freedom, as the bits of a number."""
        return sum(1 << s for s in {self.of[d] for d in dofs})


def place(i: int, j: int) -> int:
    """Where entry (i, j) of a matrix lies in its array."""
    i, j = max(i, j), min(i, j)
    return i * (i + 1) // 2 + j


class Hessian:
    """Code for the Hessian in the array ``H_``, factored in place as L' D L. Its shape follows the contacts.

    Row k has entries in the first ``Hlength[k]`` columns of the list that starts at ``Hcolumns[Hstart[k]]``.

    Args:
        branches: of the model.
        always: masks of branches that are linked with one another whatever touches.
        by_contact: those that a contact links.
    """

    def __init__(self, branches: Branches, always: Sequence[int], by_contact: Sequence[int]) -> None:
        self.branches, self.size, self._by_contact = branches, branches.begin[-1], list(by_contact)
        self._always, self._most = (linked(len(branches), x) for x in (always, [*always, *by_contact]))

    def __getitem__(self, entry: tuple[int, int]) -> str:
        return f"H_[{place(*entry)}]"

    factors: tuple[str, ...] = ()
    """The variables that hold the factors."""

    @property
    def factor_arrays(self) -> dict[str, int]:
        """The arrays that hold the factors: code for number i, and the length."""
        return {"H_[i]": place(self.size, 0), "Hinv_[i]": self.size}

    def _columns(self, row: int, links: Sequence[int]) -> list[int]:
        """The columns left of the diagonal in which a row can have entries, given the links of its branch."""
        s, begin = self.branches.of[row], self.branches.begin
        near = [t for t in range(s) if links[s] >> t & 1]
        return [*(d for t in near for d in range(begin[t], begin[t + 1])), *range(begin[s], row)]

    def declare(self, w: Writer, forward: bool = True) -> None:
        """Declare the arrays; without a forward pass, with all columns that any contact can need."""
        w(f"vec H_[{place(self.size, 0)}], Hinv_[{self.size}];")
        w("for (int i = 0; i < sizeof(H_) / sizeof(vec); ++i) H_[i] = splat(0);")
        w(f"for (int i = 0; i < {self.size}; ++i) Hinv_[i] = splat(0);")
        w.table("Hleast", [len(self._columns(k, self._always)) for k in range(self.size)])
        if forward:
            w.table("Hbegin", self.branches.begin)
            w.table("Halways", self._always, "unsigned long long")
            w.table("Hcontact", self._by_contact, "unsigned long long")
            w.table("Hstart", [b * self.size for b in self.branches.of])
            w(f"unsigned long long Hlink[{len(self.branches)}];")
            w(f"int Hcolumns[{len(self.branches) * self.size}], Hlength[{self.size}];")
            return
        columns = [self._columns(k, self._most) for k in range(self.size)]
        w.table("Hstart", [sum(map(len, columns[:k])) for k in range(self.size)])
        w.table("Hlength", list(map(len, columns)))
        w.table("Hcolumns", [d for x in columns for d in x])

    def link(self, w: Writer, lists: int) -> None:
        """Emit which entries a solve has, given the arrays list{n} and touching{n} of ``lists`` groups of contacts."""
        count = len(self.branches)
        w("for (int i = 0; i < sizeof(H_) / sizeof(vec); ++i) H_[i] = splat(0);")
        w(f"for (int s = 0; s < {count}; ++s) Hlink[s] = Halways[s];")
        for n in range(lists):
            with w.loop(f"int k = 0; k < touching{n}; ++k"):
                w(f"const unsigned long long both = Hcontact[list{n}[k]];")
                w(f"for (int s = 0; s < {count}; ++s) if (both >> s & 1) Hlink[s] |= both & ((1ull << s) - 1);")
        with w.loop(f"int s = {count - 1}; s > 0; --s"):
            w("for (int t = 1; t < s; ++t) if (Hlink[s] >> t & 1) Hlink[t] |= Hlink[s] & ((1ull << t) - 1);")
        with w.loop(f"int s = 0; s < {count}; ++s"):
            w(f"int n = 0; int* const column = Hcolumns + s * {self.size};")
            with w.loop("int t = 0; t < s; ++t"):
                w("if (Hlink[s] >> t & 1) for (int d = Hbegin[t]; d < Hbegin[t + 1]; ++d) column[n++] = d;")
            w("for (int d = Hbegin[s]; d < Hbegin[s + 1]; ++d) { Hlength[d] = n; column[n++] = d; }")

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

    def factor(self, w: Writer) -> None:
        """Replace the matrix by its factors."""
        with self._rows(w, f"int k = {self.size - 1}; k >= 0; --k"):
            w("const vec inverse = over(splat(1), row[k]); Hinv_[k] = inverse;")
            with self._by_length(w, self._eliminate), w.loop("int x = Hlength[k] - 1; x >= 0; --x"):
                w("const int i = column[x]; const vec part = row[i] * inverse;")
                w("vec* const other = H_ + i * (i + 1) / 2;")
                w("for (int y = 0; y <= x; ++y) { const int j = column[y]; other[j] -= part * row[j]; }")
                w("row[i] = part;")

    def _eliminate(self, k: int) -> Iterator[str]:
        columns = self._columns(k, self._always)
        for i in reversed(columns):
            terms = [f"H_[{place(i, j)}] -= part * row[{j}];" for j in columns if j <= i]
            yield f"{{ const vec part = row[{i}] * inverse; {' '.join(terms)} row[{i}] = part; }}"

    def solve(self, w: Writer, x: str) -> None:
        """Replace the vector in the array ``{x}_`` by the solution."""
        with self._rows(w, f"int k = {self.size - 1}; k >= 0; --k"):
            w(f"const vec given = {x}_[k];")
            with self._by_length(
                w, lambda k: (f"{x}_[{i}] -= row[{i}] * given;" for i in self._columns(k, self._always))
            ):
                w(f"for (int y = 0; y < Hlength[k]; ++y) {x}_[column[y]] -= row[column[y]] * given;")
        with self._rows(w, f"int k = 0; k < {self.size}; ++k"):
            w(f"vec found = {x}_[k] * Hinv_[k];")
            with self._by_length(
                w, lambda k: (f"found -= row[{i}] * {x}_[{i}];" for i in self._columns(k, self._always))
            ):
                w(f"for (int y = 0; y < Hlength[k]; ++y) found -= row[column[y]] * {x}_[column[y]];")
            w(f"{x}_[k] = found;")

    @staticmethod
    @contextlib.contextmanager
    def _rows(w: Writer, header: str) -> Iterator[None]:
        with w.loop(header):
            w("vec* const row = H_ + k * (k + 1) / 2; const int* const column = Hcolumns + Hstart[k];")
            yield

    @contextlib.contextmanager
    def _by_length(self, w: Writer, written: Callable[[int], Iterable[str]]) -> Iterator[None]:
        """A context for the loops of a row k; rows in which nothing but joints links run the code ``written`` out."""
        w(f"switch (Hlength[k] == Hleast[k] ? k : {self.size}) {{")
        for k in range(self.size):
            w(f"case {k}: {' '.join(written(k))} break;")
        with w.block("default:"):
            yield
        w("}")


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
