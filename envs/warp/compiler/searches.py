"""Stage 4, searches: code that finds which features of two geoms touch, where expressions would be too long.

A search runs lane by lane, as MuJoCo C's collision function does, and chooses corners, edges and faces. What a choice
makes of a contact is an expression, whose derivative is that of the contact while the choice holds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler import (
    box_box,
    boxes,
    capsule_box,
    convex,
    convex_faces,
    convex_search,
    hfields,
    hulls,
)
from mage_diffsim.envs.warp.compiler.convex_shapes import KINDS
from mage_diffsim.envs.warp.compiler.geoms import Found, Geom

GIVEN = 31
"""Numbers that a search is given."""


def given(kinds: tuple[str, str], first: Geom, second: Geom, reach: float, several: bool = True) -> list[Any]:
    """The second geom's centre relative to the first's, both frames by rows, both sizes, how far MuJoCo looks, the
    numbers of both kinds in :data:`.convex_shapes.KINDS`, and 1 if its flag ``multiccd`` is enabled, else 0."""
    frames = [x for geom in (first, second) for row in geom.frame for x in row]
    numbers = [reach, *(float(KINDS.index(kind)) for kind in kinds), float(several)]
    return [*al.minus(second.centre, first.centre), *frames, *first.size, *second.size, *numbers]


@dataclasses.dataclass(frozen=True, eq=False)
class Search:
    """How two kinds of geoms are searched."""

    name: str
    code: str
    """The body of a C++ function for one lane. It is given the numbers of :func:`given`, writes rows of features to
    ``found``, which has zeros, and returns how many. The first feature of a row is 1."""
    thresholds: Mapping[str, Mapping[str, str]]
    """What stands for {names} in the code, in "float" and "double"."""
    slots: int
    """Contacts at most."""
    features: int
    contact: Callable[[al.Vector, Geom, Geom, float], Found]
    """The contact that a row of features makes of two geoms; the last says how short a unit vector has no direction."""

    def helper(self, real: str, lanes: int) -> str:
        """The definition of the function that emitted code calls for all lanes; it returns the most contacts found."""
        code = self.code.replace("{f}", "f" if real == "float" else "")
        for name, text in self.thresholds[real].items():
            code = code.replace(f"{{{name}}}", text)
        arguments = f"const vec* given, vec (*found)[{self.features}]"
        clear = f"for (int k = 0; k < {self.slots * self.features}; ++k) found[0][k] = splat(0);"
        one = f"auto one = [](const real* given, real* found) -> int {{{code}\n    }};"
        if lanes == 1:
            body = f"{one} {clear} return one(given, found[0]);"
        else:
            body = f"""{one} {clear}
        int most = 0;
        for (int i = 0; i < lanes; ++i) {{
            real mine[{GIVEN}], features[{self.slots * self.features}] = {{}};
            for (int k = 0; k < {GIVEN}; ++k) mine[k] = given[k][i];
            const int n = one(mine, features);
            for (int k = 0; k < n * {self.features}; ++k) found[0][k][i] = features[k];
            most = n > most ? n : most;
        }}
        return most;"""
        return f"    auto {self.name} = [=]({arguments}) -> int {{ {body} }};"


SEARCHES = {
    ("capsule", "box"): Search(
        name="search_capsule_box",
        code=capsule_box.SEARCH,
        thresholds=capsule_box.THRESHOLDS,
        slots=capsule_box.SLOTS,
        features=len(capsule_box.FEATURES),
        contact=capsule_box.contact,
    ),
    ("box", "box"): Search(
        name="search_box_box",
        code=box_box.SEARCH,
        thresholds=box_box.THRESHOLDS,
        slots=box_box.SLOTS,
        features=len(box_box.FEATURES),
        contact=box_box.contact,
    ),
    **{
        kinds: Search(
            name="search_convex",
            code=convex_search.SEARCH,
            thresholds=convex.THRESHOLDS,
            slots=1,
            features=len(convex_search.FEATURES),
            contact=functools.partial(convex.contact, kinds),
        )
        for kinds in convex.SMOOTH
    },
    **{
        kinds: Search(
            name="search_flat",
            code=convex_faces.SEARCH_FLAT,
            thresholds=convex_faces.THRESHOLDS,
            slots=convex_faces.SLOTS,
            features=len(convex_search.FEATURES) + len(convex_faces.CLIPPED),
            contact=functools.partial(convex_faces.contact, kinds),
        )
        for kinds in convex_faces.FLAT
    },
    ("hfield", "sphere"): Search(
        name="search_hfield_sphere",
        code=hfields.WITH_SPHERE,
        thresholds=dict.fromkeys(("float", "double"), hfields.NUMBERS),
        slots=hfields.SLOTS,
        features=len(hfields.FEATURES),
        contact=hfields.sphere_on_field,
    ),
    ("plane", "mesh"): Search(
        name="search_plane_mesh",
        code=hulls.CORNERS_ON_PLANE,
        thresholds=convex.THRESHOLDS,
        slots=4,
        features=4,
        contact=hulls.corner_on_plane,
    ),
}
"""The search of two kinds of geoms."""
IN_ORDER = {
    ("plane", "box"): Search(
        name="search_plane_box",
        code=boxes.IN_ORDER,
        thresholds={"float": {}, "double": {}},
        slots=4,
        features=4,
        contact=boxes.corner_on_plane,
    ),
}
"""The search of kinds whose contacts, found without one, are not in MuJoCo's order. The noslip solver needs it."""
EVERY = (*SEARCHES.values(), *IN_ORDER.values())


def search_of(kinds: tuple[str, str], noslip: bool) -> Search | None:
    """What finds the contacts of two kinds of geoms, if it is a search; ``noslip``: whether their order matters."""
    return SEARCHES.get(kinds) or (IN_ORDER.get(kinds) if noslip else None)
