"""The derivative sweeps over contacts in loops (see :mod:`.contact_loops`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler.contact_loops import ContactLoops, along_of, declare
from mage_diffsim.envs.warp.compiler.derivatives import jvp, vjp
from mage_diffsim.envs.warp.compiler.dynamics import Spatial
from mage_diffsim.envs.warp.compiler.emit import Writer
from mage_diffsim.envs.warp.compiler.graph import Graph, Node, add, mul
from mage_diffsim.envs.warp.compiler.pairs import GEOM, Item


def reverse(loops: ContactLoops, w: Writer) -> None:
    """Emit ``by_body``: the derivative of the contacts' power by the bodies' places and motions."""
    for name in ("by_body", "by_geom"):
        rows, columns = loops.arrays("adjoint")[name]
        w(f"for (int i = 0; i < {rows * columns}; ++i) {name}[0][i] = splat(0);")
    for n, together in enumerate(loops.together):
        with loops.items(w, n, found=True) as near:
            for k in together:
                with loops.present(w, k, near) as (declared, present):
                    found = {node.args[0]: x for node, x in vjp([(loops.kinds[k].item.power, 1.0)]).items()}
                    found = {name: x for name, x in found.items() if name.startswith(("geom", "body"))}
                    declare(w, list(found.values()), declared)
                    for name, text in zip(found, w.compute(*found.values()), strict=True):
                        array, i = name.split("_")
                        row = f"by_{array[:-1]}[entry[{int(array[-1]) - 1 + 2 * (array[:-1] == 'body')}]]"
                        w(f"{row}[{i}] += select({present}, splat(0) + {text}, splat(0));")
    values, used = loops.geom(), loops.used
    with w.loop(f"int g = 0; g < {len(loops.geoms)}; ++g", fresh=True):
        w("const vec* const by = by_geom[g]; const real* const there = mount + 12 * g;")
        given = values[0].graph.inputs("by_", GEOM)
        found = vjp([(values[i], given[i]) for i in used])
        found = {node: x for node, x in found.items() if node.args[0].startswith("at")}
        declare(w, list(found.values()), set())
        for node, text in zip(found, w.compute(*found.values()), strict=True):
            w(f"by_body[carrier[g]][{node.args[0].split('_')[1]}] += {text};")


def tangent(loops: ContactLoops, w: Writer) -> None:
    """Add to force{i} the tangents of the contacts' generalised forces, given the arrays' tangents."""
    for n, together in enumerate(loops.together):
        with loops.items(w, n, found=True, along=True) as near:
            for k in together:
                with loops.present(w, k, near) as (declared, present):
                    line = f"force_[dof] += select({present}, splat(0) + {{}}, splat(0));"
                    loops.each_dof(w, _push_tangents(loops.kinds[k].item), declared, line)


def _push_tangents(item: Item) -> list[list[Any]]:
    """For either side, the tangent of a contact's generalised force on a degree of freedom."""
    found = []
    for side in (0, 1):
        push: Any = 0.0
        for force, row in zip(item.forces, item.rows, strict=True):
            push = add(push, mul(force, row[side]))
        found.append(jvp([push], along_of(push)))
    return found


def seeds(loops: ContactLoops, body: int, graph: Graph, motions: Sequence[Sequence[Spatial]]) -> list[tuple[Any, Node]]:
    """What a body's place and motions are, with the derivative that :meth:`reverse` found by each."""
    if body not in loops.bodies:
        return []
    n = loops.bodies.index(body)
    values = loops.values(body, motions)
    return [(x, graph.input(f"by_body[{n}][{i}]")) for i, x in enumerate(values)]
