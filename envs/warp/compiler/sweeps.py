"""Stage 8, derivative sweeps: what one pass contributes to adjoint and tangents, from residuals at its solution.

At the solution of a pass the accelerations satisfy, with inverse dynamics RNE,

    G1(q, v, u, a) = RNE(q, v, a) + armature a - smooth(q, v, u) - J' f(q, v, a) = 0        (the solver's optimum)
    G2(q, v, u, a, e) = M(q) (e - a) - h D(q, v, u) e = 0                             (:mod:`.implicit`)

with dG1/da = H, the factored Hessian, and dG2/de = M - h D. For a cotangent g of e, mu = (M - h D)^-T g and
lam = H^-1 M mu; the derivative by (q, v, u) is -lam' dG1 - mu' dG2, one reverse sweep over inverse dynamics, forces and
contacts. The mass matrix's algorithm, its factorisation and the solver are not differentiated. Tangents go the other
way: da = -H^-1 dG1 and (M - h D) de = M da - dG2.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler import contact_sweeps, manifold, noslip_reverse, noslip_tangents
from mage_diffsim.envs.warp.compiler.armature import resisted
from mage_diffsim.envs.warp.compiler.constraints import Contact
from mage_diffsim.envs.warp.compiler.contact_loops import ContactLoops
from mage_diffsim.envs.warp.compiler.contact_slots import CodeSlots, LoopSlots
from mage_diffsim.envs.warp.compiler.derivatives import jvp, vjp
from mage_diffsim.envs.warp.compiler.dynamics import Spatial, accelerations, inverse_dynamics, project, wrenches
from mage_diffsim.envs.warp.compiler.emit import Writer, reference
from mage_diffsim.envs.warp.compiler.graph import Node, add, mul, neg, reachable, sub
from mage_diffsim.envs.warp.compiler.loads import Load, along
from mage_diffsim.envs.warp.compiler.noslip import NoSlip
from mage_diffsim.envs.warp.compiler.noslip_records import power as slide_power
from mage_diffsim.envs.warp.compiler.noslip_records import start_of
from mage_diffsim.envs.warp.compiler.repeat import constant_part
from mage_diffsim.envs.warp.compiler.rows import Row
from mage_diffsim.envs.warp.compiler.step import Step


class Sweeps:
    """The code for the derivatives of one pass's accelerations."""

    def __init__(self, step: Step) -> None:
        s = self.step = step
        graph = s.graph
        self.lam, self.mu, self.e = graph.inputs("x", s.nv), graph.inputs("c", s.nv), graph.inputs("e", s.nv)
        kinematics = s.kinematics
        self._motions = [kinematics.velocities(x) for x in (s.solved, s.v, self.lam)]
        self._dynamic = accelerations(kinematics, s.v, s.solved)
        motions = [*self._motions, *self._dynamic]
        tests = [(self._motions[2], wrenches(kinematics, *self._dynamic))]
        if s.implicit.matrix is not None:
            tests.append((kinematics.velocities(self.mu), s.implicit.loads(s.a, self.e)))
            motions += [tests[1][0], *s.implicit.motions(s.a, self.e)]
        self._powers: list[Any] = [0.0] * s.m.nbody
        """lam' G1 + mu' G2 without what belongs to joints and contacts, by body: its load times its motion lam (mu)."""
        for test, loads in tests:
            for b, load in enumerate(loads):
                for motion, x in zip(test[b], load, strict=True):
                    self._powers[b] = add(self._powers[b], al.dot(motion, x))
        for b, load in enumerate(s.forces.bodies):
            for motion, x in zip(self._motions[2][b], load, strict=True):
                self._powers[b] = sub(self._powers[b], al.dot(motion, x))
        pulls = [along(p.coordinate, p.force, self._motions[2], self.lam, p.bodies) for p in s.forces.pulls]
        moving, test = (self._motions[0], s.solved), (self._motions[2], self.lam)
        inertial = [x for tendon in s.armatures for x in tendon.loads(kinematics, self._dynamic, moving, test)]
        contacts = [self._load(n, c) for n, c in enumerate(s.contacts)]
        self.loads = [*contacts, *map(self._row_load, s.rows_across), *pulls, *inertial]
        """What acts between bodies: part of G1."""
        if s.noslip is not None:
            for number, row in enumerate(s.noslip.rows):
                if row.coordinate.bodies:
                    by_row, by_offset, by_force = noslip_reverse.row_seeds(s.noslip, number, graph)
                    motions.append(kinematics.velocities(by_row))
                    change = row.coordinate.rate(motions[-1], by_row)
                    change = add(change, add(mul(by_offset, row.offset), mul(by_force, self._row_force(row))))
                    self.loads.append(Load(row.coordinate.bodies, change, [0.0] * s.nv))
        self.implicit_loads = s.implicit.pulls(s.a, self.e, self.mu)
        """The same of G2, whose test motion is mu."""
        self.lact = graph.inputs("to_rate" if s.model.runge_kutta else "lact", s.na)
        """The derivative by what a pass makes of the activations: their rates in RK4, otherwise the next ones."""
        gathering = [*s.names("gu", s.nu), *s.names("gmocap", len(s.mocap)), *s.names("to_act", s.na)]
        gathering += s.names("gparameter", len(s.parameters))
        self.targets = dict(zip((*s.u, *s.mocap, *s.act, *s.parameters), gathering, strict=True))
        """Inputs on which bodies and joints depend without moving them, and the variables that gather the derivatives
        by them."""
        self._frames = self._places(motions)

    def residuals(self, w: Writer, line: str, meanwhile: Callable[[int], None]) -> None:
        """Emit -lam' dG1 - mu' dG2 with lam = x, mu = c, from the last body to the first; adds to the targets.

        What depends on a body's frame (its own load, loads across bodies, the bodies that it carries) is gathered in
        variables of the code, one for each of the frame's nodes. From there it goes on to the parent's frame and to the
        joints. So little has to be kept at a time. Folding (-(-a) is a) can make an expression depend on a q or v past
        the frames: such a share is gathered, too, until the body is reached that the q or v moves.

        Args:
            w: where the code is written.
            line: code that takes a degree of freedom, and the derivatives by its tangent of q and by its v.
            meanwhile: what emits other code, once for each body.
        """
        s, kinematics, m = self.step, self.step.kinematics, self.step.m
        at_joints = [
            *self._slide_seeds(),
            *zip(self._joint_forces(), self.lam, strict=True),
            *zip(s.implicit.joint_forces(self.e), self.mu, strict=True),
            *((x, neg(lam)) for x, lam in zip(resisted(s.model, s.armatures, s.solved), self.lam, strict=True)),
            *((x, neg(mu)) for x, mu in zip(s.implicit.resistance(s.a, self.e), self.mu, strict=True)),
            *zip(s.act_rates if s.model.runge_kutta else s.acted(), self.lact, strict=True),
        ]
        joints = vjp(at_joints)
        reached = [x for x in self.targets if x in joints]
        for x, text in zip(reached, w.compute(*(joints[x] for x in reached)), strict=True):
            w(f"{self.targets[x]} += {text};")
        loops, (a, v, lam) = s.solver.contacts, self._motions
        if isinstance(loops, ContactLoops):
            if s.adhesion:
                across = [(load.power, 1.0) for load in (*self.loads, *self.implicit_loads)]
                by_rows = vjp([*at_joints, *across])
                s.adhesion.clear(w, "by_")
                w.assign(s.adhesion.names("by_"), [by_rows.get(x, 0.0) for x in s.adhesion.inputs(s.graph)])
            loops.place(w, [v, a, lam], axes=s.adhesion is not None)
            contact_sweeps.reverse(loops, w)
            for x, by in contact_sweeps.by_fields(loops, s.graph):
                w(f"{self.targets[x]} += {reference(by)};")
        gathered: dict[tuple[int, Node], Node] = {}
        moving = {*s.q, *s.v}

        def gather(body: int, node: Node) -> str:
            """The variable for a node of a body's frame; of body 0 for a q or v that is reached past all frames."""
            if (body, node) not in gathered:
                gathered[body, node] = s.graph.input(f"gather{body}_{node.index}")
                w.declare([reference(gathered[body, node])])
            return reference(gathered[body, node])

        for body in reversed(range(1, m.nbody)):
            meanwhile(body)
            for load in (*self.loads, *self.implicit_loads):
                if max(load.bodies) == body:
                    frames = self._frames_of(load)
                    found = vjp([(load.power, 1.0)], cuts=frames)
                    slides = {x.args[0]: by for x, by in found.items() if str(x.args[0]).startswith("slide[")}
                    found = {x: by for x, by in found.items() if x in frames or x in moving or x in self.targets}
                    w.compute(*frames, *constant_part(load.present, load.numbers))
                    names = [self.targets.get(x) or gather(frames.get(x, 0), x) for x in found]
                    with self._present(w, load) as present, self._slide(w, load, slides, present):
                        for name, text in zip(names, w.compute(*found.values()), strict=True):
                            w(f"{name} += {present.format(text)};")
            parent, frame = int(m.body_parentid[body]), set(self._frames[body])
            outer = set(self._frames[parent])
            powers = [(self._powers[body], -1.0)]
            if isinstance(loops, ContactLoops):
                powers += contact_sweeps.seeds(loops, body, s.graph, [v, a, lam])
            own = vjp(powers, cuts=frame)
            seeds = [
                (node, add(gathered.get((body, node), 0.0), own.get(node, 0.0)))
                for node in self._frames[body]
                if node not in outer
            ]
            if s.noslip is not None or s.adhesion is not None:
                seeds += self._axis_seeds(body)
            so_far = [(node, gathered[body, node]) for node in self._frames[body] if (body, node) in gathered]
            reached = [(node, x) for node, x in (*own.items(), *so_far) if node in outer or node not in frame]
            passed: dict[Node, Any] = {}
            for node, x in [*reached, *vjp(seeds, cuts=outer).items()]:
                if node in outer or node in moving or node in self.targets:
                    passed[node] = add(passed.get(node, 0.0), x)
            mine = {s.q[i] for i in kinematics.positions(body)} | {s.v[d] for d in kinematics.dofs(body)}
            on = sorted((node for node in passed if node in outer or node not in mine), key=lambda node: node.index)
            names = [self.targets.get(node) or gather(parent if node in outer else 0, node) for node in on]
            for name, text in zip(names, w.compute(*(passed[node] for node in on)), strict=True):
                w(f"{name} += {text};")
            # A node of the parent's frame is gathered there, also if it is an input.
            by = {
                x: add(joints.get(x, 0.0), add(gathered.get((0, x), 0.0), 0.0 if x in outer else passed.get(x, 0.0)))
                for x in (*s.q, *s.v)
            }
            by_q = manifold.to_tangent(s.model, s.q, [by[q] for q in s.q])
            for d in kinematics.dofs(body):
                w(line.format(d, *w.compute(by_q[d], by[s.v[d]])))

    @staticmethod
    @contextlib.contextmanager
    def _present(w: Writer, load: Load) -> Iterator[str]:
        """A context whose code runs for each copy of the load that is present in any lane.

        It yields code that takes a value, and has it in the lanes where the load is present.
        """
        with w.copies(load.copies, load.numbers):
            if load.present is True:
                yield "{}"
                return
            (present,) = w.compute(load.present)
            with w.block(f"if (any({present}))"):
                yield f"select({present}, splat(0) + {{}}, splat(0))"

    def _axis_seeds(self, body: int) -> list[tuple[Any, Any]]:
        """The axes of a body's joints, and the derivative by each that contacts gather."""
        s = self.step
        return [
            (x, s.graph.input(f"by_axis[{d}][{j}]"))
            for d in s.kinematics.dofs(body)
            for j, x in enumerate((*s.kinematics.axes[d][0], *s.kinematics.axes[d][1]))
            if isinstance(x, Node)
        ]

    def _frames_of(self, load: Load) -> dict[Node, int]:
        """The nodes of its bodies' frames that a load depends on, and the body of each."""
        frames = {node: b for b in sorted(set(load.bodies)) for node in self._frames[b]}
        needed = set(reachable([load.power]))
        return {node: b for node, b in frames.items() if node in needed}

    def _joint_forces(self) -> list[Any]:
        """The forces of springs, dampers, actuators and scalar rows at the joints, [nv]."""
        s = self.step
        forces = list(s.forces.joints)
        for row in s.rows_at_joints:
            force = self._row_force(row)
            for d, share in row.direction.items():
                forces[d] = add(forces[d], mul(share, force))
        return forces

    def _optimum(self) -> list[Any]:
        """G1 without contacts, and without what does not depend on q, v, u and parameters."""
        s = self.step
        at_bodies = project(s.kinematics, s.forces.bodies)
        forces = [add(a, b) for a, b in zip(self._joint_forces(), at_bodies, strict=True)]
        forces = [sub(x, y) for x, y in zip(forces, resisted(s.model, s.armatures, s.solved), strict=True)]
        return [sub(x, f) for x, f in zip(inverse_dynamics(s.kinematics, s.v, s.solved), forces, strict=True)]

    def _places(self, motions: Sequence[Sequence[Spatial]]) -> list[list[Node]]:
        """The nodes of each moving body's frame: its place and its motions, on which all else depends."""
        kinematics = self.step.kinematics
        frames: list[list[Node]] = []
        for b, tree in enumerate(kinematics.tree):
            vectors = [*kinematics.rotation[b], kinematics.position[b], kinematics.origin(b)]
            if self.step.adhesion:
                vectors += [way for d in kinematics.dofs(b) for way in kinematics.axes[d]]
            vectors += [vector for motion in motions for vector in motion[b]]
            found = {x.index: x for vector in vectors for x in vector if isinstance(x, Node)}
            frames.append([found[i] for i in sorted(found)] if tree else [])
        return frames

    def _load(self, number: int, c: Contact) -> Load:
        """The contact as a load; its power is its force times the relative motion lam at it."""
        power: Any = 0.0
        forces: list[Any] = [0.0] * self.step.nv
        for force, row, motion in zip(c.forces(*self._motions[:2]), c.rows, c.along(self._motions[2]), strict=True):
            power = add(power, mul(force, motion))
            forces = [add(total, mul(x, force)) for total, x in zip(forces, row, strict=True)]
        slides = self.step.noslip is not None and len(c.rows) > 1
        if slides:
            given = self.step.graph.input
            a, v, _ = self._motions
            power = add(power, slide_power(c, a, v, lambda name, i: given(f"{name}[{i}]")))
        return Load(c.pair.bodies, power, forces, c.present, c.copies, c.numbers, number if slides else None)

    def _row_force(self, row: Row) -> Any:
        return row.force(self._motions[0], self.step.solved, self._dynamic)

    def _row_load(self, row: Row) -> Load:
        """A row across bodies as a load."""
        return along(row.coordinate, self._row_force(row), self._motions[2], self.lam)

    # -- the noslip solver --

    def slide_back(self, w: Writer) -> None:
        """Emit the derivative x{i} by the solver's accelerations from that by those after the noslip solver."""
        s = self.step
        if s.noslip is not None:
            with w.block(""):
                s.noslip.clear(w)
                s.solver.find(w)
                noslip_reverse.reverse(s.noslip, w)

    def _slide_seeds(self) -> list[tuple[Any, Any]]:
        """What the noslip solver depends on beside contacts and tendons, with minus the derivatives by it."""
        s = self.step
        if s.noslip is None:
            return []
        seeds = noslip_reverse.mass_seeds(s.noslip, s.graph)
        for number, row in enumerate(s.noslip.rows):
            if not row.coordinate.bodies:
                by_row, by_offset, by_force = noslip_reverse.row_seeds(s.noslip, number, s.graph)
                seeds += [(x, by_row[d]) for d, x in row.direction.items()]
                seeds += [(row.offset, by_offset), (self._row_force(row), by_force)]
        return seeds

    @contextlib.contextmanager
    def _slide(self, w: Writer, load: Load, slides: dict[str, Any], present: str) -> Iterator[None]:
        """A context for the code of a load: with what the noslip solver knows of a contact, if it is one's."""
        noslip = self.step.noslip
        if noslip is None or load.contact is None:
            yield
            return
        group, side = noslip.group_of(load.contact), noslip.slots.open_record(w, load.contact)
        noslip_reverse.open_slide(w, group, side)
        yield
        texts = w.compute(*slides.values())
        values = {int(name[6:-1]): present.format(text) for name, text in zip(slides, texts, strict=True)}
        noslip_reverse.close_slide(w, group, side, values)

    def forward(self, w: Writer) -> None:
        """Emit the tangents of a pass, before it moves q and v: da in x{i}, and without RK4 de in c{i}.

        Variables: tq{i}, tv{i}, tact{i}, tmocap{i}, tu{i} and tparameter{i} are the tangents of q, v, act, mocap poses,
        controls and parameters.
        """
        s = self.step
        tangents = self.tangents()
        frames = list(dict.fromkeys(node for load in self.loads for node in self._frames_of(load)))
        w.compute(*frames, *jvp(frames, tangents))
        if not isinstance(s.solver.contacts, ContactLoops):
            w.declare(s.names("force"))
        else:
            w.vectors(("force",), s.nv)
            s.solver.contacts.place(w, [self._motions[1], self._motions[0]], axes=True, tangents=tangents)
            contact_sweeps.tangent(s.solver.contacts, w)
            s.solver.contacts.adhesion.tangent(w)
        for load in self.loads:
            with self._present(w, load) as present:
                for i, text in enumerate(w.compute(*jvp(load.forces, tangents))):
                    w(f"force{i} += {present.format(text)};")
        for i, text in enumerate(w.compute(*jvp(self._optimum(), tangents))):
            w(f"x{i} = force{i} - {text};")
        s.solver.hessian.solve(w, "x")
        if s.noslip is not None:
            with w.block(""):
                self._slide_tangents(w, s.noslip, tangents)
        if s.model.runge_kutta:
            return
        s.implicit.vector(w, "c")
        s.implicit.tangent(w, s.a, self.e, tangents)

    def _slide_tangents(self, w: Writer, noslip: NoSlip, tangents: dict[Node, Any]) -> None:
        """Emit the tangents x{i} after the noslip solver from those of the solver's accelerations."""
        slots = noslip.slots
        noslip_tangents.begin(noslip, w)
        if isinstance(slots, LoopSlots):
            contact_sweeps.slide_tangent(noslip, slots, w)
        for load in self.loads:
            if load.contact is None or not isinstance(slots, CodeSlots):
                continue
            c, g = self.step.contacts[load.contact], noslip.group_of(load.contact)
            dofs = slots.code.groups[g.number - 1].dofs
            with self._present(w, load) as present:
                slots.open_record(w, load.contact)
                parts = start_of(c, self._motions[0], self._motions[1])
                noslip_tangents.store(w, g, present, *(jvp(x, tangents) for x in parts))
                for t, row in enumerate(c.rows[1:]):
                    for p, text in enumerate(w.compute(*jvp([row[d] for d in dofs], tangents))):
                        w(f"own[{g.place('hat', 'along_') + t + g.ways * p}] = {present.format(text)};")
        noslip_tangents.tangent(noslip, w, tangents)

    def tangents(self) -> dict[Node, Any]:
        """The tangents of a pass's inputs."""
        s, inputs = self.step, self.step.graph.inputs
        pushed = manifold.pushed(s.model, s.q, inputs("tq", s.nv))
        rest = [*inputs("tv", s.nv), *inputs("tu", s.nu), *inputs("tact", s.na), *inputs("tmocap", len(s.mocap))]
        rest += inputs("tparameter", len(s.parameters))
        found = dict(zip((*s.q, *s.v, *s.u, *s.act, *s.mocap, *s.parameters), (*pushed, *rest), strict=True))
        if s.adhesion:
            names = map(s.graph.input, s.adhesion.names("t"))
            found |= dict(zip(s.adhesion.inputs(s.graph), names, strict=True))
        return found
