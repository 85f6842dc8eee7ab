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

from mage_diffsim import cuda_graphs, training
from mage_diffsim.capturable import Captures, captures_of
from mage_diffsim.cuda_graphs import Captured, NothingForTheHost, NothingFromPython, tensors_of
from mage_diffsim.envs.tasks.pendulum import Pendulum
from mage_diffsim.errors import InputError
from mage_diffsim.settings import make_config
from mage_diffsim.training import Trainer
from tests.tiny import HYPER

SCRIPT = Path(__file__).with_name("compiled_against_eager.py")
WHOLE = ["renew_diverged", "update_actor", "update_critic"]
AROUND = ["_act", "_bootstrap", "_fit_critic", "renew_diverged", "update_actor"]  # the dynamics
CASES = [
    ({}, WHOLE),
    ({"dynamics": "oracle", "method": "mage-ddpg", "reward": "learned", "loss": "sobolev"}, WHOLE),
    ({"dynamics": "hybrid-learned-gradients", "loss": "taylor"}, WHOLE),
    ({"dynamics": "hybrid-oracle-gradients", "backend": "warp", "loss": "sobolev"}, AROUND),
    ({"dynamics": "hybrid-learned-gradients", "backend": "warp"}, AROUND),
    ({"dynamics": "oracle", "backend": "warp"}, AROUND),
    ({"method": "td3", "task": "CartPole"}, WHOLE),
    ({"task": "Breaking", "dynamics": "oracle"}, WHOLE),
]


GPU_CASES = [
    (case | {"device": "cuda", "graphs": "on"}, functions)
    for case, functions in CASES
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
        least = 0 if case.get("task") == "Breaking" else 50 if case.get("method") == "td3" else 200
        assert eager == compiled and max(eager) >= least, case
        assert result["functions"] == functions and result["graphs"] == ("on" if "graphs" in case else "off"), case
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
    assert graphs_of("auto", dynamics=dynamics, backend="jax") == (True, False, dynamics != "oracle")
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

    for name in ("collect", "train_models", "improve", "initial_states"):
        note(name, getattr(trainer, name))
    torch.set_float32_matmul_precision(legacy)
    products.fp32_precision = own
    before = products.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
    for _ in range(30):
        trainer.step()
    trainer.evaluate()
    assert before == (products.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision)
    trained = dict.fromkeys(("collect", "train_models", "improve"), inside)
    assert seen == trained | {"initial_states": ("highest", "ieee")}


def test_lower_precision_is_refused_where_it_means_nothing():
    with pytest.raises(InputError, match="unknown matmul 'low': choose one of high, highest"):
        make_config(matmul="low")
    about = "matmul is 'high', which is about float32 products on a CUDA device, and this trains in"
    with pytest.raises(InputError, match=f"{about} float32 on 'cpu': use matmul 'highest'"):
        make_config(matmul="high")
    with pytest.raises(InputError, match=f"{about} float64 on 'cuda': use matmul 'highest'"):
        make_config(matmul="high", device="cuda", float64=True)
    assert make_config(matmul="high", device="cuda").matmul == "high"


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


@pytest.mark.parametrize("reads", [torch.Tensor.item, torch.nonzero, torch.Tensor.normal_, lambda x: x[x > 0]], ids=str)
def test_what_waits_for_the_host_or_draws_is_found(reads):
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


@pytest.fixture
def graphs_on_the_cpu(monkeypatch):
    """CUDA graphs are their functions, called where a graph is replayed; capturing has no effect. Gives all of them."""
    made = []

    class Graph:
        def replay(self):
            (captured,) = (c for c in made if c.graph is self)
            captured.function()

    @contextlib.contextmanager
    def capture(graph, pool, capture_error_mode):
        tensors = [x for captured in made for x in tensors_of(captured.state())]
        before = [x.clone() for x in tensors]
        yield
        for x, old in zip(tensors, before, strict=True):
            x.copy_(old)

    class Stream:
        def wait_stream(self, other):
            pass

    def init(self, *arguments, init=Captured.__init__):
        init(self, *arguments)
        made.append(self)

    monkeypatch.setattr(Captured, "__init__", init)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())
    return made


@pytest.mark.parametrize(
    "settings",
    [
        {"reward": "learned"},
        {"dynamics": "oracle", "backend": "warp"},
        {"method": "td3", "task": "CartPole"},
        {"preset": "authors", "lambdas": (0.05,)},
    ],
    ids=str,
)
def test_captured_parts_do_what_eager_ones_do_and_leave_no_trace_of_their_warm_ups(
    monkeypatch, graphs_on_the_cpu, settings
):
    def trained(captured):
        monkeypatch.setattr(training, "captures_of", lambda *_: Captures(captured, captured, captured))
        hyper = HYPER | {"updates_per_step": 3, "diverged_critic_loss": 8.0}  # one update in a few exceeds it
        trainer = Trainer(make_config(steps=60, seeds=(0, 1), hyper=hyper, **settings))
        found = []
        for _ in range(60):
            trainer.step()
            if trainer.env_step % 30 == 0:
                found.append(trainer.evaluate())
        return trainer, found

    (eager, measured), (replayed, again) = trained(False), trained(True)
    saved = (eager.state_dict(), measured), (replayed.state_dict(), again)
    for a, b in zip(*map(tensors_of, saved), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
    # with 3 updates a step and an actor update after every second, the parity of the step makes two graphs of updates
    two = eager.agent.method.policy_delay == 2
    assert len([k for k in replayed._graphs if k[0] == "improve"]) == (2 if two else 1)
    assert len([k for k in replayed._graphs if k[0] == "collect"]) == 2
    parts = 2 + (2 if two else 1) + len(replayed.model_trainings) + 1  # warm-up and not, updates, models, evaluation
    assert len([c for c in graphs_on_the_cpu if c.graph is not None]) == parts


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


@pytest.mark.slow
def test_what_cannot_be_traced_is_one_sentence():
    found = subprocess.run([sys.executable, SCRIPT, "untraceable"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    assert "compile is 'on', and Agent.update_critic with this task cannot be compiled" in found.stdout
    assert found.stdout.strip().endswith("use compile 'off'") and found.stdout.count("\n") == 1
