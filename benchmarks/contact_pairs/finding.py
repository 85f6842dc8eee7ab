"""Contacts that the compiler's functions and searches find, run alone, and those of MuJoCo C."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mage_diffsim.bridges.warp import launch, load_module, load_warp
from mage_diffsim.envs.mujoco.convergence import with_solver
from mage_diffsim.envs.mujoco.model import load_mujoco
from mage_diffsim.envs.warp.compiler.collisions import COLLISIONS
from mage_diffsim.envs.warp.compiler.emit import prelude, table
from mage_diffsim.envs.warp.compiler.geoms import Found, Geom
from mage_diffsim.envs.warp.compiler.graph import Graph, evaluate
from mage_diffsim.envs.warp.compiler.hfields import HFields
from mage_diffsim.envs.warp.compiler.hulls import Hulls
from mage_diffsim.envs.warp.compiler.searches import GIVEN, SEARCHES, given, search_of
from mage_diffsim.envs.warp.model import build

NOISE = 1e-15
"""In float64, a shorter vector of unit vectors has no direction."""


def _geoms(graph: Graph, sizes: np.ndarray) -> list[Geom]:
    """Two geoms whose centres and frames are inputs."""
    x = [graph.inputs(f"geom{i}_", 12) for i in range(2)]
    return [Geom(y[:3], [y[3:6], y[6:9], y[9:]], tuple(s)) for y, s in zip(x, sizes.tolist(), strict=True)]


def _values(places: np.ndarray) -> dict[str, np.ndarray]:
    return {f"geom{i}_{k}": places[:, i, k] for i in range(2) for k in range(12)}


def _outputs(found: Found) -> list[Any]:
    return [found.distance, *found.point, *found.normal]


def columns(expressions: Sequence[Any], values: dict[str, np.ndarray], n: int) -> np.ndarray:
    """The values [n, k] of k expressions."""
    return np.stack([np.broadcast_to(x, n) for x in evaluate(expressions, values)], 1)


class Expressions:
    """The contacts of two kinds of geoms that are expressions without a search."""

    def __init__(self, kinds: tuple[str, str]) -> None:
        self.kinds = kinds

    def contacts(self, places: np.ndarray, sizes: np.ndarray, margin: float) -> list[np.ndarray]:
        """As :meth:`Searched.contacts`."""
        values, n = _values(places), len(places)
        first, second = _geoms(Graph(), sizes)
        every = list(COLLISIONS[self.kinds](first, second, NOISE))
        rows = np.stack([columns(_outputs(found), values, n) for found in every], 1)
        absent = np.stack([columns([found.absent], values, n)[:, 0] for found in every], 1)
        assert np.isfinite(rows).all()
        there = (absent == 0.0) & (rows[:, :, 0] < margin)
        return [row[is_there] for row, is_there in zip(rows, there, strict=True)]


class Searched:
    """The search of two kinds of geoms, compiled for a CPU; on a GPU it has one lane.

    Args:
        kinds: of the geoms.
        lanes: environments per thread.
        read: meshes' hulls or height fields that the search reads.
        real: "double" or "float".
    """

    def __init__(
        self, kinds: tuple[str, str], lanes: int = 8, read: Hulls | HFields | None = None, real: str = "double"
    ) -> None:
        search = search_of(kinds, noslip=True)
        assert search is not None
        self.kinds, self.search, self.lanes = kinds, search, lanes
        self.dtype = torch.float64 if real == "double" else torch.float32
        self.width = self.search.slots * self.search.features
        tables = read.tables if read else {}
        warp = load_warp()
        code = f"""{prelude(real, lanes)}
{"".join(table(name, values, kind) for name, (kind, values) in tables.items())}
{self.search.helper(real, lanes)}
    vec given[{GIVEN}], found[{self.search.slots}][{self.search.features}];
    for (int k = 0; k < {GIVEN}; ++k) given[k] = load(state.data, {GIVEN}, k);
    {self.search.name}(given, found);
    for (int k = 0; k < {self.width}; ++k) store(next_state.data, {self.width}, k, found[0][k]);"""
        self.kernel = build(code, "forward", warp.float64 if real == "double" else warp.float32)
        load_module(self.kernel, torch.device("cpu"))

    def features(self, numbers: np.ndarray) -> np.ndarray:
        """Rows of features [n, slots, features] of states [n, GIVEN]."""
        state = torch.as_tensor(np.ascontiguousarray(numbers)).to(self.dtype)
        unused, found = torch.zeros_like(state), torch.zeros(len(state), self.width, dtype=self.dtype)
        launch(self.kernel, -(-len(state) // self.lanes), (state, unused, found, 0, 0))
        return found.double().numpy().reshape(-1, self.search.slots, self.search.features)

    def contacts(self, places: np.ndarray, sizes: np.ndarray, margin: float) -> list[np.ndarray]:
        """Of each state the contacts [k, 7]: distance, point, normal.

        Args:
            places: centre and frame, row by row, of both geoms [n, 2, 12].
            sizes: of both geoms [2, 3].
            margin: contacts are closer than that.
        """
        graph, values, n = Graph(), _values(places), len(places)
        first, second = _geoms(graph, sizes)
        numbers: list[Any] = given(self.kinds, first, second, margin)
        contact = self.search.contact(graph.inputs("feature", self.search.features), first, second, NOISE)
        found = self.features(columns(numbers, values, n))
        rows = []
        for slot in range(self.search.slots):
            features = {f"feature{k}": found[:, slot, k] for k in range(self.search.features)}
            rows.append(columns(_outputs(contact), values | features, n))
        every = np.stack(rows, 1)
        assert np.isfinite(every).all()
        there = (found[:, :, 0] == 1.0) & (every[:, :, 0] < margin)
        return [row[is_there] for row, is_there in zip(every, there, strict=True)]


searched = functools.cache(Searched)


def finder(kinds: tuple[str, str]) -> Searched | Expressions:
    """What finds the contacts of two kinds of geoms in backend ``warp``."""
    return searched(kinds) if kinds in SEARCHES else Expressions(kinds)


class Judge:
    """MuJoCo C's contacts of two geoms, each on a free body, or on a mocap body if it is a plane.

    The geoms are an explicit pair, so that C's broad phase does not matter.

    Args:
        kinds: of the geoms.
        sizes: of both geoms [2, 3]; a plane's do not count.
        margin: the sum of both geoms'.
        option: attributes of MJCF's ``option``; by default contacts are searched to convergence.
        assets: MJCF of ``mesh0`` and ``mesh1``, where the first or second geom is a mesh.
    """

    def __init__(
        self, kinds: tuple[str, str], sizes: np.ndarray, margin: float, option: str | None = None, assets: str = ""
    ) -> None:
        self._mujoco = load_mujoco()
        self.kinds, self.sizes, self.margin = kinds, sizes, margin
        bodies = ""
        for n, (name, kind, size) in enumerate(zip("ab", kinds, sizes.tolist(), strict=True)):
            body, shape = "<body><freejoint/>", f'size="{" ".join(map(repr, size))}"'
            if kind == "plane":
                body, shape = '<body mocap="true">', 'size="9 9 1"'
            elif kind == "mesh":
                shape = f'mesh="mesh{n}"'
            bodies += f'{body}<geom name="{name}" type="{kind}" {shape}/></body>'
        self.m = self._mujoco.MjModel.from_xml_string(
            f"""<mujoco><option {option or ""}/><default><geom contype="0" conaffinity="0"/></default>
            <asset>{assets}</asset><worldbody>{bodies}</worldbody>
            <contact><pair geom1="a" geom2="b" margin="{margin!r}"/></contact></mujoco>"""
        )
        if option is None:
            self.m = with_solver(self.m, "converged")
        self.d = self._mujoco.MjData(self.m)

    def contacts(self, poses: np.ndarray) -> np.ndarray:
        """The contacts [k, 7] of two poses [14]: distance, point, normal."""
        if self.m.nmocap:  # the first geom is a plane
            self.d.mocap_pos[0], self.d.mocap_quat[0], poses = poses[:3], poses[3:7], poses[7:]
        self.d.qpos[:] = poses
        self._mujoco.mj_kinematics(self.m, self.d)
        self._mujoco.mj_comPos(self.m, self.d)
        self._mujoco.mj_collision(self.m, self.d)
        found = self.d.contact
        return np.concatenate([found.dist[:, None], found.pos, found.frame[:, :3]], 1)[found.exclude == 0]

    def places(self) -> np.ndarray:
        """Centre and frame of the geoms at the last state [2, 12]."""
        return np.concatenate([self.d.geom_xpos, self.d.geom_xmat], 1)

    def every(self, states: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Places [n, 2, 12] and contacts of poses [n, 14]."""
        contacts, places = [], []
        for poses in states:
            contacts.append(self.contacts(poses))
            places.append(self.places())
        return np.array(places), contacts

    def wavers(
        self, poses: np.ndarray, rng: np.random.Generator, bound: float = 1e-9, nudge: float = 2e-14, nudges: int = 60
    ) -> bool:
        """Whether rounding errors of the poses, up to ``nudge``, give other contacts."""
        expected = self.contacts(poses)
        nudged = (poses + nudge * rng.integers(-1, 2, poses.shape) for _ in range(nudges))
        return any(not same(self.contacts(other), expected, bound) for other in nudged)


def same(found: np.ndarray, expected: np.ndarray, bound: float = 1e-9) -> bool:
    """Whether two lists of contacts are equal but for their order."""
    if len(found) != len(expected) or not len(found):
        return len(found) == len(expected)
    apart = abs(found[:, None] - expected[None]).max(2)
    return bool((apart.min(0) <= bound).all() and (apart.min(1) <= bound).all())
