"""What MJX cannot do is refused by name, and a missing package or GPU is named."""

from __future__ import annotations

import sys

import pytest

jax = pytest.importorskip("jax")
mujoco = pytest.importorskip("mujoco")
pytest.importorskip("mujoco.mjx")
from mage_diffsim.bridges.jax import load_jax  # noqa: E402
from mage_diffsim.envs.mjx import MjxPhysics, _load_step, private  # noqa: E402
from mage_diffsim.errors import InputError, MissingExtra  # noqa: E402
from tests.envs.mjx_models import LEG, Leg  # noqa: E402
from tests.envs.small_models import Body  # noqa: E402


def test_the_private_names_of_mjx_are_there():
    missing = private.missing_names()
    assert not missing, "\n".join(missing)


def test_a_missing_private_name_is_named(monkeypatch):
    monkeypatch.setitem(private.PRIVATE, "smooth", ("no_such_name",))
    (message,) = private.missing_names()
    assert "mujoco.mjx._src.smooth.no_such_name" in message
    assert "mujoco-mjx 3." in message


CORD = """<tendon><fixed name="cord" actuatorfrcrange="-1 1"><joint joint="hip" coef="1"/></fixed></tendon>"""


def refused(mjcf):
    MjxPhysics(type("Refused", (Body,), {"name": "Refused", "mjcf": mjcf})())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("RK4", "implicit"), "integrator implicit is not covered; accepted are Euler, RK4, implicitfast"),
        (("RK4", "discrete"), "integrator discrete is not covered; accepted are Euler, RK4, implicitfast"),
        (("<option ", '<option noslip_iterations="3" '), "MJX ignores noslip_iterations"),
        (('<geom type="plane"', '<geom type="cylinder" name="post" pos="2 0 0"'), r"a capsule .* a cylinder \(post\)"),
        (('fromto="0 0 0 .1 0 -.5"', 'fromto="0 0 0 .1 0 -.5" fluidshape="ellipsoid"'), r"\(fluidshape\) of geom '"),
        (('axis="1 0 0"/>', 'axis="1 0 0" stiffness="1 2"/>'), "MJX ignores nonlinear joint stiffness of joint '"),
        (('<geom type="plane"', '<geom type="box"'), "of a capsule .* with a box"),
        (("<option ", '<option actuatorgroupdisable="0" '), "MJX ignores actuatorgroupdisable of actuator '"),
        (
            ("<actuator>", '<actuator><adhesion body="torso" ctrlrange="0 1"/>'),
            "no transmission of type body: actuator '",
        ),
        (
            ('<actuator><motor joint="hip"', CORD + '<actuator><motor tendon="cord"'),
            "no derivative of actuatorfrcrange of tendon cord where its actuators pull with 0 in sum",
        ),
        (
            ("</worldbody>", '</worldbody><equality><connect body1="torso" anchor="0 0 0"/></equality>'),
            r"equality constraint connect \(equality 'equality0'\) by another rule",
        ),
    ],
)
def test_what_mjx_cannot_do_is_refused_by_name(change, message):
    with pytest.raises(InputError, match=f"task Refused: .*{message}.*; use backend mujoco$"):
        refused(LEG.replace(*change))


def test_a_muscle_that_mjx_integrates_otherwise_is_named():
    fast = LEG.replace("RK4", "implicitfast").replace('<motor joint="hip"', '<muscle name="calf" joint="hip"')
    with pytest.raises(InputError, match=r"muscles \(actuator 'calf'\) by another rule"):
        refused(fast.replace('name="calf"', 'name="calf" lengthrange="-1 1"'))


def test_gymnasiums_pusher_is_refused():
    with pytest.raises(InputError, match=r"a capsule \(.*\) with a cylinder \(.*\).* use backend mujoco"):
        refused("gymnasium:pusher.xml")


def test_unknown_derivative_lists_the_valid_ones():
    with pytest.raises(InputError, match="unknown derivative source of backend mjx 'fd': choose one of implicit, jvp"):
        MjxPhysics(Leg(), derivative="fd")


def test_cuda_without_a_gpu_in_jax_is_refused_at_once():
    if load_jax().default_backend() == "gpu":
        pytest.skip("JAX sees a GPU here")
    with pytest.raises(InputError, match="device cuda was asked for, but JAX sees only cpu devices"):
        MjxPhysics(Leg(), device="cuda")


@pytest.mark.parametrize("module", ["jax", "mujoco.mjx"])
def test_a_missing_package_names_the_extra(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    load_jax.cache_clear()
    _load_step.cache_clear()
    try:
        with pytest.raises(MissingExtra, match=r"pip install -e '\.\[mjx\]' in the project's folder"):
            MjxPhysics(Leg())
    finally:
        load_jax.cache_clear()
        _load_step.cache_clear()
