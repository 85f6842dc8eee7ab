"""What the README shows works as shown, and it stays short."""

from __future__ import annotations

import re

import pytest
import torch

from mage_diffsim.cli import main
from mage_diffsim.run_folder import load_trainer
from tests.model_checks.tiny_models import SLIDER
from tests.pages import ROOT, blocks, commands

README = ROOT / "README.md"


def test_it_is_short():
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1500


def test_the_table_of_measurements_is_short_and_names_a_command_in_each_row():
    section = README.read_text().split("## What was measured")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert 1 <= len(rows) <= 8
    assert all(re.search(r"`(python|pytest|mage-diffsim) [^`]+` \|$", row) for row in rows)


def test_the_two_commands_come_first():
    assert [line.split()[:2] for line in blocks(README, "bash")[0].splitlines()] == [["make", "demo"], ["make", "test"]]


def test_the_commands_of_the_tour_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("jax")
    pytest.importorskip("warp")
    tour = [c[1:] for c in commands(README, "mage-diffsim")]
    assert {c[0] for c in tour} == {"train", "eval", "list-tasks", "check-task", "check-model", "doctor"}
    (tmp_path / "robot.xml").write_text(SLIDER)
    for command in tour:
        command = ["60" if word == "3000" else "90" if word == "6000" else word for word in command]
        if command[0] == "train":
            command += ["--quiet"]
            if "--resume" not in command:
                command += ["--warmup-steps", "40", "--batch-size", "16", "--gradient-episodes", "1"]
        if command[0] == "check-model":
            command += ["--no-compile"]
        assert main(command) == 0, command


def test_the_python_example_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (source,) = [text for text in blocks(README, "python") if "make_config(" in text]
    assert "steps=6000" in source
    scope: dict[str, object] = {}
    shrunk = source.replace("steps=6000", "steps=60, gradient_episodes=0, hyper={'warmup_steps': 50}")
    exec(compile(shrunk, "README.md", "exec"), scope)
    assert load_trainer(tmp_path / "runs/three").env_step == 60
    policy = scope["policy"]
    assert isinstance(policy, torch.nn.Module) and policy(torch.zeros(3)).shape == (1,)


def test_the_differentiable_step_gives_gradients():
    pytest.importorskip("warp")
    (source,) = [text for text in blocks(README, "python") if ".backward()" in text]
    scope: dict[str, object] = {}
    exec(compile(source, "README.md", "exec"), scope)
    action = scope["action"]
    assert isinstance(action, torch.Tensor) and action.grad is not None
    assert action.grad.isfinite().all() and (action.grad.abs().amax(-1) > 0).all()


def test_every_block_is_run_by_a_test_here():
    assert len(blocks(README, "python")) == 2
    lines = [line.split("#")[0].split() for text in blocks(README, "bash") for line in text.splitlines()]
    assert {words[0] for words in lines if words} == {"make", ".", "python", "mage-diffsim"}


def test_no_placeholder_is_left():
    assert "@@" not in README.read_text()
