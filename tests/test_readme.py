"""What the README shows works as shown."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from mage_diffsim.cli import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def python_block(containing: str) -> str:
    (found,) = [text for language, text in BLOCKS if language == "python" and containing in text]
    return found


def commands(program: str) -> list[list[str]]:
    lines = [
        line.split("#")[0].strip() for language, text in BLOCKS if language == "bash" for line in text.splitlines()
    ]
    return [shlex.split(line) for line in lines if line.startswith(program)]


def test_the_two_commands_come_first():
    first = next(text for language, text in BLOCKS if language == "bash")
    assert [line.split()[:2] for line in first.splitlines()] == [["make", "demo"], ["make", "test"]]


def test_the_worked_example_passes_the_whole_contract_and_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = python_block("class Slide(Task)")
    assert len([line for line in source.splitlines() if line.strip()]) <= 40
    Path("slide.py").write_text(source)
    check, train = (c for c in commands("mage-diffsim") if "slide.py:Slide" in c)
    assert main(check[1:]) == 0
    shorter = ["520" if word == "1000" else word for word in train[1:]]  # the cpu preset warms up for 500 steps
    assert main([*shorter, "--eval-every", "260", "--out", "run", "--quiet"]) == 0
    assert (tmp_path / "run" / "policy.safetensors").is_file()


def test_the_worked_mujoco_example_passes_the_contract_and_trains(tmp_path, monkeypatch):
    pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    source = python_block("class Crawl(MujocoTask)")
    assert len([line for line in source.splitlines() if line.strip()]) <= 40
    Path("crawl.py").write_text(source)
    check, train = (c for c in commands("mage-diffsim") if "crawl.py:Crawl" in c)
    assert main(check[1:]) == 0
    shorter = ["12" if word == "1000" else word for word in train[1:]]
    tiny = ["--warmup-steps", "10", "--batch-size", "16", "--eval-every", "12", "--eval-episodes", "1"]
    assert main([*shorter, *tiny, "--gradient-episodes", "1", "--out", "run", "--quiet"]) == 0
    assert (tmp_path / "run" / "policy.safetensors").is_file()


def test_the_commands_of_the_tour_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("jax")
    pytest.importorskip("warp")
    tour = [c[1:] for c in commands("mage-diffsim") if not {"slide.py:Slide", "crawl.py:Crawl"} & set(c)]
    assert {c[0] for c in tour} == {"train", "eval", "list-tasks", "check-task", "doctor"}
    tiny = ["--quiet"]
    for command in tour:
        command = ["60" if word == "3000" else "90" if word == "6000" else word for word in command]
        if command[0] == "train" and "--resume" not in command:
            command += ["--warmup-steps", "40", "--batch-size", "16", "--gradient-episodes", "1"]
        assert main(command + (tiny if command[0] == "train" else [])) == 0, command


def test_the_python_example_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = python_block("make_config(")
    assert "steps=6000" in source
    shrunk = source.replace("steps=6000", "steps=60, gradient_episodes=0, hyper={'warmup_steps': 50}")
    exec(compile(shrunk, "README.md", "exec"), {})
    assert (
        torch.load(tmp_path / "runs/lambda/checkpoints/step_0000000060.pt", weights_only=True)["trainer"]["env_step"]
        == 60
    )


def test_every_file_the_readme_points_to_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README) + re.findall(r"src=\"([^\"]+)\"", README)
    named = [f"tests/{path}" for path in re.findall(r"`tests/([\w/]+\.py)`", README)]
    assert links and named
    for path in links + named:
        assert (ROOT / path).exists(), path


def test_no_placeholder_is_left():
    assert "@@" not in README
