"""MuJoCo's constants, and its rules for which geoms touch with what parameters, for backends that make contacts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mage_diffsim.envs.mujoco.model import colliding_geoms, contacts_enabled, load_mujoco

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


class ContactPair(NamedTuple):
    """Two geoms that can touch, and the parameters of their contacts."""

    geoms: tuple[int, int]
    """The lower type first."""
    dim: int
    """condim: 1, 3, 4 or 6."""
    margin: float
    """Distance below which the contact acts, where MuJoCo finds it [m]."""
    reach: float
    """Distance below which MuJoCo finds it: the margin plus the gap [m]."""
    friction: np.ndarray
    """Sliding along both tangents, torsional, rolling about both tangents; :data:`LEAST_FRICTION` or more, [5]."""
    solref: np.ndarray
    """[2]."""
    solreffriction: np.ndarray
    """0 where solref serves, [2]."""
    solimp: np.ndarray
    """[5]."""
    rough: tuple[int, ...] = ()
    """The geoms whose friction it is the larger of; () of an explicit pair."""


def kind_of(model: Any, geom: int) -> str:
    """The kind of a geom: "plane", "sphere", ..."""
    return load_mujoco().mjtGeom(model.geom_type[geom]).name.removeprefix("mjGEOM_").lower()


def contact_pairs(model: Any) -> list[ContactPair]:
    """The pairs of geoms of a ``mujoco.MjModel`` whose contacts can act: explicit ones and those that masks let touch.

    Two geoms of an explicit pair do not touch by their masks as well.
    """
    if not contacts_enabled(model):
        return []
    explicit = [_explicit(model, i) for i in range(model.npair)]
    named = {frozenset(pair.geoms) for pair in explicit}
    others = [_mixed(model, g1, g2) for g1, g2 in colliding_geoms(model) if frozenset((g1, g2)) not in named]
    return [pair for pair in explicit + others if _can_act(model, *pair.geoms)]


def sweep_order(model: Any, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The numbers of pairs of geoms in the order in which MuJoCo lists their contacts.

    Args:
        model: a ``mujoco.MjModel``.
        pairs: geoms in the order of :func:`contact_pairs`.
    """
    explicit = {frozenset((int(model.pair_geom1[i]), int(model.pair_geom2[i]))): i for i in range(model.npair)}
    midphase = not model.opt.disableflags & load_mujoco().mjtDisableBit.mjDSBL_MIDPHASE

    def key(n: int) -> tuple[int, ...]:
        geoms = pairs[n]
        bodies = sorted(int(model.geom_bodyid[g]) for g in geoms)
        by_body = tuple(sorted(geoms, key=lambda g: (model.geom_bodyid[g], g)))
        # What the midphase finds is sorted by geoms, the one of the lower type first.
        sorts = midphase and all(model.body_bvhadr[b] >= 0 for b in bodies)
        number = explicit.get(frozenset(geoms), int(model.npair))
        return (*bodies, number, *(geoms if sorts else by_body))

    return sorted(range(len(pairs)), key=key)


def inert_pairs(model: Any) -> list[ContactPair]:
    """The explicit pairs of a ``mujoco.MjModel`` whose contacts cannot act, though MuJoCo lists those in the gap."""
    explicit = [_explicit(model, i) for i in range(model.npair)] if contacts_enabled(model) else []
    return [pair for pair in explicit if not _can_act(model, *pair.geoms)]


def _can_act(model: Any, g1: int, g2: int) -> bool:
    """Whether the two can come close enough for a contact, and a contact can move something."""
    w1, w2 = (int(model.body_weldid[model.geom_bodyid[g]]) for g in (g1, g2))
    # Mocap bodies and the world have no degrees of freedom.
    if w1 == w2 or not (model.body_dofnum[w1] or model.body_dofnum[w2]):
        return False
    kinds = {kind_of(model, g1), kind_of(model, g2)}
    return not (kinds == {"plane"} or kinds == {"plane", "hfield"})


def _explicit(model: Any, i: int) -> ContactPair:
    """An explicit pair."""
    g1, g2 = sorted((int(model.pair_geom1[i]), int(model.pair_geom2[i])), key=lambda g: model.geom_type[g])
    return ContactPair(
        geoms=(g1, g2),
        dim=int(model.pair_dim[i]),
        margin=float(model.pair_margin[i]),
        reach=float(model.pair_margin[i] + model.pair_gap[i]),
        friction=np.maximum(model.pair_friction[i], LEAST_FRICTION),
        solref=model.pair_solref[i],
        solreffriction=model.pair_solreffriction[i],
        solimp=model.pair_solimp[i],
    )


def _mixed(model: Any, g1: int, g2: int) -> ContactPair:
    """Two geoms with their parameters mixed as MuJoCo's mj_contactParam does."""
    rough = (g1, g2)
    if model.geom_priority[g1] != model.geom_priority[g2]:
        g = g1 if model.geom_priority[g1] > model.geom_priority[g2] else g2
        rough = (g,)
        dim, friction, solref, solimp = (
            getattr(model, f"geom_{field}")[g] for field in ("condim", "friction", "solref", "solimp")
        )
    else:
        dim = max(model.geom_condim[g1], model.geom_condim[g2])
        friction = np.maximum(model.geom_friction[g1], model.geom_friction[g2])
        mix = _share(model.geom_solmix[g1], model.geom_solmix[g2])
        r1, r2 = model.geom_solref[g1], model.geom_solref[g2]
        solref = mix * r1 + (1.0 - mix) * r2 if r1[0] > 0.0 and r2[0] > 0.0 else np.minimum(r1, r2)
        solimp = mix * model.geom_solimp[g1] + (1.0 - mix) * model.geom_solimp[g2]
    margin = float(model.geom_margin[g1] + model.geom_margin[g2])
    return ContactPair(
        geoms=(g1, g2),
        dim=int(dim),
        margin=margin,
        reach=margin + float(model.geom_gap[g1] + model.geom_gap[g2]),
        friction=np.maximum(friction, LEAST_FRICTION)[[0, 0, 1, 2, 2]],
        solref=solref,
        solreffriction=np.zeros(2),
        solimp=solimp,
        rough=rough,
    )


def _share(s1: float, s2: float) -> float:
    """The share of the first geom in a mix by solmix."""
    if s1 >= SMALLEST and s2 >= SMALLEST:
        return float(s1 / (s1 + s2))
    return 0.5 if s1 < SMALLEST and s2 < SMALLEST else float(s1 >= SMALLEST)
