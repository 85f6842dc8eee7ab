"""The script that compares learned models with oracles: its cells, its files, its exit code."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from mage_diffsim.envs.physics import backends_of
from mage_diffsim.envs.registry import make_task
from mage_diffsim.envs.tasks.half_cheetah import HalfCheetah
from mage_diffsim.experiments.command import main
from mage_diffsim.experiments.rows import CURVE_FIELDS, SUMMARY_FIELDS, identity

ROOT = Path(__file__).resolve().parents[2]


def test_default_cells_are_the_eight_of_the_comparison(oracle_vs_learned):
    cells = oracle_vs_learned.OracleVsLearned().cells()
    assert [c.name.removeprefix("Pendulum_") for c in cells] == [
        "mage-td3_learned",
        "mage-td3_oracle_torch",
        "mage-td3_oracle_jax",
        "mage-td3_oracle_warp",
        "mage-td3_hybrid-oracle-gradients_torch",
        "mage-td3_hybrid-learned-gradients_torch",
        "dyna-td3_learned",
        "dyna-td3_oracle_torch",
    ]
    assert {c.config.preset for c in cells} == {"cpu"} and len({c.config.steps for c in cells}) == 1


@pytest.mark.parametrize(("task", "backend"), [("HalfCheetah", "warp"), ("Pusher", "warp")])
def test_mujoco_tasks_have_one_oracle_unless_more_are_asked_for(oracle_vs_learned, task, backend):
    cells = oracle_vs_learned.OracleVsLearned(tasks=(task,)).cells()
    assert {c.simulator for c in cells} == {None, backend}
    assert [c.name for c in cells if "dyna" in c.name] == [
        f"{task}_dyna-td3_learned",
        f"{task}_dyna-td3_oracle_{backend}",
    ]


def test_where_warp_is_not_installed_mujoco_is_the_oracle(oracle_vs_learned, monkeypatch):
    def version(name: str, real=importlib.metadata.version) -> str:
        if name == "warp-lang":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert oracle_vs_learned.default_backends(make_task("HalfCheetah")) == ("mujoco",)


def test_a_mujoco_task_without_warp_kernels_has_the_backends_it_names(oracle_vs_learned):
    class Without(HalfCheetah):
        physics = {name: made for name, made in HalfCheetah.physics.items() if name != "warp"}  # noqa: RUF012

    assert oracle_vs_learned.default_backends(Without()) == backends_of(Without())


@pytest.mark.parametrize("task", ["Pendulum", "HalfCheetah", "Hopper"])
@pytest.mark.parametrize("steps", [None, 4000, 4001, 7])
def test_evaluations_are_even_and_no_more_than_asked_for(oracle_vs_learned, task, steps):
    experiment = oracle_vs_learned.OracleVsLearned(tasks=(task,), steps=steps)
    config = experiment.cells()[0].config
    asked = {"HalfCheetah": 15, "Pendulum": 14}.get(task, 10)
    at = sorted({*range(config.eval_every, config.steps + 1, config.eval_every), config.steps})
    assert len(at) <= asked
    assert config.steps < asked or len(at) == asked
    if len(at) > 1:
        assert at[-1] - at[-2] > config.eval_every / 2


def test_a_model_free_method_is_one_cell_without_dynamics(oracle_vs_learned):
    cells = oracle_vs_learned.OracleVsLearned(methods=("td3",), backends=("jax", "warp")).cells()
    assert [c.name for c in cells] == ["Pendulum_td3"] and cells[0].simulator is None
    assert identity(cells[0])["dynamics"] == ""


def run_script(oracle_vs_learned, capsys, *flags):
    code = main(lambda: tyro.cli(oracle_vs_learned.OracleVsLearned, args=["--size", "smoke", *flags]))
    return code, capsys.readouterr()


def test_a_smoke_run_writes_every_file_with_its_columns(oracle_vs_learned, tmp_path, capsys):
    flags = ("--dynamics", "oracle", "--backends", "torch", "--methods", "mage-td3", "--out", str(tmp_path))
    code, printed = run_script(oracle_vs_learned, capsys, *flags)
    assert code == 0, printed.err
    with open(tmp_path / "summary.csv", newline="") as file:
        summary = list(csv.DictReader(file))
    assert tuple(summary[0]) == SUMMARY_FIELDS
    assert [row["seed"] for row in summary] == ["0", "1"] and all(float(row["final_return"]) < 0 for row in summary)
    with open(tmp_path / "curves.csv", newline="") as file:
        curves = list(csv.DictReader(file))
    assert tuple(curves[0]) == CURVE_FIELDS
    assert [int(row["env_step"]) for row in curves[::2]] == [0, 60, 120]
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    markdown = (tmp_path / "summary.md").read_text()
    for word in ("MAGE-TD3, oracle (torch)", "Command: `", "| torch |", "smoke test"):
        assert word in markdown
    assert "MAGE-TD3, oracle (torch)" in printed.out and "Solved: MAGE-TD3 0 of 2 runs." in printed.out
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_task_of_a_file_is_reported_by_its_name(oracle_vs_learned, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("from mage_diffsim.envs.tasks.pendulum import Pendulum\nclass Mine(Pendulum):\n    name = 'Mine'\n")
    flags = ("--dynamics", "oracle", "--backends", "torch", "--methods", "mage-td3", "--out", str(tmp_path / "out"))
    code, printed = run_script(oracle_vs_learned, capsys, "--tasks", f"{file}:Mine", *flags)
    assert code == 0, printed.err
    assert "| Mine | MAGE-TD3, oracle (torch) |" in (tmp_path / "out" / "summary.md").read_text()


@pytest.mark.slow
def test_the_whole_smoke_run_ends_well_from_the_command_line(tmp_path):
    script = [
        sys.executable,
        str(ROOT / "benchmarks" / "oracle_vs_learned.py"),
        "--size",
        "smoke",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(
        script, capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "summary.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 8 * 2
