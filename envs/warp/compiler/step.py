"""Stage 7, the step: one pass through the equations of motion, and the integrators around it.

A *pass* is one evaluation of the acceleration: one per substep for Euler, four for RK4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mage_diffsim.envs.mujoco.mixing import SMALLEST
from mage_diffsim.envs.mujoco.model import LARGEST, BodyPosition, CentreOfMassVelocity, MeanVelocity, SitePosition
from mage_diffsim.envs.warp.compiler import activation, cost, manifold, noslip_forward, parameters
from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.adhesion_loops import AdhesionLoops
from mage_diffsim.envs.warp.compiler.armature import armatures, with_armatures
from mage_diffsim.envs.warp.compiler.constraints import SINGLE, Contact, contacts
from mage_diffsim.envs.warp.compiler.contact_code import ContactCode
from mage_diffsim.envs.warp.compiler.contact_loops import ContactLoops
from mage_diffsim.envs.warp.compiler.coordinates import Coordinates
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics, centre_of_mass, inverse_dynamics, mass_matrix
from mage_diffsim.envs.warp.compiler.emit import Writer, literal, total
from mage_diffsim.envs.warp.compiler.forces import smooth
from mage_diffsim.envs.warp.compiler.graph import Graph, Node, add, mul
from mage_diffsim.envs.warp.compiler.implicit import Implicit
from mage_diffsim.envs.warp.compiler.intake import Model
from mage_diffsim.envs.warp.compiler.noslip import NoSlip
from mage_diffsim.envs.warp.compiler.repeat import joined
from mage_diffsim.envs.warp.compiler.rows import scalar_rows
from mage_diffsim.envs.warp.compiler.solver import Solver

REACH = (0.5, 0.5, 1.0)
"""RK4: timesteps from the start to the next stage."""
SHARE = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
"""RK4: weight of each stage in the step."""


class Step:
    """The expressions of one model, and the code of a pass.

    Variables of the code: q{i}, v{i}, a{i} positions, velocities, accelerations; e{i} the acceleration that moves the
    velocity (:mod:`.implicit`); act{i} activations; u{i} controls, mocap{i} mocap poses and parameter{i} parameters
    (:mod:`.parameters`), which a step leaves alone.

    Args:
        model: the model.
        exact: whether the code computes in float64.
        records: numbers that an environment's contact records in loops may take.
        words: words of 32 bits in a vector.
    """

    def __init__(self, model: Model, exact: bool, records: int, words: int) -> None:
        graph = self.graph = Graph()
        model = self.model = model.on(graph)
        m = self.m = model.model
        self.nq, self.nv, self.nu, self.na = int(m.nq), int(m.nv), int(m.nu), int(m.na)
        self.timestep = float(m.opt.timestep)
        self.stages = 4 if model.runge_kutta else 1
        self.passes = self.stages * model.simulation.frame_skip
        self.width = len(model.simulation.state_names)
        self.q, self.v, self.a = graph.inputs("q", self.nq), graph.inputs("v", self.nv), graph.inputs("a", self.nv)
        self.u, self.act = graph.inputs("u", self.nu), graph.inputs("act", self.na)
        self.mocap = graph.inputs("mocap", 7 * int(m.nmocap))
        self.parameters = parameters.inputs(graph, model.simulation.model, model.parameters)
        self.drive = activation.inputs(model, self.u, self.act)
        """What the actuators' gains multiply."""
        self.act_rates = activation.rates(model, self.u, self.act)
        self.kinematics = Kinematics(model, self.q, self.mocap)
        noise, looped = SMALLEST if exact else SINGLE, cost.looped(model)
        coordinates = Coordinates(self.kinematics, self.q, noise, looped)
        self.armatures = armatures(coordinates)
        self.mass = with_armatures(m, mass_matrix(self.kinematics), self.armatures)
        bias = inverse_dynamics(self.kinematics, self.v, [0.0] * self.nv)
        for tendon in self.armatures:
            bias = [add(x, y) for x, y in zip(bias, tendon.bias(self.kinematics, self.v), strict=True)]
        self.forces = smooth(coordinates, self.v, self.drive)
        self.smooth = [add(f, mul(-1.0, b)) for f, b in zip(self.forces.total(self.kinematics), bias, strict=True)]
        self.rows = scalar_rows(coordinates, self.v)
        self.rows_across = [row for row in self.rows if row.coordinate.bodies]
        self.rows_at_joints = [row for row in self.rows if not row.coordinate.bodies]
        velocities = self.kinematics.velocities(self.v)
        self.contacts: list[Contact] = []
        code: ContactCode | ContactLoops
        self.adhesion: AdhesionLoops | None = None
        """What the code computes of actuators on bodies, if contacts are in loops."""
        if looped:
            code = ContactLoops(self.kinematics, exact, velocities, records, words)
            self.adhesion = code.adhesion or None
        else:
            self.contacts = joined(graph, contacts(self.kinematics, noise))
            code = ContactCode(self.kinematics, self.contacts, velocities)
        self.solver = Solver(self.kinematics, self.mass, self.rows, code, exact)
        self.implicit = Implicit(coordinates, self.mass, self.armatures, self.v, self.drive, looped)
        noslip = NoSlip(self.kinematics, self.mass, self.rows, code) if model.noslip else None
        self.noslip = None if noslip is None or noslip.empty else noslip
        self.solved = self.a if self.noslip is None else graph.inputs("solved", self.nv)
        """The accelerations that the solver finds; a{i} are those after the sweeps of the noslip solver."""
        self.vectors = [self.vector(*x) for x in model.simulation.readouts if x[0] is not MeanVelocity]
        """The readouts of three numbers, at q and v."""
        self.way = graph.inputs("way", self.nv)
        rotations = manifold.coordinates(model)[1] if model.runge_kutta else []
        self.turning = [d + i for _, d in rotations for i in range(3)]
        """The degrees of freedom of rotations in RK4; ``way{i}`` is the displacement since the step's start."""
        self.rates = manifold.rates(model, self.way, self.v) if self.turning else self.v

    @property
    def given(self) -> dict[int, Node]:
        """The controls and those parameters that anything depends on, by their column in the kernels' controls."""
        needed = {x for node in self.graph.nodes for x in node.args if isinstance(x, Node)}
        if isinstance(self.solver.contacts, ContactLoops):
            needed |= {x for own in self.solver.contacts.fields for x in own}
        found = {self.nu + i: x for i, x in enumerate(self.parameters) if x in needed}
        return {**dict(enumerate(self.u)), **found}

    @property
    def controls(self) -> int:
        """Width of the kernels' controls: the parameters come after MuJoCo's."""
        return self.nu + len(self.parameters)

    @property
    def size(self) -> int:
        """Numbers on the tape of a pass."""
        return len(self.kept) + self.solver.kept

    @property
    def kept(self) -> list[str]:
        """The variables of a pass that the adjoint reads from the tape."""
        names = [*self.names("q", self.nq), *self.names("v"), *self.names("a"), *self.names("act", self.na)]
        names += self.names("solved") if self.noslip is not None else []
        if self.turning:
            names += [f"{name}{i}" for name in ("way", "rate") for i in self.turning]
        if self.model.runge_kutta:
            names += self.names("act_rate", self.na)
        return [*names, *self.implicit.kept, *self.solver.hessian.factors]

    @property
    def last(self) -> list[str]:
        """The variables after the last pass that the adjoint reads from the tape."""
        moving = self.names("v") if self.model.simulation.reads(CentreOfMassVelocity) else []
        return [*self.names("q", self.nq), *moving]

    def names(self, prefix: str, n: int | None = None) -> list[str]:
        """``prefix0`` and so on, by default nv of them."""
        return [f"{prefix}{i}" for i in range(self.nv if n is None else n)]

    def declare(self, w: Writer, which: str) -> None:
        """Variables that live through a whole kernel; all but an adjoint need some for a solve and a move."""
        forward = which != "adjoint"
        self.solver.declare(w, which)
        self.implicit.declare(w)
        if self.noslip is not None:
            self.noslip.declare(w, which)
        if self.model.runge_kutta and forward:
            w.declare([*self.names("start_q", self.nq), *self.names("start_v")])
            w.declare([*self.names("sum_v"), *self.names("sum_a"), *self.names("before")])
            w.declare([*self.names("start_act", self.na), *self.names("sum_act", self.na)])
        if self.model.runge_kutta:
            w.declare(self.names("act_rate", self.na))
        w.declare([f"{name}{i}" for name in ("way", "rate") for i in self.turning])
        w.declare(self.names("mean", len(self.means())))
        if forward:
            w("mask failed = splat(1) < splat(0);")

    def acceleration(self, w: Writer) -> None:
        """Emit a{i} at (q, v, u), and for Euler e{i}."""
        # MuJoCo C checks the first of RK4's stages only.
        first = "if (pass % 4 == 0)" if self.model.runge_kutta else ""
        with w.block(first):
            self.watch_state(w)
        if self.model.runge_kutta:
            self._extrapolate(w)
        if self.noslip is not None:
            self.noslip.clear(w)
        self.solver.solve(w, self.smooth)
        if self.noslip is not None:
            with w.block(""):
                noslip_forward.solve(self.noslip, w)
        with w.block(first):
            self._watch(w, self.names("a"))
        if not self.model.runge_kutta:
            self.implicit.solve(w)

    def _extrapolate(self, w: Writer) -> None:
        """Emit where RK4's solves start: on the line through the accelerations at the last two times.

        Stages come in pairs of one time. The second of a pair starts from the first.
        """
        with w.block("if (pass % 2)"):
            w("const real ahead = pass > 1 ? real(1) : real(0);")
            for i in range(self.nv):
                w(f"{{ const vec last = a{i}; a{i} += ahead * (last - before{i}); before{i} = last; }}")

    def watch_state(self, w: Writer) -> None:
        """Count a diverged state as failed, as MuJoCo C warns of it before each step and after the last."""
        self._watch(w, [*self.names("q", self.nq), *self.names("v")])

    @staticmethod
    def _watch(w: Writer, names: Sequence[str]) -> None:
        """Let ``failed`` grow where one of the variables is beyond :data:`LARGEST`, or NaN."""
        bound = literal(LARGEST**2)
        with w.block(f"if (any(!({total([f'{x} * {x}' for x in names])} <= {bound})))"):
            for x in names:
                w(f"failed = failed | !({x} * {x} <= {bound});")

    def rate(self, w: Writer) -> None:
        """Emit the rates that RK4 sums, where they are not v{i} and a{i}: act_rate{i}, and with rotations rate{i}."""
        w.assign(self.names("act_rate", self.na), self.act_rates)
        w.assign([f"rate{i}" for i in self.turning], [self.rates[i] for i in self.turning])

    def rate_of(self, i: int) -> str:
        """Code of the rate of degree of freedom i that RK4 sums."""
        return f"rate{i}" if i in self.turning else f"v{i}"

    def acted(self, mean: str = "sum_act") -> list[Any]:
        """The activations after a step, [na]; of RK4, from start_act{i} and the mean rates ``{mean}{i}``."""
        if self.model.runge_kutta:
            inputs = self.graph.inputs
            return activation.following(self.model, inputs("start_act", self.na), inputs(mean, self.na))
        return activation.following(self.model, self.act, self.act_rates)

    def advance(self, w: Writer) -> None:
        """Emit the move of q, v and act to the next pass."""
        h = self.timestep
        if not self.model.runge_kutta:
            w.assign(self.names("act", self.na), self.acted())
            for i in range(self.nv):
                w(f"v{i} += {literal(h)} * e{i};")
            self._move(w, "q", [f"{literal(h)} * v{i}" for i in range(self.nv)])
            for n, d in enumerate(self.means()):
                w(f"mean{n} += v{d};")
            return
        w("const int stage = pass % 4;")
        with w.block("if (stage == 0)"):
            for i in range(self.nq):
                w(f"start_q{i} = q{i};")
            for i in range(self.nv):
                w(f"start_v{i} = v{i}; sum_v{i} = splat(0); sum_a{i} = splat(0);")
            for i in range(self.na):
                w(f"start_act{i} = act{i}; sum_act{i} = splat(0);")
        w(f"const real share = {self.choice(SHARE)};")
        w(f"const real reach = {self.choice((*REACH, 0.0))};")
        self.rate(w)
        for i in range(self.nv):
            w(f"sum_v{i} += share * {self.rate_of(i)}; sum_a{i} += share * a{i};")
        for i in range(self.na):
            w(f"sum_act{i} += share * act_rate{i};")
        with w.block("if (stage < 3)"):
            self._move(w, "start_q", [f"({literal(h)} * reach) * {self.rate_of(i)}" for i in range(self.nv)])
            for i in range(self.nv):
                w(f"v{i} = start_v{i} + ({literal(h)} * reach) * a{i};")
                if i in self.turning:
                    w(f"way{i} = ({literal(h)} * reach) * rate{i};")
            for i in range(self.na):
                w(f"act{i} = start_act{i} + ({literal(h)} * reach) * act_rate{i};")
        with w.block("else"):
            self._move(w, "start_q", [f"{literal(h)} * sum_v{i}" for i in range(self.nv)])
            for i in range(self.nv):
                w(f"v{i} = start_v{i} + {literal(h)} * sum_a{i};")
                if i in self.turning:
                    w(f"way{i} = splat(0);")
            w.assign(self.names("act", self.na), self.acted())
            for n, d in enumerate(self.means()):
                w(f"mean{n} += sum_v{d};")

    @staticmethod
    def choice(values: Sequence[float]) -> str:
        """Code of the value that belongs to the current stage."""
        text = literal(values[-1])
        for stage in reversed(range(len(values) - 1)):
            text = f"stage == {stage} ? {literal(values[stage])} : {text}"
        return text

    def _move(self, w: Writer, start: str, by: Sequence[str]) -> None:
        """Emit q = the positions ``start`` moved by displacements (code)."""
        with w.block(""):
            for i, text in enumerate(by):
                w(f"const vec by{i} = {text};")
            moved = manifold.moved(self.model, self.graph.inputs(start, self.nq), self.graph.inputs("by", self.nv))
            w.assign(self.names("q", self.nq), moved)

    def means(self) -> list[int]:
        """The degrees of freedom whose mean velocity is read out."""
        return [self.dof_of(i) for kind, i in self.model.simulation.readouts if kind is MeanVelocity]

    def dof_of(self, position: int) -> int:
        """The degree of freedom of a place in qpos that is no quaternion's."""
        return next(d for at, d in manifold.coordinates(self.model)[0] if at == position)

    def vector(self, kind: type, i: int) -> al.Vector:
        """What a readout of three numbers says, at q and v."""
        if kind is SitePosition:
            return self.kinematics.world_position(int(self.m.site_bodyid[i]), al.constant(self.m.site_pos[i]))
        if kind is BodyPosition:
            return self.kinematics.world_position(i, al.ZERO)
        return centre_of_mass(self.kinematics, i, self.v if kind is CentreOfMassVelocity else None)
