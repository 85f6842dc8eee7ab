"""The code of the noslip solver's sweeps (:mod:`.noslip`), with tangents if wanted."""

from __future__ import annotations

from mage_diffsim.envs.warp.compiler.emit import Writer, literal, total
from mage_diffsim.envs.warp.compiler.noslip import NoSlip
from mage_diffsim.envs.warp.compiler.noslip_blocks import Ellipse
from mage_diffsim.envs.warp.compiler.noslip_records import Sliding
from mage_diffsim.envs.warp.compiler.noslip_start import prepare


def solve(n: NoSlip, w: Writer) -> None:
    """Emit a{i} after the sweeps, from the solver's a{i}, which becomes solved{i}."""
    for i in range(n.nv):
        w(f"solved{i} = a{i};")
    prepare(n, w)
    with w.block("" if n.rows else "if (slipping > 0)"):
        sweep(n, w)
        w(f"for (int i = 0; i < {n.nv}; ++i) work_[i] = hat_[i] - start_[i];")
        n.back(w, "work_")
        for i in range(n.nv):
            w(f"a{i} += work_[{i}];")


def sweep(n: NoSlip, w: Writer, history: bool = False, tangent: bool = False) -> None:
    """Emit the sweeps, which change ``hat`` and the records' forces.

    Args:
        w: where the code is written.
        history: whether records keep their forces before each sweep.
        tangent: whether derivatives come along.
    """
    w(f"for (int t = 0; t < {n.trees}; ++t) reach_[t] = splat({literal(float(n.sweeps))});")
    with w.loop(f"swept = 0; swept < {n.sweeps}; "):
        w(f"for (int t = 0; t < {n.trees}; ++t) gain_[t] = swept == 0 ? first_[t] : splat(0);")
        if n.rows:
            with n.each_loss(w):
                _update(n, w, n.groups[0], history, tangent)
        for g in n.each_contact(w):
            _update(n, w, g, history, tangent)
        w("++swept;")
        if n.sweeps > 1:
            _stop(n, w)


def _stop(n: NoSlip, w: Writer) -> None:
    """Emit how far each tree's sweeps reach: to this one, if its island gains too little for its inertia."""
    w("bool more = false;")
    with w.loop(f"int t = 0; t < {n.trees}; ++t"):
        w("vec gain = splat(0), inertia = gain;")
        with w.loop(f"int u = 0; u < {n.trees}; ++u"):
            w("const mask near = label_[u] == label_[t];")
            w("gain += select(near, gain_[u], splat(0)); inertia += select(near, inertia_[u], splat(0));")
        w(f"const mask little = gain < {literal(n.m.opt.noslip_tolerance)} * inertia;")
        w("reach_[t] = select(little & (splat(real(swept)) < reach_[t]), splat(real(swept)), reach_[t]);")
        w("more = more | any(splat(real(swept)) < reach_[t]);")
    w("if (!more) break;")


def block(n: NoSlip, w: Writer, g: Sliding, b: int) -> None:
    """Declare what a record's block depends on, at ``hat``."""
    rows, hat = g.blocks[b], g.place("hat")
    for i, t in enumerate(rows):
        w(f"const vec old{i} = own[{g.place('old') + t}]; vec res{i} = own[{g.place('res') + t}];")
    with w.loop("int p = 0; p < count; ++p"):
        for i, t in enumerate(rows):
            w(f"res{i} += own[{hat + t} + {g.ways} * p] * hat_[dof[p]];")
    for k, name in enumerate(g.block.gram_names):
        w(f"const vec {name} = own[{g.place('gram') + g.grams * b + k}];")
    w(f"const vec bound = own[{g.place('bound') + b}];")
    if isinstance(g.block, Ellipse):
        w("const vec slope = splat(slip_constants[6 * rank]);")
        for i in g.block.ways:
            w(f"const vec floor{i} = splat(slip_constants[6 * rank + {1 + i}]);")


def _update(n: NoSlip, w: Writer, g: Sliding, history: bool, tangent: bool) -> None:
    w("const mask run = splat(real(swept)) < reach_[tree];")
    for b, rows in enumerate(g.blocks):
        with w.block("", fresh=True):
            block(n, w, g, b)
            if tangent:
                _along_block(n, w, g, b)
                g.block.tangent(w)
            else:
                g.block.forward(w)
            for i, t in enumerate(rows):
                if history:
                    w(f"own[{g.past + t} + {g.ways} * swept] = old{i};")
                w(f"const vec move{i} = select(run, new{i} - old{i}, splat(0));")
                w(f"own[{g.place('old') + t}] = old{i} + move{i};")
                if tangent:
                    place = g.place("old", "along_") + t
                    w(f"const vec along_move{i} = select(run, along_new{i} - along_old{i}, splat(0));")
                    w(f"own[{place}] = along_old{i} + along_move{i};")
            with w.loop("int p = 0; p < count; ++p"):
                entry = [f"own[{g.place('hat') + t} + {g.ways} * p]" for t in rows]
                along = [f"own[{g.place('hat', 'along_') + t} + {g.ways} * p]" for t in rows]
                w(f"hat_[dof[p]] += {total([f'{x} * move{i}' for i, x in enumerate(entry)])};")
                if tangent:
                    terms = [f"{x} * along_move{i}" for i, x in enumerate(entry)]
                    terms += [f"{x} * move{i}" for i, x in enumerate(along)]
                    w(f"along_hat_[dof[p]] += {total(terms)};")
            if n.sweeps > 1:
                w("gain_[tree] += select(run, gain, splat(0));")


def _along_block(n: NoSlip, w: Writer, g: Sliding, b: int) -> None:
    """Declare the tangents of what :meth:`block` declares."""
    rows, hat, along = g.blocks[b], g.place("hat"), g.place("hat", "along_")
    for i, t in enumerate(rows):
        w(f"const vec along_old{i} = own[{g.place('old', 'along_') + t}];")
        w(f"vec along_res{i} = own[{g.place('res', 'along_') + t}];")
    with w.loop("int p = 0; p < count; ++p"):
        for i, t in enumerate(rows):
            w(f"along_res{i} += own[{along + t} + {g.ways} * p] * hat_[dof[p]];")
            w(f"along_res{i} += own[{hat + t} + {g.ways} * p] * along_hat_[dof[p]];")
    for k, name in enumerate(g.block.gram_names):
        w(f"const vec along_{name} = own[{g.place('gram', 'along_') + g.grams * b + k}];")
    w(f"const vec along_bound = own[{g.place('bound', 'along_') + b}];")
