"""MuJoCo's constants, and its rule for mixing the contact parameters of two geoms, for backends that make contacts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mage_diffsim.envs.mujoco.model import load_mujoco

SMALLEST = 1e-15
"""MuJoCo's mjMINVAL."""
LEAST_FRICTION = 1e-5
"""MuJoCo's mjMINMU."""
STANDARD_SOLREF = (0.02, 1.0)
"""MuJoCo's default."""
LEAST_IMPEDANCE, LARGEST_IMPEDANCE = 1e-4, 0.9999
"""MuJoCo's mjMINIMP and mjMAXIMP."""
PARALLEL = 1e-4
"""Capsules whose axes are at this angle [rad] or less make two contacts (MuJoCo's mjc_segWeights)."""


class Mixed(NamedTuple):
    """The parameters of a contact of two geoms."""

    dim: int
    """condim: 1, 3, 4 or 6."""
    margin: float
    """Distance below which the contact acts [m]."""
    friction: np.ndarray
    """Sliding, torsional and rolling, without a lower bound, [3]."""
    solref: np.ndarray
    """[2]."""
    solimp: np.ndarray
    """[5]."""


def kind_of(model: Any, geom: int) -> str:
    """The kind of a geom: "plane", "sphere", ..."""
    return load_mujoco().mjtGeom(model.geom_type[geom]).name.removeprefix("mjGEOM_").lower()


def mixed(model: Any, g1: int, g2: int) -> Mixed:
    """Mixes the parameters of two geoms of a ``mujoco.MjModel`` as MuJoCo's mj_contactParam does."""
    margin = float(model.geom_margin[g1] + model.geom_margin[g2])
    if model.geom_priority[g1] != model.geom_priority[g2]:
        g = g1 if model.geom_priority[g1] > model.geom_priority[g2] else g2
        dim, friction = int(model.geom_condim[g]), model.geom_friction[g]
        return Mixed(dim, margin, friction, model.geom_solref[g], model.geom_solimp[g])
    s1, s2 = model.geom_solmix[g1], model.geom_solmix[g2]
    if s1 >= SMALLEST and s2 >= SMALLEST:
        mix = s1 / (s1 + s2)
    else:
        mix = 0.5 if s1 < SMALLEST and s2 < SMALLEST else float(s1 >= SMALLEST)
    r1, r2 = model.geom_solref[g1], model.geom_solref[g2]
    return Mixed(
        dim=int(max(model.geom_condim[g1], model.geom_condim[g2])),
        margin=margin,
        friction=np.maximum(model.geom_friction[g1], model.geom_friction[g2]),
        solref=mix * r1 + (1.0 - mix) * r2 if r1[0] > 0.0 and r2[0] > 0.0 else np.minimum(r1, r2),
        solimp=mix * model.geom_solimp[g1] + (1.0 - mix) * model.geom_solimp[g2],
    )
