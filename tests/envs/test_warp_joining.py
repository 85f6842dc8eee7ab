"""What the Warp compiler joins, without compiling: contacts of one capsule, contacts in groups, welded bodies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("mujoco")

from mage_diffsim.envs.registry import make_task
from mage_diffsim.envs.warp.compiler import constraints, dynamics, intake, repeat
from mage_diffsim.envs.warp.compiler.contact_code import grouped
from mage_diffsim.envs.warp.compiler.emit import Writer
from mage_diffsim.envs.warp.compiler.graph import Graph, evaluate
from mage_diffsim.envs.warp.compiler.loads import Load
from mage_diffsim.envs.warp.compiler.sweeps import Sweeps
from tests.envs.warp_models import Leg, Pile, Solids


def contacts_of(model):
    """(intake, the graph, contacts as they are, contacts joined) of a task's name or class."""
    task = make_task(model) if isinstance(model, str) else model()
    read, g = intake.read(task.simulation), Graph()
    every = constraints.contacts(dynamics.Kinematics(read, g.inputs("q", read.model.nq)))
    return read, g, every, repeat.joined(g, every)


def expressions(c):
    return [c.present, c.weight, c.push, *c.normal, *itertools.chain(*c.points, *c.tangents, *c.rows)]


def test_corners_of_a_box_are_one_contact_and_points_of_a_cylinder_two():
    *_, joined = contacts_of(Solids)
    copies = {kinds: [c.copies for c in joined if c.pair.kinds == ("plane", kinds)] for kinds in ("box", "cylinder")}
    assert copies == {"box": [4], "cylinder": [2, 2]}


@pytest.mark.parametrize("model", ["HalfCheetah", "Ant", Leg, Pile, Solids], ids=str)
def test_a_joined_contact_is_each_of_its_copies(model):
    read, _, every, joined = contacts_of(model)
    assert len(joined) < len(every) == sum(c.copies for c in joined)
    rng = np.random.default_rng(0)
    q = {f"q{i}": x + rng.normal(scale=0.3, size=20) for i, x in enumerate(read.model.qpos0)}
    apart = iter(every)
    for c in joined:
        for copy in range(c.copies):
            values = q | {name: numbers[copy] for name, numbers in c.numbers.items()}
            found, expected = evaluate(expressions(c), values), evaluate(expressions(next(apart)), q)
            for x, y in zip(found, expected, strict=True):
                np.testing.assert_array_equal(x, y)


def test_the_ends_of_a_capsule_on_the_floor_are_one_contact():
    _, _, _, joined = contacts_of("Ant")
    assert sorted(c.copies for c in joined) == [1, *[2] * 12]  # its torso is a sphere


def test_the_sweeps_take_each_copy_of_what_is_always_present():
    """As of a sled's runner on the floor: both its ends."""
    w, x = Writer(), Graph().input("x")
    with Sweeps._present(w, Load((1,), x, [x], True, 2, {"number": (1.0, 2.0)})) as present:
        w(f"sum += {present.format('x * number')};")
    assert "copy < 2" in w.text and w.text.index("copy < 2") < w.text.index("vec number") < w.text.index("sum +=")


def test_the_constant_part_of_an_expression_has_no_number_of_a_copy():
    g = Graph()
    x, y, number = g.input("x"), g.input("y"), g.input("number")
    product = x * y
    assert repeat.constant_part(product + number * x, {"number": (1.0, 2.0)}) == [product, x]
    assert repeat.constant_part(product, {"number": (1.0, 2.0)}) == [product]
    assert repeat.constant_part(0.0 < 1.0, {"number": (1.0, 2.0)}) == []


def test_the_constant_part_holds_what_is_shared_once():
    """And takes no longer than the expression has nodes."""
    g = Graph()
    x, power = g.input("x"), g.input("number")
    for _ in range(12):
        power = power * (power + x)
    assert repeat.constant_part(power, {"number": (1.0, 2.0)}) == [x]


@pytest.mark.parametrize("seed", range(5))
def test_groups_hold_every_contact_once_and_stay_small(seed):
    rng = np.random.default_rng(seed)
    moved = [frozenset(rng.choice(12, size=rng.integers(1, 7), replace=False).tolist()) for _ in range(15)]
    groups = grouped(moved, 12)
    assert sorted(n for _, numbers in groups for n in numbers) == list(range(15))
    assert all(moved[n] <= dofs for dofs, numbers in groups for n in numbers)
    assert sum(len(dofs) ** 2 for dofs, _ in groups) <= 1.5 * 12**2


def test_chains_that_share_a_trunk_are_groups_of_their_own():
    trunk, legs = {0, 1, 2}, [{3, 4}, {5, 6}]
    groups = grouped([frozenset(trunk), *(frozenset(trunk | leg) for leg in legs)], 7)
    assert [sorted(dofs) for dofs, _ in groups] == [[0, 1, 2, 3, 4], [0, 1, 2, 5, 6]]


def test_a_welded_body_is_part_of_the_body_that_carries_it():
    model = make_task("Ant").simulation.model
    bodies = intake.read(make_task("Ant").simulation).bodies
    assert sum(b.mass > 0.0 for b in bodies) == 9 < model.nbody - 1
    assert sum(b.mass for b in bodies) == pytest.approx(model.body_mass.sum(), rel=1e-14)
    assert bodies[1].centre == [0.0, 0.0, 0.0]  # four equal hips around the torso
