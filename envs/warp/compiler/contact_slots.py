"""How the noslip solver (:mod:`.noslip`) finds the contacts of a pass, in either form of their code.

Possible contacts have numbers in the order of MuJoCo's sweeps. Where a contact gets a record, its place among those of
its group is written to ``slot``. In code, ``rank`` is such a number, and ``k`` the place.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import final

from mage_diffsim.envs.warp.compiler.cones import Cone
from mage_diffsim.envs.warp.compiler.contact_code import ContactCode
from mage_diffsim.envs.warp.compiler.contact_loops import ContactLoops
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics
from mage_diffsim.envs.warp.compiler.emit import Writer


class Slots(ABC):
    """The contacts of one model."""

    cones: Sequence[Cone]
    """Of each group."""

    @property
    @abstractmethod
    def sizes(self) -> list[tuple[int, int]]:
        """By group: entries of a row at most, and contacts at most."""

    @property
    @abstractmethod
    def numbered(self) -> dict[int, list[tuple[int, int]]]:
        """By number of a pair, its possible contacts in MuJoCo's order: (group, number of the contact or kind)."""

    @abstractmethod
    def number(self, first: Mapping[int, int]) -> None:
        """Let contacts that are found write ``slot``, given the number of each pair's first."""

    @abstractmethod
    def declare(self, w: Writer, which: str) -> None:
        """Declare the tables that a kernel needs."""

    @abstractmethod
    def dofs(self, w: Writer, n: int) -> None:
        """Declare ``dof`` and ``count``: the degrees of freedom of record k of group n, contact number ``rank``."""

    @abstractmethod
    def open(self, w: Writer, n: int) -> tuple[Callable[[int], str], Callable[[int], str]]:
        """Declare the cone's numbers of record k of group n.

        Returns:
            by way, code of its J for the degree of freedom ``dof[p]``, and of its offset.
        """

    @abstractmethod
    def open_record(self, w: Writer, number: int) -> str:
        """Declare ``own``, ``dof`` and ``count`` of the noslip solver's record of a contact, in the code of that.

        Args:
            w: where the code is written.
            number: of the contact or kind, as in :attr:`numbered`.

        Returns:
            code of which of the contact's bodies, 0 or 1, degree of freedom ``dof[p]`` moves; 2 if both.
        """


@final
class CodeSlots(Slots):
    """Contacts written out."""

    def __init__(self, code: ContactCode, kinematics: Kinematics) -> None:
        self.code, self.cones, self._pairs = code, code.cones, kinematics.model.pairs
        m = kinematics.model.model
        self._nv, self._chains = int(m.nv), [kinematics.chain(b) for b in range(m.nbody)]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [(len(g.dofs), sum(c.copies for c in g.contacts.values())) for g in self.code.groups]

    @functools.cached_property
    def numbered(self) -> dict[int, list[tuple[int, int]]]:
        members = sorted((number, n, c) for n, g in enumerate(self.code.groups) for number, c in g.contacts.items())
        found: dict[int, list[tuple[int, int]]] = {}
        for number, n, c in members:
            p = next(p for p, pair in enumerate(self._pairs) if pair is c.pair)
            found.setdefault(p, []).extend([(n, number)] * c.copies)
        return found

    def number(self, first: Mapping[int, int]) -> None:
        for p, found in self.numbered.items():
            for rank, (_, number) in enumerate(found, first[p]):
                self.code.slots.setdefault(number, rank)

    def declare(self, w: Writer, which: str) -> None:
        for n, group in enumerate(self.code.groups):
            w.table(f"dofs{n}", group.dofs)
        if which == "adjoint":
            w(f"vec axis[{self._nv}][6]; vec by_axis[{self._nv}][6];")
            w.table("moves", [int(d in chain) for chain in self._chains for d in range(self._nv)])

    def dofs(self, w: Writer, n: int) -> None:
        w(f"const int* const dof = dofs{n}; const int count = {len(self.code.groups[n].dofs)};")

    def open(self, w: Writer, n: int) -> tuple[Callable[[int], str], Callable[[int], str]]:
        group = self.code.groups[n]
        w(f"const vec* const record = contact{n}[k];")
        self.code.numbers(w, "record", group)
        return lambda t: f"record[{t * len(group.dofs)} + p]", lambda t: f"record[{group.offset + t}]"

    def open_record(self, w: Writer, number: int) -> str:
        n, group = next((n, g) for n, g in enumerate(self.code.groups) if number in g.contacts)
        c = group.contacts[number]
        w(f"vec* const own = slip{n + 1}[slot[{self.code.slots[number]}{' + copy' if c.copies > 1 else ''}]];")
        self.dofs(w, n)
        first, second = (f"moves[{self._nv * b} + dof[p]]" for b in c.pair.bodies)
        return f"{first} && !{second} ? 0 : {second} && !{first} ? 1 : 2"


@final
class LoopSlots(Slots):
    """Contacts in loops."""

    def __init__(self, loops: ContactLoops) -> None:
        self.loops, self.cones = loops, loops.cones

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [(self.loops.longest(n), self.loops.capacity[n]) for n in range(len(self.cones))]

    @functools.cached_property
    def numbered(self) -> dict[int, list[tuple[int, int]]]:
        found: dict[int, dict[int, tuple[int, int]]] = {}
        for k, kind in enumerate(self.loops.kinds):
            for p, at in zip(kind.pairs, kind.places, strict=True):
                found.setdefault(p, {})[at] = self.cones.index(kind.cone), k
        kinds = self.loops.kinds
        return {p: [x[at] for at in sorted(x) for _ in range(kinds[x[at][1]].slots)] for p, x in found.items()}

    def number(self, first: Mapping[int, int]) -> None:
        kinds = self.loops.kinds
        self.loops.ranks = [[first[p] + at for p, at in zip(k.pairs, k.places, strict=True)] for k in kinds]

    def declare(self, w: Writer, which: str) -> None:
        loops = self.loops
        last = max(rank + k.slots for k, ranks in zip(loops.kinds, loops.ranks, strict=True) for rank in ranks)
        lists = [0] * last
        for k, (kind, ranks) in enumerate(zip(loops.kinds, loops.ranks, strict=True)):
            w.table(f"rank{k}", ranks)
            for p, rank in zip(kind.pairs, ranks, strict=True):
                for n in range(kind.slots):
                    lists[rank + n] = loops.list_of[p]
        w.table("slip_list", lists)

    def dofs(self, w: Writer, n: int) -> None:
        w("const int begin = list_begin[slip_list[rank]], count = list_begin[slip_list[rank] + 1] - begin;")
        w("const int* const dof = list_dof + begin;")

    def open(self, w: Writer, n: int) -> tuple[Callable[[int], str], Callable[[int], str]]:
        w(f"const vec* const record = record{n}[k]; const vec* const row = record + {self.loops.head(n)};")
        self.loops.numbers(w, self.cones[n])
        return lambda t: f"row[{len(self.cones[n].ways)} * p + {t}]", lambda t: f"record[{t}]"

    def open_record(self, w: Writer, number: int) -> str:
        group = self.cones.index(self.loops.kinds[number].cone)
        # A contact beyond the capacity fails; it has a record of zeros.
        spare = self.loops.capacity[group]
        w(f"const int rank = {self.loops.rank(number)};")
        w(f"vec* const own = slip{group + 1}[slot[rank] < 0 ? {spare} : slot[rank]];")
        self.dofs(w, group)
        return "list_side[begin + p]"


def slots(contacts: ContactCode | ContactLoops, kinematics: Kinematics) -> Slots:
    """The contacts as the noslip solver finds them."""
    return LoopSlots(contacts) if isinstance(contacts, ContactLoops) else CodeSlots(contacts, kinematics)
