"""Finds the elements of a model that MJX does not support, ignores, or computes otherwise than MuJoCo C."""

from __future__ import annotations

from typing import Any

import numpy as np

from mage_diffsim.envs.mjx.contacts import COLLISIONS, pairs
from mage_diffsim.envs.mujoco.mixing import kind_of
from mage_diffsim.envs.mujoco.model import element_name, load_mujoco

mujoco: Any = load_mujoco()

IGNORED = {
    "actuator_armature": "actuator armature",
    "actuator_damping": "actuator damping",
    "actuator_dampingpoly": "nonlinear actuator damping",
    "actuator_delay": "actuator delay",
    "dof_dampingpoly": "nonlinear joint damping",
    "flg_adhesion": "contact adhesion",
    "geom_fluid": "ellipsoid fluid forces (fluidshape)",
    "geom_surfacevel": "surface velocity of a geom",
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


def unsupported(model: Any) -> str | None:
    """The first reason why this model cannot be stepped, found without calling MJX; None if there is none."""
    return (
        next((f"MJX ignores {feature}" for field, feature in IGNORED.items() if np.any(getattr(model, field, 0))), None)
        or _unsupported_option(model)
        or _unsupported_element(model)
        or _unsupported_rotation(model)
        or _unsupported_contact(model)
    )


def _unsupported_option(model: Any) -> str | None:
    option = model.opt
    integrator = mujoco.mjtIntegrator(option.integrator).name.removeprefix("mjINT_")
    if integrator not in INTEGRATORS:
        return f"integrator {integrator.lower()} is not covered; accepted are {', '.join(INTEGRATORS.values())}"
    if option.noslip_iterations:
        return "MJX ignores noslip_iterations"
    for change, flags, prefix, given in (
        ("DISABLE", mujoco.mjtDisableBit, "mjDSBL_", option.disableflags),
        ("ENABLE", mujoco.mjtEnableBit, "mjENBL_", option.enableflags),
    ):
        for flag, bit in flags.__members__.items():
            short = flag.removeprefix(prefix)
            if flag.startswith(prefix) and given & int(bit) and short not in STEADY[change]:
                return f"MJX ignores option flag {short.lower()} ({change.lower()}d)"
    if integrator == "IMPLICITFAST":
        velocity = (model.actuator_biastype == mujoco.mjtBias.mjBIAS_AFFINE) & (model.actuator_biasprm[:, 2] != 0.0)
        velocity |= (model.actuator_gaintype == mujoco.mjtGain.mjGAIN_AFFINE) & (model.actuator_gainprm[:, 2] != 0.0)
        if np.any(model.actuator_forcelimited & velocity):
            return "MJX integrates actuators with a forcerange by another rule than MuJoCo C (integrator implicitfast)"
        if np.any(model.actuator_gaintype == mujoco.mjtGain.mjGAIN_MUSCLE):
            return "MJX integrates muscles by another rule than MuJoCo C (integrator implicitfast)"
        free = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
        alone = free[model.tree_dofnum[model.dof_treeid[model.jnt_dofadr[free]]] == 6]
        if len(alone):
            name = element_name(mujoco, model, "JOINT", int(alone[0]))
            return (
                f"MJX integrates a free body without further joints ({name}) by another rule (integrator implicitfast)"
            )
    return None


def _unsupported_element(model: Any) -> str | None:
    for i in range(model.nu):
        if 0 <= model.actuator_group[i] <= 30 and model.opt.disableactuator & (1 << int(model.actuator_group[i])):
            return "MJX ignores actuatorgroupdisable"
    if not model.opt.disableflags & (mujoco.mjtDisableBit.mjDSBL_EQUALITY | mujoco.mjtDisableBit.mjDSBL_CONSTRAINT):
        for held in (mujoco.mjtEq.mjEQ_CONNECT, mujoco.mjtEq.mjEQ_WELD):
            if np.any((model.eq_type == held) & model.eq_active0):
                name = held.name.removeprefix("mjEQ_").lower()
                return f"MJX holds the equality constraint {name} by another rule than MuJoCo C"
    wrapping = np.isin(model.wrap_type, (mujoco.mjtWrap.mjWRAP_SPHERE, mujoco.mjtWrap.mjWRAP_CYLINDER))
    for i in np.flatnonzero(wrapping & (np.round(model.wrap_prm) >= 0)):
        name = element_name(mujoco, model, "TENDON", int(np.searchsorted(model.tendon_adr, i, side="right")) - 1)
        return f"MJX wraps tendon {name} by another rule than MuJoCo C where it has a sidesite"
    return None


def _unsupported_rotation(model: Any) -> str | None:
    """Refuses forces that depend on the angle of a rotation in space: MJX's derivative of a small angle is 0."""
    joints = mujoco.mjtJoint
    if not model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_SPRING:
        turning = np.isin(model.jnt_type, (joints.mjJNT_FREE, joints.mjJNT_BALL))
        for joint in np.flatnonzero(turning & (model.jnt_stiffness != 0.0)):
            name = element_name(mujoco, model, "JOINT", int(joint))
            return f"MJX has no derivative of the spring of the free or ball joint {name} where it is at rest"
    for i in range(model.nu):
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
            name = element_name(mujoco, model, "ACTUATOR", i)
            return f"MJX has no derivative of actuator {name} by the rotation that it holds, where that is 0"
    return None


def _unsupported_contact(model: Any) -> str | None:
    for g1, g2, _ in pairs(model):
        kinds = kind_of(model, g1), kind_of(model, g2)
        if kinds not in COLLISIONS:
            one, two = (element_name(mujoco, model, "GEOM", g) for g in (g1, g2))
            return f"contacts of a {kinds[0]} ({one}) with a {kinds[1]} ({two}) are not covered"
    return None
