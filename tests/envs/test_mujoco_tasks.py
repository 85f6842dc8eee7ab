"""The MuJoCo tasks against Gymnasium's environments, MuJoCo C's own derivatives, and models of a stranger's."""

import dataclasses
import pickle
import threading
import warnings
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import mage_diffsim.envs.gymnasium_env  # noqa: F401  (registers the environments)
from mage_diffsim.envs import (
    BatchedEnv,
    BodyPosition,
    MeanVelocity,
    MujocoTask,
    SitePosition,
    make_physics,
    make_task,
    rollout,
)
from mage_diffsim.envs import mujoco as mujoco_backend
from mage_diffsim.envs.batched import advance
from mage_diffsim.envs.contract import Tolerances
from mage_diffsim.envs.mujoco.model import colliding_geoms, find
from mage_diffsim.errors import InputError

TASKS = (
    "InvertedPendulum",
    "InvertedDoublePendulum",
    "Reacher",
    "Swimmer",
    "HalfCheetah",
    "Hopper",
    "Walker2d",
    "Ant",
    "Pusher",
)


def physics_of(task, **options):
    return make_physics(task, "mujoco", dtype=torch.float64, **options)


PAPER_MODELS = {"Walker2d": "walker2d.xml", "Pusher": "pusher.xml"}
"""The models of the paper's tasks where Gymnasium's v5 has others."""
LARGER_MARGIN = ("Hopper", "Pusher")
"""Tasks whose contacts take the larger of two equal margins; Gymnasium's environment adds them."""


def gymnasium_env(name):
    """Gymnasium's v5 environment on the task's model."""
    options = {"xml_file": PAPER_MODELS[name]} if name in PAPER_MODELS else {}
    env = gymnasium.make(f"{name}-v5", **options).unwrapped
    if name in LARGER_MARGIN:
        env.model.geom_margin[:] *= 0.5
    return env


def gymnasium_trajectory(name, steps, seed=0):
    """States (qpos, qvel), actions, next states, rewards and terminations of random episodes in Gymnasium's v5."""
    env = gymnasium_env(name)
    env.reset(seed=seed)
    env.action_space.seed(seed)
    low, high = env.action_space.low.astype(np.float64), env.action_space.high.astype(np.float64)
    rows = []
    for step in range(steps):
        before = env.data.qpos.copy(), env.data.qvel.copy()
        action = env.action_space.sample().astype(np.float64)
        _, reward, terminated, _, _ = env.step(action)
        unit = 2.0 * (action - low) / (high - low) - 1.0
        rows.append((*before, unit, np.concatenate([env.data.qpos, env.data.qvel]), reward, terminated))
        if terminated or step % 100 == 99:
            env.reset()
    env.close()
    return [torch.as_tensor(np.array(column)) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("name", TASKS)
def test_every_step_is_that_of_gymnasium(name):
    task = make_task(name)
    qpos, qvel, action, expected, reward, terminated = gymnasium_trajectory(name, 400)
    state = task.state_at(qpos, qvel)
    next_state = physics_of(task, solver="model").step(state, action)
    moved = task.simulation.nq + task.simulation.nv
    assert (next_state[:, :moved] - expected).abs().max() <= 1e-9

    obs, next_obs = task.observe(state), task.observe(next_state)
    torch.testing.assert_close(task.terminated(next_obs), terminated)
    assert task.terminated(torch.full_like(next_obs, torch.nan)).all() or name in (
        "HalfCheetah",
        "Swimmer",
        "Reacher",
        "Pusher",
    )
    if name in ("HalfCheetah", "InvertedPendulum", "Swimmer"):
        torch.testing.assert_close(task.reward(obs, action, next_obs), reward.double(), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ["Hopper", "Walker2d", "Ant", "InvertedDoublePendulum", "Reacher", "Pusher"])
def test_rewards_differ_from_gymnasiums_only_as_documented(name):
    task = make_task(name)
    qpos, qvel, action, _, theirs, terminated = gymnasium_trajectory(name, 200)
    state = task.state_at(qpos, qvel)
    next_state = physics_of(task).step(state, action)
    ours = task.reward(task.observe(state), action, task.observe(next_state))
    if name in ("Hopper", "Walker2d"):  # Gymnasium v5 gives no 1 for the step that falls
        torch.testing.assert_close(ours - terminated.double(), theirs, atol=1e-9, rtol=1e-9)
    elif name == "Ant":  # Gymnasium subtracts a contact cost, and takes the velocity one simulator step earlier
        velocity = (next_state[:, 0] - state[:, 0]) / task.dt
        expected = velocity + (~terminated).double() - 0.5 * action.square().sum(-1)
        torch.testing.assert_close(ours, expected, atol=1e-9, rtol=1e-9)
        assert (ours - theirs).median() >= 0.0
    elif name == "InvertedDoublePendulum":  # with the tip where Gymnasium's lagging one is, nothing is left
        v1, v2 = next_state[:, 4], next_state[:, 5]
        angle1, angle2 = next_state[:, 1], next_state[:, 1] + next_state[:, 2]
        x = next_state[:, 0] + 0.6 * (angle1.sin() + angle2.sin())
        z = 0.6 * (angle1.cos() + angle2.cos())
        cost = 0.01 * x.square() + (z - 2.0).square() + 1e-3 * v1.square() + 5e-3 * v2.square()
        torch.testing.assert_close(ours, 10.0 * (z > 1.0).double() - cost, atol=1e-9, rtol=1e-9)
        assert 0.0 < (ours - theirs).abs().max() < 0.2
    else:  # body positions lag one simulator step in Gymnasium; Pusher's reward is of s
        assert 0.0 < (ours - theirs).abs().max() < 0.2


def test_the_papers_tasks_have_the_models_that_the_paper_used():
    """Where Gymnasium's v5 changed a model, and where MuJoCo changed what the model says."""
    assert PAPER_MODELS.items() <= {n: make_task(n).mjcf.removeprefix("gymnasium:") for n in PAPER_MODELS}.items()
    walker, pusher = (make_task(name).simulation.model for name in PAPER_MODELS)
    friction = {name: walker.geom(name).friction[0] for name in ("foot_geom", "foot_left_geom")}
    assert friction == {"foot_geom": 0.9, "foot_left_geom": 1.9}
    assert pusher.body("object").mass[0] == pytest.approx(1e-5 * np.pi * (0.05**2 * 0.1 + 4.0 / 3.0 * 0.05**3))
    for name in ("HalfCheetah", "Walker2d", "Swimmer"):  # how margins combine does not matter without any
        assert not make_task(name).simulation.model.geom_margin.any()


def in_contact(name, n, generator):
    """States of a task in which geoms touch or are within a few margins, [n, S], and actions, [n, A]."""
    task = make_task(name)
    physics = physics_of(task)
    state = task.reset(n, generator)
    if name == "Pusher":  # the object beside the fingers, on the table's level
        arm = torch.tensor([0.2, 0.55, 0.0, -0.95, 0.0, -0.3, 0.0], dtype=torch.float64)
        arm = arm + 0.15 * torch.randn(n, 7, dtype=torch.float64, generator=generator)
        start = task.state_at(torch.cat([arm, state[:, 7:11]], 1), state[:, 11:22])
        offset = 0.12 * (2.0 * torch.rand(n, 2, dtype=torch.float64, generator=generator) - 1.0)
        beside = task.readout(start, "tip")[:, :2] + offset - torch.tensor([0.45, -0.05], dtype=torch.float64)
        qpos = torch.cat([arm, beside.flip(-1), state[:, 9:11]], 1)
        state = task.state_at(qpos, torch.randn(n, 11, dtype=torch.float64, generator=generator))
    states, actions = [], []
    for _ in range(40):
        action = torch.rand(n, task.action_dim, dtype=torch.float64, generator=generator) * 2 - 1
        states.append(state)
        actions.append(action)
        state = physics.step(state, action)
    return torch.cat(states), torch.cat(actions)


@pytest.mark.parametrize("name", LARGER_MARGIN)
def test_contacts_act_within_the_larger_margin_as_in_the_papers_mujoco(name):
    """MuJoCo gives explicit pairs the larger margin by default, still: they hold the old rule without our edit."""
    task = make_task(name)
    spec = mujoco.MjSpec.from_file(str(find(task.mjcf, Path())))
    added = mujoco.MjSpec.from_file(str(find(task.mjcf, Path()))).compile()
    for i, geom in enumerate(spec.geoms):
        geom.name = f"geom{i}"
    for g1, g2 in colliding_geoms(added):
        condim = max(spec.geoms[g1].condim, spec.geoms[g2].condim)
        pair = spec.add_pair(geomname1=f"geom{g1}", geomname2=f"geom{g2}", condim=condim)
        pair.margin = pair.gap = np.nan  # not given, so taken from the geoms
        pair.friction[:] = pair.solref[:] = pair.solimp[:] = np.nan
    for geom in spec.geoms:
        geom.contype = geom.conaffinity = 0
    old = spec.compile()
    assert (old.pair_margin == added.geom_margin.max()).all()
    old.opt.disableflags |= task.simulation.model.opt.disableflags
    physics = physics_of(task)
    state, action = in_contact(name, 24, torch.Generator().manual_seed(0))

    def stepped(model):
        simulation = dataclasses.replace(task.simulation, model=model)
        stepper = mujoco_backend._Stepper(simulation, "converged")
        return stepper(task.qpos(state), task.qvel(state), task.scale_action(action))

    ours = physics.step(state, action)
    assert (ours - stepped(old)).abs().max() <= 1e-9
    differing = (ours - stepped(added)).abs().amax(1) > 1e-6
    assert differing.sum() > 10  # what Gymnasium's environment does with today's MuJoCo


def test_pusher_charges_the_action_in_the_actuators_unit():
    task = make_task("Pusher")
    obs = task.observe(task.reset(1, torch.Generator()))
    action = torch.ones(1, 7, dtype=torch.float64)  # 2 N m
    cost = task.reward(obs, 0.0 * action, obs) - task.reward(obs, action, obs)
    assert cost.item() == pytest.approx(0.1 * 7 * 4)


@pytest.mark.parametrize("name", TASKS)
def test_resets_are_distributed_like_gymnasiums(name):
    task = make_task(name)
    env = gymnasium_env(name)
    theirs = []
    for seed in range(300):
        env.reset(seed=seed)
        theirs.append(np.concatenate([env.data.qpos, env.data.qvel]))
    env.close()
    ours = task.reset(300, torch.Generator().manual_seed(0))[:, : task.simulation.nq + task.simulation.nv].numpy()
    theirs = np.array(theirs)
    for q in task.simulation.quaternions:
        theirs[:, q : q + 4] /= np.linalg.norm(theirs[:, q : q + 4], axis=1, keepdims=True)
    spread = np.maximum(theirs.std(0), 1e-12)
    assert (
        np.abs(ours.mean(0) - theirs.mean(0)).max() <= 1e-9
        or (np.abs(ours.mean(0) - theirs.mean(0)) <= 6.0 * spread / np.sqrt(300) + 1e-9).all()
    )
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.25, atol=1e-9)


def test_the_step_depends_on_nothing_but_state_and_action():
    """Gymnasium carries the solver's warm start from step to step; here every step starts anew."""
    task = make_task("HalfCheetah")
    physics = physics_of(task)
    generator = torch.Generator().manual_seed(0)
    env = BatchedEnv(task, physics, 16, [generator])
    env.reset()
    for _ in range(30):
        action = torch.rand(16, 6, dtype=torch.float64, generator=generator) * 2 - 1
        moved = env.step(action)
        # after other states were stepped in between, in another order
        again = physics.step(moved.state.flip(0), action.flip(0)).flip(0)
        assert torch.equal(again, moved.next_state)


@pytest.mark.parametrize("name", ["HalfCheetah", "Ant", "Pusher"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_and_rows_changes_nothing(name, threads):
    before = torch.get_num_threads()
    task = make_task(name)
    state = task.reset(1500, torch.Generator().manual_seed(0))  # more than one call into MuJoCo
    action = torch.rand(1500, task.action_dim, dtype=torch.float64) * 2 - 1
    expected = torch.cat(
        [physics_of(task).step(s, a) for s, a in zip(state.split(100), action.split(100), strict=True)]
    )
    try:
        torch.set_num_threads(threads)
        physics = physics_of(task)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(physics.step(state, action), expected)


def test_derivatives_are_those_of_mujocos_own_finite_differences():
    """mjd_transitionFD, for one Euler step: A = d(next dq, next v)/d(dq, v), B = d/d ctrl."""

    class OneStep(MujocoTask):
        name = "OneStep"
        mjcf = "gymnasium:half_cheetah.xml"
        frame_skip = 1
        horizon = 10
        source = "test"
        position_noise = velocity_noise = 0.2

        def observe(self, state):
            return state

        def reward(self, obs, action, next_obs):
            return obs[..., 0]

        def terminated(self, next_obs):
            return next_obs[..., 0] > 1e9

    task = OneStep()
    state = task.reset(4, torch.Generator().manual_seed(0))
    action = torch.rand(4, 6, dtype=torch.float64) - 0.5
    jacobian = jacobians(physics_of(task), state, action)
    model = task.simulation.model
    data = mujoco.MjData(model)
    for i in range(4):
        data.qpos[:], data.qvel[:], data.ctrl[:] = state[i, :9], state[i, 9:], action[i]
        mujoco.mj_forward(model, data)
        a, b = np.zeros((18, 18)), np.zeros((18, 6))
        mujoco.mjd_transitionFD(model, data, 1e-6, True, a, b, None, None)
        np.testing.assert_allclose(jacobian["state"][i], a, rtol=1e-4, atol=1e-5 * np.abs(a).max())
        np.testing.assert_allclose(jacobian["action"][i], b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def jacobians(physics, state, action):
    """d next_state / d state and d action, [N, S, S] and [N, S, A]."""
    state, action = state.clone().requires_grad_(), action.clone().requires_grad_()
    columns = [
        torch.autograd.grad(physics.step(state, action)[:, j].sum(), (state, action)) for j in range(state.shape[1])
    ]
    by_state, by_action = zip(*columns, strict=True)
    return {"state": torch.stack(by_state, 1), "action": torch.stack(by_action, 1)}


def test_forward_differences_are_nearly_central_ones():
    task = make_task("Walker2d")
    state = task.reset(8, torch.Generator().manual_seed(0))
    action = torch.rand(8, 6, dtype=torch.float64) - 0.5
    central, forward = (jacobians(physics_of(task, derivative=d), state, action) for d in ("fd", "fd-forward"))
    assert torch.equal(central["state"], forward["state"])
    scale = central["action"].abs().max()
    assert 0 < (central["action"] - forward["action"]).abs().max() <= 1e-4 * scale


def test_float32_is_float64_rounded():
    task = make_task("Hopper")
    state, action = task.reset(8, torch.Generator().manual_seed(0)).float(), torch.rand(8, 3) - 0.5
    single = make_physics(task, "mujoco", dtype=torch.float32)
    assert torch.equal(single.step(state, action), physics_of(task).step(state.double(), action.double()).float())
    ours = jacobians(single, state, action)["action"]
    assert torch.equal(ours, jacobians(physics_of(task), state.double(), action.double())["action"].float())


def test_an_action_at_its_bound_keeps_its_gradient_and_one_beyond_has_none():
    task = make_task("InvertedPendulum")
    state = task.reset(3, torch.Generator().manual_seed(0))
    action = torch.tensor([[1.0], [-1.0], [1.5]], dtype=torch.float64)
    gradient = jacobians(physics_of(task), state, action)["action"][:, 2, 0]
    assert gradient[0].item() == pytest.approx(gradient[1].item(), rel=1e-2)
    assert gradient[0] > 0.5
    assert gradient[2] == 0.0


# Free joints --------------------------------------------------------------------------------------------------------


def test_quaternions_stay_normalised_and_their_derivatives_tangent():
    task = make_task("Ant")
    physics = physics_of(task)
    generator = torch.Generator().manual_seed(0)
    state = task.reset(8, generator)
    for _ in range(20):
        action = torch.rand(8, 8, dtype=torch.float64, generator=generator) * 2 - 1
        state = physics.step(state, action)
    quaternion = state[:, 3:7]
    torch.testing.assert_close(quaternion.norm(dim=-1), torch.ones(8, dtype=torch.float64))
    by_state = jacobians(physics, state, action)["state"]
    # moving the quaternion along itself changes nothing; the next one moves at right angles to itself
    along = by_state[:, :, 3:7] @ quaternion.unsqueeze(-1)
    next_quaternion = physics.step(state, action)[:, 3:7]
    outward = next_quaternion.unsqueeze(1) @ by_state[:, 3:7]
    scale = by_state.abs().max()
    assert along.abs().max() <= 1e-12 * scale
    assert outward.abs().max() <= 1e-7 * scale


def test_a_quaternion_of_another_length_is_the_same_rotation():
    task = make_task("Ant")
    physics = physics_of(task)
    state, action = task.reset(2, torch.Generator().manual_seed(0)), torch.zeros(2, 8, dtype=torch.float64)
    longer = state.clone()
    longer[:, 3:7] *= 1.7
    torch.testing.assert_close(physics.step(longer, action), physics.step(state, action), atol=1e-12, rtol=0)
    nothing, identity = state.clone(), state.clone()
    nothing[:, 3:7] = 0.0
    identity[:, 3:7] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert torch.equal(physics.step(nothing, action), physics.step(identity, action))


# A model of one's own ----------------------------------------------------------------------------------------------

SLIDER = """
<mujoco>
  <option timestep="0.01" gravity="0 0 0"/>
  <worldbody>
    <body name="cart">
      <joint name="x" type="slide" axis="1 0 0"/>
      <geom size="0.1" mass="2"/>
      <site name="front" pos="0.5 0 0"/>
      <body name="pole" pos="0 0 0.2">
        <joint name="swing" type="hinge" axis="0 1 0"/>
        <geom size="0.05" pos="0 0 0.3" mass="1e-9"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor name="push" joint="x" gear="3" ctrlrange="-1 4"/></actuator>
</mujoco>
"""


class Slider(MujocoTask):
    name = "Slider"
    mjcf = SLIDER
    frame_skip = 4
    horizon = 20
    source = "test"
    readouts = {"velocity": MeanVelocity("x"), "front": SitePosition("front"), "cart": BodyPosition("cart")}  # noqa: RUF012

    def observe(self, state):
        return state.clone()

    def reward(self, obs, action, next_obs):
        return -next_obs[..., 0].square()

    def terminated(self, next_obs):
        return next_obs[..., 0].abs() > 10.0


def slider(**attributes):
    return type("Slider", (Slider,), attributes)()


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
    "no joint": (dict(mjcf="<mujoco/>"), "the model has no joint"),
    "no actuator": (
        dict(mjcf=SLIDER.split("<actuator>")[0] + "</mujoco>", readouts={}),
        "the model has no actuator",
    ),
    "no range": (
        dict(mjcf=SLIDER.replace(' ctrlrange="-1 4"', "")),
        "actuator 'push' has no finite control range, which actions in \\[-1, 1\\] are scaled to; give it ctrlrange",
    ),
    "activation": (
        dict(
            mjcf=SLIDER.replace("<motor", "<intvelocity")
            .replace(' gear="3"', "")
            .replace("ctrlrange", 'actrange="-1 1" ctrlrange')
        ),
        "actuator 'push' has an activation state of its own",
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
        r"plastic springs or flexes \(springyield, yield\), whose state qpos . qvel leaves out",
    ),
    "plastic tendon": (
        dict(mjcf=SLIDER.replace("</worldbody>", "<site name='anchor'/></worldbody>" + PLASTIC_TENDON)),
        "plastic springs or flexes",
    ),
    "infinite range": (dict(mjcf=SLIDER.replace("-1 4", "-inf inf")), "'push' has no finite control range"),
    "delay": (
        dict(mjcf=SLIDER.replace('gear="3"', 'gear="3" delay="0.01" nsample="2"')),
        "actuator 'push' has a delay, whose history the state",
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


def test_an_unknown_derivative_source_is_refused():
    with pytest.raises(
        InputError, match="unknown derivative source of backend mujoco 'vjp': choose one of fd, fd-forward"
    ):
        physics_of(Slider(), derivative="vjp")


def test_a_control_that_is_not_finite_gives_no_state():
    """MuJoCo itself takes it for no control at all."""
    task = make_task("HalfCheetah")
    action = torch.zeros(3, 6, dtype=torch.float64)
    action[1, 2] = torch.nan
    moved = physics_of(task).step(task.reset(3, torch.Generator().manual_seed(0)), action)
    assert moved.isfinite().all(-1).tolist() == [True, False, True]


def test_two_threads_leave_mujocos_logging_as_it_was():
    task = make_task("InvertedPendulum")
    state, action = task.reset(1, torch.Generator()), torch.zeros(1, 1, dtype=torch.float64)
    config = mujoco.MjLogConfig
    before = config.get().logto_console, config.get().logto_file

    def work():
        physics = physics_of(task)
        for _ in range(300):
            physics.step(state, action)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (config.get().logto_console, config.get().logto_file) == before


def test_a_task_that_was_drawn_can_be_pickled():
    task = Slider()
    state = task.state_at(torch.zeros(1, 2).double(), torch.zeros(1, 2).double())
    first = task.render(state[0])
    again = pickle.loads(pickle.dumps(task.simulation))
    np.testing.assert_array_equal(again.render(state[0].numpy()), first)


@pytest.mark.parametrize("steps", [(1e-6, 1e-6), [1e-6, 1e-6, 1e-6], (1e-6, 1e-6, 0.0)])
def test_bad_difference_steps_are_refused(steps):
    with pytest.raises(InputError, match=r"difference_steps is .*; accepted are three positive numbers"):
        physics_of(slider(difference_steps=steps))


def test_a_state_that_explodes_is_not_finite_and_leaves_no_file_behind(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    task = make_task("HalfCheetah")
    state = task.reset(3, torch.Generator().manual_seed(0))
    state[1, 9:18] = 1e200
    moved = physics_of(task).step(state, torch.zeros(3, 6, dtype=torch.float64))
    assert moved.isfinite().all(-1).tolist() == [True, False, True]
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


# Gymnasium and batched forms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_gymnasium_environments_pass_its_checker_and_draw(name):
    env = gymnasium.make(f"mage_diffsim/{name}-v0", render_mode="rgb_array")
    assert env.observation_space.dtype == np.float64
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on unbounded observations
        check_env(env.unwrapped, skip_render_check=True)
    env.reset(seed=0)
    first = env.render()
    for _ in range(10):
        env.step(env.action_space.sample())
    later = env.render()
    assert first.dtype == np.uint8 and first.shape == (240, 320, 3)
    assert first.std() > 1.0 and not np.array_equal(first, later)
    env.close()


@pytest.mark.parametrize("name", TASKS)
def test_batched_environments_reset_themselves_and_equal_single_ones(name):
    task = make_task(name)
    physics = physics_of(task)
    env = BatchedEnv(task, physics, 6, [torch.Generator().manual_seed(0)], horizon=20)
    env.reset()
    generator = torch.Generator().manual_seed(1)
    ended = 0
    for _ in range(45):
        action = torch.rand(6, task.action_dim, dtype=torch.float64, generator=generator) * 2 - 1
        moved = env.step(action)
        alone = physics.step(moved.state[2:3], action[2:3])
        assert torch.equal(alone[0], moved.next_state[2])
        assert not moved.diverged.any()
        ended += int((moved.terminated | moved.truncated).sum())
    assert ended >= 12


def test_a_trajectory_of_gymnasiums_is_reproduced_step_by_step():
    """Free running, from Gymnasium's start: chaos amplifies rounding, so not for long."""
    qpos, qvel, action, expected, _, _ = gymnasium_trajectory("HalfCheetah", 40)
    task = make_task("HalfCheetah")
    actions = iter(action)
    result = rollout(
        physics_of(task), lambda obs: next(actions)[None], task.state_at(qpos[:1], qvel[:1]), 40, record=True
    )
    assert (result.states[1:, 0, :18] - expected).abs().max() <= 1e-7


UNSTABLE = """
<mujoco><option timestep="0.01" gravity="0 0 0"/>
  <worldbody>
    <body><joint name="x" type="slide" axis="1 0 0" damping="{}"/><geom size=".1" mass="1"/></body>
    <body pos="0 2 0"><joint name="y" type="slide" axis="1 0 0"/><geom size=".1" mass="1"/></body>
  </worldbody>
  <actuator><motor joint="x" gear="{}" ctrlrange="-1 1"/></actuator></mujoco>"""


def warned(task, state, action):
    """Whether MuJoCo C, with its automatic reset, warns of an unstable state in the step or at the start of the next"""
    model = mujoco.MjModel.from_xml_string(task.mjcf)
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:], data.ctrl[:] = state[:2], state[2:], action
    mujoco.mj_step(model, data, task.frame_skip)
    mujoco.mj_step1(model, data)
    return any(w.number for w in data.warning)


@pytest.mark.parametrize("backend", ["mujoco", "mjx", "warp"])
@pytest.mark.parametrize("damping, gear", [("-95", "1"), ("0", "1"), ("0", "2e10"), ("1e6", "2e10")])
def test_a_state_that_mujoco_c_would_reset_is_not_finite(backend, damping, gear):
    pytest.importorskip({"mjx": "mujoco.mjx"}.get(backend, backend))
    task = slider(mjcf=UNSTABLE.format(damping, gear), readouts={})
    state = torch.zeros(8, 4, dtype=torch.float64)
    state[:, 0] = torch.tensor([0.0, 1.0, 0.0, 1.1e10, 0.9e10, 0.0, 0.0, 0.0])
    state[:, 2] = torch.tensor([0.0, 1.0, 1e6, 0.0, 0.0, -1.1e10, 1e11, 0.9e10])
    action = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)[:, None]
    expected = [not warned(task, s, a) for s, a in zip(state.numpy(), action.numpy(), strict=True)]
    assert True in expected
    assert False in expected
    physics = make_physics(task, backend, dtype=torch.float64)
    moved = physics.step(state, action.requires_grad_())
    assert moved.isfinite().all(1).tolist() == expected
    (gradient,) = torch.autograd.grad(moved[:, 2].sum(), action)
    assert gradient.isfinite().all(1).tolist() == expected


def test_a_diverged_environment_is_counted():
    task = slider(mjcf=UNSTABLE.format("-95", "1"), readouts={})
    state = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 9e9, 0.0]]).double()
    moved = advance(physics_of(task), state, task.observe(state), torch.zeros(2, 1).double())
    assert moved.diverged.tolist() == [False, True]


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


LIGHT = """
<mujoco><option timestep="{0}" gravity="0 0 0" integrator="{1}"/><worldbody><body><joint name="x" type="slide"
 axis="1 0 0" stiffness="{2}" damping="{3}"/><geom size=".1" mass="{4}"/></body></worldbody><actuator><motor joint="x"
 ctrlrange="-1 1"/></actuator></mujoco>"""


@pytest.mark.parametrize("backend", ["mujoco", "mjx", "warp"])
@pytest.mark.parametrize(
    "model, frame_skip, state",
    [
        (("1e-4", "Euler", "1", "100", "1e-11"), 2, (1.0, 0.0)),  # only the first acceleration is beyond
        (("1e-3", "RK4", "1e9", "0", "1"), 1, (1.0, 0.0)),  # only later stages' are
        (("1e-3", "RK4", "1e11", "0", "1"), 1, (1.0, 0.0)),
        (("1e-3", "Euler", "0", "0", "1"), 1, (1e10 - 1e3, 9e9)),  # the end is
    ],
)
def test_divergence_is_judged_where_mujoco_c_judges_it(backend, model, frame_skip, state):
    pytest.importorskip({"mjx": "mujoco.mjx"}.get(backend, backend))
    mjcf = LIGHT.format(*model)
    data = mujoco.MjData(c := mujoco.MjModel.from_xml_string(mjcf))
    data.qpos[:], data.qvel[:] = state
    for _ in range(frame_skip):
        mujoco.mj_step(c, data)
    mujoco.mj_checkPos(c, data)
    sound = not any(w.number for w in data.warning)
    physics = make_physics(slider(mjcf=mjcf, readouts={}, frame_skip=frame_skip), backend, dtype=torch.float64)
    moved = physics.step(torch.tensor([state]).double(), torch.zeros(1, 1).double())
    assert bool(moved.isfinite().all()) == sound
