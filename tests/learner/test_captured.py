"""Which parts of an environment step CUDA graphs hold, and that they do what the eager ones do."""

from __future__ import annotations

import copy
import gc
from dataclasses import replace

import numpy as np
import pytest
import torch

from mage_diffsim import cuda_graphs, training
from mage_diffsim.capturable import Captures, captures_of
from mage_diffsim.cuda_graphs import NothingForTheHost, NothingFromPython, tensors_of
from mage_diffsim.envs.tasks.pendulum import Pendulum
from mage_diffsim.errors import InputError
from mage_diffsim.settings import make_config
from mage_diffsim.training import Trainer
from tests.learner.taped_graphs import tape_graphs
from tests.tiny import HYPER


def graphs_of(graphs, device="cuda", **settings):
    """What ``graphs`` comes to on that device."""
    trainer = Trainer(make_config(steps=1, **settings))
    config = replace(trainer.config, graphs=graphs, device=device)
    return captures_of(config, trainer.task, trainer.physics, trainer.agent.dynamics)


CAPTURABLE = [{}, {"dynamics": "oracle"}, {"dynamics": "oracle", "backend": "warp"}, {"method": "td3"}]


@pytest.mark.parametrize("settings", CAPTURABLE, ids=["learned", "torch", "warp", "model-free"])
def test_graphs_are_on_by_default_on_a_cuda_device_only(settings):
    whole = Captures(True, True, settings == {})
    assert graphs_of("auto", **settings) == graphs_of("on", **settings) == graphs_of("auto", "cuda:1", **settings)
    assert graphs_of("on", **settings) == whole and str(whole) == "on"
    nothing = Captures(False, False, False)
    assert graphs_of("off", **settings) == graphs_of("auto", "cpu", **settings) == nothing
    assert Trainer(make_config(steps=1, **settings)).captures == nothing and str(nothing) == "off"


@pytest.mark.parametrize("settings", [{}, {"dynamics": "oracle", "backend": "warp"}], ids=["learned", "warp"])
def test_an_environment_on_the_cpu_is_stepped_between_the_graphs(settings):
    pytest.importorskip("mujoco")
    captures = graphs_of("on", task="InvertedPendulum", environment="mujoco", **settings)
    assert captures == Captures(False, True, settings == {})
    assert str(captures) == ("updates and models only" if settings == {} else "updates only")


@pytest.mark.parametrize("dynamics", ["oracle", "hybrid-oracle-gradients"])
def test_graphs_are_off_by_default_and_refused_where_the_dynamics_leave_the_stream(dynamics):
    captures = graphs_of("auto", dynamics=dynamics, backend="jax")
    assert captures == (True, False, dynamics != "oracle")
    assert str(captures) == ("collection only" if dynamics == "oracle" else "collection and models only")
    with pytest.raises(InputError, match="leaves the CUDA stream during an update"):
        graphs_of("on", dynamics=dynamics, backend="jax")


HYBRIDS = [
    {"dynamics": "hybrid-oracle-gradients", "backend": "warp", "environment": "warp"},
    {"dynamics": "hybrid-learned-gradients"},
]


@pytest.mark.parametrize(
    "settings", [*CAPTURABLE, *HYBRIDS, {"loss": "sobolev", "reward": "learned"}, {"loss": "shuffled"}], ids=str
)
@pytest.mark.parametrize("task", ["Pendulum", "CartPole"])
def test_whole_environment_steps_wait_for_nothing_and_draw_nothing_from_torch(settings, task):
    """Collection with resets, a round of the models, updates with restarts: between two looks of the host."""
    hyper = HYPER | {"updates_per_step": 2}
    trainer = Trainer(make_config(task, steps=80, seeds=(0, 1), hyper=hyper, **settings))
    while trainer.env_step < 48:
        trainer.step()
    trainer.env.elapsed.fill_(trainer.task.horizon - 5)
    trainer.agent.critic[0] *= 1e9
    episodes = trainer.env.episode.clone()
    with NothingForTheHost(), NothingFromPython():
        while trainer.env_step < 63:
            trainer.step()
    assert (trainer.env.episode > episodes).all()
    assert trainer.agent.restarts.tolist() == [1, 0]


READS = {
    "item": torch.Tensor.item,
    "nonzero": torch.nonzero,
    "normal": torch.Tensor.normal_,
    "mask": lambda x: x[x > 0],
    "put": lambda x: x.index_put((x > 0,), x.sum()),
    "solve": lambda x: torch.linalg.solve(x, x),
    "inverse": torch.linalg.inv,
    "cholesky": torch.linalg.cholesky,
    "exponential": torch.linalg.matrix_exp,
    "list": torch.Tensor.tolist,
    "numpy": lambda x: np.square(x),
}


@pytest.mark.parametrize("reads", READS.values(), ids=READS)
def test_what_waits_for_the_host_or_draws_is_found(reads):
    found = pytest.raises(cuda_graphs.CannotBeCaptured, match="waits for the host")
    with found, NothingForTheHost(), NothingFromPython():
        reads(torch.ones(1, 1))


class Reads(Pendulum):
    """Its function named ``where`` waits for the host."""

    name = "Reads"

    def __init__(self, where: str = "") -> None:
        super().__init__()
        self.where = where

    def step(self, state, action):
        return super().step(state, action) * (1.0 if self.where != "step" or state.sum().item() < 1e9 else 2.0)

    def observe(self, state):
        obs = super().observe(state)
        if self.where == "observe":
            obs[obs > 1e9] = 0.0
        return obs

    def reward(self, obs, action, next_obs):
        return super().reward(obs, action, next_obs) * (1.0 if self.where != "reward" or bool((obs < 1e9).all()) else 2)

    def terminated(self, next_obs):
        return super().terminated(next_obs) | (self.where == "terminated" and len(next_obs.nonzero()) < 0)


@pytest.mark.parametrize(
    ("where", "settings", "updates"),
    [
        ("", {"dynamics": "oracle"}, True),
        ("step", {"dynamics": "oracle"}, False),
        ("step", {}, True),
        ("step", {"dynamics": "hybrid-learned-gradients"}, False),
        ("observe", {"dynamics": "oracle"}, False),
        ("observe", {}, True),
        ("reward", {}, False),
        ("reward", {"reward": "learned"}, True),
        ("terminated", {}, False),
        ("terminated", {"method": "td3"}, True),
    ],
)
def test_a_task_whose_functions_wait_for_the_host_is_not_captured(monkeypatch, caplog, where, settings, updates):
    trainer = Trainer(make_config(Reads(where), steps=60, hyper=HYPER, **settings), Reads(where))

    def captures(graphs):
        config = replace(trainer.config, graphs=graphs, device="cuda")
        return captures_of(config, trainer.task, trainer.physics, trainer.agent.dynamics)

    found = captures("auto")
    assert (found.collection, found.updates) == (not where, updates)
    assert [r.getMessage().split(" (")[0] for r in caplog.records if "captured" in r.getMessage()] == (
        [f"not captured: {where}() of task Reads cannot be held by a CUDA graph"] if where else []
    )
    if where:
        with pytest.raises(InputError, match=rf"graphs is 'on', and {where}\(\) of task Reads cannot be held"):
            captures("on")
    else:
        assert captures("on") == found


class Raises(Pendulum):
    name = "Raises"

    def __init__(self, where: str = "") -> None:
        super().__init__()
        self.where = where

    def observe(self, state):
        return super().observe(state) if self.where != "observe" else torch.cat([state, state.new_zeros(7)])

    def reward(self, obs, action, next_obs):
        return super().reward(obs, action, next_obs) if self.where != "reward" else obs @ action


@pytest.mark.parametrize("where", ["observe", "reward"])
def test_a_function_that_raises_is_named_where_updates_are_captured_too(monkeypatch, where):
    of_cuda = lambda config, *rest: captures_of(replace(config, device="cuda"), *rest)  # noqa: E731
    monkeypatch.setattr(training, "captures_of", of_cuda)
    with pytest.raises(InputError, match=rf"^{where}\(\) of task Raises raised RuntimeError"):
        Trainer(make_config(Raises(where), steps=60, hyper=HYPER), Raises(where), check=True)


ON_DEVICE = torch.zeros(2, 3, device="meta")  # which stands for a CUDA device
COPIES = {
    "tensor": lambda: torch.tensor([1.0, 2.0], device="meta"),
    "as_tensor": lambda: torch.as_tensor(3.0, device="meta"),
    "new_tensor": lambda: ON_DEVICE.new_tensor([1.0]),
    "list": lambda: ON_DEVICE[..., [0, 2]],
    "list alone": lambda: ON_DEVICE[[1]],
    "tuple": lambda: ON_DEVICE[:, (0, 2)],
    "set": lambda: ON_DEVICE.__setitem__((..., [0, 2]), 1.0),
    "numpy": lambda: ON_DEVICE[..., np.array([0, 2])],
}


@pytest.mark.parametrize("copies", COPIES.values(), ids=COPIES)
def test_numbers_of_python_are_not_copied_to_a_device_while_it_is_captured(copies):
    found = pytest.raises(cuda_graphs.CannotBeCaptured, match="copies numbers of Python")
    with found, NothingForTheHost(), NothingFromPython():
        copies()


def test_an_index_on_another_device_is_found():
    found = pytest.raises(cuda_graphs.CannotBeCaptured, match="moves data between devices")
    with found, NothingForTheHost(), NothingFromPython():
        ON_DEVICE[:, torch.tensor([0, 2])]


def test_numbers_that_a_graph_can_hold_are_let_through():
    with NothingForTheHost(), NothingFromPython():
        assert torch.tensor(1.0).device.type == "cpu" and torch.as_tensor(ON_DEVICE) is ON_DEVICE
        torch.full((2,), 3.0, device="meta"), torch.where(ON_DEVICE > 0.0, 1.0, 0.0)
        ON_DEVICE[..., 1], ON_DEVICE[0, 1:], ON_DEVICE[..., None, 2], torch.zeros(3)[[0, 2]]


@pytest.fixture
def taped(monkeypatch):
    """All captured parts, whose graphs are tapes on the CPU."""
    return tape_graphs(monkeypatch)


BRIEF = dict(eval_episodes=2, gradient_episodes=1, gradient_horizon=5)


def trainer_of(monkeypatch, captured, steps=45, **settings) -> Trainer:
    monkeypatch.setattr(training, "captures_of", lambda *_: Captures(captured, captured, captured))
    hyper = HYPER | {"updates_per_step": 3, "diverged_critic_loss": 8.0}  # one update in a few exceeds it
    return Trainer(make_config(steps=steps, seeds=(0, 1), hyper=hyper, **BRIEF | settings))


def assert_same(one, other):
    for a, b in zip(tensors_of(one), tensors_of(other), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize(
    "settings",
    [
        {"reward": "learned"},
        {"dynamics": "hybrid-oracle-gradients", "loss": "sobolev", "float64": True},
        {"method": "td3", "task": "CartPole"},
        {"preset": "authors", "lambdas": (0.05, 0.2)},
        {"loss": "shuffled", "freeze_actor": True},
    ],
    ids=str,
)
def test_captured_parts_do_what_eager_ones_do_and_leave_no_trace_of_their_warm_ups(monkeypatch, taped, settings):
    def trained(captured):
        trainer = trainer_of(monkeypatch, captured, **settings)
        found = []
        for _ in range(45):
            trainer.step()
            if trainer.env_step in (10, 45):
                found.append(trainer.evaluate())
        return trainer, found

    (eager, measured), (replayed, again) = trained(False), trained(True)
    assert_same((eager.state_dict(), measured), (replayed.state_dict(), again))
    # with 3 updates a step and an actor update after every second, the parity of the step makes two graphs of updates
    two = eager.agent.method.policy_delay == 2
    assert len([k for k in replayed._graphs if k[0] == "improve"]) == (2 if two else 1)
    assert len([k for k in replayed._graphs if k[0] == "collect"]) == 2
    parts = 2 + (2 if two else 1) + len(replayed.model_trainings) + 1  # warm-up and not, updates, models, evaluation
    assert len([c for c in taped if c.graph is not None]) == parts


def test_parts_can_be_captured_at_the_last_step_of_all(monkeypatch, taped):
    """Their warm-ups write no further rows than the replay buffer has."""
    eager = trainer_of(monkeypatch, False)
    while eager.env_step < 44:
        eager.step()
    resumed = trainer_of(monkeypatch, True)
    resumed.load_state_dict(copy.deepcopy(eager.state_dict()))
    eager.step(), resumed.step()
    assert_same(eager.state_dict(), resumed.state_dict())


def test_graphs_of_one_training_share_memory_and_those_of_another_have_their_own(monkeypatch, taped):
    pools = []
    for _ in range(2):
        trainer = trainer_of(monkeypatch, True, steps=25)
        for _ in range(25):
            trainer.step()
        trainer.evaluate()
        graphs = [c.graph for c in taped if c.graph is not None]
        pools.append({graph.pool for graph in graphs})
        assert len(graphs) > 4 and {type(graph.stream) for graph in graphs} == {torch.cuda.Stream}
        assert len({graph.stream for graph in graphs}) == 1
        taped.clear()
    assert len(pools[0]) == len(pools[1]) == 1 and pools[0] != pools[1]


@pytest.mark.gpu
def test_trainings_one_after_the_other_are_captured_on_cuda():
    """Torch takes no memory handle whose graphs are all gone while a part of it is in use."""
    for _ in range(3):
        trainer = Trainer(make_config(steps=30, hyper=HYPER, device="cuda", graphs="on", **BRIEF))
        while trainer.env_step < 30:
            trainer.step()
        trainer.evaluate()
        del trainer
        gc.collect()


@pytest.mark.gpu
@pytest.mark.parametrize(
    "settings",
    [*CAPTURABLE, {"dynamics": "oracle", "backend": "warp", "environment": "warp", "loss": "sobolev"}],
    ids=["learned", "torch", "warp", "model-free", "warp environment"],
)
def test_trainings_are_captured_by_default_and_equal_eager_ones_on_cuda(settings):
    def trained(graphs):
        config = make_config(
            steps=60, seeds=(0, 1), hyper=HYPER | {"updates_per_step": 10}, device="cuda", graphs=graphs, **settings
        )
        trainer = Trainer(config)
        for _ in range(60):
            trainer.step()
        assert str(trainer.captures) == ("on" if graphs == "auto" else "off")
        return trainer.agent

    eager, captured = trained("off"), trained("auto")
    for a, b in zip(tensors_of(eager.state_dict()), tensors_of(captured.state_dict()), strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-5, equal_nan=True)


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", ["off", "auto"])
@pytest.mark.parametrize("settings", [{"reward": "learned"}, {"dynamics": "oracle", "backend": "warp"}], ids=str)
def test_torch_itself_finds_no_wait_in_environment_steps_on_cuda(settings, graphs):
    config = make_config(steps=120, seeds=(0, 1), hyper=HYPER, device="cuda", graphs=graphs, **settings)
    trainer = Trainer(config)
    while trainer.env_step < 60:
        trainer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        while trainer.env_step < 120:  # with looks of the host and rounds of the models
            trainer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.agent.critic.isfinite().all()
