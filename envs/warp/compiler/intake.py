"""Stage 0, intake: reads what the compiler needs from a MuJoCo model, and refuses by name what is not covered."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mage_diffsim.envs.mujoco.impedance import Impedance, friction_damping
from mage_diffsim.envs.mujoco.mixing import LEAST_FRICTION, SMALLEST, contact_pairs, kind_of
from mage_diffsim.envs.mujoco.model import Simulation, contacts_enabled, element_name, load_mujoco
from mage_diffsim.envs.mujoco.refusals import Refusal, elements_of, flags_beyond, with_first
from mage_diffsim.envs.warp.compiler import parameters as fields
from mage_diffsim.envs.warp.compiler.actuator_kinds import refused_actuator
from mage_diffsim.envs.warp.compiler.collisions import COLLISIONS
from mage_diffsim.envs.warp.compiler.graph import Graph, less, maximum, mul, number
from mage_diffsim.envs.warp.compiler.hfields import HFields, touching_fields
from mage_diffsim.envs.warp.compiler.hulls import CORNERS, Hulls, touching_meshes
from mage_diffsim.envs.warp.compiler.rigid import Place, Rigid, geom_place, rigid_bodies
from mage_diffsim.envs.warp.compiler.searches import SEARCHES
from mage_diffsim.errors import InputError


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two geoms that may touch, in MuJoCo's order (by type)."""

    geoms: tuple[int, int]
    bodies: tuple[int, int]
    """The bodies that carry them: those with joints, or 0."""
    places: tuple[Place, Place]
    """Where they are in the frames of these bodies."""
    kinds: tuple[str, str]
    dim: int
    """condim: 1 without friction, else 3, 4 or 6."""
    elliptic: bool
    """Whether its friction cone is elliptic; otherwise it is a pyramid."""
    friction: tuple[Any, ...]
    """Along both tangents, about the normal, about both tangents; the first dim - 1 of these."""
    slope: Any
    """friction[0] / sqrt(impratio), by which friction is stiffer than the normal; 0 without friction."""
    margin: float
    """Contacts at a larger distance do not push [m]."""
    reach: float
    """MuJoCo lists no contacts at a larger distance [m]: the margin plus the gap, which may be negative."""
    inverse_weight: float
    impedance: Impedance
    friction_damping: float
    """The b of friction, where that has rows of its own [1/s]."""
    rough: tuple[int, ...]
    """The geoms whose friction it is the larger of; () of an explicit pair."""

    @property
    def origin(self) -> int:
        """The body whose tree's origin the contacts' points are relative to."""
        return self.bodies[1] or self.bodies[0]


@dataclasses.dataclass(frozen=True)
class Model:
    """A model as the later stages read it."""

    simulation: Simulation
    model: Any
    """``mujoco.MjModel``, or a view of it (:mod:`.parameters`), for the numbers of the tree: positions, axes, masses,
    damping."""
    integrator: str
    """"Euler", "RK4", "implicit" or "implicitfast"."""
    implicit_damping: Any
    """Condition: Euler takes joint damping at the velocity after the step."""
    gravity: tuple[Any, Any, Any]
    """[m/s^2]; 0 where it is disabled."""
    pairs: tuple[Pair, ...]
    armature: tuple[Any, ...]
    """Of each degree of freedom, with that of its joint's actuators [kg or kg m^2]."""
    damping: tuple[Any, ...]
    """Of each degree of freedom, with that of its joint's actuators [N s/m or N m s]."""
    tendon_armature: tuple[Any, ...]
    """Of each tendon, with that of its actuators [kg]."""
    tendon_damping: tuple[Any, ...]
    """Of each tendon, with that of its actuators [N s/m]."""
    joint_kinds: tuple[str, ...]
    """"hinge", "slide", "ball" or "free"."""
    bodies: tuple[Rigid, ...]
    """Inertia of the bodies, without those that are welded to another."""
    parameters: tuple[str, ...] = ()
    """The fields whose numbers are inputs of a step (:mod:`.parameters`)."""

    @functools.cached_property
    def hulls(self) -> Hulls:
        """The hulls of the meshes that may touch."""
        return Hulls(self.model, touching_meshes(self.model, [pair.geoms for pair in self.pairs]))

    @functools.cached_property
    def hfields(self) -> HFields:
        """The height fields that may touch."""
        return HFields(self.model, touching_fields(self.model, [pair.geoms for pair in self.pairs]))

    @property
    def tables(self) -> dict[str, tuple[str, list[Any]]]:
        """What searches read: name to the type of numbers, and these."""
        return self.hulls.tables | self.hfields.tables

    @property
    def noslip(self) -> bool:
        """Whether sweeps of the noslip solver follow the solve."""
        return self.model.opt.noslip_iterations > 0

    @property
    def runge_kutta(self) -> bool:
        """Whether steps have four passes."""
        return self.integrator == "RK4"

    def on(self, graph: Graph) -> Model:
        """The model with a graph's inputs in place of the parameters' numbers."""
        if not self.parameters:
            return self
        return _of(self.simulation, fields.with_inputs(graph, self.model, self.parameters), self.parameters)


def read(simulation: Simulation, parameters: tuple[str, ...] = ()) -> Model:
    """Read a compiled model.

    Args:
        simulation: the model.
        parameters: the fields whose numbers are inputs of a step, in the order of :data:`.parameters.NAMES`.

    Raises:
        InputError: the first element found that the compiler does not cover, by name.
    """
    model = simulation.model
    refusal = next(refusals(model), None)
    if refusal is not None:
        raise InputError(
            f"task {simulation.name}: the Warp compiler does not cover this model ({refusal.sentence}): use backend "
            "mujoco (or mjx, if that covers it)"
        )
    return _of(simulation, model, parameters)


def _of(simulation: Simulation, model: Any, parameters: tuple[str, ...]) -> Model:
    """What the later stages read of an ``MjModel`` or a view of it."""
    mujoco = load_mujoco()
    weightless = model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_GRAVITY
    x, y, z = (0.0, 0.0, 0.0) if weightless else model.opt.gravity
    integrator = INTEGRATORS[_integrator(mujoco, model)]
    flags = mujoco.mjtDisableBit
    explicit = integrator != "Euler" or model.opt.disableflags & (flags.mjDSBL_EULERDAMP | flags.mjDSBL_DAMPER)
    return Model(
        simulation=simulation,
        model=model,
        integrator=integrator,
        implicit_damping=not explicit and (bool(np.any(model.jnt_actuatorid != -1)) or _any_damping(model)),
        gravity=(number(x), number(y), number(z)),
        pairs=tuple(_pairs(simulation.model, model)),
        armature=with_actuators(model, "armature"),
        damping=with_actuators(model, "damping"),
        tendon_armature=with_actuators(model, "armature", tendons=True),
        tendon_damping=with_actuators(model, "damping", tendons=True),
        joint_kinds=tuple(_joint_kind(mujoco, model, j) for j in range(model.njnt)),
        bodies=tuple(rigid_bodies(model)),
        parameters=parameters,
    )


def _any_damping(model: Any) -> Any:
    """The condition that a joint's damping is positive: MuJoCo leaves damping explicit where none is."""
    largest: Any = 0.0
    for x in model.dof_damping:
        largest = maximum(largest, number(x))
    return less(0.0, largest)


INTEGRATORS = {"EULER": "Euler", "RK4": "RK4", "IMPLICIT": "implicit", "IMPLICITFAST": "implicitfast"}
"""Integrators that are covered: MuJoCo's constant to the name in MJCF."""

FORBIDDEN = {
    "nplugin": "plugins",
    "nflex": "flexible bodies",
    "dof_dampingpoly": "nonlinear joint damping",
    "jnt_stiffnesspoly": "nonlinear joint stiffness",
    "jnt_springyield": "plastic joint springs",
    "geom_fluid": "ellipsoid fluid forces (fluidshape)",
    "geom_surfacevel": "surface velocity",
    "geom_adhesion": "contact adhesion",
    "pair_adhesion": "contact adhesion of pairs",
    "tendon_dampingpoly": "nonlinear tendon damping",
    "tendon_stiffnesspoly": "nonlinear tendon stiffness",
    "tendon_springyield": "plastic tendon springs",
    "nhistory": "delays of actuators or sensors",
    "actuator_dampingpoly": "nonlinear actuator damping",
}
"""Features that are not covered: field of ``mujoco.MjModel`` that is 0 without the feature, to its name."""

DISABLED = frozenset(
    (
        *("CONSTRAINT", "EQUALITY", "FRICTIONLOSS", "LIMIT", "CONTACT", "GRAVITY", "CLAMPCTRL", "WARMSTART"),
        *("SPRING", "DAMPER", "ACTUATION"),
        *("REFSAFE", "FILTERPARENT", "SENSOR", "MIDPHASE", "AUTORESET", "NATIVECCD", "ISLAND", "MULTICCD", "EULERDAMP"),
    )
)
"""Disable flags that are covered, or that change nothing in the models covered."""
ENABLED = ("ENERGY", "FWDINV", "INVDISCRETE")
"""Enable flags that change nothing in a step."""


def refusals(model: Any) -> Iterator[Refusal]:
    """Yields everything in a ``mujoco.MjModel`` that is not covered; nothing if all is."""
    mujoco = load_mujoco()

    def name(kind: str, i: int) -> str:
        return element_name(mujoco, model, kind, i)

    for field, what in FORBIDDEN.items():
        if np.any(getattr(model, field, 0)) and not _switched_off(model, field):
            elements = elements_of(mujoco, model, field)
            yield Refusal(with_first(what, elements), what, elements)
    option = model.opt
    integrator = _integrator(mujoco, model)
    if integrator not in INTEGRATORS:
        yield Refusal(f"integrator {integrator.lower()}", f"integrator {integrator.lower()}")
    for flag, change in flags_beyond(mujoco, option, DISABLED, ENABLED):
        yield Refusal(f"option flag {flag} {change}", f"option flag {flag} {change}")
    flags = mujoco.mjtDisableBit
    for j in range(model.njnt):
        loss = model.dof_frictionloss[model.jnt_dofadr[j]] if not option.disableflags & flags.mjDSBL_FRICTIONLOSS else 0
        if loss < 0.0:
            joint = name("JOINT", j)
            yield Refusal(f"negative friction loss of joint {joint!r}", "negative friction loss", (f"joint {joint!r}",))
    for e in range(model.neq):
        kind = mujoco.mjtEq(model.eq_type[e]).name.removeprefix("mjEQ_").lower()
        if (
            kind not in ("joint", "tendon", "connect", "weld")
            and model.eq_active0[e]
            and not option.disableflags & flags.mjDSBL_EQUALITY
        ):
            equality = name("EQUALITY", e)
            yield Refusal(f"equality {equality!r} of kind {kind}", f"equality {kind}", (f"equality {equality!r}",))
    for i in range(model.nactuator):
        if (what := refused_actuator(model, i)) is not None:
            actuator = f"actuator {name('ACTUATOR', i)!r}"
            yield Refusal(f"{actuator}, {what}", f"actuators {what}", (actuator,))
    for found in contact_pairs(model):
        kinds = kind_of(model, found.geoms[0]), kind_of(model, found.geoms[1])
        pair = " and ".join(f"{name('GEOM', g)!r}" for g in found.geoms)
        pair = f"geoms {pair}"
        what = f"a contact of {kinds[0]} with {kinds[1]}"
        if kinds not in COLLISIONS and kinds not in SEARCHES:
            yield Refusal(f"{what}: {pair}", what, (pair,))
    meshes = touching_meshes(model, [found.geoms for found in contact_pairs(model)])
    flat = [name("MESH", mesh) for mesh in meshes if model.mesh_graphadr[mesh] < 0]
    if flat:
        yield Refusal(f"mesh {flat[0]!r} without a convex hull", "meshes without a convex hull", tuple(flat))
    elif (corners := sum(int(model.mesh_graph[model.mesh_graphadr[mesh]]) for mesh in meshes)) > CORNERS:
        what = f"convex hulls of meshes with more than {CORNERS} corners"
        yield Refusal(f"{what} together: {corners}; maxhullvert limits them", what)


def _switched_off(m: Any, field: str) -> bool:
    """Whether the options keep a field of :data:`FORBIDDEN` from acting."""
    flags, given = load_mujoco().mjtDisableBit, int(m.opt.disableflags)
    spring, damper = bool(given & flags.mjDSBL_SPRING), bool(given & flags.mjDSBL_DAMPER)
    if field.endswith("stiffnesspoly"):
        return spring
    if field.endswith("dampingpoly"):
        return damper
    if field == "geom_fluid":
        return (spring and damper) or not (m.opt.density or m.opt.viscosity)
    return field == "geom_surfacevel" and not contacts_enabled(m)


def _integrator(mujoco: Any, model: Any) -> str:
    return mujoco.mjtIntegrator(model.opt.integrator).name.removeprefix("mjINT_")


def _joint_kind(mujoco: Any, model: Any, joint: int) -> str:
    return mujoco.mjtJoint(model.jnt_type[joint]).name.removeprefix("mjJNT_").lower()


def _pairs(own: Any, model: Any) -> list[Pair]:
    """The pairs of geoms whose contacts can act, of an ``MjModel`` with its own numbers and the one that is read."""
    elliptic = model.opt.cone == load_mujoco().mjtCone.mjCONE_ELLIPTIC
    pairs = []
    for given in contact_pairs(own):
        g1, g2 = given.geoms
        (first, at), (second, there) = geom_place(model, g1), geom_place(model, g2)
        own = int(model.geom_bodyid[g1]), int(model.geom_bodyid[g2])
        friction = friction_of(model, given.rough, given.friction.tolist())[: given.dim - 1]
        impedance = Impedance.of(model, given.solref, given.solimp)
        pairs.append(
            Pair(
                geoms=(g1, g2),
                bodies=(first, second),
                places=(at, there),
                kinds=(kind_of(model, g1), kind_of(model, g2)),
                dim=given.dim,
                elliptic=elliptic,
                friction=friction,
                slope=slope_of(model, friction),
                margin=given.margin,
                reach=given.reach,
                inverse_weight=float(sum(model.body_invweight0[b, 0] for b in own)),
                impedance=impedance.single(),
                friction_damping=friction_damping(model, given.solreffriction, impedance).item(),
                rough=given.rough,
            )
        )
    return pairs


def friction_of(model: Any, rough: tuple[int, ...], own: Sequence[Any]) -> tuple[Any, ...]:
    """The five coefficients of friction of a pair: its own, unless friction of geoms is a parameter.

    Args:
        model: the model or a view of it.
        rough: as :attr:`Pair.rough`.
        own: the model's own coefficients.
    """
    if not rough or model.geom_friction.dtype != object:
        return tuple(own)
    largest: list[Any] = [LEAST_FRICTION] * 3
    for g in rough:
        largest = [maximum(x, y) for x, y in zip(largest, model.geom_friction[g], strict=True)]
    sliding, torsional, rolling = largest
    return sliding, sliding, torsional, rolling, rolling


def slope_of(model: Any, friction: Sequence[Any]) -> Any:
    """See :attr:`Pair.slope`."""
    return friction[0] / math.sqrt(max(SMALLEST, model.opt.impratio)) if friction else 0.0


def with_actuators(model: Any, name: str, tendons: bool = False) -> tuple[Any, ...]:
    """Armature or damping of each degree of freedom or tendon, with what its actuators add (MuJoCo's
    mj_actuatorArmature)."""
    kinds = load_mujoco().mjtTrn
    found = [number(x) for x in getattr(model, f"{'tendon' if tendons else 'dof'}_{name}")]
    driving = (kinds.mjTRN_TENDON,) if tendons else (kinds.mjTRN_JOINT, kinds.mjTRN_JOINTINPARENT)
    for i in range(model.nactuator):
        if kinds(model.actuator_trntype[i]) in driving:
            target = int(model.actuator_trnid[i, 0])
            places = (target,) if tendons else (d for d in range(model.nv) if model.dof_jntid[d] == target)
            gear = number(model.actuator_gear[i, 0])
            for place in places:
                found[place] = found[place] + mul(float(getattr(model, f"actuator_{name}")[i]), mul(gear, gear))
    return tuple(found)
