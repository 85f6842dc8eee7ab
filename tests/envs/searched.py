"""Searches for contacts, run alone, and states of two geoms to try them on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from mage_diffsim.bridges.warp import launch, load_module, load_warp
from mage_diffsim.envs.warp.compiler.constraints import Contact, contacts_of
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics
from mage_diffsim.envs.warp.compiler.emit import prelude
from mage_diffsim.envs.warp.compiler.geoms import Geom
from mage_diffsim.envs.warp.compiler.graph import Graph, evaluate
from mage_diffsim.envs.warp.compiler.searches import GIVEN, SEARCHES, given
from mage_diffsim.envs.warp.model import build

mujoco = pytest.importorskip("mujoco")


class Searched:
    """The search of two kinds of geoms, compiled for float64 on a CPU; on a GPU it has one lane."""

    def __init__(self, kinds: tuple[str, str], lanes: int = 8) -> None:
        self.kinds, self.search, self.lanes = kinds, SEARCHES[kinds], lanes
        self.width = self.search.slots * self.search.features
        code = f"""{prelude("double", lanes)}
{self.search.helper("double", lanes)}
    vec given[{GIVEN}], found[{self.search.slots}][{self.search.features}];
    for (int k = 0; k < {GIVEN}; ++k) given[k] = load(state.data, {GIVEN}, k);
    {self.search.name}(given, found);
    for (int k = 0; k < {self.width}; ++k) store(next_state.data, {self.width}, k, found[0][k]);"""
        self.kernel = build(code, "forward", load_warp().float64)
        load_module(self.kernel, torch.device("cpu"))

    def features(self, numbers: np.ndarray) -> np.ndarray:
        """Rows of features [n, slots, features] of states [n, GIVEN]."""
        state = torch.as_tensor(np.ascontiguousarray(numbers))
        unused, found = torch.zeros_like(state), torch.zeros(len(state), self.width, dtype=torch.float64)
        launch(self.kernel, -(-len(state) // self.lanes), (state, unused, found, 0, 0))
        return found.numpy().reshape(-1, self.search.slots, self.search.features)

    def contacts(self, places: np.ndarray, sizes: np.ndarray, margin: float) -> list[np.ndarray]:
        """Of each state the contacts [k, 7]: distance, point, normal.

        Args:
            places: centre and frame, row by row, of both geoms [n, 2, 12].
            sizes: of both geoms [2, 3].
            margin: contacts are no further apart.
        """
        graph = Graph()
        names = ("first", "second")
        x = [graph.inputs(name, 12) for name in names]
        first, second = (Geom(y[:3], [y[3:6], y[6:9], y[9:]], tuple(s)) for y, s in zip(x, sizes.tolist(), strict=True))
        numbers: list[Any] = given(self.kinds, first, second, margin)
        contact = self.search.contact(graph.inputs("feature", self.search.features), first, second, 1e-15)
        values = {f"{name}{k}": places[:, i, k] for i, name in enumerate(names) for k in range(12)}
        found = self.features(_columns(numbers, values, len(places)))
        rows = []
        for slot in range(self.search.slots):
            features = {f"feature{k}": found[:, slot, k] for k in range(self.search.features)}
            outputs = [contact.distance, *contact.point, *contact.normal]
            rows.append(_columns(outputs, values | features, len(places)))
        every = np.stack(rows, 1)
        assert np.isfinite(every).all()
        there = (found[:, :, 0] == 1.0) & (every[:, :, 0] <= margin)
        return [row[is_there] for row, is_there in zip(every, there, strict=True)]


def _columns(expressions: Sequence[Any], values: dict[str, np.ndarray], n: int) -> np.ndarray:
    return np.stack([np.broadcast_to(x, n) for x in evaluate(expressions, values)], 1)


searched = functools.cache(Searched)


class Slots(Kinematics):
    """The kinematics of a whole model, in which each contact that a search can find has inputs for its features."""

    def __init__(self, graph: Graph, *arguments: Any) -> None:
        self._graph, self._inputs = graph, []
        super().__init__(*arguments)
        self.contacts: list[Contact] = []
        self._slots = []
        for pair in self.model.pairs:
            for slot in range(SEARCHES[pair.kinds].slots if pair.kinds in SEARCHES else 1):
                self.contacts += contacts_of(self, pair, 1e-15)
                if pair.kinds in SEARCHES:
                    self._slots.append((self.contacts[-1], self._inputs[-1], slot))

    def features(self, n: int) -> list[Any]:
        self._inputs.append(self._graph.inputs(f"feature{len(self._inputs)}_", n))
        return self._inputs[-1]

    def with_features(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The values of inputs [n], with those of the features that the searches find."""
        n, found = len(next(iter(values.values()))), dict(values)
        for contact, inputs, slot in self._slots:
            rows = searched(contact.pair.kinds).features(_columns(contact.given, values, n))
            found |= {x.args[0]: rows[:, slot, k] for k, x in enumerate(inputs)}
        return found


class Judge:
    """MuJoCo C's contacts of two geoms on free bodies."""

    def __init__(self, kinds: tuple[str, str], sizes: np.ndarray, margin: float, option: str = "") -> None:
        bodies = "".join(
            f'<body><freejoint/><geom type="{kind}" size="{" ".join(map(repr, size))}" margin="{margin / 2!r}"/></body>'
            for kind, size in zip(kinds, sizes.tolist(), strict=True)
        )
        self.m = mujoco.MjModel.from_xml_string(f"<mujoco><option {option}/><worldbody>{bodies}</worldbody></mujoco>")
        self.d = mujoco.MjData(self.m)

    def contacts(self, qpos: np.ndarray) -> np.ndarray:
        """[k, 7]: distance, point, normal."""
        self.d.qpos[:] = qpos
        mujoco.mj_kinematics(self.m, self.d)
        mujoco.mj_comPos(self.m, self.d)
        mujoco.mj_collision(self.m, self.d)
        return np.array([[c.dist, *c.pos, *c.frame[:3]] for c in self.d.contact]).reshape(-1, 7)

    def places(self) -> np.ndarray:
        """Centre and frame of the geoms at the last state [2, 12]."""
        return np.concatenate([self.d.geom_xpos, self.d.geom_xmat], 1)

    def wavers(self, qpos: np.ndarray, rng: np.random.Generator, bound: float = 1e-9) -> bool:
        """Whether rounding errors of the positions, 2e-14, give other contacts."""
        expected = self.contacts(qpos)
        nudged = (qpos + 2e-14 * rng.integers(-1, 2, qpos.shape) for _ in range(60))
        return any(not same(self.contacts(other), expected, bound) for other in nudged)


def same(found: np.ndarray, expected: np.ndarray, bound: float = 1e-9) -> bool:
    """Whether two lists of contacts are equal but for their order."""
    if len(found) != len(expected) or not len(found):
        return len(found) == len(expected)
    apart = abs(found[:, None] - expected[None]).max(2)
    return bool((apart.min(0) <= bound).all() and (apart.min(1) <= bound).all())


_TURNS = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [1, 1, 1, 1]], dtype=float)


def states(rng: np.random.Generator, reach: Any, n: int) -> np.ndarray:
    """Positions [n, 14] of two free bodies that touch or nearly so: in any position, or with axes or faces together.

    Args:
        rng: random numbers.
        reach: how far geom i (0 or 1) extends along a direction, given the direction in its frame.
        n: how many.
    """
    found = []
    for _ in range(n):
        first, second = (_quaternion(rng) for _ in range(2))
        if rng.random() < 0.5:
            first = _TURNS[0]
        if rng.random() < 0.5:  # faces together, but for an angle of any size, and a turn about a normal
            angle = rng.choice([0.0, 0.3, 1.0]) * rng.uniform(-1.0, 1.0)
            tilt = np.array([1.0, *(0.5 * rng.choice([0.0, 1e-14, 1e-10, 1e-7, 1e-4, 1e-2, 0.1]) * rng.normal(size=3))])
            second = _product(_product(tilt, [np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)]), _TURNS[rng.integers(5)])
        second = _product(first, second / np.linalg.norm(second))
        frames = [_frame(first), _frame(second)]
        way = rng.normal(size=3)
        if rng.random() < 0.5:
            way = frames[rng.integers(2)][:, rng.integers(3)] * rng.choice([-1.0, 1.0])
        way /= np.linalg.norm(way)
        apart = way * sum(reach(i, frame.T @ way) for i, frame in enumerate(frames))
        apart *= rng.choice([1.01, 1.0, 0.999, 0.9, 0.6, rng.uniform()])
        if rng.random() < 0.5:
            beside = 0.2 * rng.normal(size=3)
            apart += beside - way * (beside @ way)
        place = rng.normal(size=3)
        found.append([*place, *first, *(place + apart), *second])
    return np.array(found)


def _quaternion(rng: np.random.Generator) -> np.ndarray:
    q = rng.normal(size=4)
    return q / np.linalg.norm(q)


def _product(a: Any, b: Any) -> np.ndarray:
    result = np.zeros(4)
    mujoco.mju_mulQuat(result, np.asarray(a, dtype=float), np.asarray(b, dtype=float))
    return result


def _frame(quaternion: np.ndarray) -> np.ndarray:
    result = np.zeros(9)
    mujoco.mju_quat2Mat(result, quaternion)
    return result.reshape(3, 3)
