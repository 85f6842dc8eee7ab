"""Everything that a backend does not cover of a model is named, not only what is found first."""

from __future__ import annotations

import pytest

mujoco = pytest.importorskip("mujoco")
from mage_diffsim.envs.mujoco.refusals import elements_of  # noqa: E402
from mage_diffsim.envs.warp.compiler.intake import refusals  # noqa: E402

MANY = mujoco.MjModel.from_xml_string("""<mujoco><compiler autolimits="true"/><worldbody>
 <geom name="floor" type="plane" size="1 1 1"/><body name="held" mocap="true"/><body name="low" gravcomp="1">
 <freejoint/><geom name="cube" type="box" size=".1 .1 .1"/></body><body pos="0 0 1"><joint name="a"
 springdamper="0 0" stiffness="1 2"/><geom name="post" type="cylinder" size=".1 .1" pos="3 0 0"/><body pos="0 0 1">
 <joint name="b" damping="1 2"/><geom name="ball" size=".1" fluidshape="ellipsoid" pos="0 3 0"/></body></body>
 </worldbody><actuator><motor name="m" joint="a" ctrlrange="0 1"/></actuator></mujoco>""")


def test_fields_name_their_elements():
    found = {
        f: elements_of(mujoco, MANY, f) for f in ("dof_dampingpoly", "geom_fluid", "jnt_stiffnesspoly", "nhistory")
    }
    assert found == {
        "dof_dampingpoly": ("joint 'b'",),
        "geom_fluid": ("geom 'ball'",),
        "jnt_stiffnesspoly": ("joint 'a'",),
        "nhistory": (),
    }


def test_sticky_geoms_and_pairs_are_named():
    text = """<mujoco><worldbody><body name="a"><joint/><geom name="gum" size=".1" adhesion="1"/></body><body name="b">
     <joint/><geom name="ball" size=".1"/></body></worldbody><contact><pair name="gum on ball" geom1="gum" geom2="ball"
     adhesion="2"/></contact></mujoco>"""
    found = {r.feature: r.elements for r in refusals(mujoco.MjModel.from_xml_string(text))}
    assert found["contact adhesion"] == ("geom 'gum'",)
    assert found["contact adhesion of pairs"] == ("pair 'gum on ball'",)


def test_everything_that_the_warp_compiler_does_not_cover_is_named():
    every = list(refusals(MANY))
    assert "nonlinear joint damping of joint 'b'" in [r.sentence for r in every]
    found = {r.feature: r.elements for r in every}
    assert found["nonlinear joint damping"] == ("joint 'b'",) and found["nonlinear joint stiffness"] == ("joint 'a'",)


def test_everything_that_mjx_does_not_cover_is_named():
    pytest.importorskip("mujoco.mjx")
    from mage_diffsim.envs.mjx.unsupported import refusals

    found = {r.feature: r.elements for r in refusals(MANY)}
    assert found["a contact of cylinder with box"] == ("geoms 'post' and 'cube'",)
    assert found["nonlinear joint damping"] == ("joint 'b'",) and found["nonlinear joint stiffness"] == ("joint 'a'",)


SPRUNG = """<mujoco><option {}>{}</option><worldbody><geom type="plane" size="1 1 1" surfacevel="0 0 0 1 0 0"/><body
 pos="0 0 1"><joint name="a" stiffness="1 2" damping="1 2"/><geom size=".1" fluidshape="ellipsoid"/></body></worldbody>
 <tendon><fixed stiffness="1 2" damping="1 2"><joint joint="a" coef="1"/></fixed></tendon><actuator><motor joint="a"
 ctrlrange="0 1"/></actuator></mujoco>"""
SPRINGS, DAMPERS = ({f"nonlinear {x} {kind}" for x in ("joint", "tendon")} for kind in ("stiffness", "damping"))
FLUID, SLIDING = {"ellipsoid fluid forces (fluidshape)"}, {"surface velocity"}


@pytest.mark.parametrize(
    ("option", "off", "refused"),
    [
        ('density="1"', (), SPRINGS | DAMPERS | FLUID | SLIDING),
        ('viscosity="1"', ("spring",), DAMPERS | FLUID | SLIDING),
        ('density="1"', ("damper", "contact"), SPRINGS | FLUID),
        ("", ("constraint",), SPRINGS | DAMPERS),
        ('density="1"', ("spring", "damper", "constraint"), set()),
    ],
)
def test_what_is_switched_off_is_not_refused(option, off, refused):
    flags = " ".join(f'{x}="disable"' for x in off)
    model = mujoco.MjModel.from_xml_string(SPRUNG.format(option, f"<flag {flags}/>"))
    assert {r.feature for r in refusals(model)} == refused


def test_a_flag_of_inverse_dynamics_is_not_refused():
    text = SPRUNG.format("", '<flag spring="disable" damper="disable" contact="disable" invdiscrete="enable"/>')
    assert not list(refusals(mujoco.MjModel.from_xml_string(text)))
