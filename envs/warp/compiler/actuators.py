"""Stage 3, actuators: their forces (MuJoCo's mj_fwdActuation)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mage_diffsim.envs.mujoco.mixing import SMALLEST
from mage_diffsim.envs.mujoco.model import load_mujoco
from mage_diffsim.envs.warp.compiler.actuator_kinds import disabled, idle, period
from mage_diffsim.envs.warp.compiler.coordinates import Coordinate, Coordinates
from mage_diffsim.envs.warp.compiler.graph import (
    absolute,
    add,
    div,
    floor,
    less,
    maximum,
    minimum,
    mul,
    number,
    sub,
    where,
)
from mage_diffsim.envs.warp.compiler.transmissions import transmission


def actuator_forces(
    coordinates: Coordinates, v: Sequence[Any], drive: Sequence[Any], scaled: bool = True
) -> dict[int, tuple[Coordinate, Any, Any]]:
    """(coordinate, force along it, its rate) of each actuator that exerts one.

    Args:
        coordinates: of the model at the positions.
        v: the velocities.
        drive: what each actuator's gain multiplies (:func:`.activation.inputs`).
        scaled: whether the forces on a tendon whose sum is outside its ``actuatorfrcrange`` are scaled into that;
            otherwise they are 0.
    """
    m, tendon = coordinates.model, load_mujoco().mjtTrn.mjTRN_TENDON
    motions = coordinates.kinematics.velocities(v)
    along = {i: transmission(coordinates, i) for i in range(m.nactuator) if not idle(m, i)}
    speeds = {i: c.rate(motions, v) for i, c in along.items()}
    found = {i: 0.0 if disabled(m, i) else _force(m, i, c.length, speeds[i], drive[i]) for i, c in along.items()}
    for t in range(m.ntendon):
        mine = [i for i in found if m.actuator_trntype[i] == tendon and m.actuator_trnid[i, 0] == t]
        if mine and m.tendon_actfrclimited[t]:
            share = _share([found[i] for i in mine], m.tendon_actfrcrange[t], scaled)
            for i in mine:
                found[i] = mul(found[i], share)
    for i in found:
        if m.actuator_forcelimited[i]:
            found[i] = clip(found[i], *(float(x) for x in m.actuator_forcerange[i]))
    return {i: (along[i], force, speeds[i]) for i, force in found.items()}


def _force(m: Any, i: int, length: Any, speed: Any, given: Any) -> Any:
    """gain times ``given`` plus bias of actuator i, at length and speed of its coordinate."""
    gain, bias = m.actuator_gainprm[i], m.actuator_biasprm[i]
    gains, biases = load_mujoco().mjtGain, load_mujoco().mjtBias
    low, high = (float(x) for x in m.actuator_lengthrange[i])
    muscle = float(m.actuator_acc0[i]), low, high
    factor: Any = number(gain[0])
    if m.actuator_gaintype[i] == gains.mjGAIN_AFFINE:
        factor = _affine(gain, length, speed)
    elif m.actuator_gaintype[i] == gains.mjGAIN_MUSCLE:
        factor = muscle_gain(length, speed, *muscle, gain)
    rest: Any = 0.0
    if m.actuator_biastype[i] == biases.mjBIAS_AFFINE:
        rest = _affine(bias, length, speed)
    elif m.actuator_biastype[i] == biases.mjBIAS_MUSCLE:
        rest = muscle_bias(length, *muscle, bias)
    turn = period(m, i)
    turns = less(0.0, turn)
    if turns is not False:  # the nearest of the equivalent set points
        whole = mul(turn, floor(add(div(sub(given, length), where(turns, turn, 1.0)), 0.5)))
        given = sub(given, where(turns, whole, 0.0))
    return add(mul(factor, given), rest)


def clip(x: Any, low: float, high: float) -> Any:
    """x between two numbers, which may be infinite."""
    x = x if low == -math.inf else maximum(x, low)
    return x if high == math.inf else minimum(x, high)


def _affine(parameters: Any, length: Any, speed: Any) -> Any:
    constant, by_length, by_speed = (number(x) for x in parameters[:3])
    return add(add(constant, mul(by_length, length)), mul(by_speed, speed))


def _share(forces: Sequence[Any], ends: Any, scaled: bool) -> Any:
    """The factor that brings the sum of forces into a range; if not ``scaled``, 0 outside the range."""
    total: Any = 0.0
    for force in forces:
        total = add(total, force)
    none = less(absolute(total), SMALLEST)
    safe = where(none, 1.0, total)
    low, high = (float(x) for x in ends)
    below, above = (div(end, safe) if scaled else 0.0 for end in (low, high))
    return where(none, 1.0, where(less(total, low), below, where(less(high, total), above, 1.0)))


# -- muscles: parameters (range[2], force, scale, lmin, lmax, vmax, fpmax, fvmax) as in MuJoCo's documentation --


def _muscle(length: Any, acc0: float, low: float, high: float, parameters: Any) -> tuple[Any, Any, Any]:
    """(peak force, optimal length, length over the optimal one)."""
    first, last, force, scale = (number(x) for x in parameters[:4])
    force = where(less(force, 0.0), scale / max(SMALLEST, acc0), force)
    optimum = (high - low) / maximum(last - first, SMALLEST)
    return force, optimum, add(first, div(sub(length, low), maximum(optimum, SMALLEST)))


def muscle_gain(length: Any, speed: Any, acc0: float, low: float, high: float, parameters: Any) -> Any:
    """The active force of a muscle at activation 1, MuJoCo's mju_muscleGain.

    Args:
        length, speed: of the actuator.
        acc0: the acceleration that a unit force makes.
        low, high: the actuator's lengthrange.
        parameters: gainprm.
    """
    force, optimum, x = _muscle(length, acc0, low, high, parameters)
    least, most, fastest, _, stretched = (number(y) for y in parameters[4:9])
    half, back = 0.5 * (least + 1.0), 0.5 * (1.0 + most)

    def square(numerator: Any, width: Any) -> Any:
        share = div(numerator, maximum(width, SMALLEST))
        return mul(0.5, mul(share, share))

    rising = where(less(half, x), sub(1.0, square(sub(1.0, x), 1.0 - half)), square(sub(x, least), half - least))
    falling = where(less(back, x), square(sub(most, x), most - back), sub(1.0, square(sub(x, 1.0), back - 1.0)))
    by_length = where(less(1.0, x), falling, rising)
    by_length = where(less(x, least), 0.0, where(less(most, x), 0.0, by_length))
    rate, y = div(speed, maximum(optimum * fastest, SMALLEST)), stretched - 1.0
    shortening = where(less(-1.0, rate), mul(add(rate, 1.0), add(rate, 1.0)), 0.0)
    lengthening = sub(stretched, div(mul(sub(y, rate), sub(y, rate)), maximum(y, SMALLEST)))
    lengthening = where(less(y, rate), stretched, lengthening)
    return mul(-force, mul(by_length, where(less(0.0, rate), lengthening, shortening)))


def muscle_bias(length: Any, acc0: float, low: float, high: float, parameters: Any) -> Any:
    """The passive force of a muscle, MuJoCo's mju_muscleBias; parameters as in :func:`muscle_gain`."""
    force, _, x = _muscle(length, acc0, low, high, parameters)
    most, passive = number(parameters[5]), number(parameters[7])
    back = 0.5 * (1.0 + most)
    width = maximum(back - 1.0, SMALLEST)
    near, far = div(sub(x, 1.0), width), div(sub(x, back), width)
    curve = where(less(back, x), add(0.5, far), mul(0.5, mul(near, near)))
    return mul(-force * passive, where(less(1.0, x), curve, 0.0))
