"""Contacts in loops: what large models get gives the numbers of contacts written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("mujoco")
pytest.importorskip("warp")

from mage_diffsim.envs import make_physics
from mage_diffsim.envs.warp import model as warp_model
from mage_diffsim.envs.warp.compiler import cost, implicit, pairs, program
from mage_diffsim.envs.warp.compiler.constraints import contacts_of
from mage_diffsim.envs.warp.compiler.contact_loops import ContactLoops
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics
from mage_diffsim.envs.warp.compiler.emit import array_bytes, operations
from mage_diffsim.envs.warp.compiler.graph import Graph, evaluate
from mage_diffsim.envs.warp.compiler.intake import read
from mage_diffsim.envs.warp.compiler.loops import Branches, linked
from mage_diffsim.envs.warp.compiler.pairs import inputs_of
from mage_diffsim.envs.warp.compiler.repeat import Different, join, signature
from mage_diffsim.errors import InputError
from tests.envs.warp_models import (
    PILE,
    Leg,
    Pile,
    Solids,
    assert_loops_are_those_of_mujoco_c_and_of_contacts_written_out,
    physics_of,
    samples,
)


def test_expressions_that_differ_in_numbers_are_joined():
    graphs = [Graph() for _ in range(3)]
    items = [[g.input("x") * factor + 3.0, g.input("y")] for g, factor in zip(graphs, (2.0, 5.0, 7.0), strict=True)]
    assert len({signature(item) for item in items}) == 1
    (joined, y), numbers = join(Graph(), items, "n")
    assert numbers == {"n0": (2.0, 5.0, 7.0)} and y.args == ("y",)
    assert evaluate([joined], {"x": 10.0, "n0": 5.0}) == [53.0]
    other = [graphs[0].input("y") * 2.0 + 3.0, graphs[0].input("y")]
    assert signature(other) != signature(items[0])
    with pytest.raises(Different):
        join(Graph(), [items[0], other], "n")


@pytest.mark.parametrize("model", [Pile, Leg, Solids], ids=str)
def test_items_are_the_contacts_of_their_pairs(model):
    found = read(model().simulation)
    rng = np.random.default_rng(0)
    graph, nq, nv = Graph(), found.model.nq, found.model.nv
    kinematics = Kinematics(found, graph.inputs("q", nq))
    velocities = kinematics.velocities(graph.inputs("v", nv))
    values = {f"q{i}": x + rng.normal(scale=0.2, size=30) for i, x in enumerate(found.model.qpos0)}
    values |= {f"v{i}": rng.normal(size=30) for i in range(nv)}
    number, absent, left = 0, 0, 0
    for kind in pairs.kinds(found, exact=True):
        for i, p in enumerate(kind.pairs):
            pair = found.pairs[p]
            given = {name: x[i] for name, x in kind.numbers.items()}
            for side, body in enumerate(pair.bodies, 1):
                centre, rotation = kinematics.geom(pair, side - 1)
                place = [*centre, *(x for row in rotation for x in row)]
                frame = [*(x for row in kinematics.rotation[body] for x in row), *kinematics.position[body]]
                frame += [*kinematics.origin(body), *velocities[body][0], *velocities[body][1]]
                for name, expressions in (("geom", place), ("body", frame)):
                    given |= {f"{name}{side}_{k}": x for k, x in enumerate(evaluate(expressions, values))}
            item = kind.item
            near, closer, present, *record = evaluate([item.near, item.closer, item.present, *item.record], given)
            assert np.all(near & closer | ~present)
            left += np.any(near & ~np.asarray(closer))
            candidates = [[c.present, c.offsets(velocities)[0], c.weight] for c in contacts_of(kinematics, pair, 1e-15)]
            ours = np.array(np.broadcast_arrays(present, record[0], record[-1]), dtype=float)
            theirs = [np.array(np.broadcast_arrays(*evaluate(c, values)), dtype=float) for c in candidates]
            assert min(np.abs(ours - x).max() for x in theirs) < 1e-9
            number += 1
            absent += not present.any()
    assert number == sum(len(contacts_of(kinematics, pair, 1e-15)) for pair in found.pairs) and absent < number
    assert left or not any(pair.kinds == ("capsule", "capsule") for pair in found.pairs)


def test_places_of_geoms_have_all_numbers_that_contacts_read():
    read_model, graph = read(Solids().simulation), Graph()
    kinematics = Kinematics(read_model, graph.inputs("q", read_model.model.nq))
    rest = [([0.0] * 3, [0.0] * 3)] * read_model.model.nbody
    loops = ContactLoops(kinematics, True, rest, 1 << 20, 16)
    for kind in loops.kinds:
        item = kind.item
        needed = inputs_of([item.near, item.present, item.record, item.forces, item.power])
        assert {int(x.args[0].split("_")[1]) for x in needed if x.args[0].startswith("geom")} <= set(loops.used)
    with pytest.raises(ValueError, match="several graphs"):
        inputs_of([Graph().input("a"), Graph().input("b")])


def test_links_are_the_fill_in_of_elimination():
    """A trunk of two degrees of freedom, two arms of two and three, and a body of its own, which a contact links."""
    branches = Branches([-1, 0, 1, 2, 1, 4, 5, -1, 7])
    assert branches.begin == [0, 2, 4, 7, 9]
    chains = [[0, 1, 2, 3], [0, 1, 4, 5, 6], [7, 8]]
    for contact, dense in (([], 0), ([3, 7], 1)):
        links = linked(len(branches), [branches.mask(x) for x in (*chains, contact)])
        size = branches.begin[-1]
        matrix = np.eye(size) * 20
        for chain in (*chains, contact):
            matrix[np.ix_(chain, chain)] += 1.0
        for k in reversed(range(size)):
            matrix[:k, :k] -= np.outer(matrix[k, :k], matrix[k, :k]) / matrix[k, k]
        for i in range(size):
            for j in range(i):
                s, t = branches.of[i], branches.of[j]
                assert s == t or matrix[i, j] == 0.0 or links[s] >> t & 1
        assert (links[3] > 0) == dense


def test_branches_of_a_large_model_are_bits_of_a_number():
    size = 150
    branches = Branches([-1] * size)
    assert len(branches) <= 64 and [len(x) for x in (branches.begin[:-1], branches.of)] == [len(branches), size]
    links = linked(len(branches), [branches.mask([0, 70]), branches.mask([70, size - 1])])
    assert max(links) < 1 << 64 and branches.mask(range(size)) == (1 << len(branches)) - 1
    columns = branches.columns(links)
    assert 70 in columns[size - 1] and 0 in columns[70] and 40 not in columns[size - 1]


@pytest.fixture
def looped(monkeypatch):
    monkeypatch.setattr(cost, "LOOPED", -1.0)
    monkeypatch.setattr(warp_model, "_shared", {})


class RoundPile(Pile):
    """With elliptic cones, and damping that is solved in loops."""

    name, mjcf = "RoundPile", PILE.replace("<option ", '<option cone="elliptic" ')


@pytest.mark.parametrize("model", [Pile, RoundPile], ids=str)
def test_a_step_in_loops_is_that_of_mujoco_c_and_its_derivatives_those_of_contacts_written_out(model, monkeypatch):
    if model is RoundPile:
        monkeypatch.setattr(implicit, "WRITTEN", -1)
        monkeypatch.setattr(program, "STREAMED", 0)
        monkeypatch.setattr(program, "LEAST_STREAMED", 0)
    assert_loops_are_those_of_mujoco_c_and_of_contacts_written_out(model, monkeypatch)


def test_arrays_take_stack_and_on_a_gpu_local_memory(looped, monkeypatch):
    simulation = samples(Pile)[0].simulation
    kernels = warp_model.ModelKernels(simulation, torch.float64, torch.device("cpu"))
    _, frame = kernels.build("adjoint")
    code, step = kernels._program.adjoint(), kernels._program.step
    hessian, contacts = step.solver.hessian, step.solver.contacts
    shapes = [*contacts.arrays("adjoint").values(), (contacts.marks, 1), (hessian.links, 1), (step.nv, 2)]
    branches = len(hessian.branches)
    arrays = 64 * sum(a * b for a, b in shapes) + 2 * 8 * branches + 4 * (branches + 1) * step.nv
    assert array_bytes(code, 64) == arrays and frame == arrays + 64 * operations(code)
    records = 8 * sum(a * b for a, b in step.solver.contacts.records.values())
    monkeypatch.setitem(warp_model.MEMORY, "cuda", records)
    kernels = warp_model.ModelKernels(simulation, torch.float64, torch.device("cuda"))
    with pytest.raises(
        InputError, match=r"keep \d+ KiB for arrays of forward, and \d+ are to be had: use a model with"
    ):
        kernels.build("forward")


def test_more_contacts_than_there_is_memory_for_give_nan(looped, monkeypatch):
    monkeypatch.setattr(program, "RECORDS", {1: 0, 8: 8 * 100})
    task, state, action = samples(Pile)
    whole, physics = physics_of(Pile).step(state, action), make_physics(task, "warp", dtype=torch.float64)
    output = physics.step(state, action)
    missing = output.isnan().all(1)
    assert 0 < missing.sum() < len(state) and torch.equal(output.isnan().any(1), missing)
    torch.testing.assert_close(output[~missing], whole[~missing], rtol=1e-11, atol=1e-11)
