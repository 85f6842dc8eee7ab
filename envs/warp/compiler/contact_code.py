"""The code of contacts written out, each once, for models with few: finding them, and their part in the solve."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler.cones import Cone, Elliptic, Pyramid
from mage_diffsim.envs.warp.compiler.constraints import Contact
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics, Spatial
from mage_diffsim.envs.warp.compiler.emit import Writer, total, vector
from mage_diffsim.envs.warp.compiler.repeat import constant_part


@dataclasses.dataclass
class Group:
    """Contacts of one cone whose rows are zero but for the degrees of freedom ``dofs``, and the layout of a record.

    A record holds the rows along normal and ways of friction, their offsets, values at a and values along the step, and
    the cone's numbers. The records of group n are the rows of the array ``contact{n}``, and ``touching{n}`` counts
    those present.
    """

    dofs: tuple[int, ...]
    contacts: dict[int, Contact]
    """By their numbers in the model."""
    cone: Cone

    @property
    def kinds(self) -> int:
        """Ways of friction per contact."""
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
    def numbers(self) -> dict[str, int]:
        """The places of the cone's numbers, which end a record."""
        return {name: self.step + 1 + self.kinds + place for place, name in enumerate(self.cone.numbers)}

    @property
    def width(self) -> int:
        """Numbers of a record."""
        return self.step + 1 + self.kinds + len(self.cone.numbers)


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

    Those without friction are with those of the next condim, as if all of its edges were along the normal.
    """
    dims = sorted({c.pair.dim for c in contacts})
    taken = {dim: dims[1] if dim == 1 and len(dims) > 1 else dim for dim in dims}
    return {dim: [n for n, c in enumerate(contacts) if taken[c.pair.dim] == dim] for dim in sorted(set(taken.values()))}


class ContactCode:
    """The contacts of one model.

    Args:
        kinematics: where the bodies are.
        contacts: the possible ones.
        velocities: the bodies' spatial velocities.
    """

    def __init__(self, kinematics: Kinematics, contacts: Sequence[Contact], velocities: Sequence[Spatial]) -> None:
        bodies = range(kinematics.model.model.nbody)
        self._axes = [[x for d in kinematics.chain(b) for way in kinematics.axes[d] for x in way] for b in bodies]
        """What several contacts of a body need, and the mass matrix: the axes of the joints that move it."""
        self.moved = [frozenset(d for body in c.pair.bodies for d in kinematics.chain(body)) for c in contacts]
        self._offsets = [c.offsets(velocities) for c in contacts]
        self.groups: list[Group] = []
        for dim, members in by_dim(contacts).items():
            for dofs, places in grouped([self.moved[n] for n in members], kinematics.model.model.nv):
                some = {members[place]: contacts[members[place]] for place in places}
                cones = [c.cone for c in some.values()]
                ways = max(cone.tangents for cone in cones)
                cone = Elliptic(ways) if any(cone.curved for cone in cones) else Pyramid(ways, dim)
                self.groups.append(Group(tuple(sorted(dofs)), some, cone))
        self.cones = [group.cone for group in self.groups]
        self.slots: dict[int, int] = {}
        """For the noslip solver, the number in ``slot`` of the first copy of each contact (:mod:`.contact_slots`)."""

    @property
    def records(self) -> dict[str, tuple[int, int]]:
        """The arrays of contact records, and their shapes: contacts at most, and numbers of each."""
        return {f"contact{n}": (sum(c.copies for c in g.contacts.values()), g.width) for n, g in enumerate(self.groups)}

    def find(self, w: Writer, compute: Callable[[int], None]) -> None:
        """Emit that contacts that are present in any lane get records.

        What belongs to a body is computed together, so that little has to be kept meanwhile.

        Args:
            w: where the code is written.
            compute: emits what else belongs to a body.
        """
        for n in range(len(self.groups)):
            w(f"int touching{n} = 0;")
        for body in reversed(range(len(self._axes))):
            for n, group in enumerate(self.groups):
                for number, c in group.contacts.items():
                    if max(c.pair.bodies) == body:
                        w.compute(*(x for b in c.pair.bodies for x in self._axes[b]))
                        w.compute(*constant_part(c.present, c.numbers))
                        with w.copies(c.copies, c.numbers):
                            self._record(w, n, number)
            compute(body)

    def _record(self, w: Writer, n: int, number: int) -> None:
        """Emit that a contact of group n, if it is present in any lane, gets a record."""
        group = self.groups[n]
        c, offset = group.contacts[number], self._offsets[number]
        (present,) = w.compute(c.present)
        with w.block(f"if (any({present}))"):
            rows = [[row[d] for d in group.dofs] for row in c.rows]
            missing = group.kinds - c.cone.tangents
            rows += [[0.0] * len(group.dofs)] * missing
            values = [*(x for row in rows for x in row), *offset, *[0.0] * missing]
            places = [*range(len(values)), *group.numbers.values()]
            values += c.record(group.cone)
            w.compute(*values)
            for place, x in zip(places, values, strict=True):
                w(f"contact{n}[touching{n}][{place}] = {vector(x)};")
            if self.slots:
                w(f"slot[{self.slots[number]}{' + copy' if c.copies > 1 else ''}] = touching{n};")
            w(f"++touching{n};")

    def add(self, w: Writer, hessian: Any) -> None:
        """Add the contacts to gradient and Hessian, and write their values at a."""
        for n, group in enumerate(self.groups):
            with w.loop(f"int k = 0; k < touching{n}; ++k"):
                self._add(w, f"contact{n}[k]", group, hessian)

    @staticmethod
    def _add(w: Writer, record: str, group: Group, hessian: Any) -> None:
        ways, dofs = group.cone.ways, group.dofs
        ContactCode.numbers(w, record, group)
        for t in ways:
            for place, i in enumerate(dofs):
                w(f"const vec row{t}_{i} = {record}[{t * len(dofs) + place}];")
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
                w(f"{hessian[i, j]} += {total([f'y{t}_{i} * row{t}_{j}' for t in ways])};")

    def step(self, w: Writer) -> None:
        """Write the contacts' values along the step x."""
        for n, group in enumerate(self.groups):
            with w.loop(f"int k = 0; k < touching{n}; ++k"):
                for t in range(1 + group.kinds):
                    products = [f"contact{n}[k][{t * len(group.dofs) + p}] * x{i}" for p, i in enumerate(group.dofs)]
                    w(f"contact{n}[k][{group.step + t}] = {total(products)};")

    def along(self, w: Writer) -> None:
        """Add the contacts to the derivatives along the step, and to ``flips`` whether their zones change."""
        for n, group in enumerate(self.groups):
            with w.loop(f"int k = 0; k < touching{n}; ++k"):
                self._along(w, f"contact{n}[k]", group)

    @staticmethod
    def numbers(w: Writer, record: str, group: Group) -> None:
        for name, place in group.numbers.items():
            w(f"const vec {name} = {record}[{place}];")

    @staticmethod
    def _along(w: Writer, record: str, group: Group) -> None:
        ContactCode.numbers(w, record, group)
        for t in range(1 + group.kinds):
            w(f"const vec value{t} = {record}[{group.value + t}], step{t} = {record}[{group.step + t}];")
        group.cone.along(w)
