"""The tasks through Gymnasium: its own checker, time limits, seeds, vector form, and laziness of the import."""

import copy
import pickle
import subprocess
import sys
from functools import cached_property

import cloudpickle
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from mage_diffsim.envs import make_task, registry, task_names
from mage_diffsim.envs.gymnasium_env import GymEnv, GymVectorEnv, RegisteredTask, register_gymnasium
from mage_diffsim.envs.tasks.cartpole import CartPole
from mage_diffsim.envs.tasks.pendulum import Pendulum
from mage_diffsim.errors import InputError

UNBOUNDED = pytest.mark.filterwarnings("ignore:.*A Box observation space m(in|ax)imum value is -?infinity")


@UNBOUNDED
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", task_names())
def test_every_task_passes_gymnasiums_checker(name, dtype):
    env = gymnasium.make(f"mage_diffsim/{name}-v0", dtype=dtype, render_mode="rgb_array")
    check_env(env.unwrapped)
    assert env.observation_space.dtype == np.dtype(dtype)
    assert env.spec.max_episode_steps == make_task(name).horizon


def test_the_time_limit_truncates_at_the_horizon():
    env = gymnasium.make("mage_diffsim/Pendulum-v0")
    env.reset(seed=0)
    for step in range(1, 201):
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        assert not terminated and truncated == (step == 200)


def test_matches_gymnasiums_pendulum_from_the_same_state():
    ours, theirs = gymnasium.make("mage_diffsim/Pendulum-v0", dtype="float64"), gymnasium.make("Pendulum-v1")
    theirs.reset(seed=0)
    ours.reset(options={"state": theirs.unwrapped.state})
    rng = np.random.default_rng(0)
    for _ in range(200):
        a = rng.uniform(-1, 1, size=1)
        obs, reward, _, ended, _ = ours.step(a)
        their_obs, their_reward, _, their_ended, _ = theirs.step(2 * a)
        np.testing.assert_allclose(obs, their_obs, atol=1e-6)
        assert reward == pytest.approx(their_reward, abs=1e-6) and ended == their_ended


def test_cartpole_terminates_and_options_reach_the_task():
    env = gymnasium.make("mage_diffsim/CartPole-v0")
    env.reset(seed=0)
    steps, terminated = 0, False
    while not terminated:
        *_, terminated, truncated, _ = env.step(np.ones(1))
        steps += 1
    assert steps < 20 and not truncated
    env = gymnasium.make("mage_diffsim/Pendulum-v0", clip_order="v0")
    assert env.unwrapped.task.clip_order == "v0"


def test_optional_packages_are_imported_only_when_asked_for():
    code = """
import sys, mage_diffsim.envs, mage_diffsim.envs.contract
print([m for m in ("gymnasium", "jax", "warp", "mujoco", "matplotlib") if m in sys.modules])
import gymnasium
env = gymnasium.make("mage_diffsim.envs.gymnasium_env:mage_diffsim/CartPole-v0")
print(env.reset(seed=0)[0].shape, [m for m in ("jax", "warp", "mujoco") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "(4,) []"]


def test_a_task_of_ones_own_becomes_a_gymnasium_environment(monkeypatch):
    monkeypatch.setattr(registry, "_TASKS", dict(registry._TASKS))

    class Short(CartPole):
        name = "ShortCartPole"
        horizon = 3

    registry.register_task(Short)
    try:
        assert register_gymnasium() == ("mage_diffsim/ShortCartPole-v0",)
        assert register_gymnasium() == ()
        assert gymnasium.make("mage_diffsim/ShortCartPole-v0").spec.max_episode_steps == 3
    finally:
        del gymnasium.registry["mage_diffsim/ShortCartPole-v0"]


def test_a_broken_installed_task_is_left_out_with_a_warning(monkeypatch):
    monkeypatch.setattr(registry, "_TASKS", registry._TASKS | {"Absent": "absent_package.tasks:Absent"})
    with pytest.warns(UserWarning, match="task Absent is not available in Gymnasium: .*no module"):
        assert register_gymnasium() == ()


@pytest.mark.parametrize("action", [np.zeros(2), np.array([np.nan]), np.array(0.5)])
def test_a_bad_action_is_refused(action):
    env = GymEnv("Pendulum")
    env.reset(seed=0)
    before = env.state
    with pytest.raises(InputError, match=r"accepted are finite numbers of shape \(1,\)"):
        env.step(action)
    assert np.array_equal(before, env.state)


def test_bad_options_are_refused():
    with pytest.raises(InputError, match="unknown dtype 'float16'"):
        GymEnv("Pendulum", dtype="float16")
    with pytest.raises(InputError, match="unknown render_mode 'human'"):
        GymEnv("Pendulum", render_mode="human")
    with pytest.raises(InputError, match=r"options \['clip_order'\]"):
        GymEnv(make_task("Pendulum"), clip_order="v0")
    env = GymEnv("Pendulum")
    with pytest.raises(InputError, match="call reset"):
        env.step(np.zeros(1))
    with pytest.raises(InputError, match="accepted are 2 finite numbers"):
        env.reset(options={"state": np.zeros(3)})


@pytest.mark.parametrize("name", task_names())
def test_the_picture_shows_the_state(name):
    env = GymEnv(name, render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    assert first.dtype == np.uint8 and first.ndim == 3 and first.shape[2] == 3 and first.std() > 5
    for _ in range(20):
        env.step(np.ones(env.action_space.shape))
    assert not np.array_equal(first, env.render())
    assert GymEnv(name).render() is None


def vector(name, n=4, **options):
    return gymnasium.make_vec(f"mage_diffsim/{name}-v0", num_envs=n, vectorization_mode="vector_entry_point", **options)


@pytest.mark.parametrize("name", task_names())
def test_the_vector_form_has_gymnasiums_shapes_and_seeds(name):
    envs, same = vector(name, render_mode="rgb_array"), vector(name)
    assert isinstance(envs.unwrapped, GymVectorEnv)
    obs, _ = envs.reset(seed=5)
    assert obs in envs.observation_space
    np.testing.assert_array_equal(obs, same.reset(seed=5)[0])
    assert not np.array_equal(obs, envs.reset()[0]) and not np.array_equal(obs, envs.reset(seed=6)[0])
    obs, reward, terminated, truncated, _ = envs.step(envs.action_space.sample())
    assert obs in envs.observation_space and reward.shape == terminated.shape == truncated.shape == (4,)
    assert len(envs.render()) == 4


def test_the_vector_form_resets_in_the_same_step_and_keeps_the_last_observation():
    envs = vector("CartPole")
    envs.reset(seed=0)
    ended = 0
    for _ in range(100):
        obs, reward, terminated, truncated, infos = envs.step(np.ones((4, 1)))
        done = terminated | truncated
        assert (reward == 1.0).all()
        assert ("final_obs" in infos) == done.any()
        for i in np.flatnonzero(done):
            assert infos["_final_obs"][i] and abs(infos["final_obs"][i][2]) > 12 * np.pi / 180
            assert np.abs(obs[i]).max() <= 0.05
        ended += done.sum()
    assert ended > 4


def test_the_vector_form_takes_gymnasiums_time_limit():
    for envs, steps in ((vector("Pendulum"), 200), (vector("Pendulum", max_episode_steps=10), 10)):
        envs.reset(seed=0)
        truncations = [envs.step(np.zeros((4, 1)))[3].all() for _ in range(steps)]
        assert truncations == [False] * (steps - 1) + [True]


def test_the_vector_form_can_be_recorded_by_gymnasiums_wrapper():
    envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(vector("CartPole"))
    envs.reset(seed=0)
    lengths = []
    for _ in range(60):
        infos = envs.step(np.ones((4, 1)))[-1]
        if "episode" in infos:
            lengths += infos["episode"]["l"][infos["_episode"]].tolist()
    assert lengths and all(5 < length < 20 for length in lengths)


# --- options of a reset ----------------------------------------------------------------------------------------------


def test_the_vector_form_starts_where_it_is_told():
    envs = vector("Pendulum", dtype="float64")
    states = np.array([[0.1, 0.2], [1.0, -0.5], [-2.0, 3.0], [0.0, 0.0]])
    obs, infos = envs.reset(seed=0, options={"state": states})
    np.testing.assert_array_equal(envs.unwrapped.batch.state.numpy(), states)
    np.testing.assert_allclose(obs, np.stack([np.cos(states[:, 0]), np.sin(states[:, 0]), states[:, 1]], 1), atol=1e-15)
    assert infos == {}
    envs.reset(options={"state": states[1]})  # one state for all
    np.testing.assert_array_equal(envs.unwrapped.batch.state.numpy(), np.tile(states[1], (4, 1)))
    single = gymnasium.make("mage_diffsim/Pendulum-v0", dtype="float64")
    single.reset(options={"state": states[1]})
    action = np.array([0.3])
    stepped = envs.step(np.tile(action, (4, 1)))
    np.testing.assert_array_equal(stepped[0][2], single.step(action)[0])


def test_a_reset_mask_resets_what_gymnasiums_own_vector_environment_resets():
    """Each starts in a given state, so that the two draw nothing: they agree bit for bit."""
    start = np.array([0.5, -0.5])
    mask = np.array([True, False, True])
    sync = gymnasium.make_vec(
        "mage_diffsim/Pendulum-v0", num_envs=3, vectorization_mode="sync", dtype="float64", max_episode_steps=4
    )
    ours = vector("Pendulum", 3, dtype="float64", max_episode_steps=4)
    actions = np.array([[0.2], [-0.4], [0.6]])
    for envs in (sync, ours):
        envs.reset(seed=0, options={"state": start})
        for _ in range(2):
            envs.step(actions)
    a, b = (envs.reset(options={"reset_mask": mask.copy(), "state": start})[0] for envs in (sync, ours))
    np.testing.assert_array_equal(a, b)
    for truncated in ([False] * 3, [False, True, False]):
        theirs, mine = sync.step(actions), ours.step(actions)
        np.testing.assert_array_equal(theirs[1], mine[1])
        assert theirs[3].tolist() == mine[3].tolist() == truncated


def test_a_reset_mask_draws_new_states_for_its_environments_alone():
    envs = vector("CartPole", 4)
    before = envs.reset(seed=0)[0]
    obs = envs.reset(options={"reset_mask": np.array([False, True, False, True])})[0]
    np.testing.assert_array_equal(obs[[0, 2]], before[[0, 2]])
    assert (obs[[1, 3]] != before[[1, 3]]).any(axis=1).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"stat": np.zeros((4, 2))}, "reset has no option 'stat'; accepted are: state, reset_mask"),
        ({"state": np.zeros((3, 2))}, r"options\['state'\] is .*of shape \(4, 2\) or \(2,\)"),
        ({"state": np.full((4, 2), np.nan)}, "2 finite numbers"),
        ({"state": np.full((4, 2), 1e300)}, "2 finite numbers"),
        ({"state": "upright"}, "options.'state'. is 'upright'"),
        ({"reset_mask": np.ones(3, dtype=bool)}, r"boolean array of shape \(4,\)"),
        ({"reset_mask": np.zeros(4, dtype=bool)}, "at least one entry true"),
        ({"reset_mask": np.ones(4)}, "boolean array"),
    ],
)
def test_bad_options_of_a_vector_reset_are_refused_and_change_nothing(options, message):
    envs = vector("Pendulum")
    envs.reset(seed=0)
    before = envs.unwrapped.batch.state_dict()
    with pytest.raises(InputError, match=message):
        envs.reset(options=options)
    after = envs.unwrapped.batch.state_dict()
    assert torch.equal(before["state"], after["state"]) and torch.equal(before["generators"][0], after["generators"][0])


def test_bad_options_of_a_single_reset_are_refused():
    env = GymEnv("Pendulum")
    for options, message in (
        ({"reset_mask": np.ones(1, dtype=bool)}, "no option 'reset_mask'; accepted are: state"),
        ({"state": np.full(2, 1e300)}, "2 finite numbers"),
        ({"state": ["up", "right"]}, "2 finite numbers"),
    ):
        with pytest.raises(InputError, match=message):
            env.reset(options=options)
    assert env.reset(options={})[0].shape == (3,)
    with pytest.raises(InputError, match=r"seed is \[1, 2\]; accepted is one whole number"):
        vector("Pendulum").reset(seed=[1, 2])


# --- divergence ------------------------------------------------------------------------------------------------------


class Breaking(Pendulum):
    """What is named becomes NaN once the angle is above 0.5."""

    name = "BreakingPendulum"

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def _broken(self, what, angle, value):
        return torch.where(angle > 0.5, torch.nan, value) if self.what == what else value

    def step(self, state, action):
        return self._broken("state", state[..., :1], super().step(state, action))

    def observe(self, state):
        # it does not show in the reset, whose state is at 0.4
        return self._broken("observation", state[..., :1], super().observe(state))

    def reward(self, obs, action, next_obs):
        return self._broken(
            "reward", torch.atan2(next_obs[..., 1], next_obs[..., 0]), super().reward(obs, action, next_obs)
        )


@pytest.mark.parametrize("what", ["state", "observation", "reward", "nothing"])
def test_single_and_vector_environments_treat_what_is_not_finite_alike(what):
    start = {"state": np.array([0.4, 1.5])}
    action = np.array([0.9], dtype=np.float32)
    single = GymEnv(Breaking(what), dtype="float64")
    envs = GymVectorEnv(Breaking(what), 3, dtype="float64")
    sync = gymnasium.vector.SyncVectorEnv(
        [lambda: GymEnv(Breaking(what), dtype="float64")] * 3, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP
    )
    single.reset(options=dict(start))
    for vectorised in (envs, sync):
        vectorised.reset(options=dict(start))
    diverged = False
    for _ in range(4):
        before = single.state
        obs, reward, terminated, truncated, info = single.step(action)
        many = [v.step(np.tile(action, (3, 1))) for v in (envs, sync)]
        diverged = info["diverged"]
        assert truncated == diverged and not terminated and np.isfinite(obs).all() and np.isfinite(reward)
        for _, rewards, _, truncations, infos in many:
            assert rewards.tolist() == [reward] * 3 and truncations.tolist() == [truncated] * 3
            if diverged:
                assert infos["final_info"]["diverged"].all() and infos["final_info"]["_diverged"].all()
                np.testing.assert_array_equal(np.stack(infos["final_obs"]), np.tile(obs, (3, 1)))
        infos = many[0][4]
        assert infos["diverged"].tolist() == [diverged] * 3 and infos["_diverged"].all()
        if diverged:
            np.testing.assert_array_equal(before, single.state)
            assert reward == 0.0
            break
    assert diverged == (what != "nothing")


# --- tasks of one's own: horizons, redefinition, worker processes ----------------------------------------------------


@pytest.fixture
def registered(monkeypatch):
    """What a test registers is forgotten, here and in Gymnasium."""
    monkeypatch.setattr(registry, "_TASKS", dict(registry._TASKS))
    before = set(gymnasium.registry)
    yield
    for identifier in set(gymnasium.registry) - before:
        del gymnasium.registry[identifier]


def short(horizon, **body):
    """A task class as a notebook cell defines it: ``horizon`` may be a property."""
    return type("Short", (CartPole,), {"name": "ShortOne", "horizon": horizon, "__qualname__": "Short", **body})


class OfOptions(CartPole):
    name = "OfOptions"

    def __init__(self, seconds: float = 0.1) -> None:
        super().__init__()
        self.seconds = seconds

    @cached_property
    def horizon(self):
        return round(self.seconds / self.dt)


@pytest.mark.parametrize("task", [short(property(lambda self: 5)), OfOptions])
def test_the_horizon_may_be_a_property(registered, task):
    registry.register_task(task)
    assert register_gymnasium() == (f"mage_diffsim/{task.name}-v0",)
    env = gymnasium.make(f"mage_diffsim/{task.name}-v0")
    assert env.spec.max_episode_steps == 5
    env.reset(seed=0)
    assert [env.step(np.zeros(1))[3] for _ in range(5)] == [False] * 4 + [True]
    envs = vector(task.name, 2)
    envs.reset(seed=0)
    assert [envs.step(np.zeros((2, 1)))[3].tolist() for _ in range(5)] == [[False] * 2] * 4 + [[True] * 2]


@pytest.mark.parametrize(
    "task, message",
    [
        (short(property(lambda self: 5.0)), "its horizon is 5.0; accepted is a whole number"),
        (short(property(lambda self: self.absent)), r"its horizon cannot be read from Short\(\): .*absent"),
    ],
)
def test_a_task_without_a_horizon_is_left_out_with_a_warning(registered, task, message):
    registry.register_task(task)
    with pytest.warns(UserWarning, match=message):
        assert register_gymnasium() == ()


def test_a_task_defined_anew_is_registered_anew(registered):
    for horizon in (3, 4):
        registry.register_task(short(horizon))
        assert register_gymnasium() == ("mage_diffsim/ShortOne-v0",)
        assert gymnasium.make("mage_diffsim/ShortOne-v0").spec.max_episode_steps == horizon
    assert gymnasium.spec("mage_diffsim/ShortOne-v0").kwargs == {"task": "ShortOne"}
    assert "ShortOne" in gymnasium.spec("mage_diffsim/ShortOne-v0").to_json()


def pushed(identifier, context):
    """The rewards of two steps in worker processes."""
    envs = gymnasium.make_vec(
        identifier, num_envs=1, vectorization_mode="async", vector_kwargs={"context": context}, dtype="float64"
    )
    try:
        envs.reset(seed=0)
        return [float(envs.step(np.ones((1, 1), dtype=np.float32))[1][0]) for _ in range(2)]
    finally:
        envs.close()


def test_workers_that_are_spawned_find_a_task_that_only_this_process_registered(registered):
    registry.register_task(short(9, reward=lambda self, obs, action, next_obs: 0.0 * obs[..., 0] + 7.0))
    register_gymnasium()
    assert pushed("mage_diffsim/ShortOne-v0", "spawn") == [7.0, 7.0]


def test_workers_of_a_fork_server_find_a_task_of_a_file(registered, tmp_path):
    (tmp_path / "amount.py").write_text("AMOUNT = 3.0\n")
    (tmp_path / "filed.py").write_text(
        "from amount import AMOUNT\nfrom mage_diffsim import register_task\n"
        "from mage_diffsim.envs.tasks.cartpole import CartPole\n\n@register_task\nclass Filed(CartPole):\n"
        "    name = 'FiledPole'\n    def reward(self, obs, action, next_obs):\n"
        "        return 0.0 * obs[..., 0] + AMOUNT\n"
    )
    make_task(f"{tmp_path}/filed.py:Filed")
    register_gymnasium()
    assert pushed("mage_diffsim/FiledPole-v0", "forkserver") == [3.0, 3.0]


def test_a_copy_of_a_registered_task_name_needs_no_definition_where_it_is_known(registered):
    registry.register_task(short(9))
    name = RegisteredTask("ShortOne")
    assert copy.deepcopy(name) is name
    assert pickle.loads(cloudpickle.dumps(name)) == "ShortOne"
    with pytest.raises(InputError, match="unknown task 'Forgotten'"):
        pickle.dumps(RegisteredTask("Forgotten"))


FORKED = """
import sys, warnings
import gymnasium, numpy as np
import mage_diffsim.envs.gymnasium_env
warnings.simplefilter("ignore")
if sys.argv[1] == "running":
    import jax
    jax.numpy.ones(3).block_until_ready()
envs = gymnasium.make_vec(
    "mage_diffsim/Pendulum-v0", num_envs=1, vectorization_mode="async", vector_kwargs={"context": "fork"}, backend="jax"
)
try:
    envs.reset(seed=0)
    print(envs.step(np.zeros((1, 1), dtype=np.float32))[1].shape, flush=True)
except Exception as error:
    print(type(error).__name__, error, flush=True)
envs.close(terminate=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes are not forked by default")
@pytest.mark.parametrize("jax_is", ["running", "not running"])
def test_a_forked_worker_refuses_jax_where_it_would_hang(jax_is):
    pytest.importorskip("jax")
    done = subprocess.run([sys.executable, "-c", FORKED, jax_is], capture_output=True, text=True, timeout=300)
    said = "InputError this process was forked" if jax_is == "running" else "(1,)"
    assert said in done.stdout.replace("ForkedJax", "InputError"), done.stdout + done.stderr
    assert ("vector_kwargs={'context': 'spawn'}" in done.stdout) == (jax_is == "running")
