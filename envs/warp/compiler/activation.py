"""Stage 3, activation: how fast the activations of actuators change, and where a step leads them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mage_diffsim.envs.mujoco.mixing import SMALLEST
from mage_diffsim.envs.mujoco.model import load_mujoco
from mage_diffsim.envs.warp.compiler.actuator_kinds import disabled
from mage_diffsim.envs.warp.compiler.graph import add, div, less, maximum, minimum, mul, sub, where
from mage_diffsim.envs.warp.compiler.intake import Model


def rates(model: Model, u: Sequence[Any], act: Sequence[Any]) -> list[Any]:
    """MuJoCo's act_dot, [na], at controls u and activations act."""
    m, found = model.model, [0.0] * len(act)
    for i in _stateful(model):
        if disabled(m, i):
            continue
        at, kind, parameters = int(m.actuator_actadr[i]), _kind(m, i), [float(x) for x in m.actuator_dynprm[i]]
        if kind == "INTEGRATOR":
            found[at] = u[i]
        elif kind == "MUSCLE":
            found[at] = _muscle_rate(u[i], act[at], parameters)
        else:
            found[at] = div(sub(u[i], act[at]), max(SMALLEST, parameters[0]))
    return found


def following(model: Model, act: Sequence[Any], rate: Sequence[Any]) -> list[Any]:
    """The activations after a time step that began at ``act``, [na]: filters of kind ``filterexact`` follow their
    exponential, the others a line; all stay in their ``actrange``."""
    m, found = model.model, list(act)
    h = float(m.opt.timestep)
    for i in _stateful(model):
        at, time = int(m.actuator_actadr[i]), h
        if _kind(m, i) == "FILTEREXACT":
            constant = max(SMALLEST, float(m.actuator_dynprm[i, 0]))
            time = -constant * math.expm1(-h / constant)
        found[at] = add(act[at], mul(time, rate[at]))
        if m.actuator_actlimited[i]:
            low, high = (float(x) for x in m.actuator_actrange[i])
            found[at] = minimum(maximum(found[at], low), high)
    return found


def inputs(model: Model, u: Sequence[Any], act: Sequence[Any]) -> list[Any]:
    """What each actuator's gain multiplies, [nu]: its control, or its activation (of ``actearly``, that after the
    step)."""
    m, found = model.model, list(u)
    early = following(model, act, rates(model, u, act))
    for i in _stateful(model):
        at = int(m.actuator_actadr[i])
        found[i] = early[at] if m.actuator_actearly[i] else act[at]
    return found


def _stateful(model: Model) -> list[int]:
    """The actuators that have an activation; none where actuation is disabled."""
    if model.model.opt.disableflags & load_mujoco().mjtDisableBit.mjDSBL_ACTUATION:
        return []
    return [i for i in range(model.model.nu) if model.model.actuator_actadr[i] >= 0]


def _kind(m: Any, i: int) -> str:
    return load_mujoco().mjtDyn(m.actuator_dyntype[i]).name.removeprefix("mjDYN_")


def _muscle_rate(u: Any, act: Any, parameters: Sequence[float]) -> Any:
    """The rate of a muscle's activation (Millard et al. 2013, https://doi.org/10.1115/1.4023390).

    Args:
        u: the control.
        act: the activation.
        parameters: time constants of activation and deactivation, width of the smooth switch between them.
    """
    rising, falling, width = parameters[:3]
    slowness = add(0.5, mul(1.5, _clip(act)))
    excess = sub(_clip(u), act)
    up, down = mul(rising, slowness), div(falling, slowness)
    if width < SMALLEST:
        constant = where(less(0.0, excess), up, down)
    else:
        x = _clip(add(mul(1.0 / width, excess), 0.5))
        cube = mul(mul(x, x), x)
        constant = add(down, mul(sub(up, down), mul(cube, add(mul(mul(3.0, x), sub(mul(2.0, x), 5.0)), 10.0))))
    return div(excess, maximum(constant, SMALLEST))


def _clip(x: Any) -> Any:
    """x between 0 and 1."""
    return minimum(maximum(x, 0.0), 1.0)
