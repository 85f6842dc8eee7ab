"""Tasks of one's own in Gymnasium: horizons, redefinition, worker processes."""

import copy
import pickle
import subprocess
import sys
from functools import cached_property

import cloudpickle
import gymnasium
import numpy as np
import pytest

from mage_diffsim.envs import make_task, registry
from mage_diffsim.envs.gymnasium_env import RegisteredTask, register_gymnasium
from mage_diffsim.envs.tasks.cartpole import CartPole
from mage_diffsim.errors import InputError
from tests.envs.vector_form import vector


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Only the project's own tasks are registered; what a test registers is forgotten, here and in Gymnasium."""
    own = {name: task for name, task in registry._TASKS.items() if isinstance(task, str)}
    monkeypatch.setattr(registry, "_TASKS", own)
    before = set(gymnasium.registry)
    yield
    for identifier in set(gymnasium.registry) - before:
        del gymnasium.registry[identifier]


def test_a_task_of_ones_own_becomes_a_gymnasium_environment():
    class Short(CartPole):
        name = "ShortCartPole"
        horizon = 3

    registry.register_task(Short)
    assert register_gymnasium() == ("mage_diffsim/ShortCartPole-v0",)
    assert register_gymnasium() == ()
    assert gymnasium.make("mage_diffsim/ShortCartPole-v0").spec.max_episode_steps == 3


def test_a_broken_installed_task_is_left_out_with_a_warning(monkeypatch):
    monkeypatch.setitem(registry._TASKS, "Absent", "absent_package.tasks:Absent")
    with pytest.warns(UserWarning, match="task Absent is not available in Gymnasium: .*no module"):
        assert register_gymnasium() == ()


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
def test_the_horizon_may_be_a_property(task):
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
def test_a_task_without_a_horizon_is_left_out_with_a_warning(task, message):
    registry.register_task(task)
    with pytest.warns(UserWarning, match=message):
        assert register_gymnasium() == ()


def test_a_task_defined_anew_is_registered_anew():
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


def test_workers_that_are_spawned_find_a_task_that_only_this_process_registered():
    registry.register_task(short(9, reward=lambda self, obs, action, next_obs: 0.0 * obs[..., 0] + 7.0))
    register_gymnasium()
    assert pushed("mage_diffsim/ShortOne-v0", "spawn") == [7.0, 7.0]


def test_workers_of_a_fork_server_find_a_task_of_a_file(tmp_path):
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


def test_a_copy_of_a_registered_task_name_needs_no_definition_where_it_is_known():
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
