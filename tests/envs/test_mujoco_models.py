"""A MuJoCo model of one's own: what is accepted, what is refused, and how its parts are named."""

import pickle

import mujoco
import numpy as np
import pytest
import torch

from mage_diffsim.envs import BodyPosition, MeanVelocity, SitePosition, make_physics, make_task
from mage_diffsim.envs.checks import Tolerances
from mage_diffsim.errors import InputError
from tests.envs.mujoco_tasks import SLIDER, Slider, physics_of, slider

TOUCHING = SLIDER.replace("</worldbody>", '<geom name="wall" size="0.1" pos="0.05 0 0"/></worldbody>')
PAIR = "<contact><pair geom1='wall' geom2='cart'/></contact>"
BY_PAIR = TOUCHING.replace('mass="2"', 'mass="2" name="cart" contype="0" conaffinity="0"').replace(
    "<actuator>", PAIR + "<actuator>"
)


@pytest.mark.parametrize(
    ("mjcf", "contacts"),
    [
        (SLIDER, False),  # a child never touches its parent
        (TOUCHING, True),
        (BY_PAIR, True),
        (TOUCHING.replace("/>", "><flag contact='disable'/></option>", 1), False),
        (BY_PAIR.replace("/>", "><flag contact='disable'/></option>", 1), False),
        (BY_PAIR.replace("/>", "><flag constraint='disable'/></option>", 1), False),
    ],
)  # fmt: skip
def test_a_model_has_contacts_if_mujoco_finds_any_where_its_geoms_overlap(mjcf, contacts):
    simulation = slider(mjcf=mjcf).simulation
    data = mujoco.MjData(simulation.model)
    mujoco.mj_forward(simulation.model, data)
    assert simulation.has_contacts == contacts == bool(data.nefc)
    bound = 1e-4 if contacts else 1e-5
    assert Tolerances.of(slider(mjcf=mjcf), torch.float32).agreement == bound


def test_a_mass_on_a_rail_moves_as_its_closed_form_says():
    task = Slider()
    names = ("x", "swing", "x_velocity", "swing_velocity", "velocity", "front_x", "front_y", "front_z")
    assert task.state_names == (*names, "cart_x", "cart_y", "cart_z")
    assert (task.action_names, task.action_low, task.action_high) == (("push",), (-1.0,), (4.0,))
    assert task.dt == pytest.approx(0.04)
    assert task.obs_names == tuple(f"obs{i}" for i in range(11))
    x, v, a = 0.3, -0.7, 0.5
    state = task.state_at(torch.tensor([[x, 0.0]]).double(), torch.tensor([[v, 0.0]]).double())
    assert state[0].tolist() == pytest.approx([x, 0, v, 0, 0, x + 0.5, 0, 0, x, 0, 0])
    action = torch.tensor([[a]], dtype=torch.float64, requires_grad=True)
    moved = physics_of(task).step(state, action)
    acceleration = 3.0 * (-1.0 + (a + 1.0) * 2.5) / 2.0
    end_v = v + 0.04 * acceleration
    end_x = x + sum(0.01 * (v + 0.01 * k * acceleration) for k in (1, 2, 3, 4))  # semi-implicit Euler
    assert moved[0, 0].item() == pytest.approx(end_x, abs=1e-7)
    assert moved[0, 2].item() == pytest.approx(end_v, abs=1e-7)
    # the readouts are those of the end of the step
    assert moved[0, 4].item() == pytest.approx((end_x - x) / 0.04, abs=1e-7)
    assert moved[0, 5].item() == pytest.approx(end_x + 0.5, abs=1e-7)
    assert moved[0, 8].item() == pytest.approx(end_x, abs=1e-7)
    d_acceleration = 3.0 * 2.5 / 2.0
    expected = {2: 0.04 * d_acceleration, 0: 1e-3 * d_acceleration, 4: 1e-3 / 0.04 * d_acceleration}
    for column, value in expected.items():
        (gradient,) = torch.autograd.grad(moved[0, column], action, retain_graph=True)
        assert gradient.item() == pytest.approx(value, rel=1e-6)


def test_a_model_may_be_a_file_beside_the_task(tmp_path):
    (tmp_path / "slider.xml").write_text(SLIDER)
    (tmp_path / "my_task.py").write_text(
        "from mage_diffsim.envs import MujocoTask\n"
        "class Mine(MujocoTask):\n"
        "    name, mjcf, frame_skip, horizon, source = 'Mine', 'slider.xml', 2, 10, 'test'\n"
        "    def observe(self, state): return state.clone()\n"
        "    def reward(self, obs, action, next_obs): return next_obs[..., 0]\n"
        "    def terminated(self, next_obs): return next_obs[..., 0] > 9\n"
    )
    task = make_task(f"{tmp_path / 'my_task.py'}:Mine")
    assert task.state_names == ("x", "swing", "x_velocity", "swing_velocity")
    assert task.dt == pytest.approx(0.02)


MARGINS = (
    SLIDER.replace("</worldbody>", "<geom name='wall' size='.1' pos='.05 0 0' margin='{0}'/></worldbody>")
    .replace('<geom size="0.1" mass="2"/>', "<geom name='box' size='.1' mass='2' margin='{1}'/>")
    .replace('mass="1e-9"', 'mass="1e-9" contype="0" conaffinity="0"')
)
PLASTIC_TENDON = (
    "<tendon><spatial stiffness='9' springyield='.1'><site site='front'/><site site='anchor'/></spatial></tendon>"
)
PEG = "<geom size='.1' pos='-.3 0 0'/></worldbody>"


@pytest.mark.parametrize("wall, box", [("0", "0"), (".02", "0"), ("0", ".02"), (".02", ".02")])
def test_the_larger_of_two_margins_is_what_the_rule_maximum_says(wall, box):
    larger = max(float(wall), float(box))
    for rule, margin in (("maximum", larger), ("sum", float(wall) + float(box))):
        simulation = slider(mjcf=MARGINS.format(wall, box), contact_margin=rule).simulation
        data = mujoco.MjData(simulation.model)
        mujoco.mj_forward(simulation.model, data)
        assert [contact.includemargin for contact in data.contact] == pytest.approx([margin])


BAD = {
    "no file": (dict(mjcf="nothing.xml"), "there is no MJCF file .*nothing.xml: give the path of one"),
    "no asset": (dict(mjcf="gymnasium:cheetah.xml"), "unknown model of gymnasium 'cheetah.xml': choose one of ant.xml"),
    "broken": (
        dict(mjcf="<mujoco><worldbody><joint/></worldbody></mujoco>"),
        "task Slider: MuJoCo cannot load its MJCF",
    ),
    "nan": (
        dict(mjcf=SLIDER.replace("<joint ", '<joint damping="nan" ', 1)),
        r"task Slider: dof_damping\[0\] is nan; give a number",
    ),
    "nan of an option": (
        dict(mjcf=SLIDER.replace("<worldbody>", '<option density="nan"/><worldbody>', 1)),
        "task Slider: density is nan; give a number",
    ),
    "nan of a keyframe": (  # from which MuJoCo starts anew
        dict(mjcf=SLIDER.replace("</mujoco>", '<keyframe><key/><key qvel="0 nan"/></keyframe></mujoco>')),
        r"task Slider: key_qvel\[1\] is nan; give a number",
    ),
    "no time": (
        dict(mjcf=SLIDER.replace("<worldbody>", '<option timestep="0"/><worldbody>', 1)),
        "task Slider: timestep is 0; accepted is a positive number",
    ),
    "no joint": (dict(mjcf="<mujoco/>"), "the model has no joint"),
    "no actuator": (
        dict(mjcf=SLIDER.split("<actuator>")[0] + "</mujoco>", readouts={}),
        "the model has no actuator",
    ),
    "no range": (
        dict(mjcf=SLIDER.replace(' ctrlrange="-1 4"', ' ctrlrange="-1 inf"')),
        "nothing bounds the control of actuator 'push', and actions in \\[-1, 1\\] are scaled to its range; give it "
        "ctrlrange='LOW HIGH' or forcerange",
    ),
    "user activation": (
        dict(mjcf=SLIDER.replace("<motor", "<general dyntype='user'")),
        "actuator 'push' has dyntype user, whose activation a callback computes; use another dyntype",
    ),
    "unknown body": (
        dict(readouts={"tip": BodyPosition("tip")}),
        "readout 'tip' names the body 'tip', which the model does not have; it has: world, cart, pole",
    ),
    "unknown site": (dict(readouts={"tip": SitePosition("tip")}), "names the site 'tip'.*it has: front"),
    "unknown joint": (dict(readouts={"v": MeanVelocity("y")}), "names the joint 'y'.*it has: x, swing"),
    "no coordinate": (
        dict(readouts={"v": MeanVelocity("x", 1)}),
        "coordinate 1 of joint 'x'; accepted is coordinate 0",
    ),
    "no readout": (dict(readouts={"v": "x"}), "readout 'v' is 'x'; accepted are BodyPosition, SitePosition"),
    "name twice": (
        dict(readouts={"x": MeanVelocity("x")}),
        "readout name 'x' names a component of the state already; give the readout another",
    ),
    "plastic joint": (
        dict(mjcf=SLIDER.replace('axis="1 0 0"', 'axis="1 0 0" stiffness="9" springyield=".1"')),
        r"plastic springs or flexes \(springyield, yield\), which a task's state leaves out",
    ),
    "plastic tendon": (
        dict(mjcf=SLIDER.replace("</worldbody>", "<site name='anchor'/></worldbody>" + PLASTIC_TENDON)),
        "plastic springs or flexes",
    ),
    "infinite range": (dict(mjcf=SLIDER.replace("-1 4", "-inf inf")), "nothing bounds the control of actuator 'push'"),
    "delay": (
        dict(mjcf=SLIDER.replace('gear="3"', 'gear="3" delay="0.01" nsample="2"')),
        "actuator 'push' has a delay, whose history a task's state leaves out",
    ),
    "sleep": (
        dict(mjcf=SLIDER.replace('gravity="0 0 0"/>', 'gravity="0 0 0"><flag sleep="enable"/></option>')),
        "lets bodies sleep",
    ),
    "ipc": (
        dict(
            mjcf=SLIDER.replace(
                'gravity="0 0 0"/>', 'gravity="0 0 0" integrator="discrete"><flag ipc="enable"/></option>'
            )
        ),
        "the flag ipc keeps multipliers",
    ),
    "no text": (dict(mjcf=None), "mjcf is None; accepted is text"),
    "empty": (dict(mjcf=""), "mjcf is ''; accepted is text"),
    "no mapping": (dict(readouts=[1]), "readouts is \\[1\\]; accepted is a mapping"),
    "true": (dict(frame_skip=True), "frame_skip is True; accepted is a whole number"),
    "margin rule": (
        dict(contact_margin="max"),
        "unknown contact_margin of task Slider 'max': choose one of maximum, sum",
    ),
    "other margins": (
        dict(mjcf=MARGINS.format(".02", ".03"), contact_margin="maximum"),
        "task Slider: geoms 'wall' and 'box' have margins 0.02 and 0.03, which no sum makes the larger of; give geoms",
    ),
    "gaps": (
        dict(mjcf=MARGINS.format(".02", ".02' gap='.01"), contact_margin="maximum"),
        "geoms 'wall' and 'box' have gaps 0 and 0.01, which contact_margin = 'maximum' does not cover; give geoms",
    ),
    "margins of its own and 0": (
        dict(mjcf=MARGINS.replace("</worldbody>", PEG).format(".02", ".02"), contact_margin="maximum"),
        "geom 'box' can touch geoms of its own margin 0.02 and geoms of margin 0, which contact_margin = 'maximum'",
    ),
    "frame skip": (dict(frame_skip=0), "frame_skip is 0; accepted is a whole number of 1 or more"),
}


@pytest.mark.parametrize("attributes, message", BAD.values(), ids=BAD)
def test_bad_models_get_one_sentence(attributes, message):
    with pytest.raises(InputError, match=message) as caught:
        _ = slider(**attributes).state_names
    assert "\n" not in str(caught.value)


def test_an_undeclared_readout_and_a_bad_noise_are_refused():
    with pytest.raises(InputError, match="unknown readout of task Slider 'tip': choose one of cart, front, velocity"):
        Slider().readout(torch.zeros(1, 11), "tip")
    for noise in (-1.0, "a"):
        with pytest.raises(InputError, match=r"position_noise is .*; accepted is a number of 0 or more"):
            slider(position_noise=noise).reset(1, torch.Generator())


def test_a_task_that_was_drawn_can_be_pickled():
    task = Slider()
    state = task.state_at(torch.zeros(1, 2).double(), torch.zeros(1, 2).double())
    first = task.render(state[0])
    again = pickle.loads(pickle.dumps(task.simulation))
    np.testing.assert_array_equal(again.render(state[0].numpy()), first)


TWO_MOTORS = SLIDER.replace("1e-9", "1").replace(
    "</actuator>",
    "<motor joint='x' ctrlrange='-1 1'/><motor joint='x' ctrlrange='-2 2' gear='5'/>"
    "<position name='swing_2' joint='swing' ctrlrange='-1 1'/><motor joint='swing' ctrlrange='-1 1'/>"
    "<motor joint='swing' ctrlrange='-1 1'/></actuator>",
)


@pytest.mark.parametrize("backend", ["mujoco", "warp"])
def test_several_actuators_of_one_joint_have_a_component_each(backend):
    pytest.importorskip(backend)
    task = slider(mjcf=TWO_MOTORS)
    assert task.action_names == ("push", "x", "x_2", "swing_2", "swing", "swing_3")
    generator = torch.Generator().manual_seed(0)
    action = 2.0 * torch.rand(5, 6, generator=generator).double() - 1.0
    state = task.reset(5, generator)
    data = mujoco.MjData(model := mujoco.MjModel.from_xml_string(TWO_MOTORS))
    rows = []
    for row, control in zip(state.numpy(), task.scale_action(action).numpy(), strict=True):
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:], data.ctrl[:] = row[:2], row[2:4], control
        mujoco.mj_step(model, data, task.frame_skip)
        rows.append(np.concatenate([data.qpos, data.qvel]))
    moved = make_physics(task, backend, dtype=torch.float64).step(state, action)
    torch.testing.assert_close(moved[:, :4].numpy(), np.stack(rows), rtol=0.0, atol=1e-12)


def test_names_that_the_model_gives_twice_are_made_different():
    mjcf = SLIDER.replace('name="swing"', 'name="x_velocity"')
    assert slider(mjcf=mjcf, readouts={}).state_names == ("x", "x_velocity", "x_velocity_2", "x_velocity_velocity")


def test_a_joint_keeps_its_name_beside_one_without():
    mjcf = (
        SLIDER.replace('name="x" ', "").replace('name="swing"', 'name="joint0"').replace('joint="x"', 'joint="joint0"')
    )
    task = slider(mjcf=mjcf, readouts={})
    assert task.state_names == ("joint0_2", "joint0", "joint0_velocity", "joint0_velocity_2")
