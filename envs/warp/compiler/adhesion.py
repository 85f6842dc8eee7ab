"""Stage 3, adhesion: the coordinate of an actuator that pulls a body towards what it touches."""

from __future__ import annotations

from typing import Any

from mage_diffsim.envs.mujoco.model import load_mujoco
from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.actuator_kinds import idle
from mage_diffsim.envs.warp.compiler.constraints import Contact, listed_contacts
from mage_diffsim.envs.warp.compiler.coordinates import Coordinate, summed
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics, Spatial
from mage_diffsim.envs.warp.compiler.graph import Graph, add, div, maximum, mul, where
from mage_diffsim.envs.warp.compiler.intake import Model, Pair


def adhesive_bodies(m: Any) -> list[int]:
    """The bodies of an ``MjModel`` on which actuators act."""
    on_bodies = (i for i in range(m.nactuator) if m.actuator_trntype[i] == load_mujoco().mjtTrn.mjTRN_BODY)
    return sorted({int(m.actuator_trnid[i, 0]) for i in on_bodies if not idle(m, i)})


def pairs_of(model: Model, body: int) -> list[Pair]:
    """The pairs whose contacts count for an actuator on a body; bodies welded to it do not count."""
    return [p for p in model.pairs if body in (int(model.model.geom_bodyid[g]) for g in p.geoms)]


def dofs_of(kinematics: Kinematics, body: int) -> set[int]:
    """The degrees of freedom on which an actuator on a body can act."""
    chains = ([set(kinematics.chain(b)) for b in pair.bodies] for pair in pairs_of(kinematics.model, body))
    return set().union(*(first ^ second for first, second in chains))


def given_row(kinematics: Kinematics, graph: Graph, body: int) -> Coordinate:
    """As :func:`adhesion`, with a row of variables that the code computes first (:mod:`.adhesion_loops`)."""
    dofs = dofs_of(kinematics, body)
    row = [graph.input(f"moment{body}_{d}") if d in dofs else 0.0 for d in range(kinematics.model.model.nv)]
    return Coordinate(0.0, row)


def adhesion(kinematics: Kinematics, body: int, noise: float) -> Coordinate:
    """The coordinate of an actuator on a body: its row is minus the mean of J along the normals of the contacts that
    MuJoCo lists of the body's geoms, those in a gap among them; its length is 0 (the branch mjTRN_BODY of
    mj_transmission).

    Args:
        kinematics: where the bodies are.
        body: of the ``MjModel``.
        noise: a vector of unit vectors shorter than this has no direction.
    """
    m = kinematics.model.model
    contacts = [c for pair in pairs_of(kinematics.model, body) for c in listed_contacts(kinematics, pair, noise)]
    number: Any = 0.0
    for c in contacts:
        number = add(number, where(c.listed, 1.0, 0.0))
    each = div(-1.0, maximum(number, 1.0))
    row: list[Any] = [0.0] * m.nv
    loads: list[tuple[int, Spatial]] = []
    for c in contacts:
        share = where(c.listed, each, 0.0)
        row = [add(x, mul(share, y)) for x, y in zip(row, c.rows[0], strict=True)]
        loads += _loads(c, share)
    return Coordinate(0.0, row, summed(load for load in loads if load[0]))


def _loads(contact: Contact, force: Any) -> list[tuple[int, Spatial]]:
    """What a force along the contact's normal does to its two bodies."""
    push = al.times(contact.normal, force)
    found = []
    for body, point, sign in zip(contact.pair.bodies, contact.points, (-1.0, 1.0), strict=True):
        there = al.times(push, sign)
        found.append((body, (al.cross(point, there), there)))
    return found
