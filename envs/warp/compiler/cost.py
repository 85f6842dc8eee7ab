"""Estimates what compiling a model takes from counts of its parts, and refuses a model that takes too much.

Contacts and the Hessian's factors are written out where that is quick to compile, and in loops elsewhere. Written out,
the code of a contact is as long as the chains of joints of its two bodies, and the factors are one statement per
multiplication. In loops, code grows with the chains of joints alone. The constants are fitted to forward and adjoint in
float64 on one core of a 2020s server, of which these are some:

Once code is emitted, its length tells more exactly, also of tendons, equalities and integrators.

| model | degrees of freedom | pairs | | CPU-seconds | GiB | estimated |
|---|---|---|---|---|---|---|
| HalfCheetah | 9 | 8 | written out | 4 | 0.4 | 5, 0.5 |
| Ant | 14 | 13 | written out | 11 | 0.5 | 8, 0.5 |
| gymnasium's humanoid | 23 | 126 | in loops | 10 | 0.6 | 12, 0.6 |
| 10 free balls, one slide | 61 | 55 | in loops | 11 | 0.6 | 14, 0.6 |
| humanoid_CMU with spheres for ellipsoids | 62 | 1118 | in loops | 53 | 1.0 | 51, 1.0 |
| dm_control's rodent | 67 | 4271 | in loops | 117 | 1.8 | 95, 1.8 |
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler.emit import TABLE
from mage_diffsim.envs.warp.compiler.intake import Model
from mage_diffsim.envs.warp.compiler.searches import search_of
from mage_diffsim.envs.warp.compiler.solver import filled
from mage_diffsim.errors import TooLarge

LIMIT = 15 * 60.0
"""Seconds of compiling beyond which a model is refused."""
MEMORY = 2.0
"""GiB that compiling may take."""


LOOPED = 15.0
"""Seconds from which contacts are in loops instead of written out."""

LENGTHS = {("plane", "capsule"): 2, ("capsule", "capsule"): 2, ("plane", "box"): 2, ("plane", "cylinder"): 3}
"""Kinds of two geoms whose contacts have more code than one of two spheres, to how many times as much."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Estimated cost of compiling forward and adjoint."""

    seconds: float
    gib: float
    """Largest memory of the process [GiB]."""


def estimate(model: Model) -> Cost:
    """The cost of a model, within a factor of about 1.5."""
    written = _written(model)
    if written.seconds <= LOOPED:
        return written
    above: list[int] = []
    for parent in model.model.dof_parentid:
        above.append(1 + (above[parent] if parent >= 0 else 0))
    dofs = sum(above)
    return Cost(seconds=3.0 + 0.05 * dofs, gib=0.53 + 5e-4 * dofs)


def looped(model: Model) -> bool:
    """Whether contacts are better in loops than written out."""
    return _written(model).seconds > LOOPED


def _chains(m: Any) -> list[frozenset[int]]:
    """The degrees of freedom that move each body of an ``MjModel``."""
    chains: list[frozenset[int]] = [frozenset()]
    for b in range(1, m.nbody):
        first = int(m.body_dofadr[b])
        chains.append(chains[m.body_parentid[b]] | set(range(first, first + int(m.body_dofnum[b]))))
    return chains


def _written(model: Model) -> Cost:
    """The cost of contacts and factors written out; infinite where they cannot be, or counting it would take long."""
    if (
        model.model.nv > 200
        or len(model.pairs) > 2000
        or any(search_of(pair.kinds, model.noslip) for pair in model.pairs)
    ):
        return Cost(float("inf"), float("inf"))
    m, chains = model.model, _chains(model.model)
    moved = [chains[pair.bodies[0]] | chains[pair.bodies[1]] for pair in model.pairs]
    contacts = sum(len(x) * LENGTHS.get(pair.kinds, 1) for x, pair in zip(moved, model.pairs, strict=True))
    rows = [0] * m.nv
    for i, _ in filled(m.nv, {(i, j) for x in {*moved, *chains} for i in x for j in x}):
        rows[i] += 1
    factor = sum(n * (n - 1) // 2 for n in rows)
    return Cost(
        seconds=3.0 + 0.027 * contacts + 0.0015 * factor + 0.02 * max(0, factor - 7000),
        gib=0.4 + 3.3e-4 * contacts + 8e-6 * factor,
    )


def of_code(*kernels: str) -> Cost:
    """The cost of kernels with such code, within a factor of about 1.5 whatever elements a model has.

    The compiler keeps a table, of as many characters, in a quarter of the memory of other code.
    """
    characters = sum(map(len, kernels))
    tables = sum(len(line) for code in kernels for line in code.splitlines() if line.lstrip().startswith(TABLE))
    return Cost(seconds=2.0 + 8e-6 * characters, gib=0.45 + 1.5e-7 * (characters - tables) + 0.4e-7 * tables)


def check(model: Model, kernels: Sequence[str] = ()) -> Cost:
    """The estimate of a model that can be compiled, from the code of its kernels if that is known.

    Raises:
        TooLarge: compiling it would take more than :data:`LIMIT`, or than :data:`MEMORY` or the machine's memory.
    """
    cost = of_code(*kernels) if kernels else estimate(model)
    memory = min(MEMORY, _memory_of_machine())
    if cost.seconds > LIMIT or cost.gib > memory:
        raise TooLarge(
            f"task {model.simulation.name}: compiling Warp kernels for {len(model.pairs)} pairs of geoms and "
            f"{model.model.nv} degrees of freedom would take some {cost.seconds / 60:.0f} minutes and {cost.gib:.1f} "
            f"GiB of memory; accepted are {LIMIT / 60:.0f} minutes and {memory:.1f} GiB: use a model with fewer "
            "joints, or backend mujoco or mjx"
        )
    return cost


def _memory_of_machine() -> float:
    """Memory of the machine [GiB]; infinite where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (AttributeError, ValueError, OSError):  # Windows
        return float("inf")
