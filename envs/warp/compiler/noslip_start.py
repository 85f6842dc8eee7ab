"""What the noslip solver (:mod:`.noslip`) starts from: records, M's factors and islands, from the solver's result."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from mage_diffsim.envs.warp.compiler import zones
from mage_diffsim.envs.warp.compiler.emit import Writer, literal, reference, vector
from mage_diffsim.envs.warp.compiler.noslip import NoSlip
from mage_diffsim.envs.warp.compiler.noslip_records import Sliding, start
from mage_diffsim.envs.warp.compiler.rows import Row


def prepare(n: NoSlip, w: Writer) -> None:
    """Emit records and ``hat`` from the solver's accelerations ``solved{i}`` and the contacts found."""
    w.compute(*(x for row in n.mass for x in row))
    for i, j in n.factors.places:
        w(f"{n.factors[i, j]} = {vector(n.mass[i][j])};")
    n.factors.factor(w)
    w(f"for (int i = 0; i < {n.nv}; ++i) {{ half_[i] = each_sqrt(Ninv_[i]); hat_[i] = solved_[i]; }}")
    with n.each_factor(w, falling=True):
        w("for (int c = 0; c < columns; ++c) hat_[i] += lower[column[c]] * hat_[column[c]];")
        w("hat_[i] = over(hat_[i], half_[i]); start_[i] = hat_[i];")
    w("slipping = 0;")
    with w.loop(f"int i = 0; i < {n.numbers}; ++i"):
        w("if (slot[i] >= 0) present[slipping++] = i;")
    with w.loop(f"int t = 0; t < {n.trees}; ++t"):
        w("first_[t] = splat(0); inertia_[t] = splat(0); label_[t] = splat(real(t));")
    for i, row in enumerate(n.mass):
        w(f"inertia_[{n.tree(i)}] += {vector(row[i])};")
    for number, row in enumerate(n.rows):
        _prepare_row(n, w, number, row)
    if n.rows:
        with n.each_loss(w):
            _transform(n, w, n.groups[0])
    for g in n.each_contact(w, every=n.sweeps > 1):
        _prepare_contact(n, w, g)
    if n.sweeps > 1:
        for row in n.all_rows:
            _cost(n, w, row)
        if n.islands:
            _link(n, w)


def _prepare_row(n: NoSlip, w: Writer, number: int, row: Row) -> None:
    g = n.groups[0]
    w.compute(*row.direction.values(), row.weight, row.offset)
    with w.block(""):
        w(f"vec* const own = slip0[{number}]; const vec bound = splat({literal(row.high)});")
        for p, d in enumerate(n.lists[number]):
            w(f"own[{g.place('hat') + p}] = {vector(row.direction.get(d, 0.0))};")
        w(f"const vec push = {push(row)};")
        w(f"own[{g.place('res')}] = {vector(row.offset)}; own[{g.place('bound')}] = bound;")
        w(f"own[{g.place('old')}] = select(push > bound, bound, select(push < -bound, -bound, push));")


def pull(row: Row) -> str:
    """Code of J a - aref of a scalar row, for the solver's accelerations."""
    return f"({zones.along(row, 'solved')} + {reference(row.offset)})"


def push(row: Row) -> str:
    """Code of the force of a scalar row, were it not clipped."""
    return f"-{zones.product(row.weight, pull(row))}"


def _prepare_contact(n: NoSlip, w: Writer, g: Sliding) -> None:
    cone = n.slots.cones[g.number - 1]
    row, offset = values(n, w, g)
    first = start(cone)
    names = w.compute(*first.forces, *first.bounds, first.cost)
    if n.sweeps > 1:
        w(f"first_[tree] += {names[-1]};")
    if not g.capacity:
        return
    for t in range(g.ways):
        w(f"own[{g.place('res') + t}] = {offset(t + 1)}; own[{g.place('old') + t}] = splat(0) + {names[t]};")
    for b in range(len(g.blocks)):
        w(f"own[{g.place('bound') + b}] = splat(0) + {names[g.ways + b]};")
    with w.loop("int p = 0; p < count; ++p"):
        for t in range(g.ways):
            w(f"own[{g.place('hat') + t} + {g.ways} * p] = {row(t + 1)};")
    _transform(n, w, g)


def values(n: NoSlip, w: Writer, g: Sliding) -> tuple[Callable[[int], str], Callable[[int], str]]:
    """Emit a contact's value{t} at ``solved``, and the numbers of its cone; returns code of rows and offsets."""
    row, offset = n.slots.open(w, g.number - 1)
    for t in range(1 + g.ways):
        w(f"vec value{t} = {offset(t)};")
    with w.loop("int p = 0; p < count; ++p"):
        w("const vec a = solved_[dof[p]];")
        for t in range(1 + g.ways):
            w(f"value{t} += {row(t)} * a;")
    return row, offset


def _transform(n: NoSlip, w: Writer, g: Sliding) -> None:
    """Emit S^-T J' in place of J' in a record, and its products."""
    hat = g.place("hat")
    for t in range(g.ways):
        n.eliminate(w, g, hat + t)
    for b, block in enumerate(g.blocks):
        for k, (t, u) in enumerate((t, u) for t in block for u in block if t <= u):
            w(f"own[{g.place('gram') + g.grams * b + k}] = splat(0);")
            product = f"own[{hat + t} + {g.ways} * p] * own[{hat + u} + {g.ways} * p]"
            w(f"for (int p = 0; p < count; ++p) own[{g.place('gram') + g.grams * b + k}] += {product};")


def _cost(n: NoSlip, w: Writer, row: Row) -> None:
    """Add half of force^2 R of a scalar row to what the first sweep gains."""
    w.compute(*row.direction.values(), row.sign, row.weight, row.offset)
    with w.block(""):
        w(f"const vec weight = {vector(row.weight)};")
        w(f"vec push = {push(row)};")
        if row.one_sided:
            w("push = select(push > real(0), push, splat(0));")
        elif row.bounded:
            bound = literal(row.high)
            w(f"push = select(push > {bound}, splat({bound}), select(push < -{bound}, splat(-{bound}), push));")
        w("const mask there = weight > real(0);")
        w(f"first_[{n.trees_of(row)[0]}] += select(there, real(0.5) * over(push * push, ")
        w("    select(there, weight, splat(1))), splat(0));")


def _link(n: NoSlip, w: Writer) -> None:
    """Emit each tree's label, which is the same for all trees of an island."""
    with w.loop("bool linking = true; linking; "):
        w("linking = false;")
        w("auto link = [&](int a, int b, mask here) {")
        w("    const mask apart = here & (label_[a] != label_[b]); if (!any(apart)) return;")
        w("    const vec low = select(label_[a] < label_[b], label_[a], label_[b]); linking = true;")
        w("    label_[a] = select(apart, low, label_[a]); label_[b] = select(apart, low, label_[b]);")
        w("};")
        for row in n.all_rows:
            trees = n.trees_of(row)
            for a, b in itertools.pairwise(trees):
                w(f"link({a}, {b}, {vector(row.weight)} > real(0));")
        for g in n.each_contact(w, every=True):
            n.slots.open(w, g.number - 1)
            w("link(tree, slip_trees[2 * rank + 1], weight > real(0));")
