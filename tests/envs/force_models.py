"""Models of smooth forces: tendons, transmissions, actuators, gravity compensation, springs of every joint."""

from __future__ import annotations

from tests.envs.small_models import Body

# One tree that flies and one that is fixed, without contacts; {} takes options.
TREES = """<option timestep="0.003"><flag contact="disable"/></option><default><geom density="700"/><general
 ctrlrange="-1.5 2"/></default><worldbody>
 <site name="w" pos=".1 -.2 .9" euler="20 0 40"/><geom name="drum" type="cylinder" size=".12 .3" pos=".1 .2 .6"
 euler="70 20 0"/><site name="beside" pos=".1 .5 .6"/><body name="float" pos="0 0 1" quat="1 .2 .3 .1"><joint
 name="free" type="free" stiffness="2" armature=".1"/><geom type="capsule" size=".05" fromto="0 0 0 .3 0 0"/><site
 name="f" pos=".05 .1 0"/><geom name="ball" size=".09" pos=".1 -.2 .05"/><body pos=".3 0 0" gravcomp=".7"><joint
 name="ball" type="ball" stiffness="3" damping=".2" armature=".05"/><geom type="capsule" size=".05"
 fromto="0 0 0 0 0 -.3"/><site name="b" pos=".02 .02 -.2" euler="0 30 10"/><body pos="0 0 -.3"><joint name="h"
 axis="0 1 0" armature=".02" damping=".1" actuatorfrcrange="-2 2"/><joint name="s" type="slide" axis="1 0 0"
 stiffness="20" springref=".1" damping=".5" actuatorgravcomp="true" actuatorfrcrange="-3 4"/><geom type="capsule"
 size=".04" fromto="0 0 0 .2 0 0"/><site name="tip" pos=".2 .1 .1"/></body></body></body><body pos="0 .5 .5"
 gravcomp="1"><joint name="swing" axis="1 0 0" armature=".05" actuatorgravcomp="true"/><joint name="sway" axis="0 1 0"
 armature=".03" damping=".1"/><geom type="capsule" size=".05" fromto="0 0 0 0 .2 .3"/><site name="r" pos="0 .2 .3"
 euler="10 20 30"/><body pos="0 .2 .3" gravcomp=".5"><geom size=".06" pos=".1 0 0"/></body></body></worldbody>"""
TENDONS = """<tendon><fixed name="fix" stiffness="5" springlength="-.1 .2" damping=".4"><joint joint="swing"
 coef="2"/><joint joint="s" coef="-1"/></fixed><spatial name="rope" stiffness="30" springlength=".2 .5" damping=".6"
 actuatorfrcrange="-2 1.5"><site site="w"/><site site="f"/><pulley divisor="2"/><site site="b"/><geom geom="drum"
 sidesite="beside"/><site site="r"/></spatial><spatial name="strap" stiffness="8" damping=".1"><site site="tip"/><geom
 geom="ball"/><site site="f"/></spatial></tendon>"""
ACTUATORS = """<actuator><motor name="hinge" joint="h" gear="9"/><position joint="s" kp="30" kv="2"
 forcerange="-5 5"/><general name="affine" joint="sway" gaintype="affine" gainprm="2 .5 -.3" biastype="affine"
 biasprm=".1 -2 -.2" gear="1.5"/><motor joint="ball" gear="1 -2 .5"/><position jointinparent="ball" kp="2"
 gear=".3 1 2"/><position joint="ball" kp="3" gear="0 2 0"/><motor joint="free" gear="1 2 3 .4 .5 .6"/><motor
 jointinparent="free" gear="3 2 1 .1 -.2 .3"/><motor tendon="fix" gear="2"/><velocity tendon="rope" kv="3"
 gear="1.2"/><motor tendon="rope" gear="-1"/><motor site="tip" gear="1 2 3 .1 .2 .3"/><general site="r"
 gear="1 0 2 .5 0 .3" biastype="affine" biasprm=".2 -1 -.5"/><position site="tip" refsite="f" kp="4" kv="1"
 gear="1 .5 -.3 .2 .4 .1"/><position site="r" refsite="b" kp="4" kv="1" gear="0 0 0 .2 .4 .1"/><motor site="tip"
 refsite="b" gear="1 2 3 3 2 1"/><position cranksite="f" slidersite="w" cranklength="1.1" kp="3" kv=".4"
 gear="1.5"/><motor cranksite="tip" slidersite="f" cranklength=".2"/><general joint="swing" lengthrange="-1 1.5"
 gaintype="muscle" gainprm=".75 1.05 20 100 .5 1.6 1.5 1.3 1.2" biastype="muscle" biasprm=".75 1.05 20 100 .5 1.6 1.5
 1.3 1.2"/><general tendon="strap" lengthrange=".1 .6" gaintype="muscle" gainprm=".7 1 -1 150 .6 1.5 3 1.1 1.4"
 biastype="muscle" biasprm=".7 1 -1 150 .6 1.5 3 1.1 1.4"/><motor joint="sway"
 gear="50" group="3"/><damper joint="swing" kv="2" ctrlrange="0 1"/><motor name="heavy" joint="h" gear="2"
 armature=".03" damping=".2"/></actuator>"""


def model(name: str, tendons: str = TENDONS, actuators: str = ACTUATORS, **changes: str) -> type[Body]:
    """A task of the trees with tendons and actuators; ``changes`` are the option's attributes and flags."""
    trees = TREES
    for key, value in changes.items():
        trees = (
            trees.replace("<flag ", f'<flag {key}="disable" ')
            if value == "disable"
            else trees.replace("<option ", f'<option {key}="{value}" ')
        )
    return type(name, (Body,), {"name": name, "mjcf": f"<mujoco>{trees}{tendons}{actuators}</mujoco>"})


Forceful = model("Forceful", actuatorgroupdisable="3")
Springless = model("Springless", spring="disable")
Damperless = model("Damperless", damper="disable", gravity="0 1 -3")
Neither = model("Neither", spring="disable", damper="disable")
Weightless = model("Weightless", gravity="0 0 0", density="30", viscosity=".2")
Idle = model("Idle", actuation="disable")
Implicit = model("Implicit", integrator="implicitfast")
MODELS = (Forceful, Springless, Damperless, Neither, Weightless, Idle)
