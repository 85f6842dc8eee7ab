"""Stage 7, implicit velocities: the acceleration e that moves them, v' = v + h e, where forces act at the step's end.

    (M - h D) e = M a

D is how smooth forces change with velocities, as far as the integrator takes it:

| integrator | D |
|---|---|
| Euler | joint dampers; nothing if ``eulerdamp`` is disabled |
| implicitfast | dampers, actuators and the fluid; of a tree that is one free joint, the bias, too |
| implicit | dampers, actuators, the fluid and the bias |

As in MuJoCo, D has no entries but those of a degree of freedom with itself, its ancestors and its descendants; in
implicitfast none where MuJoCo's M has no place, as between the slides of a body alone. Where D holds the bias, it is
not symmetric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.armature import Armature, resisted
from mage_diffsim.envs.warp.compiler.coordinates import Coordinate, Coordinates
from mage_diffsim.envs.warp.compiler.derivatives import jvp, vjp
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics, Spatial, accelerations, project, related, wrenches
from mage_diffsim.envs.warp.compiler.emit import Writer, reference
from mage_diffsim.envs.warp.compiler.forces import smooth
from mage_diffsim.envs.warp.compiler.graph import Node, add, is_zero, mul, neg, sub, where
from mage_diffsim.envs.warp.compiler.loads import Load, along_chains
from mage_diffsim.envs.warp.compiler.loops import WRITTEN, LoopedMatrix
from mage_diffsim.envs.warp.compiler.solver import Matrix, times_mass


class Implicit:
    """The code that solves for e at (q, v, u), and the residual G2 = M (e - a) - h D e for the derivative sweeps."""

    def __init__(
        self,
        coordinates: Coordinates,
        mass: list[list[Any]],
        armatures: Sequence[Armature],
        v: Sequence[Any],
        u: Sequence[Any],
        looped: bool,
    ) -> None:
        kinematics = coordinates.kinematics
        model, m = kinematics.model, coordinates.model
        self.timestep = float(m.opt.timestep)
        self._kinematics, self._mass, self._v, self._related = kinematics, mass, list(v), related(m)
        if model.integrator == "implicitfast":
            alone = (d for d in range(m.nv) if m.dof_simplenum[d] and not floats(kinematics, int(m.dof_bodyid[d])))
            for d in alone:
                self._related[d] = [d]
        self._joint_forces: list[Any] = [0.0] * m.nv
        """The forces at joints whose change D is, [nv]."""
        self._loads: list[Spatial] = [(al.ZERO, al.ZERO)] * m.nbody
        """The (torque about the origin, force) on each body whose change D is."""
        self._pulls: list[tuple[Coordinate, Any]] = []
        """Coordinates between bodies, and how the forces along them change with their rates."""
        self._moving: tuple[list[Spatial], ...] = ()
        """The bodies' motions that these loads depend on."""
        self._biased: set[int] = set()
        """The bodies whose bias is in D."""
        if model.implicit_damping is not False:
            dampers = (mul(-x, y) for x, y in zip(model.damping, v, strict=True))
            self._joint_forces = [where(model.implicit_damping, x, 0.0) for x in dampers]
        if model.integrator in ("implicit", "implicitfast"):
            forces = smooth(coordinates, v, u, limited=False)
            self._joint_forces, self._loads = forces.joints, list(forces.bodies)
            for pull in forces.pulls:
                slope = _slope(pull.force, pull.speed)
                if not is_zero(slope):
                    self._pulls.append((pull.coordinate, slope))
            self._moving = accelerations(kinematics, v, [0.0] * m.nv)
            self._biased = {b for b in range(1, m.nbody) if model.integrator == "implicit" or floats(kinematics, b)}
            for b, bias in enumerate(wrenches(kinematics, *self._moving)):
                if b in self._biased:
                    self._loads[b] = _minus(self._loads[b], bias)
        self._change = {place: mul(-self.timestep, x) for place, x in self.entries().items()}
        self._armatures = list(armatures) if self._change else []
        self.matrix: Matrix | LoopedMatrix | None = None
        """M - h D; None where e is a."""
        if self._change:
            places = {(i, j) for i, row in enumerate(mass) for j, x in enumerate(row) if not is_zero(x)}
            skew = {d for b in self._biased for d in kinematics.dofs(b)}
            self.matrix = Matrix("B", m.nv, places | set(self._change), skew)
            entries = self.matrix.entries
            columns = [[j for j in range(i) if (i, j) in entries] for i in range(m.nv)]
            if looped and not skew and sum(len(x) * (len(x) + 1) // 2 for x in columns) > WRITTEN:
                self.matrix = LoopedMatrix("B", columns)

    def entries(self) -> dict[tuple[int, int], Any]:
        """D's entries by (row, column) where they are not 0; where D is symmetric, those in the lower triangle."""
        fluid = project(self._kinematics, self._loads)
        forces = [add(a, b) for a, b in zip(self._joint_forces, fluid, strict=True)]
        found: dict[tuple[int, int], Any] = {}
        for j, body in enumerate(self._kinematics.model.model.dof_bodyid):
            rows = [i for i in self._related[j] if i >= j or body in self._biased]
            for i, x in zip(rows, jvp([forces[i] for i in rows], {self._v[j]: 1.0}), strict=True):
                if not is_zero(x):
                    found[i, j] = x
            for coordinate, slope in self._pulls:
                for i in rows:
                    x = mul(slope, mul(coordinate.row[i], coordinate.row[j]))
                    if not is_zero(x):
                        found[i, j] = add(found.get((i, j), 0.0), x)
        return found

    @property
    def kept(self) -> list[str]:
        """The variables that the adjoint reads from the tape; without any it solves again, which is much code for the
        bias of all bodies."""
        if self.matrix is None or self._kinematics.model.integrator != "implicit":
            return []
        return [*(f"e{i}" for i in range(len(self._v))), *self.matrix.factors]

    def declare(self, w: Writer) -> None:
        """Declare e{i} and the matrix."""
        if self.matrix is not None:
            self.matrix.declare(w)
        self.vector(w, "e")

    def vector(self, w: Writer, name: str) -> None:
        """Declare a vector {name}{i} that the matrix can solve for."""
        if isinstance(self.matrix, LoopedMatrix):
            w.vectors((name,), len(self._v))
        else:
            w.declare([f"{name}{i}" for i in range(len(self._v))])

    def solve(self, w: Writer) -> None:
        """Emit e{i} from a{i}, and leave the matrix factored."""
        if self.matrix is None:
            for i in range(len(self._v)):
                w(f"e{i} = a{i};")
            return
        w.compute(*(x for row in self._mass for x in row), *self._change.values())
        for i, j in self.matrix.places:
            change = f" + {reference(self._change[i, j])}" if (i, j) in self._change else ""
            w(f"{self.matrix[i, j]} = splat(0) + {reference(self._mass[i][j])}{change};")
        for i, product in enumerate(times_mass(self._mass, "a")):
            w(f"e{i} = {product};")
        self.matrix.factor(w)
        self.matrix.solve(w, "e")

    # -- the derivative sweeps --

    def adjoint(self, w: Writer) -> None:
        """Emit mu = (M - h D)^-T c in c{i} and M mu in x{i}, from the cotangent c{i} of e."""
        if self.matrix is None:
            for i in range(len(self._v)):
                w(f"x{i} = c{i};")
            return
        self.matrix.solve(w, "c", transposed=True)
        w.compute(*(x for row in self._mass for x in row))
        for i, product in enumerate(times_mass(self._mass, "c")):
            w(f"x{i} = {product};")

    def tangent(self, w: Writer, a: Sequence[Node], e: Sequence[Node], tangents: Mapping[Node, Any]) -> None:
        """Emit e's tangent in c{i}, from that of a in x{i} and those of q, v and u."""
        if self.matrix is None:
            for i in range(len(self._v)):
                w(f"c{i} = x{i};")
            return
        inertial = project(self._kinematics, self.loads(a, e))
        residual = [sub(x, y) for x, y in zip(inertial, self.joint_forces(e), strict=True)]
        residual = [add(x, y) for x, y in zip(residual, self.resistance(a, e), strict=True)]
        for pull in self.pulls(a, e, e):
            residual = [sub(x, y) for x, y in zip(residual, pull.forces, strict=True)]
        values = w.compute(*jvp(residual, tangents))
        for i, product in enumerate(times_mass(self._mass, "x")):
            w(f"c{i} = {product} - {values[i]};")
        self.matrix.solve(w, "c")

    def loads(self, a: Sequence[Any], e: Sequence[Any]) -> list[Spatial]:
        """G2's part on bodies: the load that accelerates each by e - a, less h times the change of its forces by e."""
        inertial = wrenches(self._kinematics, *self._gap(a, e))
        return [_minus(x, y, self.timestep) for x, y in zip(inertial, self._along(self._loads, e), strict=True)]

    def joint_forces(self, e: Sequence[Any]) -> list[Any]:
        """h times the change of the forces at joints by e, [nv]: -G2's part without bodies."""
        found = []
        for force, near in zip(self._joint_forces, self._related, strict=True):
            found += jvp([force], {self._v[j]: e[j] for j in near})
        return [mul(self.timestep, x) for x in found]

    def resistance(self, a: Sequence[Any], e: Sequence[Any]) -> list[Any]:
        """G2's part that depends on parameters alone: what armature resists e - a with, [nv]."""
        gap = [sub(x, y) for x, y in zip(e, a, strict=True)]
        if self.matrix is None:
            return [0.0] * len(gap)
        return resisted(self._kinematics.model, self._armatures, gap)

    def pulls(self, a: Sequence[Any], e: Sequence[Any], mu: Sequence[Any]) -> list[Load]:
        """-G2's part along coordinates: h times the change by e of the forces between bodies, less what accelerates
        the tendons' armature by e - a."""
        kinematics, found = self._kinematics, []
        moving, test = (kinematics.velocities(e), e), (kinematics.velocities(mu), mu)
        for coordinate, slope in self._pulls:
            found.append(along_chains(coordinate, mul(self.timestep, slope), moving, test, self._related))
        gap = self._gap(a, e)[1], [sub(x, y) for x, y in zip(e, a, strict=True)]
        for tendon in self._armatures:
            found += tendon.inertial(kinematics, gap, test)
        return found

    def motions(self, a: Sequence[Any], e: Sequence[Any]) -> list[list[Spatial]]:
        """The bodies' motions that :meth:`loads` depend on."""
        return [*self._gap(a, e), *self._moving, *(self._along(motion, e) for motion in self._moving)]

    def _gap(self, a: Sequence[Any], e: Sequence[Any]) -> tuple[list[Spatial], list[Spatial]]:
        gap = [sub(x, y) for x, y in zip(e, a, strict=True)]
        return accelerations(self._kinematics, [0.0] * len(gap), gap, gravity=False)

    def _along(self, vectors: Sequence[Spatial], e: Sequence[Any]) -> list[Spatial]:
        """The change of spatial vectors, one for each body, as the velocities change by e."""
        flat = [x for pair in vectors for vector in pair for x in vector]
        found = jvp(flat, dict(zip(self._v, e, strict=True)))
        return [(found[at : at + 3], found[at + 3 : at + 6]) for at in range(0, len(flat), 6)]


def _slope(force: Any, speed: Any) -> Any:
    """The derivative of a force by a speed; folding may have left the force with minus that speed."""
    opposite = neg(speed)
    found = vjp([(force, 1.0)], cuts=[speed, opposite])
    return sub(found.get(speed, 0.0), found.get(opposite, 0.0))


def floats(kinematics: Kinematics, body: int) -> bool:
    """Whether the body's tree has one joint, a free one."""
    m, root = kinematics.model.model, kinematics.tree[body]
    return (
        bool(root)
        and int(m.tree_dofnum[m.body_treeid[root]]) == 6
        and (kinematics.model.joint_kinds[int(m.body_jntadr[root])] == "free")
    )


def _minus(a: Spatial, b: Spatial, factor: float = 1.0) -> Spatial:
    """a - factor b."""
    return al.minus(a[0], al.times(b[0], factor)), al.minus(a[1], al.times(b[1], factor))
