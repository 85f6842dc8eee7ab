"""Compiled and captured updates are the eager ones: 200 updates apart by rounding, in float32."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mage_diffsim.display import show_log
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
    with pytest.raises(InputError, match="needs a CUDA device, and device is 'cpu': use graphs 'auto'"):
        make_config(graphs="on")


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


def test_compiling_is_told_at_the_first_call_of_each_function(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    config = make_config(steps=60, eval_episodes=1, gradient_episodes=0, hyper=HYPER, compile="on")
    said: list[str] = []
    with show_log(said.append):
        trainer = Trainer(config)
        assert said == []
        for _ in range(30):
            trainer.step()
    text = "compiling {}: this may take a minute or more"
    assert len(set(said)) == len(said)
    assert {text.format(f"Agent.{name}") for name in WHOLE} | {text.format("GaussianEnsemble.train_batch")} <= set(said)


@pytest.mark.slow
def test_what_cannot_be_traced_is_one_sentence():
    found = subprocess.run([sys.executable, SCRIPT, "untraceable"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    assert "compile is 'on', and Agent.update_critic with this task cannot be compiled" in found.stdout
    assert re.search(r"\.py, line \d+, in reward", found.stdout), found.stdout
    assert found.stdout.strip().endswith("use compile 'off'") and found.stdout.count("\n") == 1
