"""Contacts of the Warp compiler against MuJoCo C, on generated pairs of geoms."""

from __future__ import annotations

import collections
import functools

import numpy as np
import pytest
from hypothesis import given, settings

mujoco = pytest.importorskip("mujoco")

from mage_diffsim.envs.mujoco.convergence import with_solver  # noqa: E402
from mage_diffsim.envs.mujoco.mixing import SMALLEST  # noqa: E402
from mage_diffsim.envs.warp.compiler import constraints, dynamics, intake  # noqa: E402
from mage_diffsim.envs.warp.compiler.derivatives import jvp  # noqa: E402
from mage_diffsim.envs.warp.compiler.graph import Graph, evaluate  # noqa: E402
from tests.envs.geom_pairs import PAIRS, Pair, State, at_margin, batch, mjcf, placements  # noqa: E402
from tests.envs.small_models import Body  # noqa: E402

BOUND = 1e-9
"""Of accelerations and forces, relative to the largest where that is above 1."""


SPECKS = (
    Pair("log and speck", ("capsule", "capsule"), ((0.1, 0.3), (0.1, 1e-9))),
    Pair("speck and log", ("capsule", "capsule"), ((0.05, 1e-9), (0.1, 0.3)), 'margin=".01"', 0.02),
    Pair("specks", ("capsule", "capsule"), ((0.1, 1e-9), (0.1, 1e-9)), 'condim="1"'),
)
"""Capsules whose segments MuJoCo takes for points."""
ALL = {**PAIRS, **{p.name: p for p in SPECKS}}


class Compiled:
    """The contacts of one pair's model as expressions, and MuJoCo C's data of the same model."""

    def __init__(self, name: str) -> None:
        self.pair = ALL[name]
        task = type("Generated", (Body,), {"name": "Generated", "mjcf": mjcf(self.pair)})()
        read, self.m = intake.read(task.simulation), with_solver(task.simulation.model, "converged")
        self.data = mujoco.MjData(self.m)
        g = Graph()
        q, v = g.inputs("q", self.m.nq), g.inputs("v", self.m.nv)
        self.q, self.kinematics = q, dynamics.Kinematics(read, q)
        self.contacts = constraints.contacts(self.kinematics)
        velocities = self.kinematics.velocities(v)
        self.outputs = []
        for c in self.contacts:
            self.outputs += [c.present, c.weight, *c.normal]
            for row, offset in zip(c.rows, c.offsets(velocities), strict=True):
                self.outputs += [*row, offset]

    def rows(self, state: State):
        """Of the contacts present: normals [k, 3], and of all their rows J, D and aref."""
        values = {f"q{i}": x for i, x in enumerate(state.qpos)} | {f"v{i}": x for i, x in enumerate(state.qvel)}
        found, nv = iter(evaluate(self.outputs, values)), self.m.nv

        def take(n):
            return np.array([float(next(found)) for _ in range(n)])

        normals, rows = [], []
        for c in self.contacts:
            present, weight, normal, along, offset = bool(take(1)[0]), take(1)[0], take(3), take(nv), take(1)[0]
            across = [(take(nv), take(1)[0]) for _ in c.tangents]
            if not present:
                continue
            normals.append(normal)
            rows += [(along + s * j, weight, -offset - s * x) for j, x in across for s in (1, -1)]
            rows += [(along, weight, -offset)] * c.cone.plain
        return np.array(normals).reshape(-1, 3), [np.array([r[i] for r in rows]) for i in range(3)]

    def mujoco(self, state: State):
        """C's (normals of the contacts that push, acceleration, constraint force)."""
        self.data.qpos[:], self.data.qvel[:] = state.qpos, state.qvel
        self.data.qacc_warmstart[:] = 0.0
        mujoco.mj_forward(self.m, self.data)
        normals = [c.frame[:3].copy() for c in self.data.contact if not c.exclude]
        return np.array(normals).reshape(-1, 3), self.data.qacc.copy(), self.data.qfrc_constraint.copy()


compiled = functools.cache(Compiled)


def pushed(mass, smooth, jacobian, weights, reference):
    """The acceleration and force at which rows push with -D (J a - aref) where that is positive: Newton's method."""
    a = smooth.copy()
    if not len(weights):
        return a, 0.0 * a
    for _ in range(200):
        violated = jacobian @ a < reference
        j, d = jacobian[violated], weights[violated]
        step = np.linalg.solve(mass + (j.T * d) @ j, mass @ smooth + (j.T * d) @ reference[violated]) - a
        if np.array_equal(jacobian @ (a + step) < reference, violated):
            a = a + step
            break
        with np.errstate(all="ignore"):
            ends = (reference - jacobian @ a) / (jacobian @ step)

        def slope(t, a=a, step=step):
            push = np.maximum(reference - jacobian @ (a + t * step), 0.0) * weights
            return step @ (mass @ (a + t * step - smooth) - jacobian.T @ push)

        # The slope along the step is linear between the places where a row begins or ends to push.
        low = max([t for t in ends if 0.0 < t < np.inf and slope(t) <= 0.0], default=0.0)
        high = min([t for t in ends if low < t < np.inf and slope(t) > 0.0], default=low + 1.0)
        s1, s2 = slope(low), slope(high)
        a = a + (low + (high - low) * (-s1 / (s2 - s1) if s2 > s1 else 1.0)) * step
    return a, jacobian.T @ (weights * np.maximum(reference - jacobian @ a, 0.0))


def nudged(state: State, n=4):
    """The state with its positions changed by some rounding errors: how well posed C's own answer is. Axes at 1e-4 rad
    cross at a place that such errors move by 1e-7, and the direction between coincident centres is any."""
    rng = np.random.default_rng(0)
    for _ in range(n):
        change = rng.choice([-1e-14, 0.0, 1e-14], len(state.qpos)) * np.maximum(1.0, abs(state.qpos))
        yield from (State(state.qpos + change, state.qvel), State(state.qpos - change, state.qvel))


def apart(first, second):
    """The largest difference of accelerations and forces, relative to what they are."""
    return max((abs(a - b) / max(1.0, abs(b).max())).max() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ALL)
def test_generated_pairs_touch_and_push_as_in_mujoco_c(name):
    at, seen = compiled(name), collections.Counter()

    @settings(max_examples=200)
    @given(placements(at.pair))
    def check(state):
        normals, *expected = at.mujoco(state)
        mass = np.zeros((at.m.nv, at.m.nv))
        mujoco.mj_fullM(at.m, at.data, mass)
        found, rows = at.rows(state)
        result = pushed(mass, at.data.qacc_smooth.copy(), *rows)
        others = [at.mujoco(other) for other in nudged(state)]
        if at_margin(at.m, at.data) or any(len(other[0]) != len(normals) for other in others):
            return  # a rounding error from touching, or from MuJoCo's threshold between one contact and two
        noise = max(apart(other[1:], expected) for other in others)
        assert len(found) == len(normals)
        assert apart(result, expected) <= BOUND + 3.0 * noise, noise
        seen[len(normals)] += noise <= BOUND

    check()
    # A cylinder on a plane has three contacts only where it is short.
    contacts = {("capsule", "capsule"): (0, 1, 2), ("plane", "capsule"): (0, 1, 2), ("plane", "box"): range(5)}
    contacts |= {("plane", "cylinder"): (0, 1, 2, 4)}
    expected = contacts.get(at.pair.kinds, (0, 1)) if at.pair in PAIRS.values() else (0, 1)
    assert all(seen[n] >= 3 for n in expected), f"states in which C itself is exact, by contacts: {seen}"


@pytest.mark.parametrize("name", ALL)
def test_derivatives_are_finite_and_float32_is_close(name):
    """Wherever a root or a quotient of a branch that is not taken has none, and where lengths are 0."""
    at = compiled(name)
    positions, _ = batch(at.pair, 300)
    positions = positions[abs(positions).max(1) < 5.0].astype(np.float32)
    ways = np.random.default_rng(0).normal(size=at.m.nq).tolist()
    found = []
    for real in (np.float64, np.float32):
        contacts = constraints.contacts(at.kinematics, SMALLEST if real == np.float64 else constraints.SINGLE)
        outputs = [x for c in contacts for x in (c.weight, c.push, *c.normal, *(x for p in c.points for x in p))]
        outputs += [x for c in contacts for row in c.rows for x in row]
        outputs += jvp(outputs, dict(zip(at.q, ways, strict=True)))
        values = {f"q{i}": x for i, x in enumerate(positions.T.astype(real))}
        numbers = np.stack([np.broadcast_to(x, len(positions)) for x in evaluate(outputs, values, real)])
        assert np.isfinite(numbers).all()
        found.append(numbers[: len(numbers) // 2])
    assert np.median((abs(found[0] - found[1]) / np.maximum(1.0, abs(found[0]))).max(0)) <= 1e-4
