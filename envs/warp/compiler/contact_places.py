"""The arrays in which contacts in loops find places and motions of bodies and geoms (see :mod:`.contact_loops`)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.derivatives import jvp
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics, Spatial
from mage_diffsim.envs.warp.compiler.emit import Writer, vector
from mage_diffsim.envs.warp.compiler.graph import Graph, Node
from mage_diffsim.envs.warp.compiler.pairs import FRAME, GEOM, Kind, along_of, declare, inputs_of


class ContactPlaces:
    """The places of one model."""

    kinematics: Kinematics
    kinds: list[Kind]
    geoms: list[int]
    """The geoms that can touch."""
    fields: list[list[Any]]
    """Of each of them, the numbers that are parameters."""
    bodies: list[int]
    """The world and the bodies that carry them."""

    def place(
        self,
        w: Writer,
        motions: Sequence[Sequence[Spatial]],
        axes: bool,
        tangents: Mapping[Node, Any] | None = None,
    ) -> None:
        """Emit the arrays of places and motions, and of the axes if wanted.

        Args:
            w: where the code is written.
            motions: the bodies' motions at v, and at a and lam if needed.
            axes: whether the axes are needed.
            tangents: those of q, v and so on, if the arrays' tangents ``along_body`` and so on are needed, too.
        """
        values = {f"body[{n}]": self.values(body, motions) for n, body in enumerate(self.bodies)}
        if axes:
            values |= {f"axis[{d}]": [*axis[0], *axis[1]] for d, axis in enumerate(self.kinematics.axes)}
        for row, x in values.items():
            self._store(w, row, x)
            if tangents is not None:
                self._store(w, f"along_{row}", jvp(x, tangents))
        for n, x in enumerate(self.fields):
            self._store(w, f"geom[{n}]", x, GEOM)
            if tangents is not None:
                self._store(w, f"along_geom[{n}]", jvp(x, tangents), GEOM)
        geom, used = self.geom(), self.used
        with w.loop(f"int g = 0; g < {len(self.geoms)}; ++g", fresh=True):
            w("const vec* const at = body[carrier[g]]; const real* const there = mount + 12 * g;")
            declared: set[str] = set()
            self._place_geoms(w, "geom", [geom[i] for i in used], declared)
            if tangents is not None:
                w("const vec* const along_at = along_body[carrier[g]];")
                self._place_geoms(w, "along_geom", jvp([geom[i] for i in used], along_of(geom)), declared)

    def _place_geoms(self, w: Writer, array: str, values: Sequence[Any], declared: set[str]) -> None:
        declare(w, values, declared)
        for i, text in zip(self.used, w.compute(*values), strict=True):
            w(f"{array}[g][{i}] = {text};")

    def values(self, body: int, motions: Sequence[Sequence[Spatial]]) -> list[Any]:
        """The numbers of a body in the array ``body``."""
        k = self.kinematics
        values = [*(x for row in k.rotation[body] for x in row), *k.position[body], *k.origin(body)]
        return values + [x for kind in motions for vector in kind[body] for x in vector]

    @staticmethod
    def _store(w: Writer, row: str, values: Sequence[Any], first: int = 0) -> None:
        w.compute(*values)
        for i, x in enumerate(values, first):
            w(f"{row}[{i}] = {vector(x)};")

    @staticmethod
    def geom() -> list[Any]:
        """The place of a geom from the place of its body, ``at``, and where it is there."""
        graph = Graph()
        body, mount = graph.inputs("at_", FRAME), graph.inputs("there_", 12)
        rotation, own = [body[0:3], body[3:6], body[6:9]], [mount[3:6], mount[6:9], mount[9:12]]
        centre = al.plus(body[9:12], al.apply(rotation, mount[:3]))
        return [*centre, *(x for row in al.product(rotation, own) for x in row)]

    @functools.cached_property
    def used(self) -> list[int]:
        """The numbers of a geom's place that any item uses."""
        every = [x for kind in self.kinds for x in inputs_of(list(vars(kind.item).values()))]
        numbers = {int(x.args[0].split("_")[1]) for x in every if x.args[0].startswith("geom")}
        return sorted(n for n in numbers if n < GEOM)
