"""Every sweep takes the settings of speed, and its summary says what they came to."""

from __future__ import annotations

import json

import pytest
from paper import EXPERIMENTS
from paper_experiments.gradient_error import GradientError
from paper_experiments.performance import Performance

from mage_diffsim.errors import InputError
from mage_diffsim.experiments.cells import Cell, Outcome
from mage_diffsim.experiments.command import run, used_by
from mage_diffsim.run_folder import read_versions
from mage_diffsim.session import resume, train
from mage_diffsim.settings import make_config
from mage_diffsim.training import Trainer


@pytest.mark.parametrize("name", ["oracle_vs_learned", *EXPERIMENTS])
def test_every_sweep_takes_the_settings_of_speed(name, oracle_vs_learned):
    experiment = oracle_vs_learned.OracleVsLearned if name == "oracle_vs_learned" else EXPERIMENTS[name]
    settings = dict(device="cuda", compile="on", graphs="on", matmul="high", environment="jax", solver="model")
    task = {} if name in ("graph", "unconstrained") else {"tasks": ("Pendulum",)}
    for cell in experiment(size="smoke", **task, **settings).cells():
        assert {key: getattr(cell.config, key) for key in settings} == settings
    for cell in experiment(size="smoke").cells():
        config = cell.config
        assert (config.compile, config.graphs, config.matmul, config.environment) == ("off", "auto", "highest", None)
        assert config.solver == "converged"


@pytest.mark.parametrize(
    ("settings", "matmul"),
    [
        ({"size": "paper", "device": "cuda"}, "high"),
        ({"size": "paper", "device": "cuda:1"}, "high"),
        ({"size": "paper", "device": "cuda", "matmul": "highest"}, "highest"),
        ({"size": "paper"}, "highest"),
        ({"size": "cpu", "device": "cuda"}, "highest"),
        ({"size": "cpu", "device": "cuda", "matmul": "high"}, "high"),
    ],
)
def test_the_papers_size_takes_tf32_products_on_a_gpu(settings, matmul, oracle_vs_learned):
    for experiment in (oracle_vs_learned.OracleVsLearned, Performance):
        assert {cell.config.matmul for cell in experiment(tasks=("Pendulum",), **settings).cells()} == {matmul}


def test_a_real_environment_that_a_task_does_not_have_is_refused_before_anything_is_trained():
    with pytest.raises(InputError, match="unknown backend of task Pendulum 'mujoco'"):
        Performance(size="smoke", environment="mujoco").cells()
    given = GradientError(tasks=("HalfCheetah",), environment="mujoco").cells()
    assert {cell.config.environment for cell in given} == {"mujoco"}, "a flag wins over the experiment's own choice"


def test_a_run_records_what_its_settings_came_to(tiny, tmp_path):
    config = make_config("Pendulum", **tiny)
    used = Trainer(config).used
    solver = {"environment": "torch", "solver": "converged"}
    assert used == {"device": "cpu", **solver, "compile": "off", "graphs": "off", "matmul": "highest"}
    train(config, tmp_path / "run")
    assert read_versions(tmp_path / "run").items() >= used.items()


def test_what_is_another_at_a_later_sitting_is_recorded_beside_the_first(tiny, tmp_path):
    train(make_config("Pendulum", **tiny), tmp_path / "run")
    path = tmp_path / "run" / "versions.json"
    path.write_text(json.dumps(read_versions(tmp_path / "run") | {"torch": "1.0", "graphs": "on"}), encoding="utf-8")
    resume(tmp_path / "run", steps=80)
    first = read_versions(tmp_path / "run")
    resume(tmp_path / "run", steps=100)
    assert first["graphs"] == "on, then off" and first["torch"].startswith("1.0, then 2.")
    assert first == read_versions(tmp_path / "run"), "a sitting like the last one adds nothing"


def test_damaged_versions_are_named(tmp_path):
    (tmp_path / "versions.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match=r"versions\.json is damaged"):
        read_versions(tmp_path)


def outcome(folder, name, **used):
    (folder / name).mkdir()
    (folder / name / "versions.json").write_text(json.dumps(used), encoding="utf-8")
    return Outcome(Cell(name, make_config("Pendulum")), folder / name, "done")


def test_cells_that_differ_are_named_each(tmp_path):
    speed = dict(environment="warp", compile="on", matmul="high", commit="c0ffee")
    cells = [
        outcome(tmp_path, "a", device="cuda, NVIDIA H200", graphs="on", **speed),
        outcome(tmp_path, "b", device="cuda, NVIDIA H200", graphs="off", **speed),
        outcome(tmp_path, "c", device="cuda, NVIDIA H200", **speed),
    ]
    skipped = Outcome(Cell("d", make_config("Pendulum")), tmp_path / "d", "skipped")
    found = used_by([*cells, skipped])
    assert found["device"] == "cuda, NVIDIA H200" and found["matmul"] == "high" and found["environment"] == "warp"
    assert found["graphs"] == "on (a); off (b); not recorded (c)"
    assert found["commit of the cells"] == "c0ffee"


def test_the_summary_says_what_was_used(tiny, tmp_path, monkeypatch, capsys):
    budget = {k: v for k, v in tiny.items() if k not in ("preset", "checkpoint_every")}
    monkeypatch.setitem(Performance.BUDGETS, "smoke", budget)
    monkeypatch.setattr(Performance, "VARIANTS", {"TD3": dict(method="td3")})
    assert run(Performance(size="smoke", environment="torch", out=tmp_path, workers=1)) == 0
    table = (tmp_path / "summary.md").read_text(encoding="utf-8")
    for row in ("| device | cpu |", "| environment | torch |", "| solver | converged |", "| compile | off |",
                "| graphs | off |", "| matmul | highest |"):  # fmt: skip
        assert row in table
    assert "commit of the cells" not in table
    capsys.readouterr()
