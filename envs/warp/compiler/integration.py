"""Stage 8, derivatives of the integrators: adjoint and tangents of how a pass moves q, v and act."""

from __future__ import annotations

from collections.abc import Callable

from mage_diffsim.envs.warp.compiler import manifold
from mage_diffsim.envs.warp.compiler.derivatives import jvp, vjp
from mage_diffsim.envs.warp.compiler.emit import Writer, literal, reference
from mage_diffsim.envs.warp.compiler.step import REACH, SHARE, Step
from mage_diffsim.envs.warp.compiler.sweeps import Sweeps


class Integration:
    """The code for adjoint and tangents of one pass.

    Variables: lq{i} (by tangents), lv{i}, lact{i} are first the derivative by the state after the pass, then by that
    before it. tq{i}, tv{i}, tact{i} are the tangents of the state.
    """

    def __init__(self, step: Step, sweeps: Sweeps) -> None:
        self.step, self.sweeps = step, sweeps

    def declare(self, w: Writer) -> None:
        """RK4's variables: cotangents of the substep's start and of its sums."""
        for prefix in ("start_lq", "start_lv", "cot_v", "cot_a"):
            w.declare(self.step.names(prefix))
        w.declare([f"lway{i}" for i in self.step.turning])
        for prefix in ("start_lact", "cot_act"):
            w.declare(self.step.names(prefix, self.step.na))

    def reverse(self, w: Writer, meanwhile: Callable[[int], None]) -> None:
        """Emit the step back through a pass; q, v, a are the pass's own, H (and B) are factored there.

        ``meanwhile`` is that of :meth:`.Sweeps.residuals`.
        """
        s, h = self.step, literal(self.step.timestep)
        w.declare(s.names("to_act", s.na))
        if s.model.runge_kutta:
            self._reverse_stage(w, meanwhile)
        else:
            # q' = q + h v', v' = v + h e
            with w.block(""):
                for i in range(s.nv):
                    w(f"const vec by{i} = {h} * (v{i} + {h} * e{i});")
                start, by = manifold.moved_vjp(s.model, s.graph.inputs("by", s.nv), s.graph.inputs("lq", s.nv))
                names = w.compute(*start, *by)
                for i in range(s.nv):
                    w(f"lv{i} += {h} * {names[s.nv + i]};")
                w.assign(s.names("lq"), start)
            s.implicit.vector(w, "c")
            for i in range(s.nv):
                w(f"c{i} = {h} * lv{i};")
            s.implicit.adjoint(w)
            self.sweeps.slide_back(w)
            s.solver.solve_kept(w, "x")
            self.sweeps.residuals(w, "lq{0} += {1}; lv{0} += {2};", meanwhile)
        for i in range(s.na):
            w(f"lact{i} = to_act{i};")
        with w.block("if (pass == 0)"):
            for n, d in enumerate(s.means()):
                w(f"lq{d} -= mean{n};")

    def _reverse_stage(self, w: Writer, meanwhile: Callable[[int], None]) -> None:
        """RK4, stage s of a substep: q_{s+1} = q_0 + h reach v_s, v_{s+1} = v_0 + h reach a_s; the sums at the end."""
        s, h = self.step, literal(self.step.timestep)
        w("const int stage = pass % 4;")
        w(f"const real share = {s.choice(SHARE)};")
        w(f"const real reach = {s.choice((*REACH, 0.0))};")
        names = s.graph.inputs("by", s.nv), s.graph.inputs("lq", s.nv)
        with w.block("if (stage == 3)"):
            # lq, lv are those of the substep's result: q_0 + h sum_v, v_0 + h sum_a.
            for i in range(s.nv):
                place = s.kept.index(s.rate_of(i))
                stages = [f"{literal(share)} * kept(pass - {3 - k}, {place})" for k, share in enumerate(SHARE)]
                w(f"const vec by{i} = {h} * ({' + '.join(stages)});")
            start, by = manifold.moved_vjp(s.model, *names)
            w.compute(*start, *by)
            for i in range(s.nv):
                w(f"start_lq{i} = {reference(start[i])}; cot_v{i} = {h} * {reference(by[i])};")
                w(f"start_lv{i} = lv{i}; cot_a{i} = {h} * lv{i}; lq{i} = splat(0); lv{i} = splat(0);")
            self._reverse_activations(w)
        w.declare([*s.names("to_v"), *s.names("c"), *s.names("to_rate", s.na)])
        for i in range(s.na):
            w(f"to_rate{i} = share * cot_act{i} + ({h} * reach) * lact{i}; start_lact{i} += lact{i};")
        with w.block(""):
            # lq, lv (and lway) are those of the next stage's q and v (and of the way there).
            for i in range(s.nv):
                w(f"const vec by{i} = ({h} * reach) * {s.rate_of(i)};")
            start, by = manifold.moved_vjp(s.model, *names)
            w.compute(*start, *by)
            for i in range(s.nv):
                by_way = f"({reference(by[i])} + lway{i})" if i in s.turning else reference(by[i])
                w(f"start_lq{i} += {reference(start[i])}; start_lv{i} += lv{i};")
                w(f"to_v{i} = share * cot_v{i} + ({h} * reach) * {by_way};")
                w(f"x{i} = share * cot_a{i} + ({h} * reach) * lv{i};")
        if s.turning:
            with w.block(""):
                found = vjp(zip(s.rates, s.graph.inputs("to_v", s.nv), strict=True))
                names = [f"{to}{i}" for to in ("lway", "to_v") for i in s.turning]
                w.assign(names, [found.get(x[i], 0.0) for x in (s.way, s.v) for i in s.turning])
        self.sweeps.slide_back(w)
        s.solver.solve_kept(w, "x")
        self.sweeps.residuals(w, "lq{0} = splat(0) + {1}; lv{0} = to_v{0} + {2};", meanwhile)
        with w.block("if (stage == 0)"):
            for i in range(s.nv):
                w(f"lq{i} += start_lq{i}; lv{i} += start_lv{i};")
            for i in range(s.na):
                w(f"to_act{i} += start_lact{i};")

    def _reverse_activations(self, w: Writer) -> None:
        """Emit the cotangents of a substep's first activations and mean rates, from those of its last activations."""
        s = self.step
        for i in range(s.na):
            at, rate = s.kept.index(f"act{i}"), s.kept.index(f"act_rate{i}")
            stages = [f"{literal(share)} * kept(pass - {3 - k}, {rate})" for k, share in enumerate(SHARE)]
            w(f"const vec start_act{i} = kept(pass - 3, {at}), sum_act{i} = {' + '.join(stages)};")
        found = vjp(zip(s.acted(), s.graph.inputs("lact", s.na), strict=True))
        for name, by in (("start_lact", "start_act"), ("cot_act", "sum_act")):
            w.assign(s.names(name, s.na), [found.get(x, 0.0) for x in s.graph.inputs(by, s.na)])
        for i in range(s.na):
            w(f"lact{i} = splat(0);")

    def advance(self, w: Writer) -> None:
        """Emit the move of tq, tv and tact to the next pass; q, v and act still belong to this one."""
        s = self.step
        h, inputs = literal(s.timestep), s.graph.inputs

        def move(start: str, by: list[str], along: list[str]) -> None:
            with w.block(""):
                for i in range(s.nv):
                    w(f"const vec by{i} = {by[i]}, along{i} = {along[i]};")
                moved = manifold.moved_jvp(s.model, inputs("by", s.nv), inputs(start, s.nv), inputs("along", s.nv))
                w.assign(s.names("tq"), moved)

        if not s.model.runge_kutta:
            w.assign(s.names("tact", s.na), jvp(s.acted(), self.sweeps.tangents()))
            for i in range(s.nv):
                w(f"tv{i} += {h} * c{i};")
            move(
                "tq",
                [f"{h} * (v{i} + {h} * e{i})" for i in range(s.nv)],
                [f"{h} * tv{i}" for i in range(s.nv)],
            )
            return
        w("const int stage = pass % 4;")
        w(f"const real share = {s.choice(SHARE)};")
        w(f"const real reach = {s.choice((*REACH, 0.0))};")
        with w.block("if (stage == 0)"):
            for i in range(s.nv):
                w(f"start_tq{i} = tq{i}; start_tv{i} = tv{i}; sum_tv{i} = splat(0); sum_ta{i} = splat(0);")
                w(f"tway{i} = splat(0);")
            for i in range(s.na):
                w(f"start_tact{i} = tact{i}; sum_tact{i} = splat(0);")
        w.assign(s.names("act_rate", s.na), s.act_rates)
        act_rates = w.compute(*jvp(s.act_rates, self.sweeps.tangents()))
        for i, text in enumerate(act_rates):
            w(f"sum_tact{i} += share * {text};")
        along = dict(zip((*s.way, *s.v), (*inputs("tway", s.nv), *inputs("tv", s.nv)), strict=True))
        w.assign(s.names("trate"), jvp(s.rates, along))
        rates = [s.rate_of(i) for i in range(s.nv)]
        w.assign([f"rate{i}" for i in s.turning], [s.rates[i] for i in s.turning])
        for i in range(s.nv):
            w(f"sum_tv{i} += share * trate{i}; sum_ta{i} += share * x{i};")
        with w.block("if (stage < 3)"):
            for i in range(s.nv):
                w(f"tway{i} = ({h} * reach) * trate{i};")
                w(f"tv{i} = start_tv{i} + ({h} * reach) * x{i};")
            move("start_tq", [f"({h} * reach) * {r}" for r in rates], s.names("tway"))
            for i, text in enumerate(act_rates):
                w(f"tact{i} = start_tact{i} + ({h} * reach) * {text};")
        with w.block("else"):
            for i in range(s.nv):
                w(f"tv{i} = start_tv{i} + {h} * sum_ta{i};")
            # `_advance` has not added this stage to its sum yet.
            by = [f"{h} * (sum_v{i} + share * {rates[i]})" for i in range(s.nv)]
            move("start_tq", by, [f"{h} * sum_tv{i}" for i in range(s.nv)])
            for i in range(s.na):
                w(f"const vec all_act{i} = sum_act{i} + share * act_rate{i};")
            starts = inputs("start_act", s.na), inputs("start_tact", s.na)
            sums = inputs("all_act", s.na), inputs("sum_tact", s.na)
            given = {x: t for xs, ts in (starts, sums) for x, t in zip(xs, ts, strict=True)}
            w.assign(s.names("tact", s.na), jvp(s.acted("all_act"), given))
