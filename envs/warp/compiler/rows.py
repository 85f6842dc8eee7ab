"""Stage 4, scalar rows: limits, friction loss, equalities as expressions, in MuJoCo's terms (efc_J, efc_aref, efc_D).

A row is a constraint on one number with acceleration J a. It pushes with the force clip(-D (J a - aref), low, high). A
*zone* is where that is constant or linear in a: at the low end, between the ends, at the high end.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mage_diffsim.envs.mujoco.impedance import Impedance
from mage_diffsim.envs.mujoco.mixing import SMALLEST
from mage_diffsim.envs.mujoco.model import load_mujoco
from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.coordinates import Coordinate, Coordinates, function_of
from mage_diffsim.envs.warp.compiler.dynamics import Spatial, accelerations
from mage_diffsim.envs.warp.compiler.graph import (
    absolute,
    add,
    div,
    is_zero,
    less,
    maximum,
    minimum,
    mul,
    neg,
    number,
    power,
    sub,
    where,
)
from mage_diffsim.envs.warp.compiler.links import link

Motions = Sequence[Spatial]
"""A spatial motion for each body."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row; its J is ``sign`` times the coordinate's."""

    coordinate: Coordinate
    weight: Any
    """D; 0 where the row is not there."""
    offset: Any
    """-aref."""
    low: Any
    """The least force: 0 for a limit, -inf for an equality, minus the loss for friction."""
    high: Any
    """The largest force."""
    stiffness: float
    """The largest ratio of D to what the row acts on, see :func:`stiffness_of`."""
    sign: Any = 1.0
    """1 or -1."""
    second: Callable[[Motions, Motions], Any] | None = None
    """J a + J' v, given the bodies' spatial velocities and accelerations, where aref has J' v; only a link's has."""
    rest: Any = 0.0
    """-aref without J' v, where aref has it."""

    @property
    def one_sided(self) -> bool:
        """Whether the row only pushes, as a limit does."""
        return self.low == 0.0 and self.high == math.inf

    @property
    def bounded(self) -> bool:
        """Whether the row has more than one zone."""
        return self.low != -math.inf or self.high != math.inf

    @property
    def direction(self) -> dict[int, Any]:
        """What is not 0 of the coordinate's J, by degree of freedom."""
        return {d: x for d, x in enumerate(self.coordinate.row) if not is_zero(x)}

    def force(self, motions: Motions, a: Sequence[Any], dynamic: tuple[Motions, Motions]) -> Any:
        """The force along the coordinate at accelerations a.

        Args:
            motions: the bodies' spatial motions that belong to a.
            a: accelerations, nv.
            dynamic: the bodies' spatial velocities and accelerations.
        """
        if self.second is None:
            pull = add(mul(self.sign, self.coordinate.rate(motions, a)), self.offset)
        else:
            pull = add(self.second(*dynamic), self.rest)
        if self.one_sided:
            return mul(self.sign, where(less(pull, 0.0), mul(neg(self.weight), pull), 0.0))
        force = linear = mul(neg(self.weight), pull)
        # Each end is compared with the unclipped force, so that a loss of 0 has the derivative of the end in force.
        force = force if self.high == math.inf else where(less(self.high, linear), self.high, force)
        return mul(self.sign, force if self.low == -math.inf else where(less(linear, self.low), self.low, force))


def impedance(parameters: Impedance, depth: Any) -> Any:
    """MuJoCo's d(r) at a distance r, 0 or more, from where the constraint is met."""
    low, high = parameters.smallest, parameters.largest
    if low == high or parameters.width <= SMALLEST:
        return 0.5 * (low + high)
    x = minimum(div(depth, parameters.width), 1.0)
    if parameters.power == 1.0:
        curve = x
    else:
        p, middle = parameters.power, parameters.midpoint
        rising = mul(power(x, p), 1.0 / middle ** (p - 1.0))
        falling = sub(1.0, mul(power(sub(1.0, x), p), 1.0 / (1.0 - middle) ** (p - 1.0)))
        curve = where(less(middle, x), falling, rising)
    return add(low, mul(high - low, curve))


def weight_of(d: Any, inverse_weight: Any) -> Any:
    """D of a row with impedance d."""
    return div(1.0, maximum(div(mul(inverse_weight, sub(1.0, d)), d), SMALLEST))


def stiffness_of(parameters: Impedance) -> float:
    """The largest d / (1 - d): a row's D in units of the inertia that it acts on."""
    d = max(parameters.smallest, parameters.largest)
    return d / (1.0 - d)


def pushing(parameters: Impedance, distance: Any, inverse_weight: Any) -> tuple[Any, Any]:
    """(D, k d(r) r) of a row at the (negative) distance from its margin; both 0 at a distance of 0 and more."""
    inside = less(distance, 0.0)
    depth = where(inside, neg(distance), 0.0)
    d = impedance(parameters, depth)
    return where(inside, weight_of(d, inverse_weight), 0.0), mul(-parameters.stiffness, mul(d, depth))


def scalar_rows(coordinates: Coordinates, v: Sequence[Any]) -> list[Row]:
    """All scalar rows of the model, in MuJoCo's order."""
    return list(_Rows(coordinates, v))


class _Rows:
    """Iterates over the rows."""

    def __init__(self, coordinates: Coordinates, v: Sequence[Any]) -> None:
        self._coordinates, self._v = coordinates, v
        self._m = coordinates.model
        self._motions = coordinates.kinematics.velocities(v)

    def __iter__(self) -> Iterator[Row]:
        flags, given = load_mujoco().mjtDisableBit, self._m.opt.disableflags
        if given & flags.mjDSBL_CONSTRAINT:
            return
        kinds = (
            (flags.mjDSBL_EQUALITY, self._equalities),
            (flags.mjDSBL_FRICTIONLOSS, self._frictions),
            (flags.mjDSBL_LIMIT, self._limits),
        )
        for flag, found in kinds:
            if not given & flag:
                yield from (row for row in found() if row.direction)

    def _rate(self, coordinate: Coordinate) -> Any:
        return coordinate.rate(self._motions, self._v)

    def _equalities(self) -> Iterator[Row]:
        m, kinds = self._m, load_mujoco().mjtEq
        for e in range(m.neq):
            if not m.eq_active0[e]:
                continue
            parameters = Impedance.of(m, m.eq_solref[e], m.eq_solimp[e]).single()
            if int(m.eq_type[e]) in (int(kinds.mjEQ_CONNECT), int(kinds.mjEQ_WELD)):
                yield from self._linked(e, parameters)
                continue
            tendons = int(m.eq_type[e]) == int(kinds.mjEQ_TENDON)
            coupled, inverse_weight = self._coupled(e, tendons)
            d = impedance(parameters, absolute(coupled.length))
            push = mul(parameters.stiffness, mul(d, coupled.length))
            offset = add(mul(parameters.damping, self._rate(coupled)), push)
            weight = weight_of(d, inverse_weight)
            yield Row(coupled, weight, offset, -math.inf, math.inf, stiffness_of(parameters))

    def _linked(self, e: int, parameters: Impedance) -> Iterator[Row]:
        """The rows of a connect or weld."""
        m, kinematics, zeros = self._m, self._coordinates.kinematics, [0.0] * len(self._v)
        found = link(kinematics, e)
        drift = found.second(*accelerations(kinematics, self._v, zeros))
        bodies = [int(i) for i in (m.eq_obj1id[e], m.eq_obj2id[e])]
        if int(m.eq_objtype[e]) == int(load_mujoco().mjtObj.mjOBJ_SITE):
            bodies = [int(m.site_bodyid[i]) for i in bodies]
        violation, _ = al.guarded_norm([c.length for c in found.coordinates])
        d = impedance(parameters, violation)
        for i, along in enumerate(found.coordinates):
            inverse_weight = sum(float(m.body_invweight0[b, i // 3]) for b in bodies)
            push = mul(parameters.stiffness, mul(d, along.length))
            rest = add(mul(parameters.damping, self._rate(along)), push)

            def second(velocity: Motions, acceleration: Motions, i: int = i) -> Any:
                return found.second(velocity, acceleration)[i]

            weight, offset, stiffness = weight_of(d, inverse_weight), add(rest, drift[i]), stiffness_of(parameters)
            yield Row(along, weight, offset, -math.inf, math.inf, stiffness, second=second, rest=rest)

    def _coupled(self, e: int, tendons: bool) -> tuple[Coordinate, float]:
        """The violation of an equality of joints or tendons, a polynomial in the second, and the inverse weight."""
        m, parts, inverse_weight = self._m, [], 0.0
        for i in (int(m.eq_obj1id[e]), int(m.eq_obj2id[e])):
            if i < 0:
                continue
            if tendons:
                of, rest, own = self._coordinates.tendon(i), m.tendon_length0[i], m.tendon_invweight0[i]
            else:
                of, rest = self._coordinates.joint(i), m.qpos0[m.jnt_qposadr[i]]
                own = m.dof_invweight0[m.jnt_dofadr[i]]
            parts.append((of, sub(of.length, float(rest))))
            inverse_weight += float(own)
        first, x = parts[0]
        c = [float(x) for x in m.eq_data[e, :5]]
        if len(parts) == 1:
            return dataclasses.replace(first, length=sub(x, c[0])), inverse_weight
        second, y = parts[1]
        curve, slope = c[4], 0.0
        for coefficient in reversed(c[:4]):  # Horner's rule, for the value and its derivative
            slope = add(mul(slope, y), curve)
            curve = add(mul(curve, y), coefficient)
        return function_of(sub(x, curve), [(1.0, first), (neg(slope), second)], m.nv), inverse_weight

    def _frictions(self) -> Iterator[Row]:
        m = self._m
        for d in range(m.nv):
            if m.dof_frictionloss[d]:
                along = Coordinate(0.0, [float(i == d) for i in range(m.nv)])
                parameters = Impedance.of(m, m.dof_solref[d], m.dof_solimp[d])
                yield self._friction(along, m.dof_frictionloss[d], parameters, m.dof_invweight0[d])
        for t in range(m.ntendon):
            if m.tendon_frictionloss[t] > 0.0:
                parameters = Impedance.of(m, m.tendon_solref_fri[t], m.tendon_solimp_fri[t])
                along = self._coordinates.tendon(t)
                yield self._friction(along, m.tendon_frictionloss[t], parameters, m.tendon_invweight0[t])

    def _friction(self, along: Coordinate, loss: Any, parameters: Impedance, inverse_weight: Any) -> Row:
        given = parameters.single()
        weight = weight_of(impedance(given, 0.0), float(inverse_weight))
        offset = mul(given.damping, self._rate(along))
        return Row(along, weight, offset, neg(number(loss)), number(loss), stiffness_of(given))

    def _limits(self) -> Iterator[Row]:
        m, kinds = self._m, self._coordinates.kinematics.model.joint_kinds
        for j in range(m.njnt):
            if not m.jnt_limited[j] or kinds[j] == "free":
                continue
            ends, inverse_weight = m.jnt_range[j], m.dof_invweight0[m.jnt_dofadr[j]]
            if kinds[j] == "ball":
                along, ends = self._coordinates.angle(j), (-math.inf, max(ends))
            else:
                along = self._coordinates.joint(j)
            parameters = Impedance.of(m, m.jnt_solref[j], m.jnt_solimp[j])
            yield from self._between(along, ends, m.jnt_margin[j], parameters, inverse_weight)
        for t in range(m.ntendon):
            if m.tendon_limited[t]:
                parameters = Impedance.of(m, m.tendon_solref_lim[t], m.tendon_solimp_lim[t])
                along, inverse_weight = self._coordinates.tendon(t), m.tendon_invweight0[t]
                yield from self._between(along, m.tendon_range[t], m.tendon_margin[t], parameters, inverse_weight)

    def _between(
        self, along: Coordinate, ends: Any, margin: Any, parameters: Impedance, inverse_weight: Any
    ) -> Iterator[Row]:
        """The rows that keep a coordinate between two ends."""
        given, rate = parameters.single(), self._rate(along)
        for distance, sign in nearer_ends(along.length, float(ends[0]), float(ends[1]), float(margin)):
            weight, push = pushing(given, sub(distance, float(margin)), float(inverse_weight))
            offset = add(mul(given.damping, mul(sign, rate)), push)
            yield Row(along, weight, offset, 0.0, math.inf, stiffness_of(given), sign)


def nearer_ends(position: Any, low: float, high: float, margin: float) -> Iterator[tuple[Any, Any]]:
    """(distance to the end, direction away from it) of the nearer end, or of both if both can push at once."""
    above, below = sub(position, low), sub(high, position)
    if math.isinf(low) or math.isinf(high):
        if math.isfinite(low):
            yield above, 1.0
        if math.isfinite(high):
            yield below, -1.0
    elif high - low > 2.0 * margin:
        nearer = less(above, below)
        yield where(nearer, above, below), where(nearer, 1.0, -1.0)
    else:
        yield above, 1.0
        yield below, -1.0
