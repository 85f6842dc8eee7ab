"""Stage 0, intake: reads what the compiler needs from a MuJoCo model, and refuses by name what is not covered."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from mage_diffsim.envs.mujoco.impedance import Impedance, friction_damping
from mage_diffsim.envs.mujoco.mixing import SMALLEST, contact_pairs, kind_of
from mage_diffsim.envs.mujoco.model import Simulation, element_name, load_mujoco
from mage_diffsim.envs.mujoco.refusals import Refusal, elements_of
from mage_diffsim.envs.warp.compiler.rigid import Place, Rigid, geom_place, rigid_bodies
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
    friction: tuple[float, ...]
    """Along both tangents, about the normal, about both tangents; the first dim - 1 of these."""
    slope: float
    """friction[0] / sqrt(impratio), by which friction is stiffer than the normal; 0 without friction."""
    margin: float
    """Contacts at a larger distance do not push [m]. (Gaps only let MuJoCo report contacts earlier.)"""
    inverse_weight: float
    impedance: Impedance
    friction_damping: float
    """The b of friction, where that has rows of its own [1/s]."""


@dataclasses.dataclass(frozen=True)
class Motor:
    """An actuator on a hinge or slide joint: its force is gain u + bias . (1, gear q, gear v), clipped, times gear."""

    dof: int
    position: int
    gear: float
    gain: float
    bias: tuple[float, float, float]
    force_range: tuple[float, float]
    """Ends may be infinite."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A model as the later stages read it."""

    simulation: Simulation
    model: Any
    """``mujoco.MjModel``, for the numbers of the tree: positions, axes, masses, damping."""
    integrator: str
    """"Euler", "RK4", "implicit" or "implicitfast"."""
    implicit_damping: bool
    """Whether Euler takes joint damping at the velocity after the step."""
    gravity: tuple[float, float, float]
    """[m/s^2]; 0 where it is disabled."""
    pairs: tuple[Pair, ...]
    motors: tuple[Motor, ...]
    joint_kinds: tuple[str, ...]
    """"hinge", "slide", "ball" or "free"."""
    bodies: tuple[Rigid, ...]
    """Inertia of the bodies, without those that are welded to another."""

    @property
    def runge_kutta(self) -> bool:
        """Whether steps have four passes."""
        return self.integrator == "RK4"


def read(simulation: Simulation) -> Model:
    """Read a compiled model.

    Raises:
        InputError: the first element found that the compiler does not cover, by name.
    """
    mujoco, model = load_mujoco(), simulation.model
    refusal = next(refusals(model), None)
    if refusal is not None:
        raise InputError(
            f"task {simulation.name}: the Warp compiler does not cover this model ({refusal.sentence}): use backend "
            "mujoco (or mjx, if that covers it)"
        )
    weightless = model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_GRAVITY
    x, y, z = (0.0, 0.0, 0.0) if weightless else model.opt.gravity
    integrator = INTEGRATORS[_integrator(mujoco, model)]
    explicit = integrator != "Euler" or model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_EULERDAMP
    return Model(
        simulation=simulation,
        model=model,
        integrator=integrator,
        # MuJoCo leaves damping explicit where none is positive.
        implicit_damping=not explicit and bool(np.any(model.dof_damping > 0.0)),
        gravity=(float(x), float(y), float(z)),
        pairs=tuple(_pairs(model)),
        motors=tuple(_motor(mujoco, model, i) for i in range(model.nu)),
        joint_kinds=tuple(_joint_kind(mujoco, model, j) for j in range(model.njnt)),
        bodies=tuple(rigid_bodies(model)),
    )


INTEGRATORS = {"EULER": "Euler", "RK4": "RK4", "IMPLICIT": "implicit", "IMPLICITFAST": "implicitfast"}
"""Integrators that are covered: MuJoCo's constant to the name in MJCF."""

DYNAMICS = ("NONE", "INTEGRATOR", "FILTER", "FILTEREXACT", "MUSCLE")
"""Kinds of an actuator's activation that are covered, with one number each."""

COLLISIONS = {
    ("plane", "sphere"),
    ("plane", "capsule"),
    ("sphere", "sphere"),
    ("sphere", "capsule"),
    ("capsule", "capsule"),
}
"""Pairs of geoms that the contact stage knows."""

FORBIDDEN = {
    "nplugin": "plugins",
    "nflex": "flexible bodies",
    "body_gravcomp": "gravity compensation",
    "dof_dampingpoly": "nonlinear joint damping",
    "jnt_stiffnesspoly": "nonlinear joint stiffness",
    "jnt_springyield": "plastic joint springs",
    "jnt_actfrclimited": "actuatorfrcrange of joints",
    "jnt_actgravcomp": "actuatorgravcomp",
    "geom_fluid": "ellipsoid fluid forces (fluidshape)",
    "geom_surfacevel": "surface velocity of a geom",
    "flg_adhesion": "contact adhesion",
    "actuator_armature": "actuator armature",
    "actuator_damping": "actuator damping",
    "actuator_dampingpoly": "nonlinear actuator damping",
}
"""Features that are not covered: field of ``mujoco.MjModel`` that is 0 without the feature, to its name."""

TENDON = ("tendon_stiffness", "tendon_damping", "tendon_armature")
"""Fields by which a tendon acts on joints. An actuator on a tendon is refused separately."""

DISABLED = frozenset(
    (
        *("CONSTRAINT", "EQUALITY", "FRICTIONLOSS", "LIMIT", "CONTACT", "GRAVITY", "CLAMPCTRL", "WARMSTART"),
        *("REFSAFE", "FILTERPARENT", "SENSOR", "MIDPHASE", "AUTORESET", "NATIVECCD", "ISLAND", "MULTICCD", "EULERDAMP"),
    )
)
"""Disable flags that are covered, or that change nothing in the models covered."""
ENABLED = ("ENERGY", "FWDINV")
"""Enable flags that change nothing in a step."""


def refusals(model: Any) -> Iterator[Refusal]:
    """Yields everything in a ``mujoco.MjModel`` that is not covered; nothing if all is."""
    mujoco = load_mujoco()

    def name(kind: str, i: int) -> str:
        return element_name(mujoco, model, kind, i)

    for field, what in FORBIDDEN.items():
        if np.any(getattr(model, field, 0)):
            yield Refusal(what, what, elements_of(mujoco, model, field))
    if model.ntendon and any(np.any(getattr(model, f)) for f in TENDON):
        what = "tendons that pull or limit"
        yield Refusal(what, what, tuple(dict.fromkeys(x for f in TENDON for x in elements_of(mujoco, model, f))))
    option = model.opt
    integrator = _integrator(mujoco, model)
    if integrator not in INTEGRATORS:
        yield Refusal(f"integrator {integrator.lower()}", f"integrator {integrator.lower()}")
    if option.noslip_iterations:
        yield Refusal("noslip iterations", "noslip iterations")
    for flags, prefix, given, covered in (
        (mujoco.mjtDisableBit, "mjDSBL_", option.disableflags, DISABLED),
        (mujoco.mjtEnableBit, "mjENBL_", option.enableflags, ENABLED),
    ):
        for flag, bit in flags.__members__.items():
            short = flag.removeprefix(prefix)
            if flag.startswith(prefix) and given & int(bit) and short not in covered:
                what = f"option flag {short.lower()} {'disabled' if prefix == 'mjDSBL_' else 'enabled'}"
                yield Refusal(what, what)
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
    for j in range(model.njnt):
        if _joint_kind(mujoco, model, j) in ("free", "ball"):
            joint = name("JOINT", j)
            if model.jnt_stiffness[j]:
                what = "stiffness of free or ball joint"
                yield Refusal(f"{what} {joint!r}", f"{what}s", (f"joint {joint!r}",))
    for i in range(model.nactuator):
        group, actuator = int(model.actuator_group[i]), f"actuator {name('ACTUATOR', i)!r}"
        if 0 <= group <= 30 and option.disableactuator & (1 << group):
            what = f"actuator group {group}, which is disabled"
            yield Refusal(what, what, (actuator,))
        if mujoco.mjtTrn(model.actuator_trntype[i]).name not in ("mjTRN_JOINT", "mjTRN_JOINTINPARENT"):
            yield Refusal(
                f"{actuator}, which does not drive a joint", "actuators that do not drive a joint", (actuator,)
            )
        elif _joint_kind(mujoco, model, int(model.actuator_trnid[i, 0])) not in ("hinge", "slide"):
            yield Refusal(f"{actuator} on a free or ball joint", "actuators on free or ball joints", (actuator,))
        dynamics = mujoco.mjtDyn(model.actuator_dyntype[i]).name.removeprefix("mjDYN_")
        if dynamics not in DYNAMICS or model.actuator_actnum[i] > 1:
            what = f"dynamics {dynamics.lower()}"
            yield Refusal(f"{actuator} with {what}", f"actuators with {what}", (actuator,))
        if mujoco.mjtGain(model.actuator_gaintype[i]).name != "mjGAIN_FIXED":
            yield Refusal(f"{actuator}, whose gain is not fixed", "actuators whose gain is not fixed", (actuator,))
        if mujoco.mjtBias(model.actuator_biastype[i]).name not in ("mjBIAS_NONE", "mjBIAS_AFFINE"):
            yield Refusal(f"{actuator}, whose bias is not affine", "actuators whose bias is not affine", (actuator,))
    for found in contact_pairs(model):
        kinds = kind_of(model, found.geoms[0]), kind_of(model, found.geoms[1])
        pair = " and ".join(f"{name('GEOM', g)!r}" for g in found.geoms)
        pair = f"geoms {pair}"
        if kinds not in COLLISIONS:
            what = f"a contact of {kinds[0]} with {kinds[1]}"
            yield Refusal(f"{what}: {pair}", what, (pair,))


def _integrator(mujoco: Any, model: Any) -> str:
    return mujoco.mjtIntegrator(model.opt.integrator).name.removeprefix("mjINT_")


def _joint_kind(mujoco: Any, model: Any, joint: int) -> str:
    return mujoco.mjtJoint(model.jnt_type[joint]).name.removeprefix("mjJNT_").lower()


def _pairs(model: Any) -> list[Pair]:
    """The pairs of geoms whose contacts can act."""
    elliptic = model.opt.cone == load_mujoco().mjtCone.mjCONE_ELLIPTIC
    pairs = []
    for given in contact_pairs(model):
        g1, g2 = given.geoms
        (first, at), (second, there) = geom_place(model, g1), geom_place(model, g2)
        own = int(model.geom_bodyid[g1]), int(model.geom_bodyid[g2])
        friction = tuple(float(x) for x in given.friction[: given.dim - 1])
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
                slope=friction[0] / math.sqrt(max(SMALLEST, model.opt.impratio)) if friction else 0.0,
                margin=given.margin,
                inverse_weight=float(sum(model.body_invweight0[b, 0] for b in own)),
                impedance=impedance.single(),
                friction_damping=friction_damping(model, given.solreffriction, impedance).item(),
            )
        )
    return pairs


def _motor(mujoco: Any, model: Any, i: int) -> Motor:
    joint = int(model.actuator_trnid[i, 0])
    affine = mujoco.mjtBias(model.actuator_biastype[i]).name == "mjBIAS_AFFINE"
    bias = tuple(float(x) for x in model.actuator_biasprm[i, :3]) if affine else (0.0, 0.0, 0.0)
    limited = bool(model.actuator_forcelimited[i])
    low, high = model.actuator_forcerange[i] if limited else (-np.inf, np.inf)
    return Motor(
        dof=int(model.jnt_dofadr[joint]),
        position=int(model.jnt_qposadr[joint]),
        gear=float(model.actuator_gear[i, 0]),
        gain=float(model.actuator_gainprm[i, 0]),
        bias=bias,  # type: ignore[arg-type]
        force_range=(float(low), float(high)),
    )
