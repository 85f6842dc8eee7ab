"""What a model is: the numbers of its parts, and its options."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mage_diffsim.envs.mujoco.convergence import settings_text
from mage_diffsim.envs.mujoco.mixing import kind_of
from mage_diffsim.envs.mujoco.model import colliding_geoms, contacts_enabled, load_mujoco

FIELDS = (
    *("bodies", "joints", "nq", "nv", "nu", "na", "nmocap", "geoms", "pairs"),
    *("tendons", "equalities", "integrator", "cone", "solver", "timestep"),
)
"""Names of :func:`facts_of`."""


def facts_of(model: Any) -> dict[str, Any]:
    """Numbers and options of a ``mujoco.MjModel`` by name.

    Bodies are counted without the world, pairs are those of geoms that may touch. ``joint_kinds``, ``geom_kinds``,
    ``pair_kinds``, ``actuator_kinds`` and ``equality_kinds`` count by kind.
    """
    mujoco = load_mujoco()

    def kinds(enumeration: str, values: Any) -> dict[str, int]:
        prefix = {"mjtJoint": "mjJNT_", "mjtEq": "mjEQ_", "mjtTrn": "mjTRN_"}[enumeration]
        names = (getattr(mujoco, enumeration)(v).name.removeprefix(prefix).lower() for v in values)
        return dict(Counter(names).most_common())

    option = model.opt
    touching = _pairs(model)
    return {
        "bodies": model.nbody - 1,
        "joints": model.njnt,
        "nq": model.nq,
        "nv": model.nv,
        "nu": model.nu,
        "na": model.na,
        "nmocap": model.nmocap,
        "geoms": model.ngeom,
        "pairs": len(touching),
        "tendons": model.ntendon,
        "equalities": model.neq,
        "integrator": mujoco.mjtIntegrator(option.integrator).name.removeprefix("mjINT_").lower(),
        "cone": mujoco.mjtCone(option.cone).name.removeprefix("mjCONE_").lower(),
        "solver": settings_text(model),
        "timestep": float(option.timestep),
        "joint_kinds": kinds("mjtJoint", model.jnt_type),
        "geom_kinds": dict(Counter(kind_of(model, g) for g in range(model.ngeom)).most_common()),
        "pair_kinds": dict(Counter("-".join(kind_of(model, g) for g in pair) for pair in touching).most_common()),
        "actuator_kinds": kinds("mjtTrn", model.actuator_trntype),
        "equality_kinds": kinds("mjtEq", model.eq_type),
    }


def _pairs(model: Any) -> list[tuple[int, int]]:
    """Pairs of geoms that may touch, explicit ones first."""
    if not contacts_enabled(model):
        return []
    explicit = [
        (g1, g2) if model.geom_type[g1] <= model.geom_type[g2] else (g2, g1)
        for g1, g2 in zip(model.pair_geom1.tolist(), model.pair_geom2.tolist(), strict=True)
    ]
    named = {frozenset(pair) for pair in explicit}
    return explicit + [pair for pair in colliding_geoms(model) if frozenset(pair) not in named]


def facts_text(facts: dict[str, Any]) -> dict[str, str]:
    """The facts in words, by heading."""

    def counted(number: int, noun: str, kinds: dict[str, int]) -> str:
        shown = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        return f"{number} {noun}{'' if number == 1 else 's'}" + (f" ({shown})" if kinds else "")

    parts = [counted(facts["bodies"], "body", {}).replace("bodys", "bodies")]
    parts += [counted(facts["joints"], "joint", facts["joint_kinds"])]
    parts += [counted(facts["nu"], "control", facts["actuator_kinds"])]
    more = [
        counted(facts[name], noun, kinds)
        for name, noun, kinds in (
            ("na", "activation", {}),
            ("nmocap", "mocap pose", {}),
            ("tendons", "tendon", {}),
            ("equalities", "equality constraint", facts["equality_kinds"]),
        )
        if facts[name]
    ]
    contact = [counted(facts["geoms"], "geom", facts["geom_kinds"])]
    contact += [counted(facts["pairs"], "pair", facts["pair_kinds"]) + " that may touch"]
    return {
        "model": ", ".join(parts + more),
        "sizes": ", ".join(f"{name} {facts[name]}" for name in ("nq", "nv", "nu", "na", "nmocap")),
        "geoms": "; ".join(contact),
        "options": f"integrator {facts['integrator']}, {facts['cone']} cones, timestep {facts['timestep']:g} s",
    }
