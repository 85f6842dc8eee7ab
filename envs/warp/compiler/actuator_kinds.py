"""Stage 0, kinds of actuators: what is covered of them, and which of them act."""

from __future__ import annotations

import math
from typing import Any

from mage_diffsim.envs.mujoco.mixing import inert_pairs
from mage_diffsim.envs.mujoco.model import load_mujoco
from mage_diffsim.envs.warp.compiler.graph import less, number, sqrt, where

GAINS = ("FIXED", "AFFINE", "MUSCLE")
BIASES = ("NONE", "AFFINE", "MUSCLE")
RATES = ("NONE", "INTEGRATOR", "FILTER", "FILTEREXACT", "MUSCLE")
TRANSMISSIONS = ("JOINT", "JOINTINPARENT", "TENDON", "SITE", "SLIDERCRANK", "BODY")
"""What is covered of MuJoCo's types of gain, bias, activation and transmission."""


def refused_actuator(m: Any, i: int) -> str | None:
    """What is not covered of an actuator of an ``MjModel``, as the end of a sentence; None if all is."""
    mujoco = load_mujoco()
    kinds = (
        ("activation", mujoco.mjtDyn(m.actuator_dyntype[i]).name, RATES),
        ("gain", mujoco.mjtGain(m.actuator_gaintype[i]).name, GAINS),
        ("bias", mujoco.mjtBias(m.actuator_biastype[i]).name, BIASES),
        ("transmission", mujoco.mjtTrn(m.actuator_trntype[i]).name, TRANSMISSIONS),
    )
    for what, full, covered in kinds[: 1 if idle(m, i) else None]:
        kind = full.split("_", 1)[1]
        if kind not in covered:
            return f"whose {what} is of type {kind.lower()}"
    if mujoco.mjtTrn(m.actuator_trntype[i]) == mujoco.mjtTrn.mjTRN_BODY and not idle(m, i):
        for pair in inert_pairs(m):
            if pair.reach > pair.margin and int(m.actuator_trnid[i, 0]) in m.geom_bodyid[list(pair.geoms)]:
                return "which counts contacts in the gap of geoms that cannot move against each other"
    if m.actuator_actnum[i] and period(m, i) > 0.0:
        return "which integrates the set point of a rotation"
    return None


def idle(m: Any, i: int) -> bool:
    """Whether the actuator exerts no force because of the options."""
    if m.opt.disableflags & load_mujoco().mjtDisableBit.mjDSBL_ACTUATION:
        return True
    # MuJoCo also brings the force 0 of a disabled actuator into its range.
    low, high = m.actuator_forcerange[i]
    return disabled(m, i) and not (m.actuator_forcelimited[i] and not low <= 0.0 <= high)


def disabled(m: Any, actuator: int) -> bool:
    """Whether the actuator's group is disabled in the options."""
    group = int(m.actuator_group[actuator])
    return 0 <= group <= 30 and bool(m.opt.disableactuator & (1 << group))


def period(m: Any, i: int) -> Any:
    """After what length a position servo on a rotation in space is back where it was [rad]; 0 for other actuators.

    Where the model's numbers are inputs, it is an expression.
    """
    mujoco = load_mujoco()
    transmissions, joints, rates = mujoco.mjtTrn, mujoco.mjtJoint, mujoco.mjtDyn
    servo = (
        m.actuator_gaintype[i] == mujoco.mjtGain.mjGAIN_FIXED
        and m.actuator_biastype[i] == mujoco.mjtBias.mjBIAS_AFFINE
        and rates(m.actuator_dyntype[i]) in (rates.mjDYN_NONE, rates.mjDYN_INTEGRATOR)
    )
    gear, kind, target = m.actuator_gear[i], transmissions(m.actuator_trntype[i]), int(m.actuator_trnid[i, 0])
    at_site = kind == transmissions.mjTRN_SITE and m.actuator_trnid[i, 1] >= 0
    at_joint = kind in (transmissions.mjTRN_JOINT, transmissions.mjTRN_JOINTINPARENT)
    if not servo or not (at_site or (at_joint and m.jnt_type[target] == joints.mjJNT_BALL)):
        return 0.0
    turned = [number(x) for x in (gear[3:] if at_site else gear[:3])]
    square = turned[0] * turned[0] + turned[1] * turned[1] + turned[2] * turned[2]
    some = less(0.0, square)
    length = where(some, sqrt(where(some, square, 1.0)), 0.0)
    # The gain is minus the bias by length, and nothing acts along a line.
    to_be_zero = [number(m.actuator_gainprm[i, 0]) + number(m.actuator_biasprm[i, 1])]
    to_be_zero += [number(x) for x in gear[:3]] if at_site else []
    for x in to_be_zero:
        length = where(less(x, 0.0), 0.0, where(less(0.0, x), 0.0, length))
    return 2.0 * math.pi * length
