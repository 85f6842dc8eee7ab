"""Stage 4, scalar rows: joint limits as expressions, in MuJoCo's terms (efc_J, efc_aref, efc_D).

A row is a constraint on one number with acceleration J a. It pushes with the force clip(-D (J a - aref), low, high). A
*zone* is where that is constant or linear in a: at the low end, between the ends, at the high end.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mage_diffsim.envs.mujoco.impedance import Impedance
from mage_diffsim.envs.mujoco.mixing import SMALLEST
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics
from mage_diffsim.envs.warp.compiler.graph import add, div, less, maximum, minimum, mul, neg, power, sub, where
from mage_diffsim.envs.warp.compiler.intake import Limit


@dataclasses.dataclass(frozen=True)
class Row:
    """One row, whose J is ``sign`` times ``direction``."""

    direction: Mapping[int, Any]
    """By degree of freedom; the others are 0."""
    weight: Any
    """D; 0 where the row is not there."""
    offset: Any
    """-aref."""
    low: float
    """The least force: 0 for a limit, -inf for an equality, minus the loss for friction."""
    high: float
    """The largest force."""
    sign: Any = 1.0
    """1 or -1."""

    @property
    def one_sided(self) -> bool:
        """Whether the row only pushes, as a limit does."""
        return self.low == 0.0 and self.high == math.inf

    @property
    def bounded(self) -> bool:
        """Whether the row has more than one zone."""
        return self.low > -math.inf or self.high < math.inf

    def along(self, x: Sequence[Any]) -> Any:
        """J x."""
        total: Any = 0.0
        for d, share in self.direction.items():
            total = add(total, mul(share, x[d]))
        return mul(self.sign, total)

    def force(self, a: Sequence[Any]) -> Any:
        """The force at accelerations a, [nv]."""
        pull = add(self.along(a), self.offset)
        if self.one_sided:
            return where(less(pull, 0.0), mul(neg(self.weight), pull), 0.0)
        linear = mul(neg(self.weight), pull)
        force = linear if self.low == -math.inf else maximum(linear, self.low)
        return force if self.high == math.inf else minimum(force, self.high)


def impedance(parameters: Impedance, depth: Any) -> Any:
    """MuJoCo's d(r) at a depth inside the margin, 0 or more."""
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


def pushing(parameters: Impedance, distance: Any, inverse_weight: float) -> tuple[Any, Any]:
    """(D, k d(r) r) of a row at the (negative) distance from its margin; both 0 at a distance of 0 and more."""
    inside = less(distance, 0.0)
    depth = where(inside, neg(distance), 0.0)
    d = impedance(parameters, depth)
    resistance = maximum(div(mul(inverse_weight, sub(1.0, d)), d), SMALLEST)
    return where(inside, div(1.0, resistance), 0.0), mul(-parameters.stiffness, mul(d, depth))


def scalar_rows(kinematics: Kinematics, q: Sequence[Any], v: Sequence[Any]) -> list[Row]:
    """The rows of all joint limits."""
    m, rows = kinematics.model.model, []
    for limit in kinematics.model.limits:
        position, d = q[int(m.jnt_qposadr[limit.joint])], int(m.jnt_dofadr[limit.joint])
        for distance, sign in _ends(limit, position):
            weight, push = pushing(limit.impedance, sub(distance, limit.margin), limit.inverse_weight)
            offset = add(mul(limit.impedance.damping, mul(sign, v[d])), push)
            rows.append(Row({d: 1.0}, weight, offset, 0.0, math.inf, sign))
    return rows


def _ends(limit: Limit, position: Any) -> Iterator[tuple[Any, Any]]:
    """(distance to the end, direction away from it) of the nearer end, or of both if both can push at once."""
    low, high = sub(position, limit.low), sub(limit.high, position)
    if math.isinf(limit.low) or math.isinf(limit.high):
        if math.isfinite(limit.low):
            yield low, 1.0
        if math.isfinite(limit.high):
            yield high, -1.0
    elif limit.high - limit.low > 2.0 * limit.margin:
        nearer = less(low, high)
        yield where(nearer, low, high), where(nearer, 1.0, -1.0)
    else:
        yield low, 1.0
        yield high, -1.0
