"""Contacts in loops over tables of pairs, for models with many pairs: one piece of code per kind of contact.

Each possible contact of a pair of geoms becomes an *item*: expressions of the places and motions of two geoms alone,
whatever bodies carry them. Items that differ in numbers only are of one kind: their code runs in a loop over a table of
the numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mage_diffsim.envs.mujoco.mixing import SMALLEST
from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.adhesion import adhesive_bodies
from mage_diffsim.envs.warp.compiler.cones import Cone
from mage_diffsim.envs.warp.compiler.constraints import SINGLE, Contact, contacts_of, listed_contacts
from mage_diffsim.envs.warp.compiler.dynamics import REST, Kinematics, Spatial
from mage_diffsim.envs.warp.compiler.emit import Writer
from mage_diffsim.envs.warp.compiler.graph import (
    Graph,
    Node,
    absolute,
    add,
    less,
    maximum,
    minimum,
    mul,
    neg,
    number,
    reachable,
    sqrt,
    sub,
)
from mage_diffsim.envs.warp.compiler.intake import Model, Pair, friction_of, slope_of
from mage_diffsim.envs.warp.compiler.noslip_records import power as slide_power
from mage_diffsim.envs.warp.compiler.parameters import OF_GEOMS, View, numbers
from mage_diffsim.envs.warp.compiler.repeat import join, signature
from mage_diffsim.envs.warp.compiler.searches import Search

FRAME = 15
"""Numbers of a body's place: rotation row by row, position, the tree's origin."""
GEOM = 12
"""Numbers of a geom's place: centre, relative to the tree's origin, and rotation row by row. Those of its fields follow
that are parameters (:data:`.parameters.OF_GEOMS`)."""
MOTIONS = ("v", "a", "x")
"""Motions of a body at velocities, at accelerations and at lam, six numbers each, after its place."""
BODY = FRAME + 6 * len(MOTIONS)


class Two(Kinematics):
    """The kinematics of a pair of geoms alone, whose places and motions are inputs.

    Bodies 1 and 2 carry the geoms, unless they are fixed to the world. Degree of freedom 0 moves body 1, and 1 body 2.
    Inputs end in the number of the geom, 1 or 2, and their place in the array that they come from.
    """

    def __init__(self, graph: Graph, model: Model, pair: Pair) -> None:
        self.graph = graph
        self.model, pair = _with_inputs(graph, model, pair)
        self.tree = [0, *(i if body else 0 for i, body in enumerate(pair.bodies, 1))]
        self.axes = [_spatial(graph.inputs(f"axis{i}_", 6)) for i in (1, 2)]
        self.pair = dataclasses.replace(pair, bodies=tuple(i if body else 0 for i, body in enumerate(pair.bodies, 1)))

    def geom(self, pair: Pair, side: int) -> tuple[al.Vector, al.Matrix]:
        """As :meth:`Kinematics.geom`."""
        x = self.graph.inputs(f"geom{side + 1}_", GEOM)
        return x[:3], [x[3:6], x[6:9], x[9:12]]

    def features(self, n: int) -> al.Vector:
        """As :meth:`Kinematics.features`."""
        return self.graph.inputs("feature_", n)

    def origin(self, body: int) -> al.Vector:
        """As :meth:`Kinematics.origin`."""
        return self.graph.inputs(f"body{body}_", BODY)[12:15] if body else al.ZERO

    def chain(self, body: int) -> list[int]:
        """As :meth:`Kinematics.chain`."""
        return [body - 1] if body else []

    def motions(self, kind: str) -> list[Spatial]:
        """The motions of the bodies, of one of the kinds :data:`MOTIONS`."""
        at = FRAME + 6 * MOTIONS.index(kind)
        return [REST, *(_spatial(self.graph.inputs(f"body{i}_", BODY)[at : at + 6]) for i in (1, 2))]


def _with_inputs(graph: Graph, model: Model, pair: Pair) -> tuple[Model, Pair]:
    """The model and a pair of it, with inputs of the pair's own in place of parameters of its geoms."""
    names = of_geoms(model)
    if not names:
        return model, pair
    own, replaced = model.simulation.model, {}
    for n, name in enumerate(names):
        replaced[name] = np.array(numbers(own, name), dtype=object)
        for i, g in enumerate(pair.geoms, 1):
            replaced[name][g] = graph.inputs(f"geom{i}_", GEOM + 3 * len(names))[GEOM + 3 * n :][:3]
    m = View(model.model, replaced)
    friction = friction_of(m, pair.rough, pair.friction)[: pair.dim - 1]
    pair = dataclasses.replace(pair, friction=friction, slope=slope_of(m, friction))
    return dataclasses.replace(model, model=m), pair


def of_geoms(model: Model) -> tuple[str, ...]:
    """The parameters that are fields of geoms."""
    return tuple(name for name in model.parameters if name in OF_GEOMS)


def _spatial(x: Sequence[Any]) -> Spatial:
    return list(x[:3]), list(x[3:6])


@dataclasses.dataclass(frozen=True)
class Item:
    """What the code needs of one possible contact, as expressions on :class:`Two`."""

    near: Any
    """Condition: the spheres around the geoms are closer than the margin."""
    closer: Any
    """Condition: spheres around two capsules are closer to the other's axis than the margin."""
    absent: Any
    """Condition: the geoms have no such contact where they are, however close."""
    present: Any
    """Condition: the contact is there."""
    rows: tuple[list[Any], ...]
    """By way: the entries of J of a degree of freedom that moves body 1, and of one that moves body 2."""
    record: list[Any]
    """Offsets by way, then the numbers that the cone needs."""
    forces: list[Any]
    """By way: what the contact pushes with."""
    power: Any
    """The contact's force times the motion lam."""
    given: list[Any]
    """What the search for its features is given, if there is one."""
    bounds: list[Any]
    """For the noslip solver, what bounds friction (:func:`.noslip_records.start_of`)."""
    slide: Any
    """For it, the scalar of :func:`.noslip_records.power`."""
    listed: Any = False
    """Condition: the contact counts for actuators on the geoms' bodies, if there are any (:mod:`.adhesion_loops`)."""
    pull: Any = 0.0
    """The second body's motion relative to the first, along the normal, at the motions ``motion1`` and ``motion2``."""


@dataclasses.dataclass
class Kind:
    """Items that differ in numbers only."""

    item: Item
    cone: Cone
    search: Search | None
    """What finds the features of its contacts, one by one."""
    pairs: list[int]
    """The pair of each item."""
    places: list[int]
    """The place of each item among the possible contacts of its pair."""
    numbers: dict[str, tuple[float, ...]]
    """Variables in which the items differ, and their values in each."""

    @property
    def slots(self) -> int:
        """Contacts of an item at most."""
        return self.search.slots if self.search else 1

    @property
    def counts(self) -> bool:
        """Whether any of its items counts for an actuator on a body."""
        return self.item.listed is not False

    @property
    def acts(self) -> bool:
        """Whether the contacts can push; others only count for an actuator on a body."""
        return self.item.present is not False


def kinds(model: Model, exact: bool) -> list[Kind]:
    """The kinds of a model's contacts."""
    groups: dict[Any, list[tuple[int, Item, Contact, int, bool]]] = {}
    adhesive, noise = set(adhesive_bodies(model.model)), SMALLEST if exact else SINGLE
    for p, pair in enumerate(model.pairs):
        two = Two(Graph(), model, pair)
        counts = not adhesive.isdisjoint(int(model.model.geom_bodyid[g]) for g in pair.geoms)
        for at, contact in enumerate((listed_contacts if counts else contacts_of)(two, two.pair, noise)):
            item = _item(two, contact, counts)
            item = _counted(two, contact, item) if adhesive else item
            key = signature([getattr(item, f.name) for f in dataclasses.fields(item)]), contact.cone, contact.search
            groups.setdefault(key, []).append((p, item, contact, at, counts))
    found = []
    for members in groups.values():
        items = [item for _, item, *_ in members]
        if not any(counts for *_, counts in members):
            items = [dataclasses.replace(item, listed=False, pull=0.0) for item in items]
        values, numbers = join(Graph(), [[getattr(x, f.name) for f in dataclasses.fields(x)] for x in items], "number_")
        contact, numbered = members[0][2], [n for n, *_ in members]
        places = [at for *_, at, _ in members]
        found.append(Kind(Item(*values), contact.cone, contact.search, numbered, places, numbers))
    return found


def _item(two: Two, contact: Contact, counts: bool) -> Item:
    """The item of a contact; ``counts`` says whether it counts for an actuator on a body."""
    power: Any = 0.0
    forces, along = contact.forces(two.motions("a"), two.motions("v")), contact.along(two.motions("x"))
    for force, motion in zip(forces, along, strict=True):
        power = add(power, mul(force, motion))
    a, v = two.motions("a"), two.motions("v")
    slides = two.model.noslip and len(contact.rows) > 1
    return Item(
        near=_near(two, counts),
        closer=_closer(two, counts),
        absent=contact.absent,
        present=contact.present,
        rows=tuple(row[:2] for row in contact.rows),
        record=[*contact.offsets(two.motions("v")), *contact.record(contact.cone)],
        forces=forces,
        power=power,
        given=list(contact.given),
        bounds=contact.bounds(a, v) if slides else [],
        slide=slide_power(contact, a, v, lambda name, i: two.graph.input(f"{name}_{i}")) if slides else 0.0,
    )


def _counted(two: Two, contact: Contact, item: Item) -> Item:
    """The item with what an actuator on a body needs of its contact."""
    motions = [_spatial(two.graph.inputs(f"motion{i}_", 6)) for i in (1, 2)]
    return dataclasses.replace(item, listed=contact.listed, pull=contact.along([REST, *motions])[0])


def _near(two: Two, in_gap: bool) -> Any:
    """Whether spheres around the geoms, or one around the second and the plane, are closer than the margin, or than the
    gap, too.

    The spheres are a thousandth larger than need be, which allows for float32 far from the world's origin.
    """
    pair, (apart, axis, _) = two.pair, _apart(two)
    reach = add(mul(1.001, _bound(two, 1)), _margin(pair, in_gap))
    if pair.kinds[0] == "plane":
        return less(al.dot(axis, apart), reach)
    reach = add(reach, mul(1.001, _bound(two, 0)))
    return less(al.dot(apart, apart), mul(reach, absolute(reach)))


def _bound(two: Two, side: int) -> Any:
    """The radius of the sphere around a geom."""
    g, kind = two.pair.geoms[side], two.pair.kinds[side]
    if "geom_size" not in two.model.parameters:
        return float(two.model.model.geom_rbound[g])
    x, y, z = two.model.model.geom_size[g]
    match kind:
        case "sphere":
            return x
        case "capsule":
            return add(x, y)
        case "cylinder":
            return sqrt(add(mul(x, x), mul(y, y)))
        case "ellipsoid":
            return maximum(maximum(x, y), z)
    return sqrt(add(add(mul(x, x), mul(y, y)), mul(z, z)))


def _apart(two: Two) -> tuple[al.Vector, al.Vector, al.Vector]:
    """The second geom's centre relative to the first's, and both z axes."""
    (first, frame), (second, other) = two.geom(two.pair, 0), two.geom(two.pair, 1)
    origins = [two.origin(body) for body in two.pair.bodies]
    return al.minus(al.plus(second, origins[1]), al.plus(first, origins[0])), al.column(frame, 2), al.column(other, 2)


def _margin(pair: Pair, in_gap: bool) -> float:
    return max(pair.margin, pair.reach) if in_gap else pair.margin


def _closer(two: Two, in_gap: bool) -> Any:
    """Of two capsules, whether the sphere around each is closer to the other; True of other geoms.

    It leaves few of the pairs whose spheres are near, and takes a tenth of the operations of nearest points.
    """
    m, pair = two.model.model, two.pair
    if pair.kinds != ("capsule", "capsule"):
        return True
    margin, (apart, *axes), beyond = _margin(pair, in_gap), _apart(two), []
    for geom, beside, axis in zip((0, 1), (1, 0), axes, strict=True):
        radius, half = (number(x) for x in m.geom_size[pair.geoms[geom]][:2])
        along = maximum(minimum(al.dot(axis, apart), half), neg(half))
        gap = al.minus(apart, al.times(axis, along))
        reach = add(mul(1.001, add(radius, _bound(two, beside))), margin)
        beyond.append(sub(al.dot(gap, gap), mul(reach, absolute(reach))))
    return less(maximum(*beyond), 0.0)


AXES = frozenset(f"{kind}axis{i}_{k}" for kind in ("", "along_") for i in (1, 2) for k in range(6))


def along_of(*expressions: Any) -> dict[Node, Any]:
    """The inputs that expressions depend on and that have tangents, with the inputs that stand for these."""
    moving = ("at_", "geom", "body", "axis")
    found = [node for node in inputs_of(list(expressions)) if node.args[0].startswith(moving)]
    return {node: node.graph.input(f"along_{node.args[0]}") for node in found}


def inputs_of(expressions: Any) -> list[Node]:
    """The inputs that an expression, or a structure of expressions, depends on."""
    return [node for node in reachable(_flat(expressions)) if node.kind == "input"]


def _flat(x: Any) -> list[Any]:
    return [y for part in x for y in _flat(part)] if isinstance(x, (list, tuple)) else [x]


def declare(w: Writer, expressions: Any, declared: set[str]) -> None:
    """Declare the inputs that expressions depend on, but those that are declared already."""
    for node in inputs_of(expressions):
        name: str = node.args[0]
        if name not in declared:
            declared.add(name)
            array, i = name.rsplit("_", 1)
            if name in AXES:
                array = f"{array[:-5]}own_axis"
            w(f"const vec {name} = {f'splat({array}[{i}])' if array in ('number', 'there') else f'{array}[{i}]'};")
