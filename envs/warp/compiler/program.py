"""Stage 8, programs: one environment step of a model as C++, forward, with its adjoint, and with tangents.

A *pass* is one evaluation of the acceleration: one per substep for Euler, four for RK4. The adjoint runs the passes
forward, keeping (q, v, a) of each on a tape, and then backward; coming back to a pass, Newton starts at its solution
and only factors the Hessian there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mage_diffsim.envs.mujoco.model import BodyPosition, MeanVelocity
from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler import manifold
from mage_diffsim.envs.warp.compiler.constraints import contacts, limit_rows
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics, inverse_dynamics, mass_matrix
from mage_diffsim.envs.warp.compiler.emit import Writer, literal, prelude
from mage_diffsim.envs.warp.compiler.forces import smooth
from mage_diffsim.envs.warp.compiler.graph import Graph, add, is_zero, jvp, mul, vjp
from mage_diffsim.envs.warp.compiler.intake import Model
from mage_diffsim.envs.warp.compiler.solver import Matrix, Solver, times_mass
from mage_diffsim.envs.warp.compiler.sweeps import Sweeps

REACH = (0.5, 0.5, 1.0)
"""RK4: how far each stage's derivative leads to the next stage, in timesteps."""
SHARE = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
"""RK4: each stage's share in the step."""


class Program:
    """The expressions of one model, and the code made of them.

    Variables of the code: q{i}, v{i}, a{i} positions, velocities, accelerations; u{i} controls; e{i} the acceleration
    that moves the velocity (damping implicit).
    """

    def __init__(self, model: Model, real: str, lanes: int) -> None:
        m = self.m = model.model
        self.model, self.real, self.lanes = model, real, lanes
        self.nq, self.nv, self.nu = int(m.nq), int(m.nv), int(m.nu)
        self.timestep = float(m.opt.timestep)
        self.stages = 4 if model.runge_kutta else 1
        self.passes = self.stages * model.simulation.frame_skip
        self.width = len(model.simulation.state_names)
        graph = self.graph = Graph()
        self.q, self.v, self.a = graph.inputs("q", self.nq), graph.inputs("v", self.nv), graph.inputs("a", self.nv)
        self.u = graph.inputs("u", self.nu)
        self.kinematics = Kinematics(model, self.q)
        self.mass = mass_matrix(self.kinematics)
        bias = inverse_dynamics(self.kinematics, self.v, [0.0] * self.nv)
        forces = smooth(self.kinematics, self.q, self.v, self.u)
        self.smooth = [add(f, mul(-1.0, b)) for f, b in zip(forces, bias, strict=True)]
        self.limits = limit_rows(self.kinematics, self.q, self.v)
        self.contacts = contacts(self.kinematics)
        self.solver = Solver(self.kinematics, self.mass, self.contacts, exact=real == "double")
        velocities = self.kinematics.velocities(self.v)
        self.offsets = []
        for c in self.contacts:
            b, speed = c.pair.impedance.damping, c.relative(velocities)
            along = [mul(b, al.dot(way, speed)) for way in (c.normal, *c.tangents)]
            self.offsets.append([add(along[0], c.push), *along[1:]])
        damping = [float(x) for x in m.dof_damping]
        self.damped: Matrix | None = None
        if any(damping) and not model.runge_kutta:
            entries = {(i, j) for i, row in enumerate(self.mass) for j, x in enumerate(row) if not is_zero(x)}
            self.damped = Matrix("B", self.nv, entries)
        self.damping = damping
        self.way = graph.inputs("way", self.nv)
        self.turning = model.runge_kutta and bool(manifold.coordinates(model)[1])
        """Whether RK4's stages are steps of rotations, of which ``way{i}`` is the displacement since the start."""
        self.rates = manifold.rates(model, self.way, self.v) if self.turning else self.v
        self.sweeps = Sweeps(self)

    def names(self, prefix: str, n: int | None = None) -> list[str]:
        """``prefix0`` and so on, by default nv of them."""
        return [f"{prefix}{i}" for i in range(self.nv if n is None else n)]

    # -- the kernels -------------------------------------------------------------------------------------------------

    def forward(self) -> str:
        """(state, control) -> next_state."""
        w = self._begin()
        self._declare(w)
        with w.block(f"for (int pass = 0; pass < {self.passes}; ++pass)"):
            self._acceleration(w)
            self._advance(w)
        means = {d: f"mean{n} * {literal(1.0 / self.model.simulation.frame_skip)}" for n, d in enumerate(self._means())}
        values = [*w.compute(*self.q, *self.v)]
        for kind, i in self.model.simulation.readouts:
            if kind is MeanVelocity:
                values.append(means[self._dof_of(i)])
            else:
                values += w.compute(*self._position(kind, i))
        for column, value in enumerate(values):
            w(f"store(next_state.data, {self.width}, {column}, select(failed, splat(nothing), splat(0) + {value}));")
        return w.text

    def adjoint(self) -> str:
        """(state, control, cotangent) -> state_gradient, control_gradient."""
        w = self._begin()
        self._declare(w)
        kept = [*self.names("q", self.nq), *self.names("v"), *self.names("a")]
        if self.turning:
            kept += [*self.names("way"), *self.names("rate")]
        tape = len(kept)
        w(f"vec tape[{self.passes}][{tape}];")
        w.declare([*self.names("lq"), *self.names("lv"), *self.names("gu", self.nu)])
        if self.model.runge_kutta:
            self.sweeps.declare(w)
        with w.block(f"for (int round = 0; round < {2 * self.passes}; ++round)"):
            w(f"const bool back = round >= {self.passes};")
            w(f"const int pass = back ? {2 * self.passes - 1} - round : round;")
            with w.block("if (back)"):
                for place, name in enumerate(kept):
                    w(f"{name} = tape[pass][{place}];")
            self._acceleration(w)
            with w.block("if (back)"):
                self.sweeps.reverse(w)
            with w.block("else"):
                if self.turning:
                    w.assign(self.names("rate"), self.rates)
                for place, name in enumerate(kept):
                    w(f"tape[pass][{place}] = {name};")
                self._advance(w)
                with w.block(f"if (pass == {self.passes - 1})", fresh=True):
                    self._read_cotangent(w)
        # The loop ended at the first pass: q and v are the given ones again.
        gradient = manifold.from_tangent(self.model, self.q, self.graph.inputs("lq", self.nv))
        values = [*gradient, *self.graph.inputs("lv", self.nv)]
        for column, value in enumerate(w.compute(*values)):
            w(f"store(state_gradient.data, {self.width}, {column}, select(failed, splat(nothing), splat(0) + {value}));")
        for column in range(len(values), self.width):
            w(f"store(state_gradient.data, {self.width}, {column}, splat(0));")
        for column in range(self.nu):
            w(f"store(control_gradient.data, {self.nu}, {column}, select(failed, splat(nothing), gu{column}));")
        return w.text

    def tangent(self) -> str:
        """(state, control, state_tangent, control_tangent) -> next_tangent, one direction per environment."""
        w = self._begin()
        self._declare(w)
        given = []
        for i in range(self.nq):
            w(f"const vec given{i} = load(state_tangent.data, {self.width}, {i});")
            given.append(self.graph.input(f"given{i}"))
        w.declare([*self.names("tq"), *self.names("tv")])
        # The tangents of a quaternion's four numbers, projected on the sphere.
        halves = manifold.to_tangent(self.model, self.q, given)
        turns = {d + i for _, d in manifold.coordinates(self.model)[1] for i in range(3)}
        with w.block(""):
            w.assign(self.names("tq"), [mul(4.0, x) if d in turns else x for d, x in enumerate(halves)])
        for i in range(self.nv):
            w(f"tv{i} = load(state_tangent.data, {self.width}, {self.nq + i});")
        for i in range(self.nu):
            w(f"const vec tu{i} = load(control_tangent.data, {self.nu}, {i});")
        if self.model.runge_kutta:
            for prefix in ("start_tq", "start_tv", "sum_tv", "sum_ta", "tway", "trate"):
                w.declare(self.names(prefix))
        w.declare([f"first_t{d}" for d in range(self.nv)])
        for d in range(self.nv):
            w(f"first_t{d} = tq{d};")
        with w.block(f"for (int pass = 0; pass < {self.passes}; ++pass)"):
            self._acceleration(w)
            with w.block(""):
                self.sweeps.forward(w)
                self._advance_tangents(w)
            self._advance(w)
        tq = self.graph.inputs("tq", self.nv)
        pushed = manifold.pushed(self.model, self.q, tq)
        along = dict(zip(self.q, pushed, strict=True))
        values = w.compute(*pushed, *self.graph.inputs("tv", self.nv))
        for kind, i in self.model.simulation.readouts:
            if kind is MeanVelocity:
                d = self._dof_of(i)
                values.append(f"(tq{d} - first_t{d}) * {literal(1.0 / self.model.simulation.dt)}")
            else:
                values += w.compute(*jvp(self._position(kind, i), along))
        for column, value in enumerate(values):
            w(f"store(next_tangent.data, {self.width}, {column}, select(failed, splat(nothing), splat(0) + {value}));")
        return w.text

    def _advance_tangents(self, w: Writer) -> None:
        """Move tq and tv to the next pass; q and v are still this one's."""
        h, inputs = literal(self.timestep), self.graph.inputs

        def move(start: str, by: list[str], along: list[str]) -> None:
            with w.block(""):
                for i in range(self.nv):
                    w(f"const vec by{i} = {by[i]}, along{i} = {along[i]};")
                moved = manifold.moved_jvp(
                    self.model, inputs("by", self.nv), inputs(start, self.nv), inputs("along", self.nv)
                )
                w.assign(self.names("tq"), moved)

        if not self.model.runge_kutta:
            for i in range(self.nv):
                w(f"tv{i} += {h} * c{i};")
            move(
                "tq",
                [f"{h} * (v{i} + {h} * e{i})" for i in range(self.nv)],
                [f"{h} * tv{i}" for i in range(self.nv)],
            )
            return
        w("const int stage = pass % 4;")
        w(f"const real share = {self._choice(SHARE)};")
        w(f"const real reach = {self._choice((*REACH, 0.0))};")
        with w.block("if (stage == 0)"):
            for i in range(self.nv):
                w(f"start_tq{i} = tq{i}; start_tv{i} = tv{i}; sum_tv{i} = splat(0); sum_ta{i} = splat(0);")
                w(f"tway{i} = splat(0);")
        along = dict(zip((*self.way, *self.v), (*inputs("tway", self.nv), *inputs("tv", self.nv)), strict=True))
        w.assign(self.names("trate"), jvp(self.rates, along))
        rates = [f"rate{i}" if self.turning else f"v{i}" for i in range(self.nv)]
        if self.turning:
            w.assign(self.names("rate"), self.rates)
        for i in range(self.nv):
            w(f"sum_tv{i} += share * trate{i}; sum_ta{i} += share * x{i};")
        with w.block("if (stage < 3)"):
            for i in range(self.nv):
                w(f"tway{i} = ({h} * reach) * trate{i};")
                w(f"tv{i} = start_tv{i} + ({h} * reach) * x{i};")
            move("start_tq", [f"({h} * reach) * {r}" for r in rates], self.names("tway"))
        with w.block("else"):
            for i in range(self.nv):
                w(f"tv{i} = start_tv{i} + {h} * sum_ta{i};")
            # `_advance` has not added this stage to its sum yet.
            by = [f"{h} * (sum_v{i} + share * {rates[i]})" for i in range(self.nv)]
            move("start_tq", by, [f"{h} * sum_tv{i}" for i in range(self.nv)])

    # -- their parts -------------------------------------------------------------------------------------------------

    def _begin(self) -> Writer:
        w = Writer()
        w.lines += prelude(self.real, self.lanes).strip("\n").split("\n")
        w("const real nothing = real(0) / real(0);")
        for i in range(self.nq):
            w(f"vec q{i} = load(state.data, {self.width}, {i});")
        for i in range(self.nv):
            w(f"vec v{i} = load(state.data, {self.width}, {self.nq + i});")
        for i in range(self.nu):
            w(f"const vec u{i} = load(control.data, {self.nu}, {i});")
        w.declare(self.names("a"))
        return w

    def _declare(self, w: Writer) -> None:
        self.solver.declare(w)
        if self.damped is not None:
            self.damped.declare(w)
        w.declare(self.names("e"))
        if self.model.runge_kutta:
            for prefix, n in (("q", self.nq), ("v", self.nv)):
                w.declare(self.names(f"start_{prefix}", n))
            w.declare([*self.names("sum_v"), *self.names("sum_a")])
        if self.turning:
            w.declare([*self.names("way"), *self.names("rate")])
        w.declare([f"mean{n}" for n in range(len(self._means()))])

    def _acceleration(self, w: Writer) -> None:
        """a{i} at (q, v, u), and for Euler e{i}: (M + h D) e = M a, with the factored matrix B."""
        self.solver.solve(w, self.smooth, self.limits, self.offsets)
        if self.model.runge_kutta:
            return
        if self.damped is None:
            for i in range(self.nv):
                w(f"e{i} = a{i};")
            return
        for i, j in sorted(self.damped.entries):
            (value,) = w.compute(self.mass[i][j])
            extra = f" + {literal(self.timestep * self.damping[i])}" if i == j and self.damping[i] else ""
            w(f"{self.damped[i, j]} = splat(0) + {value}{extra};")
        for i, product in enumerate(times_mass(self.mass, "a")):
            w(f"e{i} = {product};")
        self.damped.factor(w)
        self.damped.solve(w, "e")

    def _advance(self, w: Writer) -> None:
        """Move q and v to the next pass."""
        h = self.timestep
        if not self.model.runge_kutta:
            for i in range(self.nv):
                w(f"v{i} += {literal(h)} * e{i};")
            self._move(w, "q", [f"{literal(h)} * v{i}" for i in range(self.nv)])
            for n, d in enumerate(self._means()):
                w(f"mean{n} += v{d};")
            return
        w("const int stage = pass % 4;")
        with w.block("if (stage == 0)"):
            for i in range(self.nq):
                w(f"start_q{i} = q{i};")
            for i in range(self.nv):
                w(f"start_v{i} = v{i}; sum_v{i} = splat(0); sum_a{i} = splat(0);")
        w(f"const real share = {self._choice(SHARE)};")
        w(f"const real reach = {self._choice((*REACH, 0.0))};")
        if self.turning:
            w.assign(self.names("rate"), self.rates)
        rate = "rate" if self.turning else "v"
        for i in range(self.nv):
            w(f"sum_v{i} += share * {rate}{i}; sum_a{i} += share * a{i};")
        with w.block("if (stage < 3)"):
            self._move(w, "start_q", [f"({literal(h)} * reach) * {rate}{i}" for i in range(self.nv)])
            for i in range(self.nv):
                w(f"v{i} = start_v{i} + ({literal(h)} * reach) * a{i};")
                if self.turning:
                    w(f"way{i} = ({literal(h)} * reach) * rate{i};")
        with w.block("else"):
            self._move(w, "start_q", [f"{literal(h)} * sum_v{i}" for i in range(self.nv)])
            for i in range(self.nv):
                w(f"v{i} = start_v{i} + {literal(h)} * sum_a{i};")
                if self.turning:
                    w(f"way{i} = splat(0);")
            for n, d in enumerate(self._means()):
                w(f"mean{n} += sum_v{d};")

    @staticmethod
    def _choice(values: Sequence[float]) -> str:
        """The value of the current stage."""
        text = literal(values[-1])
        for stage in reversed(range(len(values) - 1)):
            text = f"stage == {stage} ? {literal(values[stage])} : {text}"
        return text

    def _move(self, w: Writer, start: str, by: Sequence[str]) -> None:
        """q = the positions ``start`` moved by displacements (code)."""
        with w.block(""):
            for i, text in enumerate(by):
                w(f"const vec by{i} = {text};")
            moved = manifold.moved(self.model, self.graph.inputs(start, self.nq), self.graph.inputs("by", self.nv))
            w.assign(self.names("q", self.nq), moved)

    def _means(self) -> list[int]:
        """The degrees of freedom whose mean velocity is read out."""
        return [self._dof_of(i) for kind, i in self.model.simulation.readouts if kind is MeanVelocity]

    def _dof_of(self, position: int) -> int:
        return next(d for at, d in manifold.coordinates(self.model)[0] if at == position)

    def _position(self, kind: type, i: int) -> al.Vector:
        """The world position of a body or site, at q."""
        if kind is BodyPosition:
            return self.kinematics.world_position(i, al.ZERO)
        return self.kinematics.world_position(int(self.m.site_bodyid[i]), al.constant(self.m.site_pos[i]))

    def _read_cotangent(self, w: Writer) -> None:
        """lq, lv: the derivative by the last q and v, of next_state's cotangent."""
        graph, simulation = self.graph, self.model.simulation
        given = graph.inputs("given", self.width)
        for i in range(self.width):
            w(f"const vec given{i} = load(cotangent.data, {self.width}, {i});")
        by_q: list[Any] = list(given[: self.nq])
        column = self.nq + self.nv
        for kind, i in simulation.readouts:
            if kind is MeanVelocity:
                # Of the start's, what comes first is taken off at the end: see `sweeps.reverse`.
                by_q[i] = add(by_q[i], mul(1.0 / simulation.dt, given[column]))
                column += 1
                continue
            found = vjp(zip(self._position(kind, i), given[column : column + 3], strict=True))
            by_q = [add(x, found.get(q, 0.0)) for x, q in zip(by_q, self.q, strict=True)]
            column += 3
        w.assign(self.names("lq"), manifold.to_tangent(self.model, self.q, by_q))
        w.assign(self.names("lv"), given[self.nq : self.nq + self.nv])
        # A mean velocity is (q' - q) / dt: its cotangent comes off the derivative by the start.
        w.assign([f"mean{n}" for n in range(len(self._means()))], self._mean_cotangents(given))

    def _mean_cotangents(self, given: Sequence[Any]) -> list[Any]:
        found, column = [], self.nq + self.nv
        for kind, _ in self.model.simulation.readouts:
            if kind is MeanVelocity:
                found.append(mul(1.0 / self.model.simulation.dt, given[column]))
            column += 1 if kind is MeanVelocity else 3
        return found


