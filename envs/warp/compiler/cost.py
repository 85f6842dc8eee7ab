"""Estimates what compiling a model takes from counts of its parts, and refuses a model that takes too much.

The code of a contact is as long as the chains of joints of its two bodies. Factoring the Hessian is one statement per
multiplication, and the C++ compiler takes far more than twice as long for twice as many statements. The constants are
fitted to forward and adjoint in float64 on one core of a 2020s server:

| model | degrees of freedom | pairs | CPU-seconds | GiB | estimated |
|---|---|---|---|---|---|
| HalfCheetah | 9 | 8 | 4 | 0.4 | 5, 0.5 |
| Ant | 14 | 13 | 11 | 0.5 | 8, 0.5 |
| gymnasium's humanoid | 23 | 126 | 75 | 1.2 | 70, 1.2 |
| 20-link snake on a floor | 25 | 20 | 34 | 0.7 | 24, 0.6 |
| 6 free balls, one slide | 37 | 21 | 28 | 0.6 | 36, 0.6 |
| 8 free balls, one slide | 49 | 36 | 267 | 0.7 | 269, 0.7 |
| 10 free balls, one slide | 61 | 55 | 671 | | 653, 0.9 |
| 40-link snake on a floor | 45 | 40 | 311 | | 244, 1.2 |
"""

from __future__ import annotations

import dataclasses
import os

from mage_diffsim.envs.warp.compiler.intake import Model
from mage_diffsim.envs.warp.compiler.solver import filled
from mage_diffsim.errors import InputError

LIMIT = 15 * 60.0
"""Seconds of compiling beyond which a model is refused."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Estimated cost of compiling forward and adjoint."""

    seconds: float
    gib: float
    """Largest memory of the process [GiB]."""


def estimate(model: Model) -> Cost:
    """The cost of a model, within a factor of about 1.5."""
    m = model.model
    chains: list[frozenset[int]] = [frozenset()]
    for b in range(1, m.nbody):
        first = int(m.body_dofadr[b])
        chains.append(chains[m.body_parentid[b]] | set(range(first, first + int(m.body_dofnum[b]))))
    moved = [chains[pair.bodies[0]] | chains[pair.bodies[1]] for pair in model.pairs]
    # A capsule has two ends on a plane, and two capsules may touch side by side.
    twice = [pair.kinds in (("plane", "capsule"), ("capsule", "capsule")) for pair in model.pairs]
    contacts = sum(len(x) * (1 + two) for x, two in zip(moved, twice, strict=True))
    rows = [0] * m.nv
    for i, _ in filled(m.nv, {(i, j) for x in {*moved, *chains} for i in x for j in x}):
        rows[i] += 1
    factor = sum(n * (n - 1) // 2 for n in rows)
    return Cost(
        seconds=3.0 + 0.027 * contacts + 0.0015 * factor + 0.02 * max(0, factor - 7000),
        gib=0.4 + 3.3e-4 * contacts + 8e-6 * factor,
    )


def check(model: Model) -> Cost:
    """The estimate of a model that can be compiled.

    Raises:
        InputError: compiling it would take more than :data:`LIMIT` or than the machine's memory.
    """
    cost, memory = estimate(model), _memory_of_machine()
    if cost.seconds > LIMIT or cost.gib > memory:
        raise InputError(
            f"task {model.simulation.name}: compiling Warp kernels for {len(model.pairs)} pairs of geoms and "
            f"{model.model.nv} degrees of freedom would take some {cost.seconds / 60:.0f} minutes and {cost.gib:.1f} "
            f"GiB of memory; accepted are {LIMIT / 60:.0f} minutes and the {memory:.1f} GiB of this machine: let fewer "
            "geoms collide (contype, conaffinity), or use backend mujoco or mjx"
        )
    return cost


def _memory_of_machine() -> float:
    """Memory of the machine [GiB]; infinite where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (AttributeError, ValueError, OSError):  # Windows
        return float("inf")
