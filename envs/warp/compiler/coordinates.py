"""Stage 3, coordinates: scalar functions of the positions along which springs, actuators, limits and equalities act.

A coordinate is a joint's position or a tendon's length. A unit force along it makes the generalised forces ``row``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mage_diffsim.envs.mujoco.mixing import SMALLEST
from mage_diffsim.envs.mujoco.model import load_mujoco
from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics, Spatial
from mage_diffsim.envs.warp.compiler.graph import absolute, add, atan2, less, mul, where
from mage_diffsim.envs.warp.compiler.tendons import spans


@dataclasses.dataclass(frozen=True)
class Coordinate:
    """A scalar function of the positions."""

    length: Any
    """Its value [m or rad]."""
    row: list[Any]
    """Its derivative, nv: the rate of the length is row . v."""
    loads: Mapping[int, Spatial] = dataclasses.field(default_factory=dict)
    """What a unit force along the coordinate does to each body: (torque about the origin, force). Empty where length
    and row are functions of q alone."""
    plain: Sequence[Any] = ()
    """Beside loads, what of the row is a function of q alone; () if nothing is."""
    joints: frozenset[int] = frozenset()
    """The bodies whose joints' positions it is made of."""

    @property
    def bodies(self) -> tuple[int, ...]:
        """The moving bodies on whose frames and joints length and row depend; () for a function of q alone."""
        return tuple(sorted({b for b in self.loads if b} | self.joints)) if self.loads else ()

    def rate(self, motions: Sequence[Spatial], x: Sequence[Any]) -> Any:
        """row . x, where ``motions`` are the bodies' spatial motions that belong to x (nv)."""
        total: Any = 0.0
        for share, y in zip(self.plain if self.loads else self.row, x, strict=False):
            total = add(total, mul(share, y))
        for body in sorted(b for b in self.loads if b):
            for way, load in zip(motions[body], self.loads[body], strict=True):
                total = add(total, al.dot(way, load))
        return total


def combination(terms: Sequence[tuple[Any, Coordinate]], nv: int) -> Coordinate:
    """The sum of numbers times coordinates."""
    length = 0.0
    for share, term in terms:
        length = add(length, mul(share, term.length))
    return function_of(length, terms, nv)


def function_of(length: Any, terms: Sequence[tuple[Any, Coordinate]], nv: int) -> Coordinate:
    """A coordinate whose length is a function of others, given the derivative by each of them."""
    row, plain = [0.0] * nv, [0.0] * nv
    for share, term in terms:
        row = [add(x, mul(share, y)) for x, y in zip(row, term.row, strict=True)]
        if not term.loads:
            plain = [add(x, mul(share, y)) for x, y in zip(plain, term.row, strict=True)]
    loads = summed((body, _scaled(load, share)) for share, term in terms for body, load in term.loads.items())
    joints = frozenset[int]().union(*(term.joints for _, term in terms))
    return Coordinate(length, row, loads, plain if loads else (), joints)


def between(kinematics: Kinematics, length: Any, loads: Sequence[tuple[int, Spatial]]) -> Coordinate:
    """A coordinate between bodies.

    Args:
        kinematics: where the bodies are.
        length: its value.
        loads: what a unit force along it does to each body, the world among them: (torque about the origin, force).
            Together they are in balance.
    """
    chains = [set(kinematics.chain(body)) for body, _ in loads]
    row: list[Any] = [0.0] * kinematics.model.model.nv
    for d in set().union(*chains):
        moved = [n for n, chain in enumerate(chains) if d in chain]
        others = [n for n in range(len(loads)) if n not in moved]
        near = {kinematics.tree[loads[n][0]] for n in others} <= {kinematics.tree[loads[moved[0]][0]]}
        # The loads on the others are the opposite of those on the moved ones; none if all bodies move together.
        chosen, sign = (others, -1.0) if near and len(others) < len(moved) else (moved, 1.0)
        for n in chosen:
            for way, load in zip(kinematics.axes[d], loads[n][1], strict=True):
                row[d] = add(row[d], mul(sign, al.dot(way, load)))
    return Coordinate(length, row, summed(pair for pair in loads if pair[0]))


def _scaled(load: Spatial, share: Any) -> Spatial:
    return al.times(load[0], share), al.times(load[1], share)


def summed(loads: Iterable[tuple[int, Spatial]]) -> dict[int, Spatial]:
    """The sum of the loads on each body."""
    total: dict[int, Spatial] = {}
    for body, (torque, force) in loads:
        before = total.get(body, (al.ZERO, al.ZERO))
        total[body] = al.plus(before[0], torque), al.plus(before[1], force)
    return total


class Coordinates:
    """The coordinates of a model; each is made when first asked for.

    Args:
        kinematics: where the bodies are.
        q: the positions.
        noise: for contacts, a vector of unit vectors shorter than this has no direction.
        looped: whether contacts are in loops.
    """

    def __init__(self, kinematics: Kinematics, q: Sequence[Any], noise: float = SMALLEST, looped: bool = False) -> None:
        self.kinematics, self.model = kinematics, kinematics.model.model
        self.noise, self.looped = noise, looped
        self.q = list(q)
        self.joint = functools.cache(self._joint)
        self.tendon = functools.cache(self._tendon)

    def _joint(self, joint: int) -> Coordinate:
        """The position of a hinge or slide joint."""
        m = self.model
        dof = int(m.jnt_dofadr[joint])
        row = [float(d == dof) for d in range(m.nv)]
        return Coordinate(self.q[int(m.jnt_qposadr[joint])], row, joints=frozenset((int(m.jnt_bodyid[joint]),)))

    def angle(self, joint: int) -> Coordinate:
        """The angle that a ball joint is turned by, 0 to pi; its rate is the rotation's along the axis of the turn."""
        m, start, dof = self.model, int(self.model.jnt_qposadr[joint]), int(self.model.jnt_dofadr[joint])
        w, *vector = self.q[start : start + 4]
        sine, _ = al.guarded_norm(vector)
        axis = al.times(al.direction(vector, al.IDENTITY[0]), where(less(w, 0.0), -1.0, 1.0))
        row: list[Any] = [0.0] * m.nv
        row[dof : dof + 3] = axis
        return Coordinate(mul(2.0, atan2(sine, absolute(w))), row)

    def _tendon(self, tendon: int) -> Coordinate:
        """The length of a tendon: of a fixed one, the sum of its joints' positions times its coefficients."""
        m, first = self.model, int(self.model.tendon_adr[tendon])
        path = range(first, first + int(m.tendon_num[tendon]))
        if m.wrap_type[first] == load_mujoco().mjtWrap.mjWRAP_JOINT:
            terms = [(float(m.wrap_prm[w]), self.joint(int(m.wrap_objid[w]))) for w in path]
        else:
            terms = [(part.share, between(self.kinematics, *part[:2])) for part in spans(self.kinematics, tendon)]
        return combination(terms, m.nv)
