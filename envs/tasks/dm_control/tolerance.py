"""How near a number is to an interval, from 1 to 0: what dm_control's rewards are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from mage_diffsim.errors import InputError, unknown_name
from mage_diffsim.shapes import Float, Tensor

SIGMOIDS: dict[str, Callable[[Any, float], Any]] = {
    "gaussian": lambda d, v: (math.log(v) * d.square()).exp(),
    "hyperbolic": lambda d, v: 1.0 / (math.acosh(1.0 / v) * d).cosh(),
    "long_tail": lambda d, v: 1.0 / ((1.0 / v - 1.0) * d.square() + 1.0),
    "reciprocal": lambda d, v: 1.0 / ((1.0 / v - 1.0) * d + 1.0),
    "cosine": lambda d, v: 0.5 + 0.5 * (math.acos(2.0 * v - 1.0) * d).clamp(max=math.pi).cos(),
    "linear": lambda d, v: (1.0 - (1.0 - v) * d).clamp(min=0.0),
    "quadratic": lambda d, v: (1.0 - (1.0 - v) * d.square()).clamp(min=0.0),
    "tanh_squared": lambda d, v: 1.0 - (math.atanh(math.sqrt(1.0 - v)) * d).tanh().square(),
}
"""Name to the function of the distance in margins, and of its value at a distance of 1."""
REACH_ZERO = ("cosine", "linear", "quadratic")
"""Those that may be 0 at the margin."""


def tolerance(
    x: Float[Tensor, "*batch"],
    low: float = 0.0,
    high: float = 0.0,
    *,
    margin: float = 0.0,
    sigmoid: str = "gaussian",
    value_at_margin: float = 0.1,
) -> Float[Tensor, "*batch"]:
    """1 where ``low <= x <= high``, falling to 0 outside, as ``dm_control.utils.rewards.tolerance``.

    Its derivative is 0 inside the interval and at its ends.

    Args:
        x: any numbers.
        low, high: the interval's ends, which may be infinite.
        margin: the distance from the interval at which the value is ``value_at_margin``. With 0 the value is 0
            everywhere outside.
        sigmoid: how the value falls, one of :data:`SIGMOIDS`.
        value_at_margin: between 0 and 1, and 0 itself only for :data:`REACH_ZERO`.

    Raises:
        InputError: an argument is out of its range.
    """
    if sigmoid not in SIGMOIDS:
        raise unknown_name("sigmoid", sigmoid, SIGMOIDS)
    if not low <= high or not margin >= 0.0:
        given = f"low {low}, high {high} and margin {margin}"
        raise InputError(f"tolerance was given {given}; accepted are low <= high, 0 <= margin")
    if not 0.0 <= value_at_margin < 1.0 or (value_at_margin == 0.0 and sigmoid not in REACH_ZERO):
        raise InputError(
            f"value_at_margin is {value_at_margin} with sigmoid {sigmoid}; accepted is a number between 0 and 1, and 0 "
            f"with {', '.join(REACH_ZERO)}"
        )
    away = (low - x).relu() + (x - high).relu()
    if margin == 0.0:
        return torch.where(away > 0.0, 0.0, 1.0 + 0.0 * away)
    return SIGMOIDS[sigmoid](away / margin, value_at_margin)
