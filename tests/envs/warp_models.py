"""Small MuJoCo models that between them have everything the Warp compiler covers, and their tasks and states."""

from __future__ import annotations

import functools

import torch

from mage_diffsim.envs import make_physics, make_task
from mage_diffsim.envs.mujoco.model import BodyPosition, CentreOfMass, CentreOfMassVelocity, MeanVelocity, SitePosition
from mage_diffsim.envs.mujoco.task import with_unit_quaternions
from mage_diffsim.envs.warp import model as warp_model
from mage_diffsim.envs.warp.compiler import cost
from tests.envs.small_models import Body, jacobian

# Two trees in free space, no contacts: a ball joint, two hinges on one body, a slide in the middle of a chain, turned
# inertias, a welded body, springs, stiff limits, a servo with a force range, and drag.
TREES = """<mujoco><option timestep="0.004" integrator="RK4" density="500" viscosity=".05" wind=".3 -.2 .1"
 gravity="1 -2 -9.81"><flag contact="disable"/></option><worldbody><body name="float" pos="0 0 1" quat="1 .2 .3 .1">
 <freejoint name="root"/><geom type="box" size=".1 .2 .05" quat="1 1 0 0" pos=".05 0 0"/><body pos=".1 .1 0"><joint
 name="ball" type="ball" damping=".1" pos="0 .02 0"/><geom type="capsule" size=".04" fromto="0 0 0 .1 .1 -.3"/><body
 pos=".1 .1 -.3" euler="20 30 40"><joint name="slide" type="slide" axis="1 1 0" stiffness="30" springref=".1"
 damping="2" limited="true" range="-.1 .3" margin=".05"/><joint name="hinge" axis="0 1 1" pos=".03 0 0" damping=".1"
 limited="true" range="-40 40" solimplimit=".5 .9 .2 .4 3" solreflimit="-200 -5"/><geom type="ellipsoid"
 size=".05 .1 .15"/><body pos="0 0 .2"><geom size=".07"/><site name="tip" pos="0 .1 .2"/></body></body></body></body>
 <body pos="0 3 0"><joint name="a" axis="1 0 0" armature=".05" ref="20"/><joint name="b" axis="0 1 0" damping=".3"
 stiffness="3" springref="30"/><geom type="cylinder" size=".1 .3" pos=".1 .2 .3"/></body></worldbody><actuator><motor
 joint="slide" gear="3" ctrlrange="-2 1"/><position joint="hinge" kp="20" kv=".5" ctrlrange="-1 1" forcerange="-4 4"/>
 <velocity joint="a" kv="2" gear="2" ctrlrange="-3 3"/></actuator></mujoco>"""
# Everything that touches: tilted planes, spheres and capsules on them and on one another, two free trees, with and
# without friction, margins, gaps, priorities and mixing.
PILE = """<mujoco><option timestep="0.004" impratio="2"/><default><geom friction=".8 .1 .1" density="300"/></default>
 <worldbody><geom name="floor" type="plane" size="9 9 1" margin=".02"/><geom name="ramp" type="plane" size="9 9 1"
 pos=".5 0 0" euler="0 -35 0" solimp=".6 .9 .02 .3 2" solmix="3"/><geom name="peg" size=".12" pos="-.3 .2 .1"
 condim="1" priority="1" solref="-3000 -60" gap=".01" margin=".03"/><body name="one" pos="0 0 .25"><freejoint
 name="one"/><geom size=".1" friction="1.2 .1 .1"/><geom type="capsule" size=".05" fromto="0 0 0 .3 .1 .1"/><body
 pos=".3 .1 .1"><joint name="knee" axis="0 1 0" damping=".3" armature=".01" limited="true" range="-80 80"/><geom
 type="capsule" size=".04" fromto="0 0 0 .15 0 -.25" solref=".03 .7"/></body></body><body name="two" pos=".1 .2 .5">
 <freejoint name="two"/><geom type="capsule" size=".06" fromto="-.2 0 0 .2 0 .1" solimp=".9 .9 .01"/><geom size=".09"
 pos=".2 0 .1" condim="1"/></body></worldbody><actuator><motor joint="knee" gear="5" ctrlrange="-1 1"/></actuator>
 </mujoco>"""
# A planar leg whose shin can touch its trunk.
LEG = """<mujoco><option timestep="0.005" integrator="RK4"/><default><geom friction="1 .1 .1" solimp=".8 .8 .01"
 margin=".001"/></default><worldbody><geom type="plane" size="9 9 1"/><body name="trunk" pos="0 0 .7"><joint name="x"
 type="slide" axis="1 0 0"/><joint name="z" type="slide" axis="0 0 1"/><joint name="pitch" axis="0 1 0"/><geom
 type="capsule" size=".06" fromto="0 0 .2 0 0 -.2"/><body pos="0 0 -.2"><joint name="hip" axis="0 1 0" damping=".3"
 armature=".02" limited="true" range="-150 60"/><geom type="capsule" size=".05" fromto="0 0 -.05 0 0 -.25" condim="1"
 priority="1"/><body
 pos="0 0 -.25"><joint name="ankle" axis="0 1 0" damping=".3" armature=".02" limited="true" range="-170 170"/><geom
 type="capsule" size=".04" fromto="0 0 0 .25 0 0"/><site name="toe" pos=".25 0 0"/></body></body></body>
 </worldbody><actuator><motor joint="hip" gear="20" ctrlrange="-1 1"/><motor joint="ankle" gear="8" ctrlrange="-1 1"/>
 </actuator></mujoco>"""

# What is rarely written, and MuJoCo has rules for: capsules that are always parallel, and one that crosses another's
# axis; half-open ranges; a solref of mixed signs; a body with inertia and no mass; damping that is negative alone;
# an inert tendon; two actuators on one joint; a sled whose
# contacts are always there.
RULES = """<mujoco><option timestep="0.004"/><default><geom friction=".7 .1 .1"/></default><worldbody><geom
 type="capsule" size=".1 .2" euler="90 0 0"/><geom type="capsule" size=".05 .3" pos="2 0 0" euler="0 90 0"
 solref=".02 0"/><body pos=".05 0 .19"><joint name="x" type="slide" axis="1 0 0"/><joint name="z"
 type="slide" axis="0 0 1" damping="-.1"/> <joint name="roll" axis="0 1 0" limited="true" range="-inf
 120"/><geom type="capsule" size=".1 .2" euler="90 0 0"/> <body pos=".1 0 0"><inertial pos="0 .1 0" mass="0"
 diaginertia=".01 .02 .015"/></body></body><body pos="2 0 0"><joint name="across" type="slide" axis="0 1
 0"/><joint name="turn" axis="0 1 0"/><geom type="capsule" size=".05 .3" solref=".02 0"
 friction=".2"/></body><geom type="plane" size="9 9 1" pos="0 0 -.29" condim="3" priority="1"
 friction=".2"/><body pos="-4 0 -.26"><joint name="sled" type="slide" axis="1 0 0"/><geom type="capsule"
 size=".05 .2" euler="0 90 0"/></body></worldbody><tendon><fixed><joint joint="x"
 coef="1"/></fixed></tendon><actuator><motor joint="x" gear="3" ctrlrange="-1 1" forcelimited="true"
 forcerange="-inf .5"/><motor name="too" joint="x" ctrlrange="-1 1"/> <motor name="within"
 jointinparent="turn" ctrlrange="-1 2"/><motor joint="sled" ctrlrange="-1 1"/></actuator></mujoco>"""


# A condim of each kind, by priority and by the larger one; frictions of 0; rolling where the surfaces differ; a pair
# that masks would not let touch, one that they would, and one of a body with its parent; an exclude.
WHEELS = """<mujoco><option timestep="0.004" impratio="3" cone="{cone}"/><default><geom friction=".8 .02 .01"
 density="300" condim="3"/></default><worldbody><geom name="floor" type="plane" size="9 9 1" friction=".5 .03 .001"/>
 <geom name="wall" type="plane" size="9 9 1" pos="1 0 0" euler="0 -60 0" condim="1" friction="0 0 0"
 priority="2"/>
 <geom name="peg" size=".15" pos="-.3 .2 .1" condim="4" priority="1" friction=".9 .05 0" solref="-3000 -60"/>
 <body name="ball" pos="0 0 .2"><freejoint/><geom name="ball" size=".2" condim="6" margin=".02" gap=".01"/>
 <geom name="ear" size=".05" pos=".2 0 0" condim="4"/></body>
 <body name="car" pos=".5 .3 .2"><joint name="x" type="slide" axis="1 0 0"/><joint name="z" type="slide" axis="0 0 1"/>
 <joint name="pitch" axis="0 1 0"/><joint name="yaw" axis="0 0 1" damping=".1"/><geom name="bed" type="capsule"
 fromto="-.2 0 0 .2 0 .05" size=".05"/><body name="wheel" pos=".2 0 -.05"><joint name="wheel" axis="0 1 0"
 damping=".01"/><geom name="rim" type="capsule" fromto="0 -.05 0 0 .05 0" size=".08" condim="6"/></body><body
 name="mast" pos="-.1 0 .05"><joint name="mast" axis="0 1 0" damping=".1"/><geom name="mast" type="capsule"
 fromto="0 0 .05 .1 .2 .3" size=".03" contype="0" conaffinity="0"/></body></body></worldbody><contact>
 <exclude body1="car" body2="world"/><pair geom1="mast" geom2="ball" condim="6" friction=".4 .7 .02 .01 .03"
 solref=".03 .8" solreffriction=".05 1.2" solimp=".8 .95 .01" margin=".03" gap=".01"/><pair geom1="floor" geom2="bed"
 condim="4" friction="1.1 .3 .05 0 0" solreffriction="-500 -40"/><pair geom1="ear" geom2="peg" condim="3"
 friction=".2 0 0 0 0" solreffriction=".04 0"/><pair geom1="rim" geom2="mast" condim="1"/><pair geom1="floor"
 geom2="mast" condim="3" friction=".5 .6 0 0 0"/></contact><actuator><motor joint="wheel" gear="2" ctrlrange="-1 1"/>
 <motor joint="mast" gear="3" ctrlrange="-1 1"/></actuator></mujoco>"""

# Every pair of a plane or a sphere with a box, a cylinder or an ellipsoid that has a closed form.
SOLIDS = """<mujoco><option timestep="0.004"/><default><geom friction=".8 .1 .1" density="300" contype="1"
 conaffinity="0"/></default><worldbody><geom name="floor" type="plane" size="9 9 1" euler="3 -2 0" contype="0"
 conaffinity="7" margin=".005"/><body name="brick" pos="0 0 .12" euler="20 30 0"><freejoint name="brick"/><geom
 name="brick" type="box" size=".1 .15 .08"/></body><body name="can" pos=".35 0 .16" euler="5 10 0"><joint type="slide"
 axis="0 0 1"/><joint axis="1 0 0" damping=".01"/><joint axis="0 1 0" damping=".01"/><geom name="can" type="cylinder"
 size=".08 .12" condim="4"/></body><body name="egg" pos="-.6 0 .12" euler="10 20 30"><joint type="slide"
 axis="0 0 1"/><joint axis="0 1 0"/><joint axis="1 0 0"/><geom name="egg" type="ellipsoid" size=".1 .07 .12" pos=".02 0
 0" contype="2" condim="6"/></body><body name="ball" pos=".2 0 .26"><joint name="x" type="slide" axis="1 0 0"/><joint
 type="slide" axis="0 1 0" damping="1"/><joint type="slide" axis="0 0 1"/><geom name="ball" size=".08" contype="4"
 conaffinity="1" solimp=".8 .9 .01"/></body></worldbody><actuator><motor joint="x" gear="20" ctrlrange="-1 1"/>
 </actuator></mujoco>"""


class Trees(Body):
    name, mjcf = "Trees", TREES
    readouts = {  # noqa: RUF012
        "tip": SitePosition("tip"),
        "float": BodyPosition("float"),
        "y": MeanVelocity("root", 1),
        "centre": CentreOfMass("float"),
        "drift": CentreOfMassVelocity("float"),
        "all": CentreOfMassVelocity("world"),
    }


class Pile(Body):
    name, mjcf = "Pile", PILE
    readouts = {"second": BodyPosition("two"), "turning": MeanVelocity("knee")}  # noqa: RUF012


class HardPile(Body):
    """The pile with contacts a thousand times as stiff as what they move."""

    name = "HardPile"
    mjcf = PILE.replace('density="300"', 'density="300" solimp=".999 .999 .001" solref=".01 1"')
    mjcf = mjcf.replace('solimp=".6 .9 .02 .3 2"', "").replace('solimp=".9 .9 .01"', "")


class Leg(Body):
    name, mjcf = "Leg", LEG
    readouts = {"speed": MeanVelocity("x"), "toe": SitePosition("toe"), "drift": CentreOfMassVelocity("trunk")}  # noqa: RUF012


class EulerLeg(Body):
    name, mjcf = "EulerLeg", LEG.replace('integrator="RK4"', "")


class Undamped(Body):
    """Euler without damping, and nothing that pushes."""

    name = "Undamped"
    mjcf = LEG.replace('integrator="RK4"', "").replace('damping=".3"', "").replace('limited="true"', 'limited="false"')
    mjcf = mjcf.replace("<option ", '<option gravity="0 0 0" ').replace("/></default>", ' contype="0"/></default>')


class Rules(Body):
    name, mjcf = "Rules", RULES


class Wheels(Body):
    name, mjcf = "Wheels", WHEELS.format(cone="pyramidal")


class EllipticWheels(Body):
    name, mjcf = "EllipticWheels", WHEELS.format(cone="elliptic")


class Solids(Body):
    name, mjcf = "Solids", SOLIDS


SMALL = (Trees, Pile, Leg, EulerLeg, Undamped, Rules, Wheels, EllipticWheels)


TASKS = ("InvertedPendulum", "InvertedDoublePendulum", "Reacher", "Swimmer", "HalfCheetah", "Hopper", "Walker2d", "Ant")
N = 100
"""Environments of a comparison: not a multiple of the lanes."""


@functools.cache
def samples(model, n=N, steps=60):
    """The task, visited states [n, S] and actions [n, A]: throttle full, off or random; starts among them."""
    task = make_task(model) if isinstance(model, str) else model()
    generator = torch.Generator().manual_seed(0)
    physics = make_physics(task, "mujoco", dtype=torch.float64)
    state, visited = task.reset(n, generator).double(), []
    for t in range(steps):
        visited.append(state)
        action = 2.0 * torch.rand(n, task.action_dim, dtype=torch.float64, generator=generator) - 1.0
        state = physics.step(state, action if t % 2 else action.round())
    state = torch.stack([visited[i * steps // n][i] for i in range(n)])
    action = 0.99 * (2.0 * torch.rand(n, task.action_dim, dtype=torch.float64, generator=generator) - 1.0)
    return task, with_unit_quaternions(task.simulation, state), action


@functools.cache
def physics_of(model, dtype=torch.float64, derivative=None):
    return make_physics(samples(model)[0], "warp", dtype=dtype, derivative=derivative)


def scaled(error, of):
    """The largest entry of each row, relative to the largest of its value, which counts as 1 at least."""
    return error.abs().flatten(1).amax(1) / of.abs().flatten(1).amax(1).clamp(min=1.0)


CHECKED = 30
"""States at which derivatives are compared."""


def assert_step_and_derivatives_are_those_of_mujoco_c(model):
    """A few states may be next to a kink: where a row begins to push or slip, a spring to pull, a force to be clipped,
    a tendon to touch a geom."""
    task, state, action = samples(model)
    reference = make_physics(task, "mujoco", dtype=torch.float64)
    expected, found = reference.step(state, action), physics_of(model).step(state, action)
    assert scaled(found - expected, expected).max() <= 1e-10
    state, action = state[:CHECKED], action[:CHECKED]
    expected, found = jacobian(reference.step, state, action), jacobian(physics_of(model).step, state, action)
    error = scaled(found - expected, expected).sort().values
    assert error[-5] <= 1e-6, error[-10:]


def assert_a_rollout_stays_beside_mujoco_c(model, actions):
    """From a start of the task, along actions [T, A]; yields the states [T + 1, S].

    Up to each step its deviation from MuJoCo C is no larger than the largest one of six rollouts of C whose starts are
    moved by up to 1e-12, which part by as much as the motion amplifies, plus 1e-13 of rounding.
    """
    task, _, _ = samples(model)
    reference, physics = make_physics(task, "mujoco", dtype=torch.float64), physics_of(model)
    start = task.reset(1, torch.Generator().manual_seed(0)).double()
    moved = torch.zeros(6, start.shape[1], dtype=torch.float64).uniform_(
        -1e-12, 1e-12, generator=torch.Generator().manual_seed(1)
    )
    ours, theirs, spread, path = start, torch.cat([start, start + moved]), 0.0, [start]
    for t, action in enumerate(actions):
        action = action[None]
        ours, theirs = physics.step(ours, action), reference.step(theirs, action.expand(len(theirs), -1))
        spread = max(spread, float(scaled(theirs[1:] - theirs[:1], theirs[1:]).max()))
        assert float(scaled(ours - theirs[:1], ours)) <= 1e-13 + spread, t
        path.append(ours)
    return torch.cat(path)


def assert_adjoint_and_tangents_agree(model):
    _, state, action = samples(model)
    adjoint = jacobian(physics_of(model).step, state[:CHECKED], action[:CHECKED])
    tangents = jacobian(physics_of(model, derivative="jvp").step, state[:CHECKED], action[:CHECKED])
    assert scaled(adjoint - tangents, adjoint).max() <= 1e-10


def assert_loops_are_those_of_mujoco_c_and_of_contacts_written_out(model, monkeypatch):
    """Compare a step in loops with MuJoCo C, and its derivatives with those of contacts written out."""
    task, state, action = samples(model)
    reference = make_physics(task, "mujoco", dtype=torch.float64).step(state, action)
    cotangent = torch.randn(reference.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def derivatives(looped, derivative=None):
        monkeypatch.setattr(cost, "LOOPED", -1.0 if looped else 1e9)
        monkeypatch.setattr(warp_model, "_shared", {})
        x, u = state.clone().requires_grad_(), action.clone().requires_grad_()
        output = make_physics(task, "warp", dtype=torch.float64, derivative=derivative).step(x, u)
        return output.detach(), torch.cat(torch.autograd.grad(output, (x, u), cotangent), -1)

    found, adjoint = derivatives(looped=True)
    assert scaled(found - reference, reference).max() < 1e-10
    for other in (derivatives(looped=True, derivative="jvp")[1], derivatives(looped=False)[1]):
        assert scaled(adjoint - other, other).max() < 1e-10
