"""Small models whose actuators act on bodies (adhesion), and their tasks."""

from __future__ import annotations

from tests.envs.small_models import Body

# A crawler whose feet, trunk and shin stick: to the floor, to a peg, to a ball that sticks as well, to one another.
# Contacts of all condims, in gaps, of explicit pairs, without friction; bodies that are welded to others; masks and an
# exclude that leave contacts out. {} takes attributes of the option and a flag.
CRAWLER = """<mujoco><option timestep="0.004" {}/><default><geom friction=".8 .05 .02" density="400"/><joint
 damping=".1" armature=".01"/></default><worldbody><geom name="floor" type="plane" size="9 9 1" margin=".02"
 gap=".05"/><geom name="peg" type="capsule" fromto="-.3 .1 0 -.3 .2 .3" size=".05" gap=".08" condim="4"/><body
 name="trunk" pos="0 0 .3"><freejoint name="trunk"/><geom name="trunk" type="capsule" fromto="-.15 0 0 .15 0 0"
 size=".06" gap=".03"/><body name="thigh" pos=".15 0 0"><joint name="hip" axis="0 1 0"/><geom name="thigh"
 type="capsule" fromto="0 0 0 .1 0 -.1" size=".03" contype="2"/><body name="shin" pos=".1 0 -.1"><joint name="knee"
 axis="0 1 .2"/><geom name="shin" type="capsule" fromto="0 0 0 0 0 -.12" size=".03" margin=".01"/><body name="pad"
 pos="0 0 -.14"><geom name="pad" size=".045" condim="1" priority="1" gap=".02"/><geom name="heel" size=".03"
 pos="-.05 0 0"/></body></body></body></body><body name="ball" pos="-.2 .1 .3"><joint name="x" type="slide" axis="1 0
 0"/><joint name="y" type="slide" axis="0 1 0"/><joint name="z" type="slide" axis="0 0 1"/><joint name="turn"
 type="ball"/><geom name="ball" size=".12" condim="6"/></body><body name="bar" pos=".4 0 .15"><joint name="swing"
 axis="0 1 0" pos=".15 0 .05" actuatorfrcrange="-2 2"/><geom name="bar" type="capsule" fromto="-.1 -.1 0 .1 .1 0"
 size=".04" margin=".01" gap=".1"/></body></worldbody><contact><exclude body1="ball" body2="trunk"/><pair geom1="bar"
 geom2="pad" margin=".01" gap=".2" condim="3"/></contact>
 <actuator><adhesion name="pad" body="pad" gain="20" ctrlrange="0 1"/><adhesion name="ball" body="ball" gain="9"
 ctrlrange="0 2"/><adhesion body="world" gain="3" ctrlrange="0 1" forcerange="0 2"/><general name="trunk" body="trunk"
 ctrlrange="-1 1" gaintype="affine" gainprm="4 1 -.7" biastype="affine" biasprm=".5 3 -2"/><general name="shin"
 body="shin" ctrlrange="0 1" dyntype="filter" dynprm=".05" gainprm="8" biastype="affine" biasprm="0 0 -.5"
 forcerange="-3 6"/><general name="bar" body="bar" ctrlrange="-1 1" dyntype="integrator" actlimited="true"
 actrange="-1 1" gainprm="5" gear="2"/><motor joint="hip" gear="3" ctrlrange="-1 1"/><motor joint="swing" gear="2"
 ctrlrange="-1 1"/></actuator></mujoco>"""


class Crawler(Body):
    name, mjcf = "Crawler", CRAWLER.format("")


class RoundCrawler(Body):
    """With elliptic cones."""

    name, mjcf = "RoundCrawler", CRAWLER.format('cone="elliptic" impratio="3"')


class ImplicitCrawler(Body):
    name, mjcf = "ImplicitCrawler", CRAWLER.format('integrator="implicit"')


class FastCrawler(Body):
    name, mjcf = "FastCrawler", CRAWLER.format('integrator="implicitfast" cone="elliptic"')


class StagedCrawler(Body):
    name, mjcf = "StagedCrawler", CRAWLER.format('integrator="RK4"')


# A ball that a ceiling holds by its contact, or through a gap, and a sled that two balls of another body touch.
HUNG = """<mujoco><option timestep="0.004"/><default><geom density="500"/></default><worldbody><geom type="plane"
 size="9 9 1" pos="0 0 1" euler="180 0 0" gap=".05"/><body name="drop" pos="0 0 .9"><joint name="z" type="slide" axis="0
 0 1"/><joint name="x" type="slide" axis="1 0 0"/><geom size=".1"/></body><body pos="1 0 .5"><joint name="rail"
 type="slide" axis="1 0 0"/><geom type="capsule" fromto="-.3 0 0 .3 0 0" size=".05"/></body><body name="twin" pos="1 0
 .6"><joint name="down" type="slide" axis="0 0 1"/><joint name="tilt" axis="0 1 0"
 actuatorfrcrange="-.5 .5"/><site name="end" pos=".1 0 0"/><geom size=".06" pos="-.1 0 0" margin=".02"/><geom size=".06"
 pos=".1 0 0" gap=".04"/></body></worldbody><actuator><adhesion body="drop" gain="30" ctrlrange="0 1"/>
 <general body="twin" gainprm="6" biastype="affine" biasprm="0 0 -3" ctrlrange="-1 1"/><motor
 joint="tilt" gear="2" ctrlrange="-1 1"/><motor site="end" gear="1 0 2 0 0 0" ctrlrange="-1 1"/></actuator></mujoco>"""


class Hung(Body):
    name, mjcf = "Hung", HUNG


class SlippingHung(Body):
    """With sweeps of the noslip solver."""

    name, mjcf = "SlippingHung", HUNG.replace("<option ", '<option noslip_iterations="3" ')


class SlippingCrawler(Body):
    name, mjcf = "SlippingCrawler", CRAWLER.format('noslip_iterations="4" cone="elliptic"')


class FarCrawler(Body):
    """With contacts that count from more than a metre away."""

    name, mjcf = "FarCrawler", CRAWLER.format("").replace('gap=".1"', 'gap="1.5"')


CRAWLERS = (Crawler, RoundCrawler, ImplicitCrawler, FastCrawler, StagedCrawler)
