"""The noslip solver in the Warp compiler: values and derivatives of MuJoCo C, in both forms of contacts."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

mujoco = pytest.importorskip("mujoco")
pytest.importorskip("warp")

from mage_diffsim.envs import make_physics  # noqa: E402
from mage_diffsim.envs.mujoco.convergence import with_solver  # noqa: E402
from mage_diffsim.envs.mujoco.mixing import sweep_order  # noqa: E402
from mage_diffsim.envs.warp import model as warp_model  # noqa: E402
from mage_diffsim.envs.warp.compiler import cost, program  # noqa: E402
from mage_diffsim.envs.warp.compiler.intake import read, refusals  # noqa: E402
from mage_diffsim.envs.warp.compiler.program import Program  # noqa: E402
from tests.envs.row_models import Rubbing, Tied  # noqa: E402
from tests.envs.small_models import Body, jacobian  # noqa: E402
from tests.envs.test_warp_boxes import Boxes  # noqa: E402
from tests.envs.warp_models import (  # noqa: E402
    EllipticWheels,
    Pile,
    Rules,
    Solids,
    Trees,
    Wheels,
    physics_of,
    samples,
    scaled,
)
from tests.marks import slow_but  # noqa: E402

CHECKED = 30
"""States at which derivatives are compared."""

CAPSULE = '"capsule" size=".06" fromto="-.2 0 0 .2 0 .05"'
BOX = '"box" size=".1 .1 .1" euler="0 12 20"'
# A sled that rubs on its rail and slides on a ramp.
SLED = """<mujoco><option timestep="0.004" {options}/><default><geom friction=".4 .05 .02" condim="{condim}"/></default>
 <worldbody><geom type="plane" size="9 9 1" euler="0 12 0"/><body pos="0 0 .1"><joint name="x" type="slide"
 axis="1 0 0" frictionloss="2"/><joint name="z" type="slide" axis="0 0 1"/><joint name="p" axis="0 1 0"
 frictionloss=".1"/><geom type="capsule" size=".06" fromto="-.2 0 0 .2 0 .05"/></body></worldbody>
 <actuator><motor joint="x" gear="8" ctrlrange="-1 1"/></actuator></mujoco>"""
# A free body with a limb and a planar one that touch the ramp and one another; friction of joints, and of a tendon
# between them.
CRAWL = """<mujoco><option timestep="0.004" {options}/><default><geom friction=".4 .05 .02" density="300"
 condim="{condim}"/></default><worldbody><geom type="plane" size="9 9 1" euler="0 12 0"/><body pos="0 0 .13"><freejoint
 name="a"/><geom size=".1"/><geom type="capsule" size=".05" fromto="0 0 0 .3 .1 .05"/><body pos=".3 .1 .05"><joint
 name="knee" axis="0 1 0" damping=".1" frictionloss=".4"/><geom type="capsule" size=".04" fromto=".03 0 0 .15 0
 -.15"/></body></body><body pos=".1 .3 .15"><joint name="x" type="slide" axis="1 0 0" frictionloss="1"/><joint name="z"
 type="slide" axis="0 0 1"/><joint name="p" axis="0 1 0"/><geom type="capsule" size=".06" fromto="-.2 0 0 .2 0
 .05"/></body></worldbody><tendon><fixed frictionloss=".3"><joint joint="knee" coef="1"/><joint joint="p"
 coef="-.5"/></fixed></tendon><actuator><motor joint="knee" gear="2" ctrlrange="-1 1"/><motor joint="x" gear="8"
 ctrlrange="-1 1"/></actuator></mujoco>"""


def with_options(mjcf, **options):
    """The MJCF with other options."""
    for name in options:
        mjcf = re.sub(rf'(<option[^>]*?)\s{name}="[^"]*"', r"\1", mjcf)
    added = " ".join(f'{name}="{value}"' for name, value in options.items())
    return mjcf.replace("<option ", f"<option {added} ", 1)


def model(name, mjcf, condim=3, **options):
    mjcf = mjcf.replace("{condim}", str(condim)).replace("{options}", "")
    return type(name, (Body,), {"name": name, "mjcf": with_options(mjcf, **options), "frame_skip": 2})


ISLAND = '<mujoco><option><flag island="disable"/></option>'
Sled = model("Sled3", SLED, noslip_iterations=3)
EllipticSled = model("EllipticSled", SLED, noslip_iterations=3, cone="elliptic", impratio=3)
Corners = model("Corners", SLED.replace(CAPSULE, BOX), noslip_iterations=3)
MODELS = (
    Sled,
    EllipticSled,
    model("One", CRAWL, noslip_iterations=1),
    model("Three", CRAWL, condim=4, noslip_iterations=3, integrator="implicitfast"),
    model("Twenty", CRAWL, condim=6, noslip_iterations=20, noslip_tolerance=0, integrator="RK4"),
    model("Elliptic", CRAWL, noslip_iterations=20, cone="elliptic", impratio=3, integrator="RK4"),
    model("EllipticFour", CRAWL, condim=4, noslip_iterations=5, cone="elliptic", impratio=0.5, integrator="implicit"),
    model("EllipticSix", CRAWL, condim=6, noslip_iterations=3, cone="elliptic"),
    model("Condims", Wheels.mjcf, noslip_iterations=3),
    model("EllipticCondims", EllipticWheels.mjcf, noslip_iterations=3),
    model("Early", Pile.mjcf, noslip_iterations=20, noslip_tolerance=1e-4),
    model("Together", ISLAND + Pile.mjcf.removeprefix("<mujoco>"), noslip_iterations=20, noslip_tolerance=1e-4),
    model("Joints", Rubbing.mjcf, noslip_iterations=20),
    model("Tendons", Tied.mjcf, noslip_iterations=5),
    Corners,
    model("Boxed", Boxes.mjcf, noslip_iterations=3),
    model("Rolling", Solids.mjcf, noslip_iterations=3),
)
"""Contacts of boxes are searched, and in loops."""


@pytest.mark.parametrize("model", slow_but([Sled, Corners], MODELS), ids=lambda m: m.name)
def test_a_step_and_its_derivatives_are_those_of_mujoco_c(model):
    """The few states next to a kink are not differentiable."""
    compare(model, physics_of(model), physics_of(model, derivative="jvp"))


LOOPED = [x for x in MODELS if x.name in ("Sled3", "EllipticSix", "Condims", "EllipticCondims", "Early", "Joints")]


@pytest.mark.slow
@pytest.mark.parametrize("model", LOOPED, ids=lambda m: m.name)
def test_so_are_those_with_contacts_in_loops(model, monkeypatch):
    monkeypatch.setattr(cost, "LOOPED", -1.0)
    monkeypatch.setattr(warp_model, "_shared", {})
    found = (make_physics(model(), "warp", dtype=torch.float64, derivative=x) for x in ("adjoint", "jvp"))
    compare(model, *found)


def compare(model, physics, tangent):
    task, state, action = samples(model)
    reference = make_physics(task, "mujoco", dtype=torch.float64)
    expected, found = reference.step(state, action), physics.step(state, action)
    assert scaled(found - expected, expected).max() <= 1e-10
    slipping = model_without_noslip(model)
    assert scaled(slipping.step(state, action) - expected, expected).max() > 1e-6, "the sweeps change nothing"
    state, action = state[:CHECKED], action[:CHECKED]
    adjoint = jacobian(physics.step, state, action)
    tangents = jacobian(tangent.step, state, action)
    assert scaled(adjoint - tangents, tangents).max() <= 1e-10
    differences = jacobian(reference.step, state, action)
    error = scaled(adjoint - differences, differences).sort().values
    assert error[-4] <= 1e-6, error[-10:]


def model_without_noslip(found):
    changed = {"name": f"{found.name}Slipping", "mjcf": with_options(found.mjcf, noslip_iterations=0)}
    return make_physics(type(changed["name"], (found,), changed)(), "mujoco", dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("model", [Sled, EllipticSled], ids=lambda m: m.name)
def test_a_step_in_float32_is_that_of_mujoco_c(model):
    task, state, action = samples(model)
    state = state.float()
    expected = make_physics(task, "mujoco", dtype=torch.float64).step(state.double(), action.float().double())
    found = make_physics(task, "warp", dtype=torch.float32).step(state, action.float()).double()
    assert scaled(found - expected, expected).quantile(0.97) <= 1e-4


@pytest.mark.slow
def test_contacts_beyond_the_memory_give_nan_in_their_environments_alone(monkeypatch):
    model = next(x for x in MODELS if x.name == "Early")
    task, state, action = samples(model)
    whole = physics_of(model)
    monkeypatch.setattr(cost, "LOOPED", -1.0)
    monkeypatch.setattr(warp_model, "_shared", {})
    monkeypatch.setattr(program, "RECORDS", {1: 0, 8: 8 * 1500})
    physics = make_physics(task, "warp", dtype=torch.float64)
    found, expected = (jacobian(x.step, state, action) for x in (physics, whole))
    missing = found.isnan().flatten(1).any(1)
    assert 0 < missing.sum() < len(state)
    assert scaled((found - expected)[~missing], expected[~missing]).max() <= 1e-9


@pytest.mark.parametrize("model", [Pile, Wheels, Rules], ids=lambda m: m.name)
def test_the_order_of_the_sweeps_is_that_of_mujocos_contacts(model):
    _, state, _ = samples(model)
    found = read(model().simulation)
    m = with_solver(found.model, "converged")
    geoms = [pair.geoms for pair in found.pairs]
    order, data, most = sweep_order(m, geoms), mujoco.MjData(m), 0
    for row in state.numpy():
        data.qpos[:] = row[: m.nq]
        mujoco.mj_forward(m, data)
        own = [tuple(c.geom) for c in data.contact if c.efc_address >= 0]
        places = [order.index(geoms.index(x)) for x in own]
        assert places == sorted(places)
        most = max(most, len(set(places)))
    assert most > 1


def test_without_friction_there_is_nothing_to_do():
    codes = []
    for iterations in (0, 5):
        changed = {"mjcf": with_options(Trees.mjcf, noslip_iterations=iterations)}
        found = type("Trees", (Trees,), changed)().simulation
        assert not list(refusals(found.model))
        codes.append(Program(read(found), "double", 8))
    assert codes[0].forward() == codes[1].forward() and codes[0].adjoint() == codes[1].adjoint()


def test_sweeps_need_no_record_where_nothing_is_kept():
    """The forward kernel's records are smaller than the adjoint's, which keep the forces before each sweep."""
    noslip = Program(read(Sled().simulation), "double", 8).step.noslip
    assert noslip is not None
    forward, adjoint = (sum(int(np.prod(x)) for x in noslip.arrays(which).values()) for which in ("forward", "adjoint"))
    assert forward < adjoint / 2
