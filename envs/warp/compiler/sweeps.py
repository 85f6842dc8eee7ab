"""Stage 7, derivative sweeps: what one pass contributes to adjoint and tangents, from residuals at its solution.

At the solution of a pass the accelerations satisfy, with inverse dynamics RNE,

    G1(q, v, u, a) = RNE(q, v, a) + armature a - smooth(q, v, u) - J' f(q, v, a) = 0        (the solver's optimum)
    G2(q, v, a, e) = M(q) (e - a) + h D e = 0                                         (Euler's implicit damping)

with dG1/da = H, the factored Hessian, and dG2/de = M + h D. So nothing differentiates the mass matrix's algorithm, a
factorisation or the solver: for a cotangent g of e, mu = (M + h D)^-1 g, lam = H^-1 M mu, and the derivative by
(q, v, u) is -lam' dG1 - mu' dG2, one reverse sweep over inverse dynamics, forces and contacts. Tangents go the other
way: da = -H^-1 dG1 and (M + h D) de = M da - dG2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler import manifold
from mage_diffsim.envs.warp.compiler.constraints import EDGES, Contact
from mage_diffsim.envs.warp.compiler.dynamics import inverse_dynamics
from mage_diffsim.envs.warp.compiler.emit import Writer, literal, reference
from mage_diffsim.envs.warp.compiler.forces import smooth
from mage_diffsim.envs.warp.compiler.graph import Node, add, jvp, less, mul, neg, sub, vjp, where
from mage_diffsim.envs.warp.compiler.solver import times_mass

if TYPE_CHECKING:
    from mage_diffsim.envs.warp.compiler.program import Program


class Sweeps:
    """Adjoint and tangents of one pass. lq, lv: the derivative by the state after it, in tangents, then by that before."""

    def __init__(self, program: Program) -> None:
        p = self.p = program
        graph = p.graph
        self.lam, self.mu, self.e = graph.inputs("x", p.nv), graph.inputs("c", p.nv), graph.inputs("e", p.nv)
        kinematics = p.kinematics
        self._motions = [kinematics.velocities(x) for x in (p.a, p.v, self.lam)]

    def declare(self, w: Writer) -> None:
        """RK4's variables: cotangents of the substep's start and of its sums."""
        for prefix in ("start_lq", "start_lv", "cot_v", "cot_a"):
            w.declare(self.p.names(prefix))
        if self.p.turning:
            w.declare(self.p.names("lway"))

    def reverse(self, w: Writer) -> None:
        """Emit the step back through a pass: q, v, a are its own, H (and B) factored there."""
        p, h = self.p, literal(self.p.timestep)
        if p.model.runge_kutta:
            self._reverse_stage(w)
        else:
            # q' = q + h v', v' = v + h e
            with w.block(""):
                for i in range(p.nv):
                    w(f"const vec by{i} = {h} * (v{i} + {h} * e{i});")
                start, by = manifold.moved_vjp(p.model, p.graph.inputs("by", p.nv), p.graph.inputs("lq", p.nv))
                names = w.compute(*start, *by)
                for i in range(p.nv):
                    w(f"lv{i} += {h} * {names[p.nv + i]};")
                w.assign(p.names("lq"), start)
            w.declare(p.names("c"))
            if p.damped is None:
                for i in range(p.nv):
                    w(f"x{i} = {h} * lv{i};")
            else:
                for i in range(p.nv):
                    w(f"c{i} = {h} * lv{i};")
                p.damped.solve(w, "c")
                for i, product in enumerate(times_mass(p.mass, "c")):
                    w(f"x{i} = {product};")
            p.solver.hessian.solve(w, "x")
            for i, (by_q, by_v) in enumerate(self._residuals(w)):
                w(f"lq{i} += {by_q}; lv{i} += {by_v};")
        with w.block("if (pass == 0)"):
            for n, d in enumerate(p._means()):
                w(f"lq{d} -= mean{n};")

    def _reverse_stage(self, w: Writer) -> None:
        """RK4, stage s of a substep: q_{s+1} = q_0 + h reach v_s, v_{s+1} = v_0 + h reach a_s; the sums at the end."""
        p, h = self.p, literal(self.p.timestep)
        from mage_diffsim.envs.warp.compiler.program import REACH, SHARE

        w("const int stage = pass % 4;")
        w(f"const real share = {p._choice(SHARE)};")
        w(f"const real reach = {p._choice((*REACH, 0.0))};")
        names = p.graph.inputs("by", p.nv), p.graph.inputs("lq", p.nv)
        with w.block("if (stage == 3)"):
            # lq, lv are those of the substep's result: q_0 + h sum_v, v_0 + h sum_a.
            for i in range(p.nv):
                place = p.nq + (3 * p.nv if p.turning else 0) + i
                stages = [f"{literal(s)} * tape[pass - {3 - k}][{place}]" for k, s in enumerate(SHARE)]
                w(f"const vec by{i} = {h} * ({' + '.join(stages)});")
            start, by = manifold.moved_vjp(p.model, *names)
            w.compute(*start, *by)
            for i in range(p.nv):
                w(f"start_lq{i} = {reference(start[i])}; cot_v{i} = {h} * {reference(by[i])};")
                w(f"start_lv{i} = lv{i}; cot_a{i} = {h} * lv{i}; lq{i} = splat(0); lv{i} = splat(0);")
        w.declare([*p.names("to_v"), *p.names("c")])
        rate = "rate" if p.turning else "v"
        with w.block(""):
            # lq, lv (and lway) are those of the next stage's q and v (and of the way there).
            for i in range(p.nv):
                w(f"const vec by{i} = ({h} * reach) * {rate}{i};")
            start, by = manifold.moved_vjp(p.model, *names)
            w.compute(*start, *by)
            for i in range(p.nv):
                by_way = f"({reference(by[i])} + lway{i})" if p.turning else reference(by[i])
                w(f"start_lq{i} += {reference(start[i])}; start_lv{i} += lv{i};")
                w(f"to_v{i} = share * cot_v{i} + ({h} * reach) * {by_way};")
                w(f"x{i} = share * cot_a{i} + ({h} * reach) * lv{i};")
        if p.turning:
            with w.block(""):
                found = vjp(zip(p.rates, p.graph.inputs("to_v", p.nv), strict=True))
                values = w.compute(*(found.get(x, 0.0) for x in (*p.way, *p.v)))
                for i in range(p.nv):
                    w(f"lway{i} = splat(0) + {values[i]};")
                for i in range(p.nv):
                    w(f"to_v{i} = splat(0) + {values[p.nv + i]};")
        p.solver.hessian.solve(w, "x")
        for i, (by_q, by_v) in enumerate(self._residuals(w)):
            w(f"lq{i} = splat(0) + {by_q}; lv{i} = to_v{i} + {by_v};")
        with w.block("if (stage == 0)"):
            for i in range(p.nv):
                w(f"lq{i} += start_lq{i}; lv{i} += start_lv{i};")

    def _residuals(self, w: Writer) -> list[tuple[str, str]]:
        """-lam' dG1 - mu' dG2 with lam = x, mu = c: code of the derivatives by (tangent of q, v); adds to gu."""
        p = self.p
        frames = self._frames()
        w.compute(*frames)
        seeds: list[tuple[Any, Any]] = []
        plans = [(c, vjp([(self._power(c), 1.0)], cuts=frames)) for c in p.contacts]
        gathered: dict[Node, Node] = {}
        for _, found in plans:
            for node in found:
                gathered.setdefault(node, p.graph.input(f"gather{node.index}"))
        w.declare([g.args[0] for g in gathered.values()])
        for c, found in plans:
            (present,) = w.compute(c.present)
            with w.block(f"if (any({present}))"):
                for node, text in zip(found, w.compute(*found.values()), strict=True):
                    name = gathered[node].args[0]
                    w(f"{name} += select({present}, splat(0) + {text}, splat(0));")
        seeds += gathered.items()
        seeds += [(x, neg(lam)) for x, lam in zip(self._optimum(), self.lam, strict=True)]
        if p.damped is not None:
            seeds += [(x, neg(mu)) for x, mu in zip(self._implicit(), self.mu, strict=True)]
        found = vjp(seeds)
        by_q = manifold.to_tangent(p.model, p.q, [found.get(q, 0.0) for q in p.q])
        by_v = [found.get(v, 0.0) for v in p.v]
        by_u = [found.get(u, 0.0) for u in p.u]
        names = w.compute(*by_q, *by_v, *by_u)
        for i in range(p.nu):
            w(f"gu{i} += {names[2 * p.nv + i]};")
        return list(zip(names[: p.nv], names[p.nv : 2 * p.nv], strict=True))

    def _optimum(self) -> list[Any]:
        """G1 without contacts, and without what does not depend on q, v and u."""
        p = self.p
        forces = smooth(p.kinematics, p.q, p.v, p.u)
        for row in p.limits:
            pull = add(mul(row.sign, p.a[row.dof]), row.offset)
            force = where(less(pull, 0.0), mul(neg(row.weight), pull), 0.0)
            forces[row.dof] = add(forces[row.dof], mul(row.sign, force))
        return [sub(x, f) for x, f in zip(inverse_dynamics(p.kinematics, p.v, p.a), forces, strict=True)]

    def _implicit(self) -> list[Any]:
        """G2 without what does not depend on q."""
        gap = [sub(e, a) for e, a in zip(self.e, self.p.a, strict=True)]
        return inverse_dynamics(self.p.kinematics, [0.0] * self.p.nv, gap, gravity=False)

    def _frames(self) -> list[Node]:
        """Where bodies are and how they move: what contacts depend on, each computed once for all of them."""
        p, found = self.p, {}
        kinematics = p.kinematics
        bodies = sorted({b for c in p.contacts for b in c.pair.bodies if b})
        for b in bodies:
            vectors = [*kinematics.rotation[b], kinematics.position[b], kinematics.origin(b)]
            for motions in self._motions:
                vectors += motions[b]
            found.update({x.index: x for vector in vectors for x in vector if isinstance(x, Node)})
        return [found[i] for i in sorted(found)]

    def _forces(self, c: Contact) -> tuple[Any, list[Any]]:
        """The contact's force along the normal, and along each tangent (times the friction)."""
        accelerations, velocities = (c.relative(motions) for motions in self._motions[:2])
        b = c.pair.impedance.damping

        def pull(way: al.Vector) -> Any:
            return add(al.dot(way, accelerations), mul(b, al.dot(way, velocities)))

        def force(value: Any, rows: int) -> Any:
            return where(less(value, 0.0), mul(-float(rows), mul(c.weight, value)), 0.0)

        normal = add(pull(c.normal), c.push)
        plain = EDGES - 2 * len(c.tangents)
        total: Any = force(normal, plain) if plain else 0.0
        along = []
        for tangent in c.tangents:
            sideways = pull(tangent)
            up, down = force(add(normal, sideways), 1), force(sub(normal, sideways), 1)
            total = add(total, add(up, down))
            along.append(sub(up, down))
        return total, along

    def _power(self, c: Contact) -> Any:
        """The contact's force times the relative motion lam at it."""
        normal, along = self._forces(c)
        motion = c.relative(self._motions[2])
        total = mul(normal, al.dot(c.normal, motion))
        for tangent, force in zip(c.tangents, along, strict=True):
            total = add(total, mul(force, al.dot(tangent, motion)))
        return total

    def forward(self, w: Writer) -> None:
        """Emit the tangents of a pass, before it moves q and v: da in x{i}, and for Euler de in c{i}.

        Variables: tq{i}, tv{i} the tangents of q and v, tu{i} those of the control.
        """
        p, graph = self.p, self.p.graph
        pushed = manifold.pushed(p.model, p.q, graph.inputs("tq", p.nv))
        tangents = dict(zip((*p.q, *p.v, *p.u), (*pushed, *graph.inputs("tv", p.nv), *graph.inputs("tu", p.nu)), strict=True))
        frames = self._frames()
        w.compute(*frames, *jvp(frames, tangents))
        w.declare(p.names("force"))
        for c in p.contacts:
            normal, along = self._forces(c)
            rows = [c.normal_row, *c.tangent_rows]
            pushes = []
            for i in range(p.nv):
                push: Any = 0.0
                for row, force in zip(rows, (normal, *along), strict=True):
                    push = add(push, mul(row[i], force))
                pushes.append(push)
            (present,) = w.compute(c.present)
            with w.block(f"if (any({present}))"):
                for i, text in enumerate(w.compute(*jvp(pushes, tangents))):
                    w(f"force{i} += select({present}, splat(0) + {text}, splat(0));")
        for i, text in enumerate(w.compute(*jvp(self._optimum(), tangents))):
            w(f"x{i} = force{i} - {text};")
        p.solver.hessian.solve(w, "x")
        if p.model.runge_kutta:
            return
        w.declare(p.names("c"))
        if p.damped is None:
            for i in range(p.nv):
                w(f"c{i} = x{i};")
            return
        implicit = w.compute(*jvp(self._implicit(), tangents))
        for i, product in enumerate(times_mass(p.mass, "x")):
            w(f"c{i} = {product} - {implicit[i]};")
        p.damped.solve(w, "c")
