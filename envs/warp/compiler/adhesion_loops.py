"""The code of actuators on bodies where contacts are in loops: the row of each body, its tangent and its reverse sweep.

Row t, ``moment_[t]``, belongs to the t-th body that has such actuators; one more, which nothing reads, stands for all
other bodies. ``moment_share[t]`` is minus one over the number of the body's contacts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler.adhesion import adhesive_bodies, dofs_of
from mage_diffsim.envs.warp.compiler.derivatives import jvp
from mage_diffsim.envs.warp.compiler.emit import Writer
from mage_diffsim.envs.warp.compiler.graph import Graph, Node
from mage_diffsim.envs.warp.compiler.pairs import along_of, declare


class AdhesionLoops:
    """The rows of one model's actuators on bodies.

    Args:
        loops: the :class:`.contact_loops.ContactLoops` of the model's contacts.
    """

    def __init__(self, loops: Any) -> None:
        self._loops = loops
        self.bodies = adhesive_bodies(loops.kinematics.model.model)
        self.dofs = [sorted(dofs_of(loops.kinematics, body)) for body in self.bodies]
        """Of each row, the places that can be other than 0."""

    def __bool__(self) -> bool:
        return bool(self.bodies)

    def names(self, prefix: str) -> list[str]:
        """The variables of all rows: ``{prefix}moment{body}_{dof}``."""
        return [f"{prefix}moment{b}_{d}" for b, dofs in zip(self.bodies, self.dofs, strict=True) for d in dofs]

    def inputs(self, graph: Graph) -> list[Node]:
        """The rows' entries, as :attr:`names` without a prefix."""
        return [graph.input(name) for name in self.names("")]

    def declare(self, w: Writer, which: str) -> None:
        """Declare the arrays and tables."""
        if not self:
            return
        nv, more = int(self._loops.kinematics.model.model.nv), {"adjoint": "by_", "tangent": "t"}.get(which)
        for prefix in ("", *([more] if more else [])):
            w(f"vec {prefix}moment_[{len(self.bodies) + 1}][{nv}];")
            for t, (body, dofs) in enumerate(zip(self.bodies, self.dofs, strict=True)):
                for d in dofs:
                    w(f"vec& {prefix}moment{body}_{d} = {prefix}moment_[{t}][{d}];")
        w(f"vec moment_share[{len(self.bodies) + 1}];")
        m, pairs = self._loops.kinematics.model.model, self._loops.pairs
        for k, kind in enumerate(self._loops.kinds):
            own = [int(m.geom_bodyid[g]) for p in kind.pairs for g in pairs[p].geoms]
            w.table(f"stuck{k}", [self.bodies.index(b) if b in self.bodies else len(self.bodies) for b in own])

    def clear(self, w: Writer, prefix: str = "") -> None:
        """Set rows to 0."""
        if self:
            nv, count = int(self._loops.kinematics.model.model.nv), len(self.bodies) + 1
            w(f"for (int i = 0; i < {count * nv}; ++i) {prefix}moment_[0][i] = splat(0);")
            if not prefix:
                w(f"for (int t = 0; t < {count}; ++t) moment_share[t] = splat(0);")

    def _count(self, w: Writer, k: int, declared: set[str], listed: str) -> None:
        """Add an item of a kind to the sums and numbers of its geoms' bodies."""
        self._one(w, k, listed)
        w("moment_share[stuck[0]] += one; moment_share[stuck[1]] += one;")
        self._add(w, "", self._rows(k), declared)

    @staticmethod
    def _one(w: Writer, k: int, listed: str) -> None:
        """Declare ``one``, which is 1 where an item of a kind counts, and the rows of its geoms' bodies, ``stuck``."""
        w(f"const vec one = select({listed}, splat(1), splat(0));")
        w(f"const int* const stuck = stuck{k} + 2 * i;")

    def _rows(self, k: int) -> list[list[Any]]:
        """For either side, J along the normal of a degree of freedom."""
        return [[x] for x in self._loops.kinds[k].item.rows[0]]

    def _add(self, w: Writer, prefix: str, values: Sequence[Sequence[Any]], declared: set[str]) -> None:
        line = f"{prefix}moment_[stuck[0]][dof] += one * ({{0}}); {prefix}moment_[stuck[1]][dof] += one * ({{0}});"
        self._loops.each_dof(w, values, declared, line)

    def finish(self, w: Writer, prefix: str = "") -> None:
        """Make means of the sums."""
        if not self:
            return
        with w.loop(f"int t = 0; t < {len(self.bodies)}; ++t"):
            if not prefix:
                w("moment_share[t] = over(splat(-1), select(moment_share[t] < real(1), splat(1), moment_share[t]));")
            nv = int(self._loops.kinematics.model.model.nv)
            w(f"for (int i = 0; i < {nv}; ++i) {prefix}moment_[t][i] *= moment_share[t];")

    def found(self, w: Writer, k: int, declared: set[str], listed: str) -> None:
        """Emit what a kind's item does that counts in any lane: it adds to the sums, and if present it is recorded."""
        self._count(w, k, declared, listed)
        kind = self._loops.kinds[k]
        if kind.acts:
            declare(w, kind.item.present, declared)
            (present,) = w.compute(kind.item.present)
            with w.block(f"if (any({present}))"):
                self._loops.record(w, k, declared, present)

    def _each(self, w: Writer, act: Callable[[int, set[str], str], None], along: bool = False) -> None:
        """Emit code for each item that counts and was found.

        Args:
            w: where the code is written.
            act: emits it, for a kind, given declared inputs and the item's condition.
            along: whether tangents are needed.
        """
        for n, together in enumerate(self._loops.together):
            kinds = [k for k in together if self._loops.kinds[k].counts]
            if kinds:
                with self._loops.items(w, n, found=True, along=along) as near:
                    for k in kinds:
                        with self._loops.present(w, k, near, listed=True) as (declared, listed):
                            act(k, declared, listed)

    def again(self, w: Writer) -> None:
        """Emit the rows, from the items that the tape tells of."""
        if self:
            self._loops.place(w, [self._loops.velocities], axes=True)
            self.clear(w)
            self._each(w, lambda k, declared, listed: self._count(w, k, declared, listed))
            self.finish(w)

    def tangent(self, w: Writer) -> None:
        """Emit the rows' tangents tmoment{body}_{dof}, given the arrays' tangents."""

        def act(k: int, declared: set[str], listed: str) -> None:
            self._one(w, k, listed)
            self._add(w, "t", [jvp(x, along_of(x)) for x in self._rows(k)], declared)

        if self:
            self.clear(w, "t")
            self._each(w, act, along=True)
            self.finish(w, "t")

    def open(self, w: Writer, k: int, declared: set[str]) -> list[tuple[Any, Any]]:
        """Emit what the reverse sweep of a kind's item starts from, given the rows' derivative ``by_moment_``.

        Returns:
            expressions with the derivatives by them: the contact's power (and :attr:`.Item.slide`), where the contact
            is present, and its motion along the normal, where it counts, if ``by_moment_`` are the velocities. The
            degrees of freedom that move both bodies alike are left out.
        """
        kind = self._loops.kinds[k]
        w(f"const int* const stuck = stuck{k} + 2 * i; const int a = stuck[0], b = stuck[1];")
        for name in ("motion1[6]", "motion2[6]", "by_motion[2][6]"):
            w(f"vec {name};")
        w("for (int i = 0; i < 6; ++i) motion1[i] = motion2[i] = by_motion[0][i] = by_motion[1][i] = splat(0);")
        w("auto speed = [&](int dof) -> vec {")
        w("    return moment_share[a] * by_moment_[a][dof] + moment_share[b] * by_moment_[b][dof];")
        w("};")
        with w.loop(self._EACH):
            w("if (list_side[p] > 1) continue; const int d = list_dof[p]; const vec x = speed(d);")
            w("vec* const motion = list_side[p] ? motion2 : motion1;")
            w("for (int i = 0; i < 6; ++i) motion[i] += x * axis[d][i];")
        powers: list[tuple[Any, Any]] = [(kind.item.pull, 1.0)]
        if kind.acts:
            declare(w, kind.item.present, declared)
            w(f"const vec acts = select({w.compute(kind.item.present)[0]}, splat(1), splat(0));")
            declared.add("acts")
            acts = kind.item.power.graph.input("acts")
            powers += [(kind.item.power, acts), (kind.item.slide, acts)]
        return powers

    def close(self, w: Writer) -> None:
        """Add to by_axis, given the derivative by the contact's motion, ``by_motion``."""
        with w.loop(self._EACH):
            w("if (list_side[p] > 1) continue; const int d = list_dof[p]; const vec x = speed(d);")
            w("for (int i = 0; i < 6; ++i) by_axis[d][i] += x * by_motion[list_side[p]][i];")

    _EACH = "int p = list_begin[entry[4]]; p < list_begin[entry[4] + 1]; ++p"
