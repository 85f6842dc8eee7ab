"""Models and states of two geoms to try searches for contacts on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from contact_pairs.finding import columns, searched

from mage_diffsim.envs.warp.compiler.constraints import Contact, contacts_of
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics
from mage_diffsim.envs.warp.compiler.graph import Graph
from mage_diffsim.envs.warp.compiler.searches import search_of

mujoco = pytest.importorskip("mujoco")


class Slots(Kinematics):
    """The kinematics of a whole model, in which each contact that a search can find has inputs for its features."""

    def __init__(self, graph: Graph, *arguments: Any) -> None:
        self._graph, self._inputs = graph, []
        super().__init__(*arguments)
        self.contacts: list[Contact] = []
        self._slots = []
        for pair in self.model.pairs:
            search = search_of(pair.kinds, self.model.noslip)
            for slot in range(search.slots if search else 1):
                self.contacts += contacts_of(self, pair, 1e-15)
                if search:
                    self._slots.append((self.contacts[-1], self._inputs[-1], slot))

    def features(self, n: int) -> list[Any]:
        self._inputs.append(self._graph.inputs(f"feature{len(self._inputs)}_", n))
        return self._inputs[-1]

    def with_features(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The values of inputs [n], with those of the features that the searches find."""
        n, found = len(next(iter(values.values()))), dict(values)
        for contact, inputs, slot in self._slots:
            rows = searched(contact.pair.kinds).features(columns(contact.given, values, n))
            found |= {x.args[0]: rows[:, slot, k] for k, x in enumerate(inputs)}
        return found


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
