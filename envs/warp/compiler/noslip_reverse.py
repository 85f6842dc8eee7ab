"""Derivatives of the noslip solver's sweeps (:mod:`.noslip`), back through the updates.

Going back, a record gathers the derivatives by what the sweeps read: its J, its offset, its first forces and bounds.
The derivative by M comes through S. S changes by F S, where F is E = S^-T dM S^-1 below its diagonal and half of it on
the diagonal. Then x = S a changes by F x and y = S^-T J' by -F' y. With the derivatives by all y, and by x at both
ends, the derivative by M is

    -S^-1 N S^-T        N_ij = N_ji = 1/2 (sum of y_i by_y_j + by_x_i x_j at the end - by_x_i x_j at the start), i >= j
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mage_diffsim.envs.warp.compiler.contact_slots import CodeSlots
from mage_diffsim.envs.warp.compiler.derivatives import vjp
from mage_diffsim.envs.warp.compiler.emit import Writer, literal, total, vector
from mage_diffsim.envs.warp.compiler.graph import Graph, Node, mul
from mage_diffsim.envs.warp.compiler.loops import place
from mage_diffsim.envs.warp.compiler.noslip import NoSlip
from mage_diffsim.envs.warp.compiler.noslip_forward import block, sweep
from mage_diffsim.envs.warp.compiler.noslip_records import Sliding, start
from mage_diffsim.envs.warp.compiler.noslip_start import prepare, push, values


def reverse(n: NoSlip, w: Writer) -> None:
    """Emit x{i}, the derivative by solved{i}, from that by a{i}, and fill the records with derivatives."""
    if isinstance(n.slots, CodeSlots):
        for d, axis in enumerate(n.kinematics.axes):
            w.compute(*axis[0], *axis[1])
            for j, x in enumerate((*axis[0], *axis[1])):
                w(f"axis[{d}][{j}] = {vector(x)};")
        w(f"for (int i = 0; i < {6 * n.nv}; ++i) by_axis[0][i] = splat(0);")
    prepare(n, w)
    sweep(n, w, history=True)
    for i in range(n.nv):
        w(f"alpha_[{i}] = x{i};")
    with n.each_factor(w, falling=True):
        w("for (int c = 0; c < columns; ++c) alpha_[column[c]] -= lower[column[c]] * alpha_[i];")
        w("alpha_[i] *= half_[i];")
    w(f"for (int i = 0; i < {place(n.nv, 0)}; ++i) change_[i] = splat(0);")
    _outer(n, w, "+=")
    for g in n.each_record(w):
        once = sum(g.fields.values())
        w(f"for (int i = {once}; i < {2 * once}; ++i) own[i] = splat(0);")
    for g in n.groups[1:]:
        if g.capacity:
            w(f"for (int i = 0; i < {2 * sum(g.fields.values())}; ++i) slip{g.number}[{g.capacity}][i] = splat(0);")
    with w.loop("int sweep = swept - 1; sweep >= 0; --sweep"):
        for g in n.each_contact(w, falling=True):
            _undo(n, w, g)
        if n.rows:
            with n.each_loss(w, falling=True):
                _undo(n, w, n.groups[0])
    _outer(n, w, "-=")
    w(f"for (int i = 0; i < {n.nv}; ++i) alpha_[i] = over(alpha_[i], half_[i]);")
    with n.each_factor(w):
        w("for (int c = 0; c < columns; ++c) alpha_[column[c]] += lower[column[c]] * alpha_[i];")
    for g in n.each_record(w):
        _finish(n, w, g)
    for g in n.each_contact(w):
        _to_start(n, w, g)
    for number, row in enumerate(n.rows):
        by = f"slip0[{number}][{n.groups[0].place('old', 'by_')}]"
        w.compute(*row.direction.values(), row.weight, row.offset)
        with w.block(""):
            w(f"const vec push = {push(row)};")
            w(f"const mask holds = (push < {literal(row.high)}) & (push > {literal(row.low)});")
            w(f"const vec share = select(holds, {vector(row.weight)}, splat(0));")
            for d, x in row.direction.items():
                w(f"alpha_[{d}] -= {by} * share * {vector(x)};")
    for i in range(n.nv):
        w(f"x{i} = alpha_[{i}];")
    _congruent(n, w)


def _outer(n: NoSlip, w: Writer, sign: str) -> None:
    """Add 1/2 alpha hat' to N, below its diagonal and on it."""
    with n.each_kin(w):
        w(f"change_[i * (i + 1) / 2 + j] {sign} real(0.5) * alpha_[i] * hat_[j];")


def _undo(n: NoSlip, w: Writer, g: Sliding) -> None:
    """Go back through a record's updates in one sweep."""
    w("const mask run = splat(real(sweep)) < reach_[tree];")
    for b in reversed(range(len(g.blocks))):
        rows = g.blocks[b]
        entries = [f"own[{g.place('hat') + t} + {g.ways} * p]" for t in rows]
        with w.block("", fresh=True):
            for i, t in enumerate(rows):
                w(f"const vec before{i} = own[{g.past + t} + {g.ways} * sweep];")
                w(f"const vec move{i} = own[{g.place('old') + t}] - before{i}; own[{g.place('old') + t}] = before{i};")
                w(f"vec by_move{i} = splat(0);")
            with w.loop("int p = 0; p < count; ++p"):
                w(f"hat_[dof[p]] -= {total([f'{x} * move{i}' for i, x in enumerate(entries)])};")
                for i, x in enumerate(entries):
                    w(f"by_move{i} += {x} * alpha_[dof[p]];")
            block(n, w, g, b)
            for i, t in enumerate(rows):
                w(f"const vec later{i} = own[{g.place('old', 'by_') + t}];")
                w(f"const vec by_new{i} = select(run, later{i} + by_move{i}, splat(0));")
            g.block.reverse(w)
            for i, t in enumerate(rows):
                w(f"own[{g.place('old', 'by_') + t}] = select(run, by_old{i} - by_move{i}, later{i});")
                w(f"own[{g.place('res', 'by_') + t}] += by_res{i};")
            for k, name in enumerate(g.block.gram_names):
                w(f"own[{g.place('gram', 'by_') + g.grams * b + k}] += by_{name};")
            w(f"own[{g.place('bound', 'by_') + b}] += by_bound;")
            with w.loop("int p = 0; p < count; ++p"):
                w("const int d = dof[p];")
                for i, t in enumerate(rows):
                    target = f"own[{g.place('hat', 'by_') + t} + {g.ways} * p]"
                    w(f"{target} += move{i} * alpha_[d] + by_res{i} * hat_[d];")
                w(f"alpha_[d] += {total([f'by_res{i} * {x}' for i, x in enumerate(entries)])};")


def _finish(n: NoSlip, w: Writer, g: Sliding) -> None:
    """Make the derivative by J out of those by y and by the products, and add the record's share of N."""
    hat, by = g.place("hat"), g.place("hat", "by_")
    for b, rows in enumerate(g.blocks):
        pairs = [(t, u) for t in rows for u in rows if t <= u]
        with w.loop("int p = 0; p < count; ++p"):
            for k, (t, u) in enumerate(pairs):
                share = f"own[{g.place('gram', 'by_') + g.grams * b + k}]"
                w(f"own[{by + t} + {g.ways} * p] += {share} * own[{hat + u} + {g.ways} * p];")
                w(f"own[{by + u} + {g.ways} * p] += {share} * own[{hat + t} + {g.ways} * p];")
    with w.loop("int p = 0; p < count; ++p"), w.loop("int r = 0; r <= p; ++r"):
        terms = [f"own[{hat + t} + {g.ways} * p] * own[{by + t} + {g.ways} * r]" for t in range(g.ways)]
        w(f"change_[dof[p] * (dof[p] + 1) / 2 + dof[r]] += real(0.5) * ({total(terms)});")
    for t in range(g.ways):
        with w.loop("int p = 0; p < count; ++p"):
            n.factor(w, "dof[p]")
            w(f"vec x = own[{by + t} + {g.ways} * p] * half_[dof[p]];")
            w("for (int c = 0; c < columns; ++c) x -= lower[column[c]] * work_[column[c]];")
            w(f"work_[dof[p]] = own[{by + t} + {g.ways} * p] = x;")


def _to_start(n: NoSlip, w: Writer, g: Sliding) -> None:
    """Add the derivative by the solver's accelerations through a contact's first forces and bounds."""
    row, _ = values(n, w, g)
    found = start(n.slots.cones[g.number - 1])
    graph = found.values[0].graph
    seeds = [(x, graph.input(f"by_old{t}")) for t, x in enumerate(found.forces)]
    seeds += [(x, graph.input(f"by_bound{b}")) for b, x in enumerate(found.bounds)]
    for kind, count in (("old", g.ways), ("bound", len(g.blocks))):
        for i in range(count):
            w(f"const vec by_{kind}{i} = own[{g.place(kind, 'by_') + i}];")
    by = vjp(seeds)
    names = w.compute(*(by.get(x, 0.0) for x in found.values))
    with w.loop("int p = 0; p < count; ++p"):
        w(f"alpha_[dof[p]] += {total([f'{row(t)} * {name}' for t, name in enumerate(names)])};")


def _congruent(n: NoSlip, w: Writer) -> None:
    """Emit S^-1 N S^-T in place of N, at the places of related degrees of freedom."""
    n.triangle(w)
    with n.each_kin(w):
        w("at(i, j) *= half_[i] * half_[j];")
    with n.each_factor(w):
        w("vec own = at(i, i);")
        w("for (int c = 0; c < columns; ++c) own -= lower[column[c]] * at(i, column[c]);")
        with w.loop("int r = kin_begin[i]; r < kin_begin[i + 1]; ++r"):
            w("const int j = kin[r]; if (j == i) continue;")
            w("for (int c = 0; c < columns; ++c) at(i, j) -= lower[column[c]] * at(column[c], j);")
        w("for (int c = 0; c < columns; ++c) own -= lower[column[c]] * at(i, column[c]);")
        w("at(i, i) = own;")


def mass_seeds(n: NoSlip, graph: Graph) -> list[tuple[Any, Any]]:
    """The entries of M, and -lam' dG1 of the sweeps by each."""
    return [
        (x, mul(-1.0 if i == j else -2.0, graph.input(f"change_[{place(i, j)}]")))
        for i, row in enumerate(n.mass)
        for j, x in enumerate(row[: i + 1])
        if isinstance(x, Node)
    ]


def row_seeds(n: NoSlip, number: int, graph: Graph) -> tuple[list[Any], Any, Any]:
    """The derivatives that a row of friction loss gathers: by J, nv; by its offset; by its first force."""
    g = n.groups[0]

    def entry(field: str, p: int = 0) -> Node:
        return graph.input(f"slip0[{number}][{g.place(field, 'by_') + p}]")

    by_row: list[Any] = [0.0] * n.nv
    for p, d in enumerate(n.lists[number]):
        by_row[d] = entry("hat", p)
    return by_row, entry("res"), entry("old")


def open_slide(w: Writer, g: Sliding, side: str) -> None:
    """Emit the motions ``slide`` of a contact's two bodies that belong to the derivatives by its J, way by way.

    Args:
        w: where the code is written.
        g: the contact's group; ``own``, ``dof`` and ``count`` are its record's.
        side: code of which body, 0 or 1, degree of freedom ``dof[p]`` moves; else it moves both or none.
    """
    for field in ("res", "old", "bound"):
        w(f"const vec* const by_{field} = own + {g.place(field, 'by_')};")
    w(f"vec slide[{12 * g.ways}]; for (int i = 0; i < {12 * g.ways}; ++i) slide[i] = splat(0);")
    with w.loop("int p = 0; p < count; ++p"):
        w(f"const int side = {side}; const vec* const own_axis = axis[dof[p]]; if (side < 0 || side > 1) continue;")
        for t in range(g.ways):
            w(f"for (int j = 0; j < 6; ++j) slide[{12 * t} + 6 * side + j] +=")
            w(f"    own[{g.place('hat', 'by_') + t} + {g.ways} * p] * own_axis[j];")


def close_slide(w: Writer, g: Sliding, side: str, values: Mapping[int, str]) -> None:
    """Add to the derivatives by axes, given code of those by entries of ``slide``."""
    w(f"vec pull[{12 * g.ways}]; for (int i = 0; i < {12 * g.ways}; ++i) pull[i] = splat(0);")
    for i, value in values.items():
        w(f"pull[{i}] = {value};")
    with w.loop("int p = 0; p < count; ++p"):
        w(f"const int side = {side}; vec* const by = by_axis[dof[p]]; if (side < 0 || side > 1) continue;")
        by = g.place("hat", "by_")
        terms = [f"own[{by + t} + {g.ways} * p] * pull[{12 * t} + 6 * side + j]" for t in range(g.ways)]
        w(f"for (int j = 0; j < 6; ++j) by[j] += {total(terms)};")
