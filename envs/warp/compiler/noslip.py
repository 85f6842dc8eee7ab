"""Stage 6, MuJoCo's noslip solver: sweeps over rows of friction that take off the slip which their R allows.

After the solve, the forces of friction loss and of contacts' friction are updated row by row (Gauss-Seidel), as if R
were 0, within friction losses and cones; all other forces stay. With M = S' S (S = D^1/2 L of the factors L' D L), the
code works on ``hat`` = S a and on rows y = S^-T J', so that J M^-1 J' is y . y, and a force that grows by d adds y d
to S a. y has entries for the ancestors of the degrees of freedom that J has, and no others.

Rows lie in the arrays ``slip{n}``: row after row of friction loss in ``slip0``, and in ``slip{n + 1}`` records of
contacts, in the order of group n. Possible contacts are numbered in the order of MuJoCo's sweeps; ``slot`` is the
place of number i in its group, and -1 where it is not present. A *tree* is a kinematic tree. MuJoCo 4.0 sweeps
*islands*, which are trees that constraints link, and stops in each when the cost falls by less than a tolerance times
the trace of M there.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from mage_diffsim.envs.mujoco.mixing import sweep_order
from mage_diffsim.envs.mujoco.model import load_mujoco
from mage_diffsim.envs.warp.compiler.contact_code import ContactCode
from mage_diffsim.envs.warp.compiler.contact_loops import ContactLoops
from mage_diffsim.envs.warp.compiler.contact_slots import slots
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics, related
from mage_diffsim.envs.warp.compiler.emit import Writer
from mage_diffsim.envs.warp.compiler.graph import is_zero
from mage_diffsim.envs.warp.compiler.loops import LoopedMatrix
from mage_diffsim.envs.warp.compiler.noslip_blocks import NEAR, Box
from mage_diffsim.envs.warp.compiler.noslip_records import Sliding, sliding
from mage_diffsim.envs.warp.compiler.rows import Row
from mage_diffsim.envs.warp.compiler.solver import filled


class NoSlip:
    """The code of one model's sweeps.

    Args:
        kinematics: where the bodies are.
        mass: M, [nv, nv].
        rows: the scalar rows.
        contacts: the contacts.
    """

    def __init__(
        self, kinematics: Kinematics, mass: list[list[Any]], rows: Sequence[Row], contacts: ContactCode | ContactLoops
    ) -> None:
        model = kinematics.model
        m = self.m = model.model
        self.kinematics, self.mass, self.all_rows = kinematics, mass, list(rows)
        self.slots = slots(contacts, kinematics)
        self.nv, self.sweeps = int(m.nv), int(m.opt.noslip_iterations)
        self.rows = [row for row in rows if row.bounded and not row.one_sided]
        """Friction loss."""
        entries = {(i, j) for i, row in enumerate(mass) for j, x in enumerate(row) if not is_zero(x)}
        entries = filled(self.nv, entries)
        self.factors = LoopedMatrix("N", [[j for j in range(i) if (i, j) in entries] for i in range(self.nv)])
        self.related = related(m)
        self.above = [[d for d in near if d <= i] for i, near in enumerate(self.related)]
        self.lists = [sorted({d for i in row.direction for d in self.above[i]}) for row in self.rows]
        """The degrees of freedom of each row of friction loss and their ancestors."""
        longest = max(map(len, self.lists), default=0)
        self.groups = [Sliding(0, 1, Box(), longest, len(self.rows))]
        for n, cone in enumerate(self.slots.cones):
            self.groups.append(sliding(n + 1, cone, *self.slots.sizes[n]))
        self.islands = int(m.ntree) > 1 and not m.opt.disableflags & load_mujoco().mjtDisableBit.mjDSBL_ISLAND
        self.trees = int(m.ntree) if self.islands else 1
        self.candidates = {p: [n for n, _ in x] for p, x in self.slots.numbered.items()}
        """By number of a pair, the group of each of its possible contacts."""
        order = sweep_order(m, [pair.geoms for pair in model.pairs])
        *begin, self.numbers = itertools.accumulate((len(self.candidates.get(p, ())) for p in order), initial=0)
        """The possible contacts."""
        self.ranks = dict(zip(order, begin, strict=True))
        """The number of each pair's first contact."""
        if not self.empty:
            self.slots.number(self.ranks)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to sweep."""
        return not any(group.capacity for group in self.groups)

    def arrays(self, which: str) -> dict[str, tuple[int, int]]:
        """The arrays of records that a kernel needs, with one to spare, and their shapes."""
        width = {g.number: g.width(which, self.sweeps) for g in self.groups}
        return {f"slip{g.number}": (g.capacity + 1, width[g.number]) for g in self.groups if g.capacity}

    def group_of(self, number: int) -> Sliding:
        """The records of a contact, or of a kind of contacts."""
        return self.groups[1 + next(n for x in self.slots.numbered.values() for n, i in x if i == number)]

    # -- what is declared once --

    def declare(self, w: Writer, which: str) -> None:
        """Declare tables, the factors of M, and arrays but those of the records, of a kernel."""
        self.factors.declare(w)
        w.vectors(("solved",), self.nv)
        vectors = ["half_", "hat_", "start_", "work_"]
        vectors += {"adjoint": ["alpha_"], "tangent": ["along_hat_", "along_solved_"]}.get(which, [])
        for name in vectors:
            w(f"vec {name}[{self.nv}];")
        if which != "forward":
            size = self.nv * (self.nv + 1) // 2
            w(f"vec change_[{size}]; for (int i = 0; i < {size}; ++i) change_[i] = splat(0);")
            w.table("kin_begin", [sum(map(len, self.related[:i])) for i in range(self.nv + 1)])
            w.table("kin", [d for x in self.related for d in x])
        w(f"vec reach_[{self.trees}]; vec gain_[{self.trees}]; vec first_[{self.trees}]; vec label_[{self.trees}];")
        w(f"vec inertia_[{self.trees}];")
        pairs, numbers = self.kinematics.model.pairs, max(1, self.numbers)
        groups, trees, constants = [-1] * numbers, [0] * (2 * numbers), [0.0] * (6 * numbers)
        for p, found in self.candidates.items():
            for rank, n in enumerate(found, self.ranks[p]):
                groups[rank] = n + 1
                trees[2 * rank : 2 * rank + 2] = self._trees_of_pair(p)
                # A contact without friction may have a record with others; its rows are 0, whatever these numbers.
                floors = [NEAR * x * x for x in pairs[p].friction]
                constants[6 * rank : 6 * rank + 6] = [pairs[p].slope or 1.0, *floors, *[1.0] * (5 - len(floors))]
        w.table("slip_group", groups)
        w.table("slip_trees", trees)
        w.table("slip_constants", constants, "real")
        w(f"int slot[{numbers}]; int present[{numbers}]; int slipping = 0; int swept = 0;")
        w.table("slip_begin", [sum(map(len, self.lists[:n])) for n in range(len(self.lists) + 1)])
        w.table("slip_dof", [d for x in self.lists for d in x])
        w.table("slip_tree", [self.trees_of(row)[0] for row in self.rows])
        self.slots.declare(w, which)

    def tree(self, dof: int) -> int:
        """The tree of a degree of freedom; all are one where MuJoCo makes no islands."""
        return int(self.m.dof_treeid[dof]) if self.islands else 0

    def trees_of(self, row: Row) -> list[int]:
        """The trees that a scalar row links."""
        return sorted(set(map(self.tree, row.direction)))

    def _trees_of_pair(self, p: int) -> list[int]:
        """The trees of a pair's bodies; one that does not move counts as the other."""
        geoms = self.kinematics.model.pairs[p].geoms
        found = [int(self.m.body_treeid[self.m.geom_bodyid[g]]) for g in geoms] if self.islands else [0, 0]
        return [max(found) if x < 0 else x for x in found]

    # -- loops over rows --

    @contextlib.contextmanager
    def each_factor(self, w: Writer, falling: bool = False) -> Iterator[None]:
        """A context whose code runs for each row i of L: entries ``lower[column[c]]``, c below ``columns``."""
        header = f"int i = {self.nv - 1}; i >= 0; --i" if falling else f"int i = 0; i < {self.nv}; ++i"
        with w.loop(header, fresh=True):
            self.factor(w, "i")
            yield

    @staticmethod
    def factor(w: Writer, i: str) -> None:
        """Emit ``lower``, ``column`` and ``columns`` of a row of L."""
        w(f"const vec* const lower = N_ + {i} * ({i} + 1) / 2; const int* const column = Ncolumns + Nstart[{i}];")
        w(f"const int columns = Nlength[{i}];")

    @contextlib.contextmanager
    def each_loss(self, w: Writer, falling: bool = False) -> Iterator[None]:
        """A context whose code runs for each row of friction loss."""
        n = len(self.rows)
        with w.loop(f"int k = {n - 1}; k >= 0; --k" if falling else f"int k = 0; k < {n}; ++k", fresh=True):
            w("vec* const own = slip0[k]; const int tree = slip_tree[k];")
            w("const int* const dof = slip_dof + slip_begin[k]; const int count = slip_begin[k + 1] - slip_begin[k];")
            yield

    def each_contact(self, w: Writer, falling: bool = False, every: bool = False) -> Iterator[Sliding]:
        """Runs what the caller emits for each group in a loop over the contacts that are present, in MuJoCo's order.

        Args:
            w: where the code is written.
            falling: whether the order is reversed.
            every: whether contacts without friction count, too.
        """
        groups = [g for g in self.groups[1:] if g.capacity or every]
        if not groups:
            return
        header = "int at = slipping - 1; at >= 0; --at" if falling else "int at = 0; at < slipping; ++at"
        with w.loop(header, fresh=True):
            w("const int rank = present[at], k = slot[rank], tree = slip_trees[2 * rank];")
            for g in groups:
                with w.block(f"if (slip_group[rank] == {g.number})"):
                    if g.capacity:
                        w(f"vec* const own = slip{g.number}[k];")
                    self.slots.dofs(w, g.number - 1)
                    yield g

    def each_record(self, w: Writer) -> Iterator[Sliding]:
        """Runs what the caller emits for each group, in loops over its records."""
        if self.rows:
            with self.each_loss(w):
                yield self.groups[0]
        yield from self.each_contact(w)

    @contextlib.contextmanager
    def each_kin(self, w: Writer) -> Iterator[None]:
        """A context whose code runs for each degree of freedom i and each ancestor j of it, itself among them."""
        with w.loop(f"int i = 0; i < {self.nv}; ++i"), w.loop("int r = kin_begin[i]; r < kin_begin[i + 1]; ++r"):
            w("const int j = kin[r]; if (j > i) break;")
            yield

    @staticmethod
    def triangle(w: Writer) -> None:
        """Emit the function ``at``: the place of an entry of the symmetric matrix ``change``."""
        w("auto at = [&](int i, int j) -> vec& {")
        w("    return i > j ? change_[i * (i + 1) / 2 + j] : change_[j * (j + 1) / 2 + i];")
        w("};")

    # -- the solver's result --

    def clear(self, w: Writer) -> None:
        """Emit, before contacts are found, that none is."""
        w(f"for (int i = 0; i < {self.numbers}; ++i) slot[i] = -1;")

    def eliminate(self, w: Writer, g: Sliding, begin: int) -> None:
        """Emit S^-T x in place of a row x that begins at a place of a record."""
        w(f"for (int p = 0; p < count; ++p) work_[dof[p]] = own[{begin} + {g.ways} * p];")
        with w.loop("int p = count - 1; p >= 0; --p"):
            self.factor(w, "dof[p]")
            w("for (int c = 0; c < columns; ++c) work_[column[c]] -= lower[column[c]] * work_[dof[p]];")
            w(f"own[{begin} + {g.ways} * p] = work_[dof[p]] * half_[dof[p]];")

    def back(self, w: Writer, name: str) -> None:
        """Emit S^-1 x in place of the vector x."""
        with self.each_factor(w):
            w(f"{name}[i] *= half_[i];")
            w(f"for (int c = 0; c < columns; ++c) {name}[i] -= lower[column[c]] * {name}[column[c]];")
