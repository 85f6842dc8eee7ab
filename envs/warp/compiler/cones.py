"""Stage 6, friction cones: force and stiffness of a contact, as expressions and as code.

A contact has a value per way along which it pushes: ``value0`` along the normal, ``value1`` and so on along tangents,
each the row's J a - aref, where tangents are multiplied by their friction. Its cost is a convex function of the values.
``force{t}`` is the derivative of the cost, so the contact pushes with -force{t}.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler.emit import Writer
from mage_diffsim.envs.warp.compiler.graph import add, less, mul, sub, where


@dataclasses.dataclass(frozen=True)
class Pyramid:
    """MuJoCo's pyramid: every edge, normal + or - a tangent, costs weight / 2 value^2 where its value is negative.

    One number describes a contact: ``weight``, the D of each edge.
    """

    numbers = ("weight",)

    dim: int
    """condim."""
    tangents: int
    """Tangents along which something can move. The edges of others are along the normal."""

    @property
    def edges(self) -> int:
        """Number of edges; a contact without friction has one, the normal."""
        return 2 * (self.dim - 1) or 1

    @property
    def plain(self) -> int:
        """Number of edges along the normal."""
        return self.edges - 2 * self.tangents

    @property
    def ways(self) -> range:
        """Normal and tangents, by their numbers."""
        return range(1 + self.tangents)

    def coupled(self, t: int) -> tuple[int, ...]:
        """The ways whose values the force along way ``t`` depends on."""
        return tuple(self.ways) if t == 0 else (0, t)

    def forces(self, values: Sequence[Any], weight: Any) -> list[Any]:
        """Expressions of what the contact pushes with along each way."""

        def force(value: Any, rows: int) -> Any:
            return where(less(value, 0.0), mul(-float(rows), mul(weight, value)), 0.0)

        normal = values[0]
        total: Any = force(normal, self.plain) if self.plain else 0.0
        along = []
        for sideways in values[1:]:
            up, down = force(add(normal, sideways), 1), force(sub(normal, sideways), 1)
            total = add(total, add(up, down))
            along.append(sub(up, down))
        return [total, *along]

    def push(self, w: Writer) -> None:
        """Emit force{t} and its derivatives h{t}_{u} (t <= u) from value{t} and ``weight``."""
        w("vec force0 = splat(0), h0_0 = splat(0);")
        if self.plain:
            w(f"const vec plain = select(value0 < real(0), real({self.plain}) * weight, splat(0));")
            w("force0 += plain * value0; h0_0 += plain;")
        for t in self.ways[1:]:
            w(f"const vec up{t} = value0 + value{t}, down{t} = value0 - value{t};")
            w(f"const vec on{t} = select(up{t} < real(0), weight, splat(0));")
            w(f"const vec off{t} = select(down{t} < real(0), weight, splat(0));")
            w(f"force0 += on{t} * up{t} + off{t} * down{t}; h0_0 += on{t} + off{t};")
            w(f"const vec force{t} = on{t} * up{t} - off{t} * down{t};")
            w(f"const vec h0_{t} = on{t} - off{t}, h{t}_{t} = on{t} + off{t};")

    def along(self, w: Writer) -> None:
        """Add the cost's derivatives at value{t} + ``size`` step{t} by ``size`` to ``first_order`` and
        ``second_order``, and to ``flips`` whether an edge there pushes that does not at value{t}, or the reverse."""
        edges = [("value0", "step0", f"real({self.plain}) * weight")] if self.plain else []
        for t in self.ways[1:]:
            edges += [(f"(value0 {s} value{t})", f"(step0 {s} step{t})", "weight") for s in "+-"]
        for value, step, weight in edges:
            with w.block(""):
                w(f"const vec along = {step}, start = {value}, value = start + size * along;")
                w(f"const vec active = select(value < real(0), {weight}, splat(0));")
                w("first_order += active * value * along; second_order += active * along * along;")
                # An edge whose weight is 0 in a lane is not there.
                w("flips = flips | (((value < real(0)) != (start < real(0))) & (weight > real(0)));")


Cone = Pyramid
