"""The MuJoCo tasks against Gymnasium's environments: steps, rewards, resets and the documented differences."""

import dataclasses
import warnings
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import mage_diffsim.envs.gymnasium_env  # noqa: F401  (registers the environments)
from mage_diffsim.envs import make_task, rollout
from mage_diffsim.envs import mujoco as mujoco_backend
from mage_diffsim.envs.mujoco.loading import find
from mage_diffsim.envs.mujoco.model import colliding_geoms
from tests.envs.mujoco_tasks import OF_GYMNASIUM, physics_of

PAPER_MODELS = {"Walker2d": "walker2d.xml", "Pusher": "pusher.xml"}
"""The models of the paper's tasks where Gymnasium's v5 has others."""
STOPPED_EARLY = ("Humanoid", "HumanoidStandup")
"""Tasks whose models stop the solver so early that where it starts can be seen: in Gymnasium at the last step's end."""
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
    low, high = env.model.actuator_ctrlrange.T
    rows = []
    for step in range(steps):
        before = env.data.qpos.copy(), env.data.qvel.copy()
        action = env.action_space.sample().astype(np.float64)
        if name in STOPPED_EARLY:
            env.data.qacc_warmstart[:] = 0.0
        _, reward, terminated, _, _ = env.step(action)
        unit = 2.0 * (action - low) / (high - low) - 1.0
        rows.append((*before, unit, np.concatenate([env.data.qpos, env.data.qvel]), reward, terminated))
        if terminated or step % 100 == 99:
            env.reset()
    env.close()
    return [torch.as_tensor(np.array(column)) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("name", OF_GYMNASIUM)
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
        "HumanoidStandup",
    )
    if name in ("HalfCheetah", "InvertedPendulum", "Swimmer"):
        torch.testing.assert_close(task.reward(obs, action, next_obs), reward.double(), atol=1e-9, rtol=1e-9)


def centre_of_mass(task, state):
    """That of the whole model at each state, [N, 3], by MuJoCo's own kinematics."""
    model = task.simulation.model
    data, found = mujoco.MjData(model), []
    for qpos in task.qpos(state).numpy():
        data.qpos[:] = qpos
        mujoco.mj_fwdPosition(model, data)
        found.append(data.subtree_com[0].copy())
    return torch.as_tensor(np.array(found))


DIFFERENT = ["Hopper", "Walker2d", "Ant", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum", "Reacher", "Pusher"]


@pytest.mark.parametrize("name", DIFFERENT)
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
    elif name == "Humanoid":  # as Ant, and the velocity is that of the centre of mass
        centres = [centre_of_mass(task, x) for x in (state, next_state)]
        expected = 1.25 * (centres[1] - centres[0])[:, 0] / task.dt + 5.0 * (~terminated).double()
        expected -= 0.1 * (0.4 * action).square().sum(-1)
        torch.testing.assert_close(ours, expected, atol=1e-9, rtol=1e-9)
        assert (ours - theirs).median() >= 0.0 and terminated.any()
    elif name == "HumanoidStandup":  # Gymnasium subtracts a contact cost of up to 10
        assert (ours - theirs).min() >= -1e-6 and (ours - theirs).max() <= 10.0 + 1e-6
        assert (ours - theirs).median() <= 1.0
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
        return stepper(
            task.qpos(state), task.qvel(state), task.act(state), task.mocap(state), task.scale_action(action)
        )

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


@pytest.mark.parametrize("name", OF_GYMNASIUM)
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


@pytest.mark.parametrize("name", OF_GYMNASIUM)
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


def test_a_trajectory_of_gymnasiums_is_reproduced_step_by_step():
    """Free running, from Gymnasium's start: chaos amplifies rounding, so not for long."""
    qpos, qvel, action, expected, _, _ = gymnasium_trajectory("HalfCheetah", 40)
    task = make_task("HalfCheetah")
    actions = iter(action)
    result = rollout(
        physics_of(task), lambda obs: next(actions)[None], task.state_at(qpos[:1], qvel[:1]), 40, record=True
    )
    assert (result.states[1:, 0, :18] - expected).abs().max() <= 1e-7
