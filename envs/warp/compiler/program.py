"""Stage 9, programs: one environment step of a model as C++, forward, with its adjoint, and with tangents.

The forward can keep a tape: (q, v, act, a) and the factored Hessian of every pass. The adjoint comes back along it.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from mage_diffsim.envs.mujoco.model import MeanVelocity
from mage_diffsim.envs.warp.compiler import manifold
from mage_diffsim.envs.warp.compiler.derivatives import jvp, vjp
from mage_diffsim.envs.warp.compiler.emit import Writer, helpers, literal, prelude, reference, table, vector
from mage_diffsim.envs.warp.compiler.graph import add, mul
from mage_diffsim.envs.warp.compiler.intake import Model
from mage_diffsim.envs.warp.compiler.integration import Integration
from mage_diffsim.envs.warp.compiler.step import Step
from mage_diffsim.envs.warp.compiler.sweeps import Sweeps

LOCAL = 256 << 10
"""Largest size in bytes of arrays on a CPU's stack. Outside the stack they cost the Ant an eighth of its speed, because
the C++ compiler knows less about what changes them."""


RECORDS = {1: 128 << 10, 8: 64 << 20, 16: 64 << 20}
"""Bytes of contact records in loops, by lanes: of a GPU thread's local memory, or of the heap, for all lanes
together. An environment with a contact beyond them fails."""
STREAMED = 16 << 20
"""Bytes of all tapes of a launch from which a CPU writes them past its caches."""
LEAST_STREAMED = 64 << 10
"""Bytes of a thread's tape up to which it is left to the caches."""
WARP = 32
"""Threads of a GPU that run together. Their tapes are interleaved, so that they read and write neighbours."""


class Program:
    """The code of one model's kernels. Each takes the environments' arrays, and the addresses ``tape`` and ``scratch``.

    Args:
        model: the model as intake read it.
        real: "float" or "double".
        lanes: environments per thread; 1 on a GPU.
    """

    def __init__(self, model: Model, real: str, lanes: int) -> None:
        self.real, self.lanes = real, lanes
        size = 8 if real == "double" else 4
        self.step = Step(
            model, exact=real == "double", records=RECORDS[lanes] // (lanes * size), words=lanes * size // 4
        )
        self.sweeps = Sweeps(self.step)
        self.integration = Integration(self.step, self.sweeps)
        self.arrays = self.step.solver.contacts.records
        """Shapes of the arrays of records of contacts that touch."""
        self.vector = lanes * size
        """Bytes of a ``vec``."""
        self.memory = max(
            sum(rows * columns for rows, columns in self.arrays_of(which).values())
            for which in ("forward", "adjoint", "tangent")
        )
        """Numbers per environment in the arrays of a kernel."""
        self.tile = WARP if lanes == 1 else lanes
        """Environments whose tapes are interleaved: number n of each, then number n + 1."""
        self.tape = self.step.passes * self.step.size + len(self.step.last) + 1
        """Numbers per environment on the tape: of every pass, then the last q (and v), and 1 where the step failed."""
        self.streamed = self.tape * self.vector > LEAST_STREAMED
        """Whether the tapes of many environments are larger than a CPU's caches."""
        self.local = lanes == 1 or self.memory * self.vector <= LOCAL
        """Whether the arrays are local variables; otherwise they lie in memory that ``scratch`` is the address of."""

    def forward(self) -> str:
        """(state, control) -> next_state, and the tape unless its address is 0.

        Parameters are the last columns of control, here and in the other kernels.
        """
        s = self.step
        w = self._begin("forward")
        self._tape(w, "forward")
        with w.loop(f"int pass = 0; pass < {s.passes}; ++pass"):
            s.acceleration(w)
            with w.block("if (tape)"):
                if s.model.runge_kutta:
                    s.rate(w)
                for place, name in enumerate(s.kept):
                    w(f"keep(pass, {place}, {name});")
                s.solver.keep(w, len(s.kept))
            s.advance(w)
        s.watch_state(w)
        with w.block("if (tape)"):
            for place, name in enumerate((*s.last, "select(failed, splat(1), splat(0))")):
                w(f"keep({s.passes}, {place}, {name});")
        share = literal(1.0 / s.model.simulation.frame_skip)
        means = iter(s.names("mean", len(s.means())))
        values = w.compute(*s.q, *s.v, *s.act, *s.mocap)
        vectors = iter(s.vectors)
        for kind, _ in s.model.simulation.readouts:
            if kind is MeanVelocity:
                values.append(f"{next(means)} * {share}")
            else:
                values += w.compute(*next(vectors))
        self._store(w, "next_state", s.width, values)
        return w.text

    def adjoint(self) -> str:
        """(state, control, cotangent) -> state_gradient, control_gradient, along the forward's tape."""
        s = self.step
        w = self._begin("adjoint")
        self._tape(w, "adjoint")
        for place, name in enumerate(s.last):
            w(f"{name} = kept({s.passes}, {place});")
        # The noslip solver finds contacts again.
        w(f"{'const ' if s.noslip is None else ''}mask failed = kept({s.passes}, {len(s.last)}) > real(0);")
        w.declare([*s.names("lq"), *s.names("lv"), *s.names("lact", s.na)])
        given = s.given
        gathered = [self.sweeps.targets[x] for x in given.values()]
        w.declare([*gathered, *s.names("gmocap", len(s.mocap))])
        if s.model.runge_kutta:
            self.integration.declare(w)
        with w.block("", fresh=True):
            self._read_cotangent(w)
        with w.loop(f"int pass = {s.passes - 1}; pass >= 0; --pass"):
            for place, name in enumerate(s.kept):
                w(f"{name} = kept(pass, {place});")
            s.solver.recall(w, len(s.kept))
            if s.adhesion:
                s.adhesion.again(w)
            if not s.model.runge_kutta and not s.implicit.kept:
                s.implicit.solve(w)
            self.integration.reverse(w, functools.partial(self._fetch, w))
        # The loop ended at the first pass: q and v are the given ones again.
        gradient = manifold.from_tangent(s.model, s.q, s.graph.inputs("lq", s.nv))
        values = [*gradient, *s.graph.inputs("lv", s.nv), *s.graph.inputs("lact", s.na)]
        values += s.graph.inputs("gmocap", len(s.mocap))
        self._store(w, "state_gradient", s.width, [*w.compute(*values), *["real(0)"] * (s.width - len(values))])
        by_control = dict(zip(given, gathered, strict=True))
        self._store(w, "control_gradient", s.controls, [by_control.get(i, "real(0)") for i in range(s.controls)])
        return w.text

    def tangent(self) -> str:
        """(state, control, state_tangent, control_tangent) -> next_tangent, one direction per environment."""
        s = self.step
        w = self._begin("tangent")
        for i in range(s.nq):
            w(f"const vec given{i} = load(state_tangent.data, {s.width}, {i});")
        w.declare([*s.names("tq"), *s.names("tv")])
        with w.block(""):
            w.assign(s.names("tq"), manifold.pulled(s.model, s.q, s.graph.inputs("given", s.nq)))
        for i in range(s.nv):
            w(f"tv{i} = load(state_tangent.data, {s.width}, {s.nq + i});")
        for i, name in enumerate((*s.names("tact", s.na), *s.names("tmocap", len(s.mocap)))):
            w(f"vec {name} = load(state_tangent.data, {s.width}, {s.nq + s.nv + i});")
        for i, x in s.given.items():
            w(f"const vec t{reference(x)} = load(control_tangent.data, {s.controls}, {i});")
        if s.model.runge_kutta:
            for prefix in ("start_tq", "start_tv", "sum_tv", "sum_ta", "tway", "trate"):
                w.declare(s.names(prefix))
            for prefix in ("start_tact", "sum_tact"):
                w.declare(s.names(prefix, s.na))
        for d in s.means():
            w(f"const vec first_tq{d} = tq{d};")
        with w.loop(f"int pass = 0; pass < {s.passes}; ++pass"):
            s.acceleration(w)
            with w.block(""):
                self.sweeps.forward(w)
                self.integration.advance(w)
            s.advance(w)
        s.watch_state(w)
        tq = s.graph.inputs("tq", s.nv)
        pushed = manifold.pushed(s.model, s.q, tq)
        poses = s.graph.inputs("tmocap", len(s.mocap))
        faster, numbers = s.graph.inputs("tv", s.nv), s.graph.inputs("tparameter", len(s.parameters))
        along = dict(zip((*s.q, *s.v, *s.mocap, *s.parameters), (*pushed, *faster, *poses, *numbers), strict=True))
        values = w.compute(*pushed, *faster, *s.graph.inputs("tact", s.na), *poses)
        vectors = iter(s.vectors)
        for kind, i in s.model.simulation.readouts:
            if kind is MeanVelocity:
                d = s.dof_of(i)
                values.append(f"(tq{d} - first_tq{d}) * {literal(1.0 / s.model.simulation.dt)}")
            else:
                values += w.compute(*jvp(next(vectors), along))
        self._store(w, "next_tangent", s.width, values)
        return w.text

    # -- their parts --

    def _begin(self, which: str) -> Writer:
        """The prelude and the variables of a kernel. An adjoint reads them from the tape, others from the arguments."""
        s, head = self.step, [prelude(self.real, self.lanes).strip("\n")]
        head += [table(name, values, kind) for name, (kind, values) in s.model.tables.items()]
        w = Writer("\n".join(head), helpers(self.real, self.lanes))
        w("const real nothing = real(0) / real(0);")
        if which != "adjoint":
            for i in range(s.nq):
                w(f"vec q{i} = load(state.data, {s.width}, {i});")
            for i in range(s.nv):
                w(f"vec v{i} = load(state.data, {s.width}, {s.nq + i});")
            for i in range(s.na):
                w(f"vec act{i} = load(state.data, {s.width}, {s.nq + s.nv + i});")
        else:
            w.declare([*s.names("q", s.nq), *s.names("v"), *s.names("act", s.na)])
        begin = 0
        for name, shape in self.arrays_of(which).items():
            w.array(name, shape, None if self.local else begin)
            begin += shape[0] * shape[1]
        for i in range(len(s.mocap)):
            w(f"const vec mocap{i} = load(state.data, {s.width}, {s.nq + s.nv + s.na + i});")
        for i, x in s.given.items():
            w(f"const vec {reference(x)} = load(control.data, {s.controls}, {i});")
        s.declare(w, which)
        return w

    def arrays_of(self, which: str) -> dict[str, tuple[int, int]]:
        """The arrays of a kernel and their shapes: records of contacts, and of the noslip solver."""
        if self.step.noslip is None:
            return self.arrays if which != "adjoint" else {}
        return self.arrays | self.step.noslip.arrays(which)

    def _tape(self, w: Writer, which: str) -> None:
        """The functions ``kept``, the place on this thread's tape of a variable of a pass, and ``keep``, to write it.

        A CPU writes tapes that its caches do not hold past them: it need not read before what it writes.
        """
        w(f"const int beside = {self.tile // self.lanes};")
        w(f"vec* const own = (vec*)tape + (long long)(thread / beside) * ({self.tape} * beside) + thread % beside;")
        w("auto kept = [=](int pass, int place) -> vec& {")
        w(f"    return own[(pass * {self.step.size} + place) * beside];")
        w("};")
        if which == "adjoint":
            return
        write = "kept(pass, place) = x;"
        if self.lanes > 1 and self.streamed:
            w(f"const bool streams = rows > {STREAMED * self.lanes // (self.tape * self.vector)};")
            write = f"if (streams) __builtin_nontemporal_store(x, &kept(pass, place)); else {write}"
        w(f"auto keep = [=](int pass, int place, vec x) {{ {write} }};")

    def _fetch(self, w: Writer, body: int) -> None:
        """On a CPU, fetch a body's share of the tape of the pass before, which the adjoint reads next."""
        if self.lanes > 1 and self.streamed:
            n, bodies = self.step.size, int(self.step.m.nbody) - 1
            begin, end = n * (bodies - body) // bodies, n * (bodies - body + 1) // bodies
            w(f"for (int i = {begin}; i < {end}; ++i) __builtin_prefetch(&kept(pass - 1, i), 0, 2);")

    def _store(self, w: Writer, array: str, width: int, values: list[str]) -> None:
        """Write the first columns of an array, as NaN where the solver did not converge or the state diverged."""
        for column, value in enumerate(values):
            w(f"store({array}.data, {width}, {column}, select(failed, splat(nothing), splat(0) + {value}));")

    def _read_cotangent(self, w: Writer) -> None:
        """The derivatives by the last q, v, act and mocap poses; mean{n}: by the n-th mean velocity, times 1 / dt."""
        s = self.step
        given = s.graph.inputs("given", s.width)
        for i in range(s.width):
            w(f"const vec given{i} = load(cotangent.data, {s.width}, {i});")
        by_q, by_v, by_act, by_mocap = map(list, s.model.simulation.split(np.array(given)))
        means: list[Any] = []
        column, vectors = s.model.simulation.moving, iter(s.vectors)
        for kind, i in s.model.simulation.readouts:
            if kind is MeanVelocity:
                # (q' - q) / dt: what belongs to q is taken off at the start, see Integration.reverse.
                means.append(mul(1.0 / s.model.simulation.dt, given[column]))
                by_q[i] = add(by_q[i], means[-1])
                column += 1
                continue
            found = vjp(zip(next(vectors), given[column : column + 3], strict=True))
            by_q = [add(x, found.get(q, 0.0)) for x, q in zip(by_q, s.q, strict=True)]
            by_v = [add(x, found.get(v, 0.0)) for x, v in zip(by_v, s.v, strict=True)]
            by_mocap = [add(x, found.get(pose, 0.0)) for x, pose in zip(by_mocap, s.mocap, strict=True)]
            for x in filter(found.get, s.parameters):
                w.compute(found[x])
                w(f"{self.sweeps.targets[x]} += {vector(found[x])};")
            column += 3
        w.assign(s.names("lq"), manifold.to_tangent(s.model, s.q, by_q))
        w.assign(s.names("lv"), by_v)
        w.assign(s.names("lact", s.na), by_act)
        w.assign(s.names("gmocap", len(s.mocap)), by_mocap)
        w.assign(s.names("mean", len(means)), means)
