"""The stages of the Warp compiler, without compiling: expressions evaluated against MuJoCo C's own numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

mujoco = pytest.importorskip("mujoco")

from mage_diffsim.envs.registry import make_task  # noqa: E402
from mage_diffsim.envs.warp import WarpPhysics  # noqa: E402
from mage_diffsim.envs.warp import model as warp_model  # noqa: E402
from mage_diffsim.envs.warp.compiler import constraints, cost, dynamics, forces, graph, intake, manifold, rows  # noqa: E402
from mage_diffsim.envs.warp.compiler.coordinates import Coordinates  # noqa: E402
from mage_diffsim.envs.warp.compiler.derivatives import jvp, vjp  # noqa: E402
from mage_diffsim.envs.warp.compiler.emit import TABLE, Writer, literal, prelude  # noqa: E402
from mage_diffsim.envs.warp.compiler.graph import Graph, add, div, evaluate, less, mul, sub, where  # noqa: E402
from mage_diffsim.envs.warp.compiler.solver import filled  # noqa: E402
from mage_diffsim.errors import InputError  # noqa: E402
from tests.envs.small_models import Body  # noqa: E402
from tests.envs.stages import assert_close, compiled, edges, flat, numbers, states, values_of  # noqa: E402
from tests.envs.warp_models import LEG, PILE, SMALL, Pile, Solids  # noqa: E402

TASKS = ("InvertedPendulum", "InvertedDoublePendulum", "Reacher", "Swimmer", "HalfCheetah", "Hopper", "Walker2d", "Ant")
MODELS = (*TASKS, *SMALL)


def name_of(model):
    return model if isinstance(model, str) else model.name


# -- expressions --


def test_constants_fold_and_equal_operations_are_one_node():
    g = Graph()
    x, y = g.inputs("x", 2)
    assert add(x, 0.0) is x and mul(1.0, x) is x and mul(x, 0.0) == 0.0 and sub(x, x) == 0.0
    assert mul(x, y) is mul(y, x) and add(x, y) is add(y, x)
    assert graph.neg(graph.neg(x)) is x and mul(-1.0, x) is graph.neg(x)
    assert add(x, graph.neg(y)) is sub(x, y) and mul(graph.neg(x), graph.neg(y)) is mul(x, y)
    assert add(0.1 * 3.0, -0.3) == 0.0 and add(1e-20, 2e-20) == 1e-20 + 2e-20
    assert div(0.0, x) == 0.0 and where(True, x, y) is x and where(less(x, y), x, x) is x
    assert graph.sin(0.5) == math.sin(0.5) and len(g.nodes) == len({id(n) for n in g.nodes})


def formulas(g, x, y, z):
    """Every kind of node, twice nested."""
    inner = add(mul(graph.sin(x), y), div(z, add(2.0, mul(x, x))))
    root = graph.sqrt(add(1.0, mul(inner, inner)))
    branch = where(less(x, y), graph.power(root, 2.5), sub(root, graph.cos(mul(y, z))))
    turn = graph.atan2(add(inner, graph.floor(mul(3.0, x))), graph.atan2(2.0, root))
    return [turn, branch, graph.absolute(branch), graph.maximum(inner, root), graph.power(root, 3.0), graph.neg(z)]


@given(st.lists(st.floats(-2, 2), min_size=9, max_size=9))
def test_reverse_and_forward_mode_are_the_central_difference(numbers):
    g = Graph()
    inputs = g.inputs("x", 3)
    outputs = formulas(g, *inputs)
    at, along, weight = np.array(numbers[:3]), np.array(numbers[3:6]), np.array([*numbers[6:], 0.5, -0.3, 0.7])

    def value(x):
        return np.array([float(v) for v in evaluate(outputs, {f"x{i}": x[i] for i in range(3)})])

    h = 1e-6
    central = (value(at + h * along) - value(at - h * along)) / (2 * h)
    if abs((value(at + h * along) - 2 * value(at) + value(at - h * along)) / h).max() > 1e-3:
        return  # a kink within the step
    values = {f"x{i}": at[i] for i in range(3)}
    tangents = jvp(outputs, dict(zip(inputs, along.tolist(), strict=True)))
    np.testing.assert_allclose([float(v) for v in evaluate(tangents, values)], central, rtol=1e-6, atol=1e-7)
    gradients = vjp(zip(outputs, weight.tolist(), strict=True))
    found = evaluate([gradients.get(x, 0.0) for x in inputs], values)
    assert np.dot(np.array(found, dtype=float), along) == pytest.approx(np.dot(weight, central), rel=1e-6, abs=1e-7)


def test_reverse_mode_stops_at_cuts():
    g = Graph()
    x, y = g.inputs("x", 2)
    middle = mul(x, y)
    gradients = vjp([(mul(middle, middle), 1.0)], cuts=[middle])
    assert set(gradients) == {middle}
    assert evaluate([gradients[middle]], {"x0": 2.0, "x1": 3.0}) == [12.0]


def test_emitted_code_computes_everything_once_in_scope():
    g = Graph()
    x, y = g.inputs("x", 2)
    product = mul(x, y)
    w = Writer()
    w.compute(product)
    with w.block("if (true)"):
        w.compute(graph.sin(product), product)
        with w.block("", fresh=True):
            w.compute(product)
    w.compute(graph.sin(product))
    assert w.text.count("x0 * x1") == 2 and w.text.count("each_sin(") == 2
    assert "ext_vector_type(8)" in prelude("double", 8) and "typedef bool mask" in prelude("float", 1)


def test_the_fill_in_is_what_elimination_makes():
    rng = np.random.default_rng(0)
    entries = {(int(i), int(j)) for i, j in rng.integers(0, 8, (9, 2))}
    matrix = 20 * np.eye(8)
    for i, j in entries:
        matrix[i, j] = matrix[j, i] = matrix[i, j] + 1.0
    reached = np.abs(matrix)
    for k in reversed(range(8)):
        reached[:k, :k] += np.outer(reached[k, :k], reached[k, :k])
    assert filled(8, entries) == {(i, j) for i in range(8) for j in range(i + 1) if reached[i, j]}


# -- cost --


def balls(n):
    """A task of ``n`` free spheres above a floor."""
    spheres = "".join(f'<body pos="{i} 0 1"><freejoint/><geom size=".1"/></body>' for i in range(n))
    slide = '<body pos="0 3 1"><joint name="j" type="slide"/><geom size=".1" contype="0" conaffinity="0"/></body>'
    mjcf = f"""<mujoco><worldbody><geom type="plane" size="9 9 1"/>{spheres}{slide}</worldbody><actuator><motor
    joint="j" ctrlrange="-1 1"/></actuator></mujoco>"""
    return type("Balls", (Body,), {"name": "Balls", "mjcf": mjcf})()


@pytest.mark.parametrize(
    ("model", "seconds", "gib"),
    [("HalfCheetah", 4, 0.4), ("Ant", 11, 0.5), (balls(10), 11, 0.6)],
    ids=str,
)
def test_estimates_are_within_a_factor_of_what_compiling_took(model, seconds, gib):
    task = make_task(model) if isinstance(model, str) else model
    found = cost.check(intake.read(task.simulation))
    assert found.seconds == pytest.approx(seconds, rel=0.5) and found.gib == pytest.approx(gib, rel=0.3)


def test_the_code_of_the_rodent_is_estimated_as_what_compiling_took():
    """8.3 MB of statements and 3.3 MB of tables."""
    table = f"        {TABLE} real number0[] = {{{'0, ' * 1_100_000}}};\n"
    found = cost.of_code("y += x;\n" * 340_000 + table, "y += x;\n" * 700_000)
    assert found.seconds == pytest.approx(117, rel=0.5) and found.gib == pytest.approx(1.84, rel=0.1)


def snake(n):
    """A task of a chain of ``n`` links, which touch nothing."""
    links = '<body pos=".1 0 0"><joint axis="0 1 1"/><geom size=".04" contype="0" conaffinity="0"/>' * n
    mjcf = f"""<mujoco><worldbody><body><joint name="j"/><geom size=".1"/>{links}{"</body>" * n}</body></worldbody>
    <actuator><motor joint="j" ctrlrange="-1 1"/></actuator></mujoco>"""
    return type("Snake", (Body,), {"name": "Snake", "mjcf": mjcf})()


def test_what_takes_too_much_is_refused_with_the_numbers_before_it_is_traced(monkeypatch):
    monkeypatch.setattr(warp_model, "Program", None)
    numbers = (
        r"task Snake: compiling Warp kernels for 0 pairs of geoms and 81 degrees of freedom would take some \d+ "
        r"minutes and 2\.2 GiB of memory; accepted are 15 minutes and 2\.0 GiB: .* backend mujoco or mjx"
    )
    for ask in (WarpPhysics.check_covers, WarpPhysics):
        with pytest.raises(InputError, match=numbers):
            ask(snake(80))
    WarpPhysics.check_covers(snake(50))
    assert cost.looped(intake.read(balls(40).simulation)), "counted at once"
    monkeypatch.setattr(cost, "_memory_of_machine", lambda: 0.5)
    with pytest.raises(InputError, match=r"1\.2 GiB of memory; accepted are 15 minutes and 0\.5 GiB"):
        WarpPhysics.check_covers(snake(50))


def test_what_takes_too_much_by_its_code_is_refused_before_it_is_compiled(monkeypatch):
    """As with many long tendons, which the counts of joints and geoms do not tell of."""
    monkeypatch.setattr(warp_model, "build", None)
    monkeypatch.setattr(warp_model, "_shared", {})
    monkeypatch.setattr(cost, "MEMORY", 0.47)
    monkeypatch.setattr(cost, "estimate", lambda model: cost.Cost(1.0, 0.4))
    with pytest.raises(InputError, match=r"would take some 0 minutes and 0\.5 GiB of memory; accepted are"):
        WarpPhysics(snake(4))


# -- models --


@pytest.mark.parametrize("model", MODELS, ids=name_of)
def test_kinematics_mass_and_smooth_forces_are_those_of_mujoco_c(model):
    _, m, kinematics, q, v, u = compiled(model)
    mass = dynamics.mass_matrix(kinematics)
    bias = dynamics.inverse_dynamics(kinematics, v, [0.0] * m.nv)
    coordinates = Coordinates(kinematics, q)
    passive, actuation = (
        found.total(kinematics) for found in (forces.passive(coordinates, v), forces.actuation(coordinates, v, u))
    )
    for data in states(m):
        values = values_of(data)
        full = np.zeros((m.nv, m.nv))
        mujoco.mj_fullM(m, data, full)
        for b in range(m.nbody):
            assert_close(numbers(kinematics.world_position(b, [0.0] * 3), values), data.xpos[b])
            assert_close(numbers(flat(kinematics.rotation[b]), values), data.xmat[b])
        assert_close(numbers(flat(mass), values), full.reshape(-1))
        assert_close(numbers(bias, values), data.qfrc_bias)
        assert_close(numbers(passive, values), data.qfrc_passive)
        assert_close(numbers(actuation, values), data.qfrc_actuator)


@pytest.mark.parametrize("model", MODELS, ids=name_of)
def test_inverse_dynamics_is_linear_in_the_acceleration(model):
    _, m, kinematics, _, v, _ = compiled(model)
    g = v[0].graph
    mass, acceleration = dynamics.mass_matrix(kinematics), g.inputs("acceleration", m.nv)
    torque = dynamics.inverse_dynamics(kinematics, v, acceleration)
    bias = dynamics.inverse_dynamics(kinematics, v, [0.0] * m.nv)
    rng = np.random.default_rng(1)
    for data in states(m, 5):
        qacc = rng.normal(size=m.nv)
        values = values_of(data) | {f"acceleration{i}": x for i, x in enumerate(qacc)}
        inertial = numbers(flat(mass), values).reshape(m.nv, m.nv) @ qacc - m.dof_armature * qacc
        assert_close(numbers(torque, values) - numbers(bias, values), inertial)


@pytest.mark.parametrize("model", MODELS, ids=name_of)
def test_constraint_rows_are_those_of_mujoco_c(model):
    """The sums of D J' J, D J' aref and D aref^2 over the rows, which are all that the optimum depends on."""
    _, m, kinematics, q, v, _ = compiled(model)
    scalar, contacts = rows.scalar_rows(Coordinates(kinematics, q), v), constraints.contacts(kinematics)
    velocities = kinematics.velocities(v)
    wanted = [x for row in scalar for x in (row.weight, row.offset, *(row.sign * x for x in row.coordinate.row))]
    for c in contacts:
        wanted.append(c.weight)
        for row, offset in zip(c.rows, c.offsets(velocities), strict=True):
            wanted += [offset, *row]
    touched = 0
    for data in states(m, 60):
        found, every = iter(numbers(wanted, values_of(data)).tolist()), []
        for _ in scalar:
            weight, offset = next(found), next(found)
            every.append((weight, np.array([next(found) for _ in range(m.nv)]), -offset))
        for c in contacts:
            weight, of_ways = next(found), np.array([next(found) for _ in range(len(c.rows) * (1 + m.nv))])
            of_ways = of_ways.reshape(len(c.rows), 1 + m.nv)
            every += edges(c.cone, weight, of_ways[:, 1:], of_ways[:, 0])
        every = [row for row in every if row[0] > 0.0]
        touched += any(data.efc_type >= 5)
        weights, reference = (np.array([row[i] for row in every]) for i in (0, 2))
        ours = np.array([row[1] for row in every]).reshape(-1, m.nv)
        theirs = data.efc_J.reshape(-1, m.nv) if data.nefc else np.zeros((0, m.nv))
        for a, b in (
            ((ours.T * weights) @ ours, (theirs.T * data.efc_D) @ theirs),
            ((ours.T * weights) @ reference, (theirs.T * data.efc_D) @ data.efc_aref),
            ((weights * reference**2).sum(), (data.efc_D * data.efc_aref**2).sum()),
        ):
            assert_close(a, b, 1e-9)
    if contacts:
        assert touched > 10


def test_every_kind_of_contact_occurs():
    pairs = [pair for model in (Pile, Solids) for pair in intake.read(model().simulation).pairs]
    assert {p.kinds for p in pairs} == set(intake.COLLISIONS)
    assert {bool(p.friction) for p in pairs} == {True, False}


@pytest.mark.parametrize("model", ("Ant", *SMALL), ids=name_of)
def test_positions_move_as_in_mujoco_c_and_their_derivatives_are_differences(model):
    read, m, _, q, _, _ = compiled(model)
    g = q[0].graph
    by, c = g.inputs("by", m.nv), g.inputs("c", m.nv)
    start, displacement = g.inputs("start", m.nv), g.inputs("displacement", m.nv)
    moved = manifold.moved(read, q, by)
    start_gradient, by_gradient = manifold.moved_vjp(read, by, c)
    tangent = manifold.moved_jvp(read, by, start, displacement)
    rng = np.random.default_rng(0)

    def go(qpos, way):
        values = {f"q{i}": x for i, x in enumerate(qpos)} | {f"by{i}": x for i, x in enumerate(way)}
        return numbers(moved, values)

    def step(qpos, way):
        there = qpos.copy()
        mujoco.mj_integratePos(m, there, way, 1.0)
        return there

    def apart(to, of):
        difference = np.zeros(m.nv)
        mujoco.mj_differentiatePos(m, difference, 1.0, of, to)
        return difference

    data = mujoco.MjData(m)
    for scale in (0.0, 1e-9, 0.05, 0.1, 1.0, 2.0):
        data.qpos[:] = m.qpos0 + rng.normal(size=m.nq)
        mujoco.mj_normalizeQuat(m, data.qpos)
        qpos, way = data.qpos.copy(), scale * rng.normal(size=m.nv)
        assert_close(go(qpos, way), step(qpos, way), 1e-13)
        seeds = rng.normal(size=(3, m.nv))
        values = {
            f"{name}{i}": x
            for name, row in zip(("c", "start", "displacement"), seeds, strict=True)
            for i, x in enumerate(row)
        }
        values |= {f"by{i}": x for i, x in enumerate(way)}
        h = 1e-6
        there = step(qpos, way)
        up, down = (step(step(qpos, s * h * seeds[1]), way + s * h * seeds[2]) for s in (1, -1))
        central = (apart(up, there) - apart(down, there)) / (2 * h)
        assert_close(numbers(tangent, values), central, 1e-8)
        adjoint = numbers(start_gradient, values) @ seeds[1] + numbers(by_gradient, values) @ seeds[2]
        assert adjoint == pytest.approx(seeds[0] @ numbers(tangent, values), abs=1e-12)


def test_the_two_forms_of_a_quaternions_derivative_are_inverse():
    read, m, _, q, _, _ = compiled("Ant")
    g = q[0].graph
    gradient = g.inputs("gradient", m.nv)
    back = manifold.to_tangent(read, q, manifold.from_tangent(read, q, gradient))
    data = next(states(m))
    values = values_of(data) | {f"gradient{i}": float(i + 1) for i in range(m.nv)}
    assert_close(numbers(back, values), np.arange(1.0, m.nv + 1))


# -- refusals --


TENDON = '<tendon><fixed {}><joint joint="hip" coef="1"/></fixed></tendon><actuator>'


STONE = """<asset><mesh name="stone" vertex="0 0 0 .1 0 0 0 .1 0 0 0 .1"/></asset><worldbody>
<geom type="mesh" mesh="stone"/>"""


def refused(mjcf, **attributes):
    return type("Refused", (Body,), {"name": "Refused", "mjcf": mjcf, **attributes})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (('integrator="RK4"', 'integrator="discrete"'), "integrator discrete"),
        (('damping=".3"', 'frictionloss="-.3"'), "negative friction loss of joint 'hip'"),
        (('<worldbody><geom type="plane" size="9 9 1"/>', STONE), "a contact of capsule with mesh"),
        (('<motor joint="hip" gear="20"', '<general joint="hip" gaintype="user"'), "whose gain is of type user"),
        (
            ("<actuator>", TENDON.format('springlength="1" stiffness="2 3"')),
            "nonlinear tendon stiffness of tendon 'tendon0'",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_the_compiler_does_not_cover_is_refused_by_name(change, reason):
    assert change[0] in LEG
    with pytest.raises(InputError, match="the Warp compiler does not cover this model") as caught:
        intake.read(refused(LEG.replace(*change))().simulation)
    assert reason in str(caught.value) and "use backend mujoco" in str(caught.value)


def test_excluded_and_welded_bodies_do_not_collide():
    with_exclude = PILE.replace("</mujoco>", '<contact><exclude body1="one" body2="two"/></contact></mujoco>')
    few, many = (
        {tuple(sorted(p.bodies)) for p in intake.read(refused(x)().simulation).pairs} for x in (with_exclude, PILE)
    )
    assert many == {(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)}  # 2 is the child of 1, and the world does not touch itself
    assert few == many - {(1, 3)}


def test_a_number_that_code_cannot_hold_is_not_written():
    with pytest.raises(ValueError, match="inf cannot be written into a kernel"):
        literal(math.inf)
