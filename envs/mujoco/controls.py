"""Names the controls of a model's actuators, and finds the ranges that actions in [-1, 1] are scaled to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mage_diffsim.envs.mujoco.model import element_name
from mage_diffsim.envs.mujoco.refusals import Refusal

Range = tuple[float, float]


def control_names(mujoco: Any, model: Any) -> tuple[str, ...]:
    """One name per control: the actuator's, followed by the input's where an actuator has several controls."""
    names = []
    for i, name in enumerate(actuator_names(mujoco, model)):
        inputs = _inputs(mujoco, model, i)
        names += [name] if len(inputs) == 1 else [f"{name}_{x}" for x in inputs]
    return tuple(names)


def actuator_names(mujoco: Any, model: Any) -> tuple[str, ...]:
    """The actuators' names. One without a name takes its joint's, with ``_2`` and so on where that is taken."""
    own = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_ACTUATOR, i) for i in range(model.nactuator)]
    joints = (mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT)
    names = []
    for i, name in enumerate(own):
        if not name and mujoco.mjtTrn(model.actuator_trntype[i]) in joints:
            name = element_name(mujoco, model, "JOINT", int(model.actuator_trnid[i, 0]))
        names.append(name or f"actuator{i}")
    return tuple(distinct(names, keep=[bool(name) for name in own]))


def distinct(names: Sequence[str], keep: Sequence[bool]) -> list[str]:
    """The names, made different: later ones of equals get ``_2``, ``_3``, ...; those to ``keep`` stay as they are."""
    used = {name for name, kept in zip(names, keep, strict=True) if kept}
    found = []
    for name, kept in zip(names, keep, strict=True):
        place, unique = 2, name
        while not kept and unique in used:
            unique, place = f"{name}_{place}", place + 1
        used.add(unique)
        found.append(unique)
    return found


def control_ranges(mujoco: Any, model: Any) -> tuple[Range, ...]:
    """The values of each control that actions -1 and 1 stand for (see :class:`.task.MujocoTask`).

    Controls of :func:`unbounded_controls` are left out.
    """
    return tuple(given for _, _, given in _controls(mujoco, model) if given is not None)


def unbounded_controls(mujoco: Any, model: Any) -> Iterator[Refusal]:
    """Yields a refusal of every control that nothing in the model bounds."""
    for control, (i, what, given) in enumerate(_controls(mujoco, model)):
        if given is None:
            name = control_names(mujoco, model)[control]
            yield Refusal(
                f"nothing bounds the control of actuator {name!r}, and actions in [-1, 1] are scaled to its range; "
                f"give it {_remedy(mujoco, model, i, what)}",
                "controls that nothing bounds",
                (f"actuator {name!r}",),
            )


def _controls(mujoco: Any, model: Any) -> Iterator[tuple[int, str, Range | None]]:
    """The actuator, the input and the range of every control; None where nothing bounds it."""
    for i in range(model.nactuator):
        for k, what in enumerate(_inputs(mujoco, model, i)):
            control = int(model.actuator_ctrladr[i]) + k
            yield i, what, _proper(model.actuator_ctrlrange[control]) or _implied(mujoco, model, i, what)


def _inputs(mujoco: Any, model: Any, i: int) -> list[str]:
    """What the controls of an actuator are: one of the usual kind, components of a rotation, or several setpoints."""
    number, spec = int(model.actuator_ctrlnum[i]), int(model.actuator_ctrlspec[i])
    gain = mujoco.mjtGain(model.actuator_gaintype[i])
    if gain == mujoco.mjtGain.mjGAIN_SO3:
        return list("wxyz"[4 - number :])
    if gain not in (mujoco.mjtGain.mjGAIN_PID, mujoco.mjtGain.mjGAIN_DCMOTOR):
        return ["control"] * number
    inputs = mujoco.mjtCtrlInput.__members__.items()
    return [key.removeprefix("mjINPUT_").lower() for key, bit in inputs if spec & int(bit)][:number]


def _implied(mujoco: Any, model: Any, i: int, what: str) -> Range | None:
    """The range of a control without a ctrlrange, from what it does; None if nothing bounds it."""
    dynamics, gains, biases = mujoco.mjtDyn, mujoco.mjtGain, mujoco.mjtBias
    dynamic, gain = dynamics(model.actuator_dyntype[i]), gains(model.actuator_gaintype[i])
    bias = biases(model.actuator_biastype[i])
    if _idle(mujoco, model, i):
        return -1.0, 1.0
    if dynamic == dynamics.mjDYN_MUSCLE or gain == gains.mjGAIN_MUSCLE:
        return 0.0, 1.0
    if gain == gains.mjGAIN_SO3:
        if dynamic == dynamics.mjDYN_INTEGRATOR:
            return None
        return (-1.0, 1.0) if model.actuator_ctrlnum[i] == 4 else (-np.pi, np.pi)
    if what == "pos":
        return _lengths(mujoco, model, i)
    if what == "ff":
        return _forces(mujoco, model, i)
    if what != "control":
        return None
    activations = _proper(model.actuator_actrange[i]) if model.actuator_actlimited[i] else None
    if dynamic == dynamics.mjDYN_INTEGRATOR:
        return None if activations is None else (activations[0] - activations[1], activations[1] - activations[0])
    if activations is not None:
        return activations
    slope = float(model.actuator_gainprm[i, 0])
    if gain != gains.mjGAIN_FIXED or bias not in (biases.mjBIAS_NONE, biases.mjBIAS_AFFINE):
        return None
    constant, stiffness, _ = model.actuator_biasprm[i, :3] if bias == biases.mjBIAS_AFFINE else np.zeros(3)
    # The force is slope u + constant + stiffness length: for a servo the controls that rest at the ends of its range,
    # for others those that give the largest forces.
    ends = _lengths(mujoco, model, i) if stiffness else _forces(mujoco, model, i)
    if ends is None:
        # Of a motor with any force, gear is the force of action 1.
        free = bias == biases.mjBIAS_NONE and not model.actuator_ctrllimited[int(model.actuator_ctrladr[i])]
        return (-1.0, 1.0) if free else None
    factor = -float(stiffness) if stiffness else 1.0
    return _proper(sorted((factor * end - float(constant)) / slope for end in ends))


def _idle(mujoco: Any, model: Any, i: int) -> bool:
    """Whether an actuator's control changes nothing: it is switched off, or its gain is 0."""
    group, fixed = int(model.actuator_group[i]), mujoco.mjtGain.mjGAIN_FIXED
    return bool(
        model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_ACTUATION
        or (0 <= group <= 30 and model.opt.disableactuator & (1 << group))
        or (mujoco.mjtGain(model.actuator_gaintype[i]) == fixed and not model.actuator_gainprm[i, 0])
    )


def _lengths(mujoco: Any, model: Any, i: int) -> Range | None:
    """The range of an actuator's length: of its joint or tendon, or of a whole turn; None if nothing bounds it."""
    kind, target = mujoco.mjtTrn(model.actuator_trntype[i]), int(model.actuator_trnid[i, 0])
    gear = model.actuator_gear[model.actuator_outadr[i]]
    if kind == mujoco.mjtTrn.mjTRN_TENDON:
        return _scaled(_proper(model.tendon_range[target]), float(gear[0]))
    if kind not in (mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT):
        return None
    joint, turn = mujoco.mjtJoint(model.jnt_type[target]), (-np.pi, np.pi)
    if joint == mujoco.mjtJoint.mjJNT_BALL:
        return _scaled(turn, float(np.linalg.norm(gear[:3])))
    if joint == mujoco.mjtJoint.mjJNT_FREE:
        return None
    given = _proper(model.jnt_range[target]) or (turn if joint == mujoco.mjtJoint.mjJNT_HINGE else None)
    return _scaled(given, float(gear[0]))


def _forces(mujoco: Any, model: Any, i: int) -> Range | None:
    """The range of an actuator's force: its own, or that of its joint or tendon; None if nothing bounds it."""
    if model.actuator_forcelimited[i]:
        return _proper(model.actuator_forcerange[i])
    kind, target = mujoco.mjtTrn(model.actuator_trntype[i]), int(model.actuator_trnid[i, 0])
    gear = float(model.actuator_gear[model.actuator_outadr[i], 0])
    if kind == mujoco.mjtTrn.mjTRN_TENDON and model.tendon_actfrclimited[target]:
        return _proper(model.tendon_actfrcrange[target])  # it bounds the forces on the tendon before their gear
    joints = (mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT)
    if kind in joints and model.jnt_actfrclimited[target] and gear:
        return _scaled(_proper(model.jnt_actfrcrange[target]), 1.0 / gear)
    return None


def _scaled(ends: Range | None, factor: float) -> Range | None:
    return None if ends is None else _proper(sorted(factor * end for end in ends))


def _proper(ends: Any) -> Range | None:
    """The two ends if they are finite and in order, else None: MuJoCo writes 0 and 0 where a range is not given."""
    low, high = (float(end) for end in ends)
    return (low, high) if low < high and np.isfinite(high - low) else None


def _remedy(mujoco: Any, model: Any, i: int, what: str) -> str:
    """The attributes that would give a control a range."""
    if mujoco.mjtGain(model.actuator_gaintype[i]) == mujoco.mjtGain.mjGAIN_PID:
        return f"{what}range='LOW HIGH'"
    more = ""
    if mujoco.mjtDyn(model.actuator_dyntype[i]) == mujoco.mjtDyn.mjDYN_INTEGRATOR:
        more = " or actrange"
    elif mujoco.mjtGain(model.actuator_gaintype[i]) == mujoco.mjtGain.mjGAIN_FIXED:
        more = ", or its joint or tendon a range" if model.actuator_biasprm[i, 1] else " or forcerange"
    return f"ctrlrange='LOW HIGH'{more}"
