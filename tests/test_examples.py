"""Every script in examples/ does what its docstring says, run as a user runs it but smaller."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mage_diffsim import load_policy, make_config, train
from mage_diffsim.cli import main
from tests.pages import ROOT

EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "boat_in_jax")
TASKS = {"own_torch_task": "slide", "own_mujoco_task": "arm", "own_jax_task": "boat"}
"""Scripts that register a task, and the run folder that each makes."""


def docstring(name: str) -> str:
    return ast.get_docstring(ast.parse((EXAMPLES / f"{name}.py").read_text())) or ""


def run(name: str, arguments: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """What a script prints when it runs in this process, in another folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [f"{name}.py", *shlex.split(arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capfd.readouterr().out


def numbers(pattern: str, text: str) -> list[float]:
    return [float(number) for number in re.findall(pattern.replace("#", r"(-?\d+(?:\.\d+)?)"), text)]


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_is_short_and_says_how_to_run_it_and_what_to_expect(name):
    lines = [line for line in (EXAMPLES / f"{name}.py").read_text().splitlines() if line]
    assert 20 <= len(lines) <= 60
    assert f"    python examples/{name}.py" in docstring(name) and "Expect " in docstring(name)


def test_every_example_is_run_by_a_test_here():
    source = Path(__file__).read_text()
    assert [name for name in SCRIPTS if name not in TASKS and f'run("{name}"' not in source] == []


@pytest.mark.parametrize("name", TASKS)
def test_a_task_of_ones_own_trains(name, tmp_path):
    pytest.importorskip("jax")
    pytest.importorskip("warp")
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--steps", "520"]  # the cpu preset warms up for 500 steps
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(numbers("step #: return", done.stdout)) == 2
    assert load_policy(tmp_path / "runs" / TASKS[name]).metadata["env_step"] == 520


@pytest.mark.parametrize("name", TASKS)
def test_the_commands_of_a_task_of_ones_own_run(name, tmp_path, monkeypatch):
    pytest.importorskip("jax")
    pytest.importorskip("warp")
    monkeypatch.chdir(ROOT)
    commands = [shlex.split(line) for line in re.findall(r"mage-diffsim (.*)", docstring(name))]
    assert "check-task" in [command[0] for command in commands]
    for command in commands:
        if command[0] == "train":
            command = ["520" if word == "1000" else word for word in command]
            command += ["--eval-every", "260", "--out", str(tmp_path / "run"), "--quiet"]
        assert main(command) == 0, command


def test_the_policy_gradient_raises_the_return(tmp_path, capfd):
    pytest.importorskip("warp")
    before, after = numbers("return #", run("policy_gradient_hopper", "--updates 25", tmp_path, capfd))
    assert after > 2 * before > 0


def test_trajectory_optimisation_raises_every_return(tmp_path, capfd):
    pytest.importorskip("warp")
    printed = run("trajectory_optimisation", "--iterations 20", tmp_path, capfd)
    for before, after in (numbers("mean return #", printed), numbers("worst #", printed)):
        assert after > before + 2


def test_masses_and_friction_are_identified_from_trajectories(tmp_path, capfd):
    pytest.importorskip("warp")
    printed = run("identify_parameters", "--updates 50", tmp_path, capfd)
    for first, *_, last in (numbers("masses # %", printed), numbers("friction # %", printed)):
        assert last < 0.2 * first


def test_a_policy_trained_on_drawn_models_does_better_on_others(tmp_path, capfd):
    pytest.importorskip("warp")
    before, after = numbers("mean return #", run("domain_randomisation", "--iterations 20", tmp_path, capfd))
    assert after > before + 1.0


def test_ppo_raises_the_return(tmp_path, capfd):
    pytest.importorskip("warp")
    before, after = numbers("return #", run("ppo", "--iterations 10", tmp_path, capfd))
    assert after > 2 * before > 0


def test_the_gradient_of_a_jax_function_is_that_of_differences(tmp_path, capfd):
    pytest.importorskip("jax")
    printed = run("jax_function", "", tmp_path, capfd)
    assert numbers("by the bridge #", printed) == pytest.approx(numbers("differences #", printed), rel=1e-8)
    assert numbers("fitted mass #", printed) == pytest.approx([0.7], abs=1e-3)


def test_three_seeds_are_plotted(tmp_path, capfd):
    printed = run("three_seeds", "--steps 520 --eval-every 520", tmp_path, capfd)
    assert len(re.findall(r"step \d+: \[-\d+, -\d+, -\d+\]", printed)) == 2
    assert (tmp_path / "runs/three_seeds/returns.png").stat().st_size > 10_000


def test_a_policy_needs_torch_and_safetensors_only(tmp_path, capfd):
    tiny = {"warmup_steps": 20, "batch_size": 8}
    config = make_config("Pendulum", preset="cpu", method="td3", steps=30, gradient_episodes=0, hyper=tiny)
    run_dir = train(config, tmp_path / "run").run_dir
    printed = run("policy_in_torch", str(run_dir / "policy.safetensors"), tmp_path, capfd)
    assert "trained on Pendulum" in printed and len(numbers("episode #: return", printed)) == 5

    tree = ast.parse((EXAMPLES / "policy_in_torch.py").read_text())
    imports = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imports += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert "torch" in imports and not any(name.startswith("mage_diffsim") for name in imports)
    policy, _ = runpy.run_path(str(EXAMPLES / "policy_in_torch.py"))["load"](str(run_dir / "policy.safetensors"))
    obs = torch.randn(4, 3)
    torch.testing.assert_close(policy(obs), 2.0 * load_policy(run_dir)(obs))  # Pendulum's torque is in [-2, 2] N m
