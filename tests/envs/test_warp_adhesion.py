"""Actuators on bodies on Warp: equal to MuJoCo C stage by stage, in steps and in their derivatives."""

from __future__ import annotations

import numpy as np
import pytest

mujoco = pytest.importorskip("mujoco")
pytest.importorskip("warp")

from mage_diffsim.envs.warp.compiler import activation, forces, intake  # noqa: E402
from mage_diffsim.envs.warp.compiler.actuators import actuator_forces  # noqa: E402
from mage_diffsim.envs.warp.compiler.coordinates import Coordinates  # noqa: E402
from mage_diffsim.envs.warp.compiler.graph import evaluate  # noqa: E402
from mage_diffsim.errors import InputError  # noqa: E402
from tests.envs.adhesion_models import (  # noqa: E402
    CRAWLERS,
    Crawler,
    FarCrawler,
    Hung,
    RoundCrawler,
    SlippingCrawler,
    SlippingHung,
)
from tests.envs.stages import assert_close, compiled, moment, states, values_of  # noqa: E402
from tests.envs.warp_models import (  # noqa: E402
    assert_adjoint_and_tangents_agree,
    assert_loops_are_those_of_mujoco_c_and_of_contacts_written_out,
    assert_step_and_derivatives_are_those_of_mujoco_c,
)
from tests.marks import slow_but  # noqa: E402

N = 300
BODY = int(mujoco.mjtTrn.mjTRN_BODY)


@pytest.mark.parametrize("model", [Crawler, RoundCrawler, FarCrawler, Hung], ids=lambda m: m.name)
def test_moments_and_forces_are_those_of_mujoco_c(model):
    read, m, kinematics, q, v, u = compiled(model)
    coordinates, drive = Coordinates(kinematics, q), activation.inputs(read, u, q[0].graph.inputs("act", m.na))
    motions, found = kinematics.velocities(v), actuator_forces(coordinates, v, drive)
    along = [coordinate for coordinate, *_ in found.values()]
    expressions = {
        "moment": [x for c in along for x in c.row],
        "actuator_length": [c.length for c in along],
        "actuator_velocity": [c.rate(motions, v) for c in along],
        "actuator_force": [force for _, force, _ in found.values()],
        "qfrc_actuator": forces.actuation(coordinates, v, drive).total(kinematics),
    }
    rng, every, theirs, gaps = np.random.default_rng(1), [], {name: [] for name in expressions}, 0
    for data in states(m, N):
        data.act[:] = rng.normal(size=m.na)
        mujoco.mj_forward(m, data)
        every.append(values_of(data) | {f"act{i}": x for i, x in enumerate(data.act)})
        for name, fields in theirs.items():
            fields.append(moment(m, data).reshape(-1) if name == "moment" else getattr(data, name).copy())
        gaps += any(c.exclude == 1 for c in data.contact)
    values = {name: np.array([x[name] for x in every]) for name in every[0]}
    for name, wanted in expressions.items():
        ours = np.stack([np.broadcast_to(x, N) for x in evaluate(wanted, values)], axis=1)
        assert_close(ours, theirs[name], 1e-10)
    acting = np.reshape(theirs["moment"], (N, m.nactuator, m.nv))[:, m.actuator_trntype == BODY].any(2)
    assert gaps and acting.any(0).all() and (model is FarCrawler or not acting.all(0).any())


@pytest.mark.parametrize(("gap", "covered"), [("", True), (' gap=".02"', False)])
def test_counting_contacts_that_cannot_act_is_refused(gap, covered):
    """MuJoCo counts those in the gap."""
    pair = (
        f'<contact><pair geom1="post" geom2="wall"{gap}/></contact><actuator><adhesion body="stand" ctrlrange="0 1"/>'
    )
    bodies = """<body name="stand"><geom name="post" size=".1"/></body><geom name="wall" pos=".21 0 0" size=".1"/>"""
    mjcf = Hung.mjcf.replace("</worldbody><actuator>", f"{bodies}</worldbody>{pair}")
    simulation = type("Standing", (Hung,), {"name": "Standing", "mjcf": mjcf})().simulation
    if covered:
        assert intake.read(simulation)
        return
    with pytest.raises(
        InputError, match=r"actuator 'actuator0', which counts contacts in the gap of geoms that cannot"
    ):
        intake.read(simulation)


EVERY = slow_but([Hung], [Hung, *CRAWLERS])


@pytest.mark.parametrize("model", EVERY, ids=lambda m: m.name)
def test_steps_and_derivatives_are_those_of_mujoco_c(model):
    assert_step_and_derivatives_are_those_of_mujoco_c(model)


@pytest.mark.parametrize("model", EVERY, ids=lambda m: m.name)
def test_adjoint_and_tangents_agree(model):
    assert_adjoint_and_tangents_agree(model)


LOOPED = slow_but([SlippingHung], [SlippingHung, SlippingCrawler, Hung, *CRAWLERS])


@pytest.mark.parametrize("model", LOOPED, ids=lambda m: m.name)
def test_loops_are_those_of_mujoco_c_and_of_contacts_written_out(model, monkeypatch):
    assert_loops_are_those_of_mujoco_c_and_of_contacts_written_out(model, monkeypatch)
