"""Tangents of the noslip solver's sweeps (:mod:`.noslip`).

With M's change E = S^-T dM S^-1, S changes by F S, where F is E below its diagonal and half of it on the diagonal. So
x = S a changes by S da + F x, and y = S^-T J' by S^-T dJ' - F' y.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler.derivatives import jvp
from mage_diffsim.envs.warp.compiler.emit import Writer, literal, total, vector
from mage_diffsim.envs.warp.compiler.graph import Node
from mage_diffsim.envs.warp.compiler.loops import place
from mage_diffsim.envs.warp.compiler.noslip import NoSlip
from mage_diffsim.envs.warp.compiler.noslip_forward import sweep
from mage_diffsim.envs.warp.compiler.noslip_records import Sliding, start
from mage_diffsim.envs.warp.compiler.noslip_start import prepare, pull, push, values


def begin(n: NoSlip, w: Writer) -> None:
    """Emit the records as they were before the sweeps, with tangents of 0."""
    prepare(n, w)
    for g in n.each_record(w):
        once = sum(g.fields.values())
        w(f"for (int i = {once}; i < {2 * once}; ++i) own[i] = splat(0);")


def store(
    w: Writer, g: Sliding, present: str, offsets: Sequence[Any], forces: Sequence[Any], bounds: Sequence[Any]
) -> None:
    """Emit tangents, given as expressions, of offsets, first forces and bounds at the solver's accelerations."""
    for field, given in (("res", offsets), ("old", forces), ("bound", bounds)):
        for i, text in enumerate(w.compute(*given)):
            w(f"own[{g.place(field, 'along_') + i}] = {present.format(text)};")


def tangent(n: NoSlip, w: Writer, tangents: Mapping[Node, Any]) -> None:
    """Emit x{i}, the tangents of a{i}, from those of solved{i}; after :func:`begin`, contacts' J and :func:`store`."""
    for number, row in enumerate(n.rows):
        g, given = n.groups[0], [*row.direction.values(), row.weight, row.offset]
        *shares, weight, offset = jvp(given, tangents)
        w.compute(*given, *shares, weight, offset)
        along, weight, offset = dict(zip(row.direction, shares, strict=True)), vector(weight), vector(offset)
        with w.block(""):
            w(f"vec* const own = slip0[{number}];")
            for p, d in enumerate(n.lists[number]):
                w(f"own[{g.place('hat', 'along_') + p}] = {vector(along.get(d, 0.0))};")
            moved = [f"{vector(x)} * x{d} + {vector(along[d])} * solved{d}" for d, x in row.direction.items()]
            w(f"own[{g.place('res', 'along_')}] = {offset};")
            w(f"const vec push = {push(row)}, pull = {pull(row)};")
            w(f"const mask holds = (push < {literal(row.high)}) & (push > {literal(row.low)});")
            change = f"{vector(row.weight)} * ({total([offset, *moved])}) + {weight} * pull"
            w(f"own[{g.place('old', 'along_')}] = select(holds, -({change}), splat(0));")
    for i in range(n.nv):
        w(f"along_solved_[{i}] = x{i};")
    for g in n.each_contact(w):
        _from_start(n, w, g)
    lower = [(i, j) for i in range(n.nv) for j in n.related[i] if j <= i]
    changes = w.compute(*jvp([n.mass[i][j] for i, j in lower], tangents))
    for (i, j), text in zip(lower, changes, strict=True):
        w(f"change_[{place(i, j)}] = splat(0) + {text};")
    _congruent(n, w)
    for g in n.each_record(w):
        _transform(n, w, g)
    w(f"for (int i = 0; i < {n.nv}; ++i) along_hat_[i] = along_solved_[i];")
    with n.each_factor(w, falling=True):
        w("for (int c = 0; c < columns; ++c) along_hat_[i] += lower[column[c]] * along_hat_[column[c]];")
        w("along_hat_[i] = over(along_hat_[i], half_[i]);")
    _add_change(n, w, "along_hat_", "hat_[j]", "+=")
    w(f"for (int i = 0; i < {n.nv}; ++i) work_[i] = along_hat_[i];")
    sweep(n, w, tangent=True)
    w(f"for (int i = 0; i < {n.nv}; ++i) work_[i] = along_hat_[i] - work_[i];")
    _add_change(n, w, "work_", "(hat_[j] - start_[j])", "-=")
    n.back(w, "work_")
    for i in range(n.nv):
        w(f"x{i} += work_[{i}];")


def _from_start(n: NoSlip, w: Writer, g: Sliding) -> None:
    """Add to the tangents of a contact's first forces and bounds what comes from the solver's accelerations."""
    row, _ = values(n, w, g)
    found = start(n.slots.cones[g.number - 1])
    for t in range(1 + g.ways):
        w(f"vec along_value{t} = splat(0);")
    with w.loop("int p = 0; p < count; ++p"):
        for t in range(1 + g.ways):
            w(f"along_value{t} += {row(t)} * along_solved_[dof[p]];")
    along = {x: x.graph.input(f"along_{x.args[0]}") for x in found.values}
    texts = w.compute(*jvp([*found.forces, *found.bounds], along))
    places = [*(g.place("old", "along_") + t for t in range(g.ways))]
    places += [g.place("bound", "along_") + b for b in range(len(g.blocks))]
    for at, text in zip(places, texts, strict=True):
        w(f"own[{at}] += {text};")


def _congruent(n: NoSlip, w: Writer) -> None:
    """Emit F from dM, in its place."""
    n.triangle(w)
    with n.each_factor(w, falling=True):
        w("const int* const kin_i = kin + kin_begin[i]; const int related = kin_begin[i + 1] - kin_begin[i];")
        w("int above = 0; while (kin_i[above] < i) ++above;")
        with w.loop("int r = 0; r < above; ++r"), w.loop("int s = 0; s <= r; ++s"):
            w("const int j = kin_i[r], k = kin_i[s];")
            w("at(j, k) -= lower[j] * at(i, k) + lower[k] * at(i, j) - lower[j] * lower[k] * at(i, i);")
        with w.loop("int c = 0; c < columns; ++c"):
            w("const int j = column[c];")
            w("for (int r = above + 1; r < related; ++r) at(j, kin_i[r]) -= lower[j] * at(i, kin_i[r]);")
            w("at(j, i) -= lower[j] * at(i, i);")
    with n.each_kin(w):
        w("at(i, j) *= half_[i] * half_[j] * (i == j ? real(0.5) : real(1));")


def _add_change(n: NoSlip, w: Writer, to: str, x: str, sign: str) -> None:
    """Add F x to a vector; ``x`` is code of entry j."""
    with n.each_kin(w):
        w(f"{to}[i] {sign} change_[i * (i + 1) / 2 + j] * {x};")


def _transform(n: NoSlip, w: Writer, g: Sliding) -> None:
    """Emit the tangents of y and of the products, from those of J in a record."""
    hat, along = g.place("hat"), g.place("hat", "along_")
    for t in range(g.ways):
        n.eliminate(w, g, along + t)
    with w.loop("int p = 0; p < count; ++p"), w.loop("int r = p; r < count; ++r"):
        for t in range(g.ways):
            change = "change_[dof[r] * (dof[r] + 1) / 2 + dof[p]]"
            w(f"own[{along + t} + {g.ways} * p] -= {change} * own[{hat + t} + {g.ways} * r];")
    for b, rows in enumerate(g.blocks):
        for k, (t, u) in enumerate((t, u) for t in rows for u in rows if t <= u):
            with w.loop("int p = 0; p < count; ++p"):
                terms = [
                    f"own[{along + t} + {g.ways} * p] * own[{hat + u} + {g.ways} * p]",
                    f"own[{hat + t} + {g.ways} * p] * own[{along + u} + {g.ways} * p]",
                ]
                w(f"own[{g.place('gram', 'along_') + g.grams * b + k}] += {total(terms)};")
