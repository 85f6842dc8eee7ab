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
    kinds, rubbing = frozenset((EQUALITY, FRICTION_DOF, LIMIT_JOINT)), frozenset((FRICTION_DOF,))


class Sled(Body):
    """A mass of 2 kg on a rough rail, one simulator step per action."""

    name, frame_skip = "Sled", 1
    mjcf = """<mujoco><option timestep="0.01"><flag gravity="disable"/></option><worldbody><body><joint name="x"
 type="slide" axis="1 0 0" frictionloss="3" solimpfriction=".5 .5 .01"/><geom size=".1" mass="2"/></body></worldbody>
 <actuator><motor joint="x" gear="10" ctrlrange="-1 1"/></actuator></mujoco>"""


# Connects and welds: of bodies and of sites; to the world, within a tree, between trees; of bodies without joints; with
# torque scale and a given pose; far from being met, and one that is not active.
LINKED = """<mujoco><option timestep="0.003"/><default><geom contype="0" conaffinity="0"/></default><worldbody><site
 name="post" pos="1 0 1.2" euler="10 20 30"/><body name="crank" pos="0 0 1"><joint axis="0 1 0" damping=".1"
 name="crank"/> <geom type="capsule" size=".03" fromto="0 0 0 0 0 .3"/><body name="rod" pos="0 0 .3"><joint axis="0 1
 .1" name="rod"/><geom type="capsule" size=".03" fromto="0 0 0 .6 0 0"/><body name="tip" pos=".6 0 0" euler="0 20
 10"><geom size=".04"/><site name="tip" pos=".05 0 .02" euler="30 0 40"/></body></body></body><body name="rocker"
 pos=".6 0 1"><joint axis="0 1 0" name="rocker"/><joint type="slide" axis="1 0 1" name="lift" stiffness="50"
 damping="1"/><geom type="capsule" size=".03" fromto="0 0 0 0 0 .4"/><site name="top" pos="0 0 .4"/></body><body
 name="one" pos="0 1 1"><freejoint name="one"/><geom type="box" size=".1 .2 .05"/><body name="hand" pos=".2 0 0"><joint
 type="ball" name="wrist" damping=".05"/><geom size=".05" pos=".1 0 0"/></body></body><body name="two" pos=".4 1 1"
 euler="0 30 0"><freejoint name="two"/><geom type="ellipsoid" size=".1 .07 .12"/><site name="two" pos=".1 0 0" euler="0
 0 50"/></body></worldbody><equality><connect body1="tip" body2="rocker" anchor="0 0 0"/><connect site1="top"
 site2="tip" solref=".05 .8" solimp=".8 .9 .1 .4 3"/><weld body1="hand" body2="two" torquescale=".3" solref=".04
 1"/><weld body1="rod" relpose=".1 .2 .3 .9 .2 .3 -.1" anchor=".05 0 .1" solimp=".5 .8 .5"/><weld site1="two"
 site2="post" torquescale="2" solref="-100 -10"/><connect body1="one" anchor=".1 0 0"/><weld body1="one" body2="two"
 active="false"/></equality><actuator><motor joint="crank" gear="3" ctrlrange="-1 1"/><motor joint="lift" gear="5"
 ctrlrange="-1 1"/></actuator></mujoco>"""


class Linked(Body):
    name, mjcf = "Linked", LINKED
    kinds, rubbing = frozenset((EQUALITY,)), frozenset[int]()


# Tendons, fixed and in space, with limits, margins and friction loss; equalities of one and of two of them, also of a
# fixed with a spatial one; limits of ball joints.
TIED = """<mujoco><option timestep="0.004"/><default><geom contype="0" conaffinity="0"/></default><worldbody><site
 name="w2" pos="1 1 1"/><site name="w" pos="0 .3 1.4"/><geom name="drum" type="cylinder" size=".1 .3" pos=".2 0 1.2"
 euler="90 0 0"/><body pos="0 0 1"><joint name="a" axis="0 1 0" damping=".05"/><geom type="capsule" size=".03"
 fromto="0 0 0 0 0 -.3"/><site name="s" pos=".03 0 -.2"/><body pos="0 0 -.3"><joint name="b" axis="0 1 .2"/><geom
 type="capsule" size=".03" fromto="0 0 0 .1 0 -.3"/><site name="t" pos=".1 .02 -.3"/></body></body><body pos="0 1
 1"><joint name="shoulder" type="ball" limited="true" range="0 40" margin=".1" solreflimit=".05 .7"/><geom
 type="capsule" size=".04" fromto="0 0 0 0 .1 -.4"/><body pos="0 .1 -.4"><joint name="wrist" type="ball" limited="true"
 range="0 170" frictionloss=".02"/><geom type="box" size=".05 .1 .02" pos=".1 0 0"/><site name="u" pos=".1 .1
 0"/></body></body><body pos=".6 0 1"><joint name="c" type="slide" axis="0 0 1" frictionloss="30"/><joint name="d"
 axis="1 0 0"/><geom size=".1" pos="0 .1 0"/><site name="v" pos=".1 .1 0"/></body></worldbody><tendon><fixed
 limited="true" range="-.2 .1" margin=".02" frictionloss=".1"><joint joint="a" coef="1"/><joint joint="b"
 coef="-.5"/></fixed><fixed name="f"><joint joint="c" coef="2"/><joint joint="d" coef=".1"/></fixed><fixed
 name="g"><joint joint="b" coef="1"/></fixed><spatial name="x" limited="true" range=".2 .72" solreflimit=".03 1"
 frictionloss=".3" solimpfriction=".6 .7 .1"><site site="w"/><geom geom="drum"/><site site="t"/></spatial><spatial
 name="y" limited="true" range=".5 2" margin="1"><site site="s"/><site site="v"/></spatial><spatial name="z"><site
 site="u"/><site site="w"/><pulley divisor="2"/><site site="t"/><site site="u"/></spatial><spatial name="still"
 limited="true" range="0 .1"><site site="w"/><site site="w2"/></spatial></tendon> <equality><tendon tendon1="f"
 tendon2="g" polycoef="0 .4 .1 0 0"/><tendon tendon1="z" polycoef=".05 0 0 0 0" solref=".05 1" solimp=".5 .8
 .2"/><tendon tendon1="x" tendon2="f" polycoef="0 -.3 .2 0 0" solref=".1 1"/></equality> <actuator><motor joint="a"
 gear="2" ctrlrange="-1 1"/><motor joint="d" gear="1" ctrlrange="-1 1"/></actuator></mujoco>"""


class Tied(Body):
    name, mjcf = "Tied", TIED
    kinds = frozenset((EQUALITY, FRICTION_DOF, FRICTION_TENDON, LIMIT_JOINT, LIMIT_TENDON))
    rubbing = frozenset((FRICTION_DOF, FRICTION_TENDON))


# Two bodies that are welded twice and pinned besides, one of them pinned to a third in three points; all as stiff as
# MuJoCo has it, and friction that holds as stiffly.
STIFF = """<mujoco><option timestep="0.003"/><default><geom contype="0" conaffinity="1"/><equality solimp=".9999 .9999
 .001"/></default><worldbody><geom type="plane" size="9 9 1" contype="1" conaffinity="0"/><body name="a" pos="0 0
 1"><freejoint/><geom size=".1"/><body name="hand" pos=".3 0 0"><joint name="hinge" axis="0 1 0" frictionloss="1"
 solimpfriction=".9999 .9999 .01"/><geom type="capsule" size=".05" fromto="0 0 0 .2 0 0"/></body></body> <body name="b"
 pos=".6 0 1"><freejoint/><geom size=".1"/></body><body name="c" pos=".6 0 .5"><joint type="ball"
 frictionloss=".2"/><geom size=".05" pos="0 0 -.2"/></body></worldbody><equality><weld body1="hand" body2="b"/><weld
 body1="hand" body2="b"/><connect body1="hand" body2="b" anchor=".1 0 0"/><connect body1="b" body2="c" anchor="0 0
 -.1"/> <connect body1="b" body2="c" anchor="0 0 -.15"/><connect body1="b" body2="c" anchor="0 .1
 -.15"/></equality><actuator> <motor joint="hinge" gear="3" ctrlrange="-1 1"/></actuator></mujoco>"""


class Stiff(Body):
    name, mjcf = "Stiff", STIFF


# A body that a mocap body, its child and its site hold by a weld, a connect, another weld and a tendon.
HELD = """<mujoco><option timestep="0.004"/><default><geom contype="0" conaffinity="0"/></default><worldbody><body
 name="hand" mocap="true" pos=".1 .2 1" euler="10 20 30"><geom size=".02"/><body name="finger" pos="0 .1 0" euler="0 0
 40"> <geom size=".02"/></body><site name="palm" pos=".1 0 0" euler="0 30 0"/></body><body name="box" pos="0 0
 1"><freejoint/> <geom type="box" size=".1 .05 .02"/><body name="lid" pos=".2 0 0"><joint name="lid" axis="0 1
 0"/><geom size=".04" pos=".1 0 0"/><site name="edge" pos=".2 0 0"/></body></body></worldbody><tendon><spatial
 limited="true" range="0 .3"><site site="palm"/><site site="edge"/></spatial></tendon><equality><weld body1="hand"
 body2="box" solref=".05 1" torquescale=".5"/><connect body1="lid" body2="finger" anchor=".1 0 0" solref=".1 1"/><weld
 site1="palm" site2="edge" solimp=".3 .5 .2"/></equality><actuator><motor joint="lid" gear="2" ctrlrange="-1
 1"/></actuator></mujoco>"""


class Held(Body):
    name, mjcf = "Held", HELD


MODELS = (Rubbing, Linked, Tied)
