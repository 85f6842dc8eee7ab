"""Records of the noslip solver (:mod:`.noslip`): their layout, what the sweeps start from, and what changes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler.cones import Cone
from mage_diffsim.envs.warp.compiler.constraints import Contact
from mage_diffsim.envs.warp.compiler.dynamics import REST, Spatial
from mage_diffsim.envs.warp.compiler.graph import Graph, add, mul
from mage_diffsim.envs.warp.compiler.noslip_blocks import Block, Box, Ellipse


@dataclasses.dataclass(frozen=True)
class Sliding:
    """Rows of friction whose records have one layout: those of a group of contacts, or friction loss."""

    number: int
    ways: int
    """Rows of a record."""
    block: Block
    longest: int
    """Entries of the longest row."""
    capacity: int

    @property
    def blocks(self) -> list[range]:
        """The rows of each block of a record, in the order of their updates."""
        size = len(self.block.ways)
        return [range(t, t + size) for t in range(0, self.ways, size)]

    @property
    def grams(self) -> int:
        """Entries of J M^-1 J' of a block."""
        return len(self.block.gram_names)

    @property
    def fields(self) -> dict[str, int]:
        """What a record holds and has derivatives, and how many numbers of each. A row's entries are ``ways`` apart."""
        blocks = len(self.blocks)
        return {
            "hat": self.ways * self.longest,
            "gram": blocks * self.grams,
            "res": self.ways,
            "old": self.ways,
            "bound": blocks,
        }

    def place(self, field: str, which: str = "") -> int:
        """Where a field begins; ``which`` is "by_" or "along_" for its derivatives."""
        sizes = self.fields
        begin = sum(sizes.values()) if which else 0
        return begin + sum(list(sizes.values())[: list(sizes).index(field)])

    @property
    def past(self) -> int:
        """Where the forces before each sweep begin."""
        return 2 * sum(self.fields.values())

    def width(self, which: str, sweeps: int) -> int:
        """Numbers of a record in a kernel."""
        once = sum(self.fields.values())
        return {"forward": once, "tangent": 2 * once, "adjoint": 2 * once + sweeps * self.ways}[which]


def sliding(number: int, cone: Cone, longest: int, capacity: int) -> Sliding:
    """The records of contacts of a cone; none if it has no friction."""
    block = Ellipse(cone.tangents) if cone.curved else Box()
    return Sliding(number, cone.tangents, block, longest, capacity if cone.tangents else 0)


@dataclasses.dataclass(frozen=True)
class Start:
    """What the sweeps take from the solver's forces of a contact, as expressions of value{t} and the cone's numbers."""

    values: list[Any]
    """value{t}, of the normal and the ways of friction."""
    forces: list[Any]
    """Along its ways of friction."""
    bounds: list[Any]
    """Of its blocks."""
    cost: Any
    """Half the sum of force^2 R over its rows."""


def start(cone: Cone) -> Start:
    """The expressions for a cone."""
    graph = Graph()
    values, numbers = graph.inputs("value", 1 + cone.tangents), [graph.input(name) for name in cone.numbers]
    forces, bounds = cone.forces(values, *numbers)[1:], cone.bounds(values, *numbers)
    return Start(values, forces, bounds, cone.losses(values, *numbers))


def start_of(contact: Contact, a: Sequence[Spatial], v: Sequence[Spatial]) -> tuple[list[Any], list[Any], list[Any]]:
    """What the sweeps read of a contact, given the bodies' motions: offsets, first forces, bounds of its friction."""
    return contact.offsets(v)[1:], contact.forces(a, v)[1:], contact.bounds(a, v)


def power(contact: Contact, a: Sequence[Spatial], v: Sequence[Spatial], given: Callable[[str, int], Any]) -> Any:
    """A scalar whose derivative by the state is the share that the sweeps have in it.

    Args:
        contact: the contact.
        a, v: the bodies' spatial motions that belong to the solver's accelerations, and to the velocities.
        given: the inputs that hold what the sweeps gathered: entry i of "by_res", "by_old", "by_bound"; and the motions
            "slide" of either body that belong to the derivatives by J, six numbers each, way by way.
    """
    value: Any = 0.0
    for t in range(contact.cone.tangents):
        x = [given("slide", 12 * t + j) for j in range(12)]
        moves = [(x[:3], x[3:6]), (x[6:9], x[9:])]
        bodies = [move if body else REST for body, move in zip(contact.pair.bodies, moves, strict=True)]
        value = add(value, contact.between(*bodies)[1 + t])
    for name, expressions in zip(("by_res", "by_old", "by_bound"), start_of(contact, a, v), strict=True):
        for i, x in enumerate(expressions):
            value = add(value, mul(x, given(name, i)))
    return value
