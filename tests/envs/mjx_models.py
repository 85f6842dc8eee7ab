"""Small models that every part of MJX is tested on, each compiled once per process."""

from __future__ import annotations

import functools

import pytest
import torch

jax = pytest.importorskip("jax")
mujoco = pytest.importorskip("mujoco")
pytest.importorskip("mujoco.mjx")
from mage_diffsim.envs.mujoco.model import (  # noqa: E402
    BodyPosition,
    CentreOfMass,
    CentreOfMassVelocity,
    MeanVelocity,
    SitePosition,
)
from mage_diffsim.envs.physics import make_physics  # noqa: E402
from tests.envs.small_models import Body, jacobian  # noqa: E402

N = 32
"""Environments of every compiled step here, as each number of them is compiled anew."""

# A ball that bounces and slides within limits: the least model with contacts and a limit.
BALL = """<mujoco><option timestep="0.01"/><worldbody><geom type="plane" size="9 9 1"/><body pos="0 0 .1"><joint
 name="z" type="slide" axis="0 0 1"/><joint name="x" type="slide" axis="1 0 0" limited="true" range="-.2 .2"
 damping=".5"/><geom size=".1"/></body></worldbody><actuator><motor joint="x" gear="5" ctrlrange="-1 1"/></actuator>
 </mujoco>"""
# Joint limits, friction loss, damping, springs, an equality and a tendon: everything but contacts.
ARM = """<mujoco><option timestep="0.01"/><worldbody><body><joint name="slide" type="slide" axis="1 0 0" limited="true"
 range="-.2 .2" damping="1" frictionloss=".3"/><geom type="capsule" size=".05" fromto="0 0 0 0 0 .3" contype="0"
 conaffinity="0"/><body pos="0 0 .3"><joint name="hinge" axis="0 1 0" limited="true" range="-60 40" damping=".05"
 stiffness=".5"/><geom type="capsule" size=".04" fromto="0 0 0 .2 0 .3" contype="0" conaffinity="0"/><body
 pos=".2 0 .3"><joint name="tail" axis="0 1 0"/><geom size=".05" contype="0" conaffinity="0"/></body></body></body>
 </worldbody><tendon><fixed name="tendon" stiffness="2"><joint joint="slide" coef="1"/><joint joint="hinge" coef=".3"/>
 </fixed></tendon><equality><joint joint1="tail" joint2="hinge" polycoef="0 .5 0 0 0"/></equality><actuator>
 <motor joint="slide" gear="8" ctrlrange="-1 1"/><motor joint="hinge" ctrlrange="-2 2"/></actuator></mujoco>"""
# Two capsules hopping in a plane: sliding contacts.
LEG = """<mujoco><option timestep="0.005" integrator="RK4"/><default><geom friction="1 .1 .1" solimp=".8 .8 .01"
 solref=".02 1"/></default><worldbody><geom type="plane" size="9 9 1"/><body name="torso" pos="0 0 .6"><joint name="x"
 type="slide" axis="1 0 0"/><joint name="z" type="slide" axis="0 0 1"/><joint name="pitch" axis="0 1 0"/><geom
 type="capsule" size=".07" fromto="-.2 0 0 .2 0 0"/><body pos=".1 0 0"><joint name="hip" axis="0 1 0" damping=".2"
 armature=".02"/><geom type="capsule" size=".05" fromto="0 0 0 .1 0 -.5"/><site name="foot" pos=".1 0 -.5"/></body>
 </body></worldbody><actuator><motor joint="hip" gear="20" ctrlrange="-1 1"/></actuator></mujoco>"""
# Elliptic cones, and a servo whose damping is integrated implicitly.
ELLIPTIC = LEG.replace("<option ", '<option cone="elliptic" impratio="2" ').replace("RK4", "implicitfast")
ELLIPTIC = ELLIPTIC.replace('<motor joint="hip" gear="20"', '<position kp="30" kv="1" joint="hip"')
# A tumbling body with a ball joint, steep capsules on a plane.
FREE = """<mujoco><option timestep="0.005" integrator="RK4"/><default><geom condim="4"
 friction="1 .05 .05"/></default><worldbody><geom type="plane" size="9 9 1"/><body name="root" pos="0 0 .35">
 <freejoint name="root"/><geom size=".1"/><body pos=".1 0 0"><joint name="ball" type="ball"
 damping=".05"/><geom type="capsule" size=".04" fromto="0 0 0 .1 .1 -.3"/><body pos=".1 .1 -.3"><joint name="knee"
 axis="0 1 0" damping=".05" limited="true" range="-90 90"/><geom type="capsule" size=".03" fromto="0 0 0 .1 0 -.1"/>
 </body></body></body></worldbody><actuator><motor joint="knee" gear="2" ctrlrange="-1 1"/></actuator></mujoco>"""
# Drag, and no constraint at all.
FLUID = """<mujoco><option timestep="0.01" integrator="RK4" density="4000" viscosity=".1"/><worldbody><body><joint
 name="x" type="slide" axis="1 0 0"/><joint name="y" type="slide" axis="0 1 0"/><joint name="turn" axis="0 0 1"/><geom
 type="capsule" size=".1" fromto="0 0 0 1 0 0"/><body pos="1 0 0"><joint name="bend" axis="0 0 1"/><geom type="capsule"
 size=".1" fromto="0 0 0 1 0 0"/></body></body></worldbody><actuator><motor joint="bend" gear="50" ctrlrange="-1 1"/>
 </actuator></mujoco>"""
# A muscle, a filter, an exact filter that acts early and a bounded integrator; and a mocap body that pulls by a spring.
ACTIVATED = """<mujoco><option timestep="0.01"/><worldbody><body name="hand" mocap="true" pos="0 .2 .4"><site
 name="grip" pos=".1 0 0"/></body><body><joint name="a" axis="0 1 0" damping=".1"/><joint name="b" axis="1 0 0"
 damping=".1"/><geom type="capsule" size=".05" fromto="0 0 0 0 0 .3" contype="0" conaffinity="0"/><site name="end"
 pos="0 0 .3"/></body></worldbody><tendon><spatial stiffness="20" springlength=".1"><site site="grip"/><site
 site="end"/></spatial></tendon><actuator><muscle joint="a" lengthrange="-2 2" force="9" tausmooth=".3"/><general
 name="filter" joint="a" dyntype="filter" dynprm=".03" gaintype="affine" gainprm="2 1 .1" ctrlrange="-1 1"/><general
 name="early" joint="b" dyntype="filterexact" dynprm=".03" actearly="true" gainprm="2" ctrlrange="-1 1"/><general
 name="bounded" joint="b" dyntype="integrator" actrange="-.05 .05" gainprm="3"/></actuator></mujoco>"""


class Small(Body):
    frame_skip = 2
    position_noise = 0.1


class Ball(Small):
    """The model of the fast tests: it compiles in a third of the time of the others."""

    name, mjcf, frame_skip = "Ball", BALL, 1


class Arm(Small):
    name, mjcf = "Arm", ARM


class Leg(Small):
    name, mjcf = "Leg", LEG
    readouts = {  # noqa: RUF012
        "speed": MeanVelocity("x"),
        "torso": BodyPosition("torso"),
        "centre": CentreOfMass("torso"),
        "drift": CentreOfMassVelocity("torso"),
        "foot": SitePosition("foot"),
    }


class EllipticLeg(Small):
    name, mjcf = "EllipticLeg", ELLIPTIC


class EulerLeg(Small):
    name, mjcf = "EulerLeg", LEG.replace("RK4", "Euler")


class Free(Small):
    name, mjcf = "Free", FREE


class Fluid(Small):
    name, mjcf = "Fluid", FLUID


class Activated(Small):
    name, mjcf = "Activated", ACTIVATED
    readouts = {"held": BodyPosition("hand"), "grip": SitePosition("grip")}  # noqa: RUF012

    def reset(self, n, generator):
        start = super().reset(n, generator)
        poses = self.mocap(start) + 0.1 * torch.randn(n, 7, dtype=torch.float64, generator=generator)
        return self.state_at(self.qpos(start), self.qvel(start), mocap=poses)


class ActivatedByRungeKutta(Activated):
    name, mjcf = "ActivatedByRungeKutta", ACTIVATED.replace("<option ", '<option integrator="RK4" ')


class ActivatedByImplicitFast(Activated):
    name = "ActivatedByImplicitFast"
    mjcf = ACTIVATED.replace("<option ", '<option integrator="implicitfast" ').replace(
        '<muscle joint="a" lengthrange="-2 2" force="9" tausmooth=".3"/>',
        '<position joint="a" kp="9" kv="2" forcerange="-6 6" ctrlrange="-1 1"/>',
    )


SMALL = (Ball, Arm, Leg, EllipticLeg, Free, Fluid, Activated, ActivatedByRungeKutta, ActivatedByImplicitFast)


@functools.cache
def samples(task_class):
    """States of random rollouts [N, S] and actions, the bounds and zero among them."""
    task = task_class()
    generator = torch.Generator().manual_seed(0)
    physics = make_physics(task, "mujoco", dtype=torch.float64)
    state = task.reset(N, generator).double()
    visited = []
    for _ in range(40):
        action = 2.0 * torch.rand(N, task.action_dim, dtype=torch.float64, generator=generator) - 1.0
        state = physics.step(state, action)
        visited.append(state)
    rows = torch.randperm(40, generator=generator)[:N]
    state = torch.stack([visited[t][n] for n, t in enumerate(rows)])
    action = 0.99 * (2.0 * torch.rand(N, task.action_dim, dtype=torch.float64, generator=generator) - 1.0)
    return state, action


def differences(step, state, action, forward, backward):
    """The same by differences with steps forwards and backwards, rows N at a time."""
    inputs = torch.cat([state, action], dim=1)
    columns = []
    for k in range(inputs.shape[1]):
        high, low = inputs.clone(), inputs.clone()
        high[:, k] += forward
        low[:, k] -= backward
        ends = [step(x[:, : state.shape[1]], x[:, state.shape[1] :]) for x in (high, low)]
        columns.append((ends[0] - ends[1]) / (forward + backward))
    return torch.stack(columns, dim=-1).detach()


def error(found, expected):
    """max |J - J_fd| / max |J_fd| per state."""
    return (found - expected).abs().amax((1, 2)) / expected.abs().amax((1, 2))


@functools.cache
def reference(task_class):
    """Next states of converged MuJoCo C, its Jacobians by central differences, and which states are clean.

    Two steps are extrapolated: a joint limit stiffens within 1e-3 rad, which a step of 1e-6 resolves to 1e-6.
    """
    state, action = samples(task_class)
    step = make_physics(task_class(), "mujoco", dtype=torch.float64).step
    h = 1e-6
    wide, up, down, narrow = (
        differences(step, state, action, *ends) for ends in ((h, h), (h, 0.0), (0.0, h), (0.5 * h, 0.5 * h))
    )
    central = (4.0 * narrow - wide) / 3.0
    clean = torch.stack([error(other, central) for other in (wide, up, down, narrow)]).amax(0) < 1e-3
    return step(state, action), central, clean


@functools.cache
def physics_of(task_class, derivative="implicit"):
    return make_physics(task_class(), "mjx", dtype=torch.float64, derivative=derivative)


@functools.cache
def jacobian_of(task_class, derivative="implicit"):
    return jacobian(physics_of(task_class, derivative).step, *samples(task_class))
