"""Small models whose constraint rows are not contacts, and their tasks."""

from __future__ import annotations

from tests.envs.small_models import Body

EQUALITY, FRICTION_DOF, FRICTION_TENDON, LIMIT_JOINT, LIMIT_TENDON = range(5)
"""mjtConstraint."""

# Friction loss on every type of joint, with parameters of its own on some, and on a joint that also has a limit;
# equalities of one and two joints, one of a joint with itself's parent, one that is not active.
RUBBING = """<mujoco><option timestep="0.004"/><default><geom contype="0"/></default><worldbody><geom type="plane"
 size="9 9 1" contype="1" conaffinity="0"/><body name="cart" pos="0 0 1"><joint name="x" type="slide" axis="1 0 0"
 frictionloss="2" solreffriction=".05 1.3" solimpfriction=".5 .9 .01 .5 2" limited="true" range="-.2 .2"
 margin=".05"/><geom size=".1"/><body pos="0 0 -.1"><joint name="a" axis="0 1 0" frictionloss=".3" damping=".05"
 range="-60 70" limited="true"/><geom type="capsule" size=".04" fromto="0 0 0 0 0 -.4"/><body pos="0 0 -.4"><joint
 name="b" axis="0 1 0" frictionloss=".05" solreffriction="-300 -20" range="-.01 .01" margin="2" limited="true"/><geom
 type="capsule" size=".03" fromto="0 0 0 .2 0 -.6"/></body></body></body><body pos="0 2 1"><joint name="ball"
 type="ball" frictionloss=".4"/><geom conaffinity="0" size=".1 .2 .05" type="box" pos=".1 0 -.2"/><body pos=".1 0
 -.4"><joint name="c" axis="1 1 0" ref="20"/><joint name="d" axis="0 1 1" frictionloss=".1"/><geom conaffinity="0"
 size=".08" pos="0 0 -.1"/></body></body><body pos="0 4 1"> <joint name="free" type="free" frictionloss=".7"/><geom
 conaffinity="0" size=".1 .05 .15" type="box"/></body></worldbody><equality> <joint joint1="c" polycoef=".1 0 0 0 0"
 solref=".05 .8"/><joint joint1="d" joint2="b" polycoef=".05 .8 -.3 .2 .1" solimp=".8 .95 .3 .4 3"/><joint joint1="x"
 joint2="a" active="false"/></equality><actuator><motor joint="x" gear="10" ctrlrange="-1 1"/><motor joint="b"
 gear=".3" ctrlrange="-1 1"/><motor joint="d" gear="1" ctrlrange="-1 1"/></actuator> </mujoco>"""


class Rubbing(Body):
    name, mjcf = "Rubbing", RUBBING
    kinds, rubbing = {EQUALITY, FRICTION_DOF, LIMIT_JOINT}, {FRICTION_DOF}


class Sled(Body):
    """A mass of 2 kg on a rough rail, one simulator step per action."""

    name, frame_skip = "Sled", 1
    mjcf = """<mujoco><option timestep="0.01"><flag gravity="disable"/></option><worldbody><body><joint name="x"
 type="slide" axis="1 0 0" frictionloss="3" solimpfriction=".5 .5 .01"/><geom size=".1" mass="2"/></body></worldbody>
 <actuator><motor joint="x" gear="10" ctrlrange="-1 1"/></actuator></mujoco>"""


MODELS = (Rubbing,)
