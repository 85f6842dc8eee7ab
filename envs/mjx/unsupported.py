"""Finds the elements of a model that MJX does not support, ignores, or computes otherwise than MuJoCo C."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mage_diffsim.envs.mjx.contacts import COLLISIONS
from mage_diffsim.envs.mujoco.mixing import contact_pairs, kind_of
from mage_diffsim.envs.mujoco.model import element_name, load_mujoco
from mage_diffsim.envs.mujoco.refusals import Refusal, elements_of, flags_beyond, with_first

mujoco: Any = load_mujoco()

IGNORED = {
    "actuator_armature": "actuator armature",
    "actuator_damping": "actuator damping",
    "actuator_dampingpoly": "nonlinear actuator damping",
    "actuator_delay": "actuator delay",
    "dof_dampingpoly": "nonlinear joint damping",
    "geom_adhesion": "contact adhesion",
    "pair_adhesion": "contact adhesion of pairs",
    "geom_fluid": "ellipsoid fluid forces (fluidshape)",
    "geom_surfacevel": "surface velocity",
    "jnt_springyield": "plastic joint springs",
    "jnt_stiffnesspoly": "nonlinear joint stiffness",
    "nplugin": "plugins",
    "tendon_dampingpoly": "nonlinear tendon damping",
    "tendon_springyield": "plastic tendon springs",
    "tendon_stiffnesspoly": "nonlinear tendon stiffness",
}
"""Features that MJX accepts and ignores: field of ``mujoco.MjModel`` that is 0 without the feature, to its name."""


STEADY = {
    "DISABLE": frozenset(
        (
            *("CONSTRAINT", "EQUALITY", "FRICTIONLOSS", "LIMIT", "CONTACT", "SPRING", "DAMPER", "GRAVITY"),
            *("CLAMPCTRL", "WARMSTART", "FILTERPARENT", "ACTUATION", "REFSAFE", "SENSOR", "MIDPHASE", "EULERDAMP"),
            *("AUTORESET", "NATIVECCD", "ISLAND", "MULTICCD"),
        )
    ),
    "ENABLE": frozenset(("ENERGY", "FWDINV", "INVDISCRETE")),
}
"""Flags that are covered, or that change nothing in a step of the models covered."""

INTEGRATORS = {"EULER": "Euler", "RK4": "RK4", "IMPLICITFAST": "implicitfast"}
"""Integrators that are covered: name in ``mujoco.mjtIntegrator`` to name in MJCF."""


def refusals(model: Any) -> Iterator[Refusal]:
    """Yields every reason why a ``mujoco.MjModel`` cannot be stepped, found without calling MJX; nothing if it can."""
    for field, feature in IGNORED.items():
        if np.any(getattr(model, field, 0)):
            elements = elements_of(mujoco, model, field)
            yield Refusal(f"MJX ignores {with_first(feature, elements)}", feature, elements)
    yield from _options(model)
    yield from _elements(model)
    yield from _rotations(model)
    yield from _contacts(model)


def _options(model: Any) -> Iterator[Refusal]:
    option = model.opt
    integrator = mujoco.mjtIntegrator(option.integrator).name.removeprefix("mjINT_")
    if integrator not in INTEGRATORS:
        what = f"integrator {integrator.lower()}"
        yield Refusal(f"{what} is not covered; accepted are {', '.join(INTEGRATORS.values())}", what)
    if option.noslip_iterations:
        yield Refusal("MJX ignores noslip_iterations", "noslip_iterations")
    for flag, change in flags_beyond(mujoco, option, STEADY["DISABLE"], STEADY["ENABLE"]):
        yield Refusal(f"MJX ignores option flag {flag} ({change})", f"option flag {flag} ({change})")
    if integrator == "IMPLICITFAST":
        for i in np.flatnonzero(model.actuator_gaintype == mujoco.mjtGain.mjGAIN_MUSCLE):
            muscle = f"actuator {_name('ACTUATOR', model, i)!r}"
            yield Refusal(
                f"MJX integrates muscles ({muscle}) by another rule than MuJoCo C (integrator implicitfast)",
                "muscles (integrator implicitfast)",
                (muscle,),
            )
        free = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
        for joint in free[model.tree_dofnum[model.dof_treeid[model.jnt_dofadr[free]]] == 6]:
            name = _name("JOINT", model, joint)
            yield Refusal(
                f"MJX integrates a free body without further joints ({name}) by another rule (integrator implicitfast)",
                "free bodies without further joints (integrator implicitfast)",
                (f"joint {name!r}",),
            )


def _elements(model: Any) -> Iterator[Refusal]:
    for kind in (mujoco.mjtTrn.mjTRN_SLIDERCRANK, mujoco.mjtTrn.mjTRN_BODY):
        for i in np.flatnonzero(model.actuator_trntype == kind):
            what = {"SLIDERCRANK": "slider-crank", "BODY": "body"}[kind.name.removeprefix("mjTRN_")]
            actuator = f"actuator {_name('ACTUATOR', model, i)!r}"
            yield Refusal(
                f"MJX has no transmission of type {what}: {actuator}", f"transmissions of type {what}", (actuator,)
            )
    for i in np.flatnonzero(model.actuator_ctrlnum != 1):
        actuator = f"actuator {_name('ACTUATOR', model, i)!r}"
        yield Refusal(f"{actuator} does not have one control", "actuators of several controls", (actuator,))
    for i in range(model.nactuator):
        if 0 <= model.actuator_group[i] <= 30 and model.opt.disableactuator & (1 << int(model.actuator_group[i])):
            actuator = f"actuator {_name('ACTUATOR', model, i)!r}"
            yield Refusal(f"MJX ignores actuatorgroupdisable of {actuator}", "actuatorgroupdisable", (actuator,))
    if not model.opt.disableflags & (mujoco.mjtDisableBit.mjDSBL_EQUALITY | mujoco.mjtDisableBit.mjDSBL_CONSTRAINT):
        for held in (mujoco.mjtEq.mjEQ_CONNECT, mujoco.mjtEq.mjEQ_WELD):
            for i in np.flatnonzero((model.eq_type == held) & model.eq_active0):
                what = f"the equality constraint {held.name.removeprefix('mjEQ_').lower()}"
                equality = f"equality {_name('EQUALITY', model, i)!r}"
                sentence = f"MJX holds {what} ({equality}) by another rule than MuJoCo C"
                yield Refusal(sentence, what, (equality,))
    pulled = np.unique(model.actuator_trnid[model.actuator_trntype == int(mujoco.mjtTrn.mjTRN_TENDON), 0])
    for i in pulled[np.asarray(model.tendon_actfrclimited[pulled], bool)]:
        name = _name("TENDON", model, i)
        yield Refusal(
            f"MJX has no derivative of actuatorfrcrange of tendon {name} where its actuators pull with 0 in sum",
            "actuatorfrcrange of tendons",
            (f"tendon {name!r}",),
        )
    wrapping = np.isin(model.wrap_type, (mujoco.mjtWrap.mjWRAP_SPHERE, mujoco.mjtWrap.mjWRAP_CYLINDER))
    for i in np.flatnonzero(wrapping & (np.round(model.wrap_prm) >= 0)):
        name = _name("TENDON", model, int(np.searchsorted(model.tendon_adr, i, side="right")) - 1)
        yield Refusal(
            f"MJX wraps tendon {name} by another rule than MuJoCo C where it has a sidesite",
            "tendons that wrap beside a sidesite",
            (f"tendon {name!r}",),
        )


def _rotations(model: Any) -> Iterator[Refusal]:
    """Refuses forces that depend on the angle of a rotation in space: MJX's derivative of a small angle is 0."""
    joints = mujoco.mjtJoint
    if not model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_SPRING:
        turning = np.isin(model.jnt_type, (joints.mjJNT_FREE, joints.mjJNT_BALL))
        for joint in np.flatnonzero(turning & (model.jnt_stiffness != 0.0)):
            name = _name("JOINT", model, joint)
            yield Refusal(
                f"MJX has no derivative of the spring of the free or ball joint {name} where it is at rest",
                "springs of free and ball joints",
                (f"joint {name!r}",),
            )
    for i in range(model.nactuator):
        by_length = model.actuator_gaintype[i] != mujoco.mjtGain.mjGAIN_FIXED or not (
            model.actuator_biastype[i] == mujoco.mjtBias.mjBIAS_NONE
            or (model.actuator_biastype[i] == mujoco.mjtBias.mjBIAS_AFFINE and model.actuator_biasprm[i, 1] == 0.0)
        )
        kind, (what, reference) = mujoco.mjtTrn(model.actuator_trntype[i]), model.actuator_trnid[i]
        ball = kind in (mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT) and (
            model.jnt_type[what] == joints.mjJNT_BALL
        )
        site = kind == mujoco.mjtTrn.mjTRN_SITE and reference >= 0 and np.any(model.actuator_gear[i, 3:])
        if by_length and (ball or site):
            name = _name("ACTUATOR", model, i)
            yield Refusal(
                f"MJX has no derivative of actuator {name} by the rotation that it holds, where that is 0",
                "actuators that hold a rotation in space",
                (f"actuator {name!r}",),
            )


def _contacts(model: Any) -> Iterator[Refusal]:
    for pair in contact_pairs(model):
        kinds = kind_of(model, pair.geoms[0]), kind_of(model, pair.geoms[1])
        if kinds not in COLLISIONS:
            one, two = (_name("GEOM", model, g) for g in pair.geoms)
            yield Refusal(
                f"contacts of a {kinds[0]} ({one}) with a {kinds[1]} ({two}) are not covered",
                f"a contact of {kinds[0]} with {kinds[1]}",
                (f"geoms {one!r} and {two!r}",),
            )


def _name(kind: str, model: Any, i: Any) -> str:
    return element_name(mujoco, model, kind, int(i))
