"""The adjoint of Warp steps against their tangents, another derivation of the same step, in fast and odd states."""

from __future__ import annotations

import pytest
import torch

from mage_diffsim.envs import make_physics, make_task
from tests.envs.small_models import Body, jacobian

# Both legs begin at the same place of the trunk, so their frames share nodes that the trunk's has not.
TWINS = """<mujoco><option timestep="0.005" integrator="{}" density="{}"/><default><geom type="capsule" size=".04"
 contype="0" friction=".8 .1 .1"/></default><worldbody><geom type="plane" size="5 5 1"/><body pos="0 0 .6"><joint
 type="slide" axis="1 0 0" armature=".1"/><joint type="slide" axis="0 0 1"/><joint axis="0 1 0"/><geom
 fromto="-.3 0 0 .3 0 0"/><body pos=".2 0 0"><joint name="a" axis="0 1 0" damping=".1"/><geom fromto="0 0 0 .1 0 -.3"/>
 <body pos=".1 0 -.3"><joint axis="0 1 0"/><geom fromto="0 0 0 0 0 -.3" contype="1"/></body></body><body pos=".2 0 0">
 <joint axis="0 1 0" damping=".1"/><geom fromto="0 0 0 -.1 0 -.3"/><body pos="-.1 0 -.3"><joint name="b"
 axis="0 1 0"/><geom fromto="0 0 0 0 0 -.3" contype="1"/></body></body></body></worldbody><actuator><motor joint="a"
 gear="30" ctrlrange="-1 1"/><motor joint="b" gear="30" ctrlrange="-1 1"/></actuator></mujoco>"""


def twins(integrator: str, density: float) -> Body:
    return type("Twins", (Body,), {"name": "Twins", "mjcf": TWINS.format(integrator, density)})()


@pytest.mark.parametrize(
    ("task", "speed"),
    [
        (twins("Euler", 0.0), 5.0),
        (twins("RK4", 300.0), 5.0),
        (make_task("Reacher"), 40.0),  # an angular velocity is an input and a node of the first body's frame
        (make_task("Walker2d"), 20.0),
    ],
    ids=["twins", "twins in a fluid", "Reacher", "Walker2d"],
)
def test_the_adjoint_is_the_transpose_of_the_tangents(task, speed):
    generator = torch.Generator().manual_seed(0)
    simulation = task.simulation
    like = dict(generator=generator, dtype=torch.float64)
    qpos = torch.as_tensor(simulation.qpos0) + 0.6 * torch.randn(48, simulation.nq, **like)
    if len(qpos[0]) > 5:
        qpos[:, 1] -= 0.7  # into the ground
    state = task.state_at(qpos, speed * torch.randn(48, simulation.nv, **like))
    action = 2.0 * torch.rand(48, task.action_dim, **like) - 1.0

    adjoint, tangents = (
        jacobian(make_physics(task, "warp", dtype=torch.float64, derivative=source).step, state, action)
        for source in ("adjoint", "jvp")
    )
    assert tangents.isfinite().all() and tangents.abs().max() > 1.0
    assert (adjoint - tangents).abs().max() <= 1e-11 * tangents.abs().max()
