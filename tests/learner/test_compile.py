"""Compiled and captured updates are the eager ones: 200 updates apart by rounding, in float32."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mage_diffsim import agent as agent_module
from mage_diffsim import cuda_graphs
from mage_diffsim.capturable import uses_cuda_graphs
from mage_diffsim.cuda_graphs import NothingForTheHost, tensors_of
from mage_diffsim.envs.tasks.pendulum import Pendulum
from mage_diffsim.errors import InputError
from mage_diffsim.settings import make_config
from mage_diffsim.training import Trainer
from tests.tiny import HYPER

SCRIPT = Path(__file__).with_name("compiled_against_eager.py")
WHOLE, AFTER_TARGET = ["update_actor", "update_critic"], ["_fit_critic", "update_actor"]
CASES = [
    ({}, WHOLE),
    ({"dynamics": "oracle", "method": "mage-ddpg", "reward": "learned", "loss": "sobolev"}, WHOLE),
    ({"dynamics": "hybrid-learned-gradients", "loss": "taylor"}, WHOLE),
    ({"dynamics": "hybrid-oracle-gradients", "backend": "warp", "loss": "sobolev"}, AFTER_TARGET),
    ({"method": "td3", "task": "CartPole"}, WHOLE),
    ({"task": "Breaking", "dynamics": "oracle"}, WHOLE),
]


GPU_CASES = [
    (case | {"device": "cuda", "graphs": "on"}, functions)
    for case, functions in (*CASES, ({"dynamics": "oracle", "backend": "warp"}, AFTER_TARGET))
    if case.get("task") != "Breaking"  # its thresholds turn rounding into restarts
]


@pytest.mark.slow
@pytest.mark.parametrize("cases", [CASES, pytest.param(GPU_CASES, marks=pytest.mark.gpu)], ids=["cpu", "captured"])
def test_compiled_trainings_equal_eager_ones(cases):
    settings = json.dumps([case for case, _ in cases])
    found = subprocess.run([sys.executable, SCRIPT, settings], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    results = json.loads(found.stdout.splitlines()[-1])
    for (case, functions), result in zip(cases, results, strict=True):
        eager, compiled = result["updates"]
        # one update a step of td3; of an agent that restarted, those since then
        least = 1 if case.get("task") == "Breaking" else 50 if case.get("method") == "td3" else 200
        assert eager == compiled and max(eager) >= least, case
        assert result["functions"] == functions and result["graphs"] == ("graphs" in case), case
        assert max(result["apart"]) <= 1e-5 < 1e-4 < result["moved"], (case, result)
        assert result["counters"][0] == result["counters"][1], case
        masked, restarts = result["counters"][0]
        assert (min(masked) > 0) == (min(restarts) > 0) == (case.get("task") == "Breaking")


def test_what_cannot_be_compiled_or_captured_is_refused():
    with pytest.raises(InputError, match="unknown compile 'yes': choose one of off, on"):
        make_config(compile="yes")
    with pytest.raises(InputError, match="unknown graphs 'yes': choose one of auto, off, on"):
        make_config(graphs="yes")
    with pytest.raises(InputError, match="graphs is 'on', which needs a CUDA device, and device is 'cpu'"):
        make_config(graphs="on")


def graphs_of(graphs, device="cuda", **settings):
    """What ``graphs`` comes to on that device."""
    config = make_config(steps=1, **settings)
    return uses_cuda_graphs(replace(config, graphs=graphs, device=device), Trainer(config).agent.dynamics)


CAPTURABLE = [{}, {"dynamics": "oracle"}, {"dynamics": "oracle", "backend": "warp"}, {"method": "td3"}]


@pytest.mark.parametrize("settings", CAPTURABLE, ids=["learned", "torch", "warp", "model-free"])
def test_graphs_are_on_by_default_on_a_cuda_device_only(settings):
    assert graphs_of("auto", **settings) and graphs_of("on", **settings) and graphs_of("auto", "cuda:1", **settings)
    assert not graphs_of("off", **settings) and not graphs_of("auto", "cpu", **settings)
    assert not Trainer(make_config(steps=1, **settings)).cuda_graphs_used


@pytest.mark.parametrize("dynamics", ["oracle", "hybrid-oracle-gradients"])
def test_graphs_are_off_by_default_and_refused_where_the_dynamics_leave_the_stream(dynamics):
    assert not graphs_of("auto", dynamics=dynamics, backend="jax")
    with pytest.raises(InputError, match="leaves the CUDA stream during an update"):
        graphs_of("on", dynamics=dynamics, backend="jax")


@pytest.fixture
def products():
    """torch's precision of float32 matrix products, by its newer interface, as it was after the test."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    yield backends[0]
    torch.set_float32_matmul_precision("highest")
    for backend, value in zip(backends, before, strict=True):
        backend.fp32_precision = value


@pytest.mark.parametrize("wanted, inside", [("high", ("high", "tf32")), ("highest", ("highest", "ieee"))])
@pytest.mark.parametrize("own, legacy", [("none", "highest"), ("tf32", "medium"), ("ieee", "high")])
def test_products_are_taken_as_configured_and_the_process_keeps_its_own(
    monkeypatch, products, own, legacy, wanted, inside
):
    trainer = Trainer(make_config(steps=60, eval_episodes=1, gradient_episodes=0, hyper=HYPER))
    trainer.config = replace(trainer.config, matmul=wanted)
    seen = {}

    def note(name, method):
        def noted(*arguments):
            seen[name] = torch.get_float32_matmul_precision(), products.fp32_precision
            return method(*arguments)

        monkeypatch.setattr(trainer, name, noted)

    for name in ("_collect", "_train_models", "_improve", "initial_states"):
        note(name, getattr(trainer, name))
    torch.set_float32_matmul_precision(legacy)
    products.fp32_precision = own
    before = products.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
    for _ in range(30):
        trainer.step()
    trainer.evaluate()
    assert before == (products.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision)
    training = dict.fromkeys(("_collect", "_train_models", "_improve"), inside)
    assert seen == training | {"initial_states": ("highest", "ieee")}


def test_lower_precision_is_refused_where_it_means_nothing():
    with pytest.raises(InputError, match="unknown matmul 'low': choose one of high, highest"):
        make_config(matmul="low")
    about = "matmul is 'high', which is about float32 products on a CUDA device, and this trains in"
    with pytest.raises(InputError, match=f"{about} float32 on 'cpu': use matmul 'highest'"):
        make_config(matmul="high")
    with pytest.raises(InputError, match=f"{about} float64 on 'cuda': use matmul 'highest'"):
        make_config(matmul="high", device="cuda", float64=True)
    assert make_config(matmul="high", device="cuda").matmul == "high"


@pytest.mark.parametrize("settings", [*CAPTURABLE, {"loss": "sobolev", "reward": "learned"}], ids=str)
def test_what_is_captured_reads_nothing_on_the_host_and_draws_nothing(settings):
    trainer = Trainer(make_config(steps=60, seeds=(0, 1), hyper=HYPER, **settings))
    for _ in range(40):
        trainer.step()
    agent = trainer.agent
    draws, some = trainer.draw(2), torch.tensor([True, False])
    models = [model for model in (trainer.ensemble, trainer.reward_model) if model is not None]
    index = [trainer.streams.integers(m.stream, trainer.buffer.size, m.members, 8) for m in models]
    with NothingForTheHost():
        agent._improve(trainer.buffer, draws, (True, None), [some])
        for model, rows in zip(models, index, strict=True):
            model.train_batch(trainer.buffer.gather(rows))
    for reads in (torch.Tensor.item, torch.nonzero, torch.Tensor.normal_, lambda x: x[x > 0]):
        with pytest.raises(cuda_graphs.CannotBeCaptured, match="waits for the host"), NothingForTheHost():
            reads(torch.ones(1))


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
    ("where", "settings", "captured"),
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
def test_a_task_whose_functions_wait_for_the_host_is_not_captured(monkeypatch, caplog, where, settings, captured):
    monkeypatch.setattr(agent_module, "uses_cuda_graphs", lambda config, dynamics: True)
    monkeypatch.setattr(Trainer, "_check_task", lambda self: None)
    config = make_config(Reads(where), steps=60, hyper=HYPER, **settings)
    assert Trainer(config, Reads(where)).cuda_graphs_used == captured
    assert [r.getMessage().split(" (")[0] for r in caplog.records if "captured" in r.getMessage()] == (
        [] if captured else [f"updates are not captured: {where}() of task Reads cannot be held by a CUDA graph"]
    )
    monkeypatch.setattr("mage_diffsim.training.validate", lambda config: None)  # which refuses a CPU first
    on = replace(config, graphs="on")
    if captured:
        assert Trainer(on, Reads(where)).cuda_graphs_used
    else:
        with pytest.raises(InputError, match=rf"graphs is 'on', and {where}\(\) of task Reads cannot be held"):
            Trainer(on, Reads(where))


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
    monkeypatch.setattr(agent_module, "uses_cuda_graphs", lambda config, dynamics: True)
    with pytest.raises(InputError, match=rf"^{where}\(\) of task Raises raised RuntimeError"):
        Trainer(make_config(Raises(where), steps=60, hyper=HYPER), Raises(where), check=True)


def test_numbers_of_python_are_not_copied_to_a_device_while_it_is_captured():
    on_device = torch.zeros(2, device="meta")  # which stands for a CUDA device
    makers = [
        lambda: torch.tensor([1.0, 2.0], device="meta"),
        lambda: torch.as_tensor(3.0, device="meta"),
        lambda: on_device.new_tensor([1.0]),
    ]
    for make in makers:
        with (
            pytest.raises(cuda_graphs.CannotBeCaptured, match="copies numbers of Python"),
            cuda_graphs.NothingFromPython(),
        ):
            make()
    with cuda_graphs.NothingFromPython():
        assert torch.tensor(1.0).device.type == "cpu" and torch.as_tensor(on_device) is on_device
        torch.full((2,), 3.0, device="meta"), torch.where(on_device > 0.0, 1.0, 0.0)


def on_the_cpu(monkeypatch, agent):
    """Let CUDA graphs of an agent be its functions, called on the graphs' own inputs; capturing has no effect."""

    class Graph:
        def replay(self):
            (captured,) = (c for c in agent.cuda_graphs.values() if c.graph is self)
            captured.function(*captured.inputs)

    @contextlib.contextmanager
    def capture(graph, capture_error_mode):
        tensors = list(tensors_of(agent.state_dict()))
        before = [x.clone() for x in tensors]
        yield
        for x, old in zip(tensors, before, strict=True):
            x.copy_(old)

    class Stream:
        def wait_stream(self, other):
            pass

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())


def eager_and_replayed(monkeypatch, settings, **hyper):
    """Two agents after the same training with 3 updates a step, eager and captured; they must be equal."""

    def trained(captured):
        config = make_config(steps=60, seeds=(0, 1), hyper=HYPER | {"updates_per_step": 3} | hyper, **settings)
        trainer = Trainer(config)
        if captured:
            trainer.agent.cuda_graphs = {}
            on_the_cpu(monkeypatch, trainer.agent)
        for _ in range(60):
            trainer.step()
        return trainer.agent

    eager, replayed = trained(False), trained(True)
    assert eager.critic_updates == replayed.critic_updates
    for a, b in zip(tensors_of(eager.state_dict()), tensors_of(replayed.state_dict()), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
    return eager, replayed


@pytest.mark.parametrize("settings", [{}, {"dynamics": "oracle", "backend": "warp"}], ids=["learned", "warp"])
def test_captured_updates_see_fresh_draws_and_leave_no_trace_of_their_warm_ups(monkeypatch, settings):
    eager, replayed = eager_and_replayed(monkeypatch, settings)
    # 3 updates a step and an actor update after every second: two patterns, each captured once
    assert sorted(pattern for _, pattern in replayed.cuda_graphs) == [(False, True, False), (True, False, True)]
    assert min(eager.critic_updates) > 50


def test_captured_updates_of_runs_out_of_phase_share_one_graph(monkeypatch):
    eager, replayed = eager_and_replayed(monkeypatch, {}, diverged_critic_loss=8.0)  # one update in a few exceeds it
    patterns = {pattern for _, pattern in replayed.cuda_graphs}
    assert (None, None, None) in patterns and patterns <= {(None,) * 3, (False, True, False), (True, False, True)}
    assert min(eager.restarts) > 0


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
        assert trainer.cuda_graphs_used == (graphs == "auto")
        return trainer.agent

    eager, captured = trained("off"), trained("auto")
    for a, b in zip(tensors_of(eager.state_dict()), tensors_of(captured.state_dict()), strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-5, equal_nan=True)


@pytest.mark.slow
def test_what_cannot_be_traced_is_one_sentence():
    found = subprocess.run([sys.executable, SCRIPT, "untraceable"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    assert "compile is 'on', and Agent.update_critic with this task cannot be compiled" in found.stdout
    assert found.stdout.strip().endswith("use compile 'off'") and found.stdout.count("\n") == 1
