"""The derivative sweeps over contacts in loops (see :mod:`.contact_loops`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler import noslip_tangents
from mage_diffsim.envs.warp.compiler.contact_loops import ContactLoops
from mage_diffsim.envs.warp.compiler.contact_slots import LoopSlots
from mage_diffsim.envs.warp.compiler.derivatives import jvp, vjp
from mage_diffsim.envs.warp.compiler.dynamics import Spatial
from mage_diffsim.envs.warp.compiler.emit import Writer
from mage_diffsim.envs.warp.compiler.graph import Graph, Node, add, is_zero, mul
from mage_diffsim.envs.warp.compiler.noslip import NoSlip
from mage_diffsim.envs.warp.compiler.noslip_records import sliding
from mage_diffsim.envs.warp.compiler.noslip_reverse import close_slide, open_slide
from mage_diffsim.envs.warp.compiler.pairs import GEOM, Item, along_of, declare


def reverse(loops: ContactLoops, w: Writer) -> None:
    """Emit ``by_body``: the derivative of the contacts' power by the bodies' places and motions."""
    for name in (x for x in loops.arrays("adjoint") if x.startswith("by_")):
        rows, columns = loops.arrays("adjoint")[name]
        w(f"for (int i = 0; i < {rows * columns}; ++i) {name}[0][i] = splat(0);")
    for n, together in enumerate(loops.together):
        with loops.items(w, n, found=True) as near:
            for k in together:
                kind = loops.kinds[k]
                with loops.present(w, k, near, listed=kind.counts) as (declared, present):
                    powers = [(kind.item.power, 1.0), (kind.item.slide, 1.0)]
                    if kind.counts:
                        powers = loops.adhesion.open(w, k, declared)
                    found = {node.args[0]: x for node, x in vjp(powers).items()}
                    if kind.acts and not is_zero(kind.item.slide):
                        _slide(loops, w, k, found, declared, present)
                    found = {name: x for name, x in found.items() if name.startswith(("geom", "body", "motion"))}
                    declare(w, list(found.values()), declared)
                    for name, text in zip(found, w.compute(*found.values()), strict=True):
                        array, i = name.split("_")
                        array, side = array[:-1], int(array[-1]) - 1
                        row = f"[{side}]" if array == "motion" else f"[entry[{side + 2 * (array == 'body')}]]"
                        w(f"by_{array}{row}[{i}] += select({present}, splat(0) + {text}, splat(0));")
                    if kind.counts:
                        loops.adhesion.close(w)
    values, used = loops.geom(), loops.used
    with w.loop(f"int g = 0; g < {len(loops.geoms)}; ++g", fresh=True):
        w("const vec* const by = by_geom[g]; const real* const there = mount + 12 * g;")
        given = values[0].graph.inputs("by_", GEOM)
        found = vjp([(values[i], given[i]) for i in used])
        found = {node: x for node, x in found.items() if node.args[0].startswith("at")}
        declare(w, list(found.values()), set())
        for node, text in zip(found, w.compute(*found.values()), strict=True):
            w(f"by_body[carrier[g]][{node.args[0].split('_')[1]}] += {text};")


def _slide(loops: ContactLoops, w: Writer, k: int, found: Mapping[str, Any], declared: set[str], present: str) -> None:
    """Emit what the noslip solver gathered of an item of kind k, and add to the derivatives by axes.

    Args:
        loops, w, k: the contacts, where the code is written, the kind.
        found: the derivatives by the item's inputs.
        declared: the inputs that are declared; those that are declared here come to it.
        present: code of whether the item is there.
    """
    n = loops.cones.index(loops.kinds[k].cone)
    g, side = sliding(n + 1, loops.cones[n], loops.longest(n), 1), LoopSlots(loops).open_record(w, k)
    open_slide(w, g, side)
    by_slide = {int(name[6:]): x for name, x in found.items() if name.startswith("slide_")}
    declare(w, list(found.values()), declared)
    texts = w.compute(*by_slide.values())
    masked = [f"select({present}, splat(0) + {text}, splat(0))" for text in texts]
    close_slide(w, g, side, dict(zip(by_slide, masked, strict=True)))


def tangent(loops: ContactLoops, w: Writer) -> None:
    """Add to force{i} the tangents of the contacts' generalised forces, given the arrays' tangents."""
    for n, together in enumerate(loops.together):
        with loops.items(w, n, found=True, along=True) as near:
            for k in filter(lambda k: loops.kinds[k].acts, together):
                with loops.present(w, k, near) as (declared, present):
                    line = f"force_[dof] += select({present}, splat(0) + {{}}, splat(0));"
                    loops.each_dof(w, _push_tangents(loops.kinds[k].item), declared, line)


def slide_tangent(noslip: NoSlip, slots: LoopSlots, w: Writer) -> None:
    """Emit the tangents of J, and of what else the noslip solver reads of contacts, given the arrays' tangents."""
    loops = slots.loops
    for n, together in enumerate(loops.together):
        with loops.items(w, n, found=True, along=True) as near:
            for k in filter(lambda k: loops.kinds[k].acts, together):
                item = loops.kinds[k].item
                if len(item.rows) == 1:
                    continue
                with loops.present(w, k, near) as (declared, present):
                    slots.open_record(w, k)
                    g, ways = noslip.groups[loops.cones.index(loops.kinds[k].cone) + 1], len(item.rows)
                    parts = [item.record[1:ways], item.forces[1:], item.bounds]
                    changes = [jvp(x, along_of(x)) for x in parts]
                    declare(w, changes, declared)
                    masked = f"select({present}, splat(0) + {{}}, splat(0))"
                    noslip_tangents.store(w, g, masked, *changes)
                    w(f"vec* to = own + {g.place('hat', 'along_')};")
                    rows = [[row[side] for row in item.rows[1:]] for side in (0, 1)]
                    rows = [jvp(x, along_of(x)) for x in rows]
                    loops.each_dof(w, rows, declared, f"*to++ = {masked};", f"to += {g.ways};")


def _push_tangents(item: Item) -> list[list[Any]]:
    """For either side, the tangent of a contact's generalised force on a degree of freedom."""
    found = []
    for side in (0, 1):
        push: Any = 0.0
        for force, row in zip(item.forces, item.rows, strict=True):
            push = add(push, mul(force, row[side]))
        found.append(jvp([push], along_of(push)))
    return found


def by_fields(loops: ContactLoops, graph: Graph) -> list[tuple[Any, Node]]:
    """The parameters of geoms, with the derivative that :meth:`reverse` found by each."""
    return [
        (x, graph.input(f"by_geom[{n}][{i}]")) for n, own in enumerate(loops.fields) for i, x in enumerate(own, GEOM)
    ]


def seeds(loops: ContactLoops, body: int, graph: Graph, motions: Sequence[Sequence[Spatial]]) -> list[tuple[Any, Node]]:
    """What a body's place and motions are, with the derivative that :meth:`reverse` found by each."""
    if body not in loops.bodies:
        return []
    n = loops.bodies.index(body)
    return [(x, graph.input(f"by_body[{n}][{i}]")) for i, x in enumerate(loops.values(body, motions))]
