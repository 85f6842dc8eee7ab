"""Quadrupeds that stand and are pushed, beside MuJoCo C."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("mujoco")
pytest.importorskip("warp")

from tests.envs.small_models import Body
from tests.envs.warp_models import assert_a_rollout_stays_beside_mujoco_c

LEG = """<body pos="{x} {y} 0"><joint name="{leg}abduction" axis="1 0 0" range="-40 40"/><geom size=".03"/>
<body pos="0 {out} 0"><joint name="{leg}hip" axis="0 1 0" range="-90 90"/><geom type="capsule" size=".02"
 fromto="0 0 0 -.1 0 -.17"/><body pos="-.1 0 -.17"><joint name="{leg}knee" axis="0 1 0" range="-80 80"/><geom
 type="capsule" size=".015" fromto="0 0 0 .1 0 -.17"/><geom pos=".1 0 -.17" {foot} contype="1" conaffinity="1"/></body>
</body></body>"""
QUADRUPED = """<mujoco><option timestep=".005"/><default><geom density="500" contype="0" conaffinity="0"
 friction=".8 .02 .01"/><joint damping=".3" armature=".005"/><position kp="60" ctrlrange="-.6 .6"/></default><worldbody>
<geom {floor} contype="1" conaffinity="1"/><body pos="0 0 .3705"><freejoint/><geom type="box" size=".2 .08 .04"
 contype="2" conaffinity="2"/>{legs}</body><body pos="0 -.35 .38"><joint name="push" type="slide" axis="0 1 0"
 damping="20"/><geom size=".08" contype="2" conaffinity="2"/></body></worldbody><actuator><motor joint="push" gear="14"
 ctrlrange="-1 1"/>{servos}</actuator></mujoco>"""
"""A trunk with twelve servos, and a ball on a rail that pushes it."""
LEGS = {"front_left_": (1, 1), "front_right_": (1, -1), "hind_left_": (-1, 1), "hind_right_": (-1, -1)}


def mjcf(foot: str, floor: str) -> str:
    """The quadruped; both arguments are attributes of a geom (MJCF)."""
    legs = (LEG.format(leg=leg, x=0.18 * i, y=0.08 * j, out=0.04 * j, foot=foot) for leg, (i, j) in LEGS.items())
    joints = (leg + name for leg in LEGS for name in ("abduction", "hip", "knee"))
    servos = "".join(f'<position joint="{name}"/>' for name in joints)
    return QUADRUPED.format(floor=floor, legs="".join(legs), servos=servos)


class Quadruped(Body):
    frame_skip, position_noise, velocity_noise = 2, 0.01, 0.1


class OnSpheres(Quadruped):
    name = "OnSpheres"
    mjcf = mjcf('size=".03"', 'type="plane" size="9 9 1"')


class OnBoxes(Quadruped):
    name = "OnBoxes"
    mjcf = mjcf('type="box" size=".04 .025 .03"', 'type="box" size="3 3 .2" pos="0 0 -.2"')


@pytest.mark.slow
@pytest.mark.parametrize("model", [OnSpheres, OnBoxes], ids=str)
def test_a_pushed_quadruped_stays_beside_mujoco_c(model):
    """200 steps: it stands, is pushed, crouches and gets up."""
    actions = torch.zeros(200, 13, dtype=torch.float64)
    actions[30:90, 0], actions[90:, 0] = 1.0, -0.5
    crouch = torch.tensor([0.0, 0.3, -0.6] * 4, dtype=torch.float64)
    actions[100:, 1:] = crouch * torch.linspace(0.0, math.pi, 100, dtype=torch.float64).sin()[:, None]
    path = assert_a_rollout_stays_beside_mujoco_c(model, actions)
    heights = path[:, 2]
    assert heights.min() > 0.2 and abs(path[:, 1]).max() > 0.01
