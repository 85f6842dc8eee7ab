"""Stage 6, friction cones: force and stiffness of a contact, as expressions and as code.

A contact has a value per way along which it pushes: ``value0`` along the normal, ``value1`` and so on along the ways of
friction, each the row's J a - aref times a scale. Its cost is a convex function of the values. ``force{t}`` is the
derivative of the cost, so the contact pushes with -force{t}.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, final

from mage_diffsim.envs.warp.compiler.emit import Writer, total
from mage_diffsim.envs.warp.compiler.graph import add, div, less, mul, neg, sqrt, sub, where


@dataclasses.dataclass(frozen=True)
class Cone(ABC):
    """What contacts of one kind push with."""

    tangents: int
    """Ways of friction along which something can move."""
    numbers: ClassVar[tuple[str, ...]]
    """Names of the numbers that describe a contact."""
    curved: ClassVar[bool]
    """Whether the cost is more than quadratic in pieces."""

    @property
    def ways(self) -> range:
        """Normal and ways of friction, by their numbers."""
        return range(1 + self.tangents)

    @property
    @abstractmethod
    def edges(self) -> int:
        """Number of rows that share the weight of a contact that pushes along the normal only."""

    @abstractmethod
    def coupled(self, t: int) -> Sequence[int]:
        """The ways whose values the force along way ``t`` depends on."""

    @abstractmethod
    def forces(self, values: Sequence[Any], *numbers: Any) -> list[Any]:
        """Expressions of what the contact pushes with along each way."""

    @abstractmethod
    def bounds(self, values: Sequence[Any], *numbers: Any) -> list[Any]:
        """Expressions of what bounds friction where the forces that push apart are given (:mod:`.noslip`)."""

    @abstractmethod
    def losses(self, values: Sequence[Any], *numbers: Any) -> Any:
        """Expression of half the sum of force^2 R over MuJoCo's rows."""

    @abstractmethod
    def push(self, w: Writer) -> None:
        """Emit force{t} and its derivatives h{t}_{u} (t <= u) from value{t} and the numbers.

        A curved cone adds to ``curved`` whether its cost is not quadratic there.
        """

    @abstractmethod
    def along(self, w: Writer) -> None:
        """Add the cost's derivatives at value{t} + ``size`` step{t} by ``size`` to first_order and second_order.

        ``flips`` grows by whether the forces there are other than force{t} + size h{t}_{u} step{u} at value{t}.
        """


@final
@dataclasses.dataclass(frozen=True)
class Pyramid(Cone):
    """MuJoCo's pyramid: every edge, normal + or - friction, costs weight / 2 value^2 where its value is negative.

    Ways of friction are multiplied by their friction, and ``weight`` is the D of each edge.
    """

    dim: int
    """condim."""
    numbers = ("weight",)
    curved = False

    @property
    def edges(self) -> int:
        return 2 * (self.dim - 1) or 1

    @property
    def plain(self) -> int:
        """Number of edges along the normal, because nothing can move along their way of friction."""
        return self.edges - 2 * self.tangents

    def coupled(self, t: int) -> Sequence[int]:
        return self.ways if t == 0 else (0, t)

    def forces(self, values: Sequence[Any], *numbers: Any) -> list[Any]:
        (weight,) = numbers

        def force(value: Any, rows: int) -> Any:
            return where(less(value, 0.0), mul(-float(rows), mul(weight, value)), 0.0)

        normal = values[0]
        whole: Any = force(normal, self.plain) if self.plain else 0.0
        along = []
        for sideways in values[1:]:
            up, down = force(add(normal, sideways), 1), force(sub(normal, sideways), 1)
            whole = add(whole, add(up, down))
            along.append(sub(up, down))
        return [whole, *along]

    def _edges(self, values: Sequence[Any]) -> list[tuple[Any, Any]]:
        """By way of friction, how far its two edges are pushed in."""
        found = []
        for sideways in values[1:]:
            pair = add(values[0], sideways), sub(values[0], sideways)
            found.append(tuple(where(less(value, 0.0), neg(value), 0.0) for value in pair))
        return found

    def bounds(self, values: Sequence[Any], *numbers: Any) -> list[Any]:
        return [mul(numbers[0], add(up, down)) for up, down in self._edges(values)]

    def losses(self, values: Sequence[Any], *numbers: Any) -> Any:
        plain = where(less(values[0], 0.0), values[0], 0.0)
        whole = mul(float(self.plain), mul(plain, plain))
        for up, down in self._edges(values):
            whole = add(whole, add(mul(up, up), mul(down, down)))
        return mul(mul(0.5, numbers[0]), whole)

    def push(self, w: Writer) -> None:
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


@final
@dataclasses.dataclass(frozen=True)
class Elliptic(Cone):
    """MuJoCo's elliptic cone: weight / 2 times the square of the values' distance from the cone v >= slope r.

    v is the value along the normal and r the length of the other values. Ways of friction are multiplied by
    friction / slope, which makes MuJoCo's ellipse a circle. Inside the cone nothing pushes. Where slope v + r <= 0 the
    nearest point is the tip, and the cost is weight / 2 (v^2 + r^2). Elsewhere it is on the mantle, at a distance of
    (slope r - v) / sqrt(1 + slope^2).
    """

    numbers = ("weight", "slope")
    curved = True

    @property
    def edges(self) -> int:
        return 1

    def coupled(self, t: int) -> Sequence[int]:
        return self.ways

    def forces(self, values: Sequence[Any], *numbers: Any) -> list[Any]:
        (weight, slope), (normal, *across) = numbers, values
        square: Any = 0.0
        for value in across:
            square = add(square, mul(value, value))
        some = less(0.0, square)
        length = sqrt(where(some, square, 1.0))
        inside = sub(normal, mul(slope, where(some, length, 0.0)))
        under = add(mul(slope, normal), where(some, length, 0.0))
        mantle = mul(div(weight, add(1.0, mul(slope, slope))), inside)

        def force(on_mantle: Any, at_tip: Any) -> Any:
            return where(less(inside, 0.0), where(less(0.0, under), on_mantle, neg(mul(weight, at_tip))), 0.0)

        share = div(mul(slope, mantle), length)
        return [force(neg(mantle), normal), *(force(mul(share, value), value) for value in across)]

    def bounds(self, values: Sequence[Any], *numbers: Any) -> list[Any]:
        return self.forces(values, *numbers)[:1]

    def losses(self, values: Sequence[Any], *numbers: Any) -> Any:
        weight, square = numbers[0], 0.0
        for force in self.forces(values, *numbers):
            square = add(square, mul(force, force))
        there = less(0.0, weight)
        return where(there, div(mul(0.5, square), where(there, weight, 1.0)), 0.0)

    def push(self, w: Writer) -> None:
        ways = self.ways[1:]
        self._place(w, "value", "")
        w("curved = curved | ((mantle > real(0)));")
        w("const vec force0 = tip * value0 + mantle * inside, h0_0 = tip + mantle;")
        w("const vec pull = -slope * mantle * inside, bend = pull * inverse;")
        for t in ways:
            w(f"const vec force{t} = tip * value{t} + pull * unit{t}, h0_{t} = -slope * mantle * unit{t};")
        w("const vec turn = slope * slope * mantle - bend, round = tip + bend;")
        for t in ways:
            for u in ways[t - 1 :]:
                w(f"const vec h{t}_{u} = {'round + ' if t == u else ''}turn * unit{t} * unit{u};")

    def along(self, w: Writer) -> None:
        ways = self.ways[1:]
        with w.block(""):
            for t in self.ways:
                w(f"const vec at{t} = value{t} + size * step{t};")
            self._place(w, "at", "")
            w(f"const vec outwards = {total([f'step{t} * unit{t}' for t in ways])};")
            w(f"const vec far = {total([f'step{t} * step{t}' for t in ways])};")
            w("const vec deeper = step0 - slope * outwards;")
            w(f"first_order += tip * ({total([f'step{t} * at{t}' for t in self.ways])}) + mantle * inside * deeper;")
            w("second_order += tip * (step0 * step0 + far) + mantle * deeper * deeper;")
            w("second_order -= slope * mantle * inside * inverse * (far - outwards * outwards);")
            self._place(w, "value", "_before")
            # On the mantle, forces are linear in the values as long as the step does not turn them.
            w(f"const vec ahead = {total([f'step{t} * unit{t}_before' for t in ways])};")
            for t in ways:
                w(f"const vec aside{t} = step{t} - ahead * unit{t}_before;")
            w(f"const vec turned = {total([f'aside{t} * aside{t}' for t in ways])};")
            w(f"const vec facing = {total([f'unit{t} * unit{t}_before' for t in ways])};")
            w("const real rounding = sizeof(real) == 4 ? real(1e-7) : real(1e-15);")
            w("const vec least = rounding * square_before;")
            w("const mask bent = (size * size * turned * (far + step0 * step0) > least * least) | (facing < real(0));")
            w("const mask moved = ((tip > real(0)) != (tip_before > real(0)))")
            w("    | ((mantle > real(0)) != (mantle_before > real(0)));")
            w("flips = flips | moved | ((mantle > real(0)) & bent);")

    def _place(self, w: Writer, value: str, suffix: str) -> None:
        """Emit where the values are: ``tip`` and ``mantle`` are the stiffness there (0 elsewhere), ``inside`` is v -
        slope r, ``unit{t}`` the direction of the friction's values, ``square`` r^2 and ``inverse`` 1 / r."""
        ways = self.ways[1:]
        w(f"const vec square{suffix} = {total([f'{value}{t} * {value}{t}' for t in ways])};")
        w(f"const mask some{suffix} = square{suffix} > real(0);")
        w(f"const vec length{suffix} = each_sqrt(select(some{suffix}, square{suffix}, splat(1)));")
        w(f"const vec inverse{suffix} = over(splat(1), length{suffix});")
        for t in ways:
            w(f"const vec unit{t}{suffix} = {value}{t} * inverse{suffix};")
        w(f"const vec radius{suffix} = select(some{suffix}, length{suffix}, splat(0));")
        w(f"const vec inside{suffix} = {value}0 - slope * radius{suffix};")
        w(f"const mask pushes{suffix} = inside{suffix} < real(0);")
        w(f"const mask beside{suffix} = slope * {value}0 + radius{suffix} > real(0);")
        w(f"const vec tip{suffix} = select(pushes{suffix} & !beside{suffix}, weight, splat(0));")
        on = "over(weight, splat(1) + slope * slope)"
        w(f"const vec mantle{suffix} = select(pushes{suffix} & beside{suffix}, {on}, splat(0));")
