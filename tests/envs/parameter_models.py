"""Models of which many numbers are parameters, and MuJoCo C with other numbers as their judge."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import torch

from mage_diffsim.envs.mujoco import _Stepper
from mage_diffsim.envs.mujoco.model import CentreOfMass, CentreOfMassVelocity, load_mujoco
from tests.envs.small_models import Body

# A cart with a pendulum that carries a welded bob, a ball joint and a slide; in a fluid. Zeros that may become other
# numbers: damping, armature, stiffness, friction loss. Bodies are not simple in MuJoCo's sense, so that C takes
# their changes.
CART = """<mujoco><option timestep="0.004" integrator="INTEGRATOR" density="20" viscosity=".4" wind=".3 -.2 .1"
 gravity=".5 .2 -9.81"/><default><geom contype="0" conaffinity="0"/></default><worldbody><site name="peg"
 pos="-.4 .1 .3"/><body name="cart" simple="false">
 <joint name="x" type="slide" axis="1 0 .2"
 damping=".3" stiffness="2" frictionloss=".4"/><geom type="box" size=".2 .1 .05" density="300"/><body name="pole"
 pos="0 0 .1" gravcomp=".3"><joint name="swing" axis="0 1 0" armature=".02" damping=".1"
 actuatorgravcomp="true"/><joint name="lean" axis="1 0 0"/><geom type="capsule" size=".03" fromto="0 0 0 .05 .1 .3"
 density="400"/><site name="tip" pos=".05 .1 .3"/><body name="bob" pos=".05 .1 .3" euler="10 20 30"><geom type="box"
 size=".05 .08 .03" density="500"/></body><body name="arm" pos=".1 .1 .3"><joint
 name="ball" type="ball" stiffness=".5" damping=".05"/><geom type="capsule" size=".04" fromto="0 0 0 .1 .1 -.2"
 density="400"/><body name="tool" pos=".1 .1 -.2"><joint name="out" type="slide" axis="1 0 1" damping="1"
 frictionloss="2"/><geom type="ellipsoid" size=".05 .08 .04" density="300"/></body></body></body></body></worldbody>
 <tendon><fixed name="both"><joint joint="x" coef="1"/><joint joint="swing" coef="-.5"/></fixed><spatial
 name="string"><site site="tip"/><site site="peg"/></spatial></tendon><actuator>
 <motor joint="x" gear="3" ctrlrange="-1 1" armature=".1" damping=".2"/><position joint="swing" kp="4" kv=".3"
 gear="1.5" ctrlrange="-1 1"/><general joint="lean" gaintype="affine" gainprm="2 .3 .1" biastype="affine" biasprm=".1
 -2 -.3" ctrlrange="-1 1"/><position joint="ball" kp="2" gear=".5 1 .2" ctrlrange="-1 1"/><motor tendon="both" gear="2"
 ctrlrange="-1 1" armature=".03"/><velocity tendon="string" kv=".6" gear="1.3" ctrlrange="-1 1"/><position site="tip"
 kp="3" kv=".4" gear="1 2 3 0 .1 .2" ctrlrange="-1 1"/><muscle joint="out" ctrlrange="0 1" timeconst=".01 .04"
 lengthrange="-.5 .5" force="5"/></actuator></mujoco>"""

# A hopper-like leg and a ball on a floor, and on one another.
LEG = """<mujoco><option timestep="0.004" integrator="INTEGRATOR" cone="CONE" impratio="2"/><default><geom
 friction="1 .1 .05" density="300" condim="3"/></default><worldbody><geom name="floor" type="plane" size="9 9 1"
 friction=".7 .05 .01"/><body name="ball" pos=".1 .05 .1" simple="false"><freejoint/><geom name="ball" size=".12"
 condim="6"/></body><body name="trunk" pos="0 0 .55"><joint name="x" type="slide" axis="1 0 0"/><joint name="z"
 type="slide" axis="0 0 1"/><joint name="pitch" axis="0 1 0"/><geom name="trunk" type="capsule" size=".06"
 fromto="0 0 .2 0 0 0"/><body pos=".05 0 -.05"><geom name="belly" size=".07" friction=".4 .2 .1" priority="1"/></body>
 <body name="mark" pos=".1 .05 .1"/>
 <body><joint name="hip" axis="0 1 0" damping=".3" armature=".02" range="-60 60"/><geom name="thigh" type="capsule"
 size=".05" fromto="0 0 -.05 0 0 -.25"/><body pos="0 0 -.25"><joint name="knee" axis="0 1 0" stiffness="3"
 range="-100 10" frictionloss=".2"/><geom name="shin" type="capsule" size=".04" fromto="0 0 -.05 0 0 -.25"/>
 </body></body></body></worldbody><contact><pair geom1="shin" geom2="ball" condim="3" friction=".6 .3 .1 0 0"/>
 </contact><actuator><motor joint="hip" gear="20" ctrlrange="-1 1"/><position joint="knee" kp="9" ctrlrange="-1 1"/>
 </actuator></mujoco>"""


def model(name: str, mjcf: str, integrator: str, cone: str = "pyramidal") -> type[Body]:
    mjcf = mjcf.replace("INTEGRATOR", integrator).replace("CONE", cone)
    readouts = {"centre": CentreOfMass("cart"), "drift": CentreOfMassVelocity("pole")} if "cart" in mjcf else {}
    return type(name, (Body,), {"name": name, "mjcf": mjcf, "readouts": readouts})


def changed(simulation: Any, numbers: dict[str, np.ndarray]) -> Any:
    """The simulation with other numbers in its model. Of what MuJoCo derives from them, only sums and short cuts are
    made anew: masses of subtrees, the mass matrix of simple bodies, which frames coincide, and which geoms are near."""
    mujoco, m = load_mujoco(), copy.deepcopy(simulation.model)
    for name, x in numbers.items():
        (m.opt.gravity if name == "gravity" else getattr(m, name))[:] = x
    simple = copy.deepcopy(m)
    mujoco.mj_setConst(simple, mujoco.MjData(simple))
    m.dof_M0[:], m.body_subtreemass[:] = simple.dof_M0, simple.body_subtreemass
    m.geom_rbound *= 2.0
    m.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_MIDPHASE
    for kind in ("body", "geom", "site"):
        getattr(m, f"{kind}_sameframe")[:] = 0
    return dataclasses.replace(simulation, model=m)


def step_of_c(task: Any, state: torch.Tensor, action: torch.Tensor, numbers: dict[str, np.ndarray]) -> torch.Tensor:
    """A step of converged MuJoCo C with other numbers in its model."""
    simulation = changed(task.simulation, numbers)
    return _Stepper(simulation, "converged")(*simulation.split(state), task.scale_action(action))
