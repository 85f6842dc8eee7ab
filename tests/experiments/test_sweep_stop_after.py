"""A sweep that its time limit ends: what it leaves, how it marks it, and how it goes on."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import tyro
from paper import EXPERIMENTS

from mage_diffsim.experiments.cells import Outcome, standing, train_cell
from mage_diffsim.experiments.command import Experiment, main, markdown, unfinished_text
from mage_diffsim.experiments.launchers import LocalLauncher
from mage_diffsim.experiments.rows import curve_rows, summary_rows
from mage_diffsim.experiments.sweep import run_cells
from mage_diffsim.experiments.sweep_display import PlainSweepDisplay
from mage_diffsim.run_folder import is_finished
from tests.experiments.sweeps import cell
from tests.tiny import RUN

MOMENTS = {"steps": 3, "eval_every": 2, "checkpoint_every": 2, "gradient_episodes": 0}


def soon() -> float:
    """An end of the time that lets a cell that begins now do one step."""
    return time.time() + 0.01


def quiet(kind: str, content: object) -> None:
    """Takes what a cell tells its sweep."""


def test_a_cell_ends_at_a_step_with_a_checkpoint_and_says_where_it_stands(tiny, tmp_path):
    config = cell(tiny, **MOMENTS).config
    assert train_cell(config, tmp_path / "a", time.time() - 1.0, quiet) == "not begun"
    assert not (tmp_path / "a").exists()
    assert train_cell(config, tmp_path / "a", soon(), quiet) == "stopped at step 1 of 3"
    assert train_cell(config, tmp_path / "a", time.time() - 1.0, quiet) == "stopped at step 1 of 3"
    assert train_cell(config, tmp_path / "a", time.time() + 600.0, quiet) is None
    assert is_finished(tmp_path / "a")


def test_after_the_end_no_cell_begins_and_what_was_measured_is_reported(tiny, tmp_path):
    done, stopped, left = (cell(tiny, name, **MOMENTS) for name in ("done", "stopped", "left"))
    train_cell(done.config, tmp_path / "done", None, quiet)
    train_cell(stopped.config, tmp_path / "stopped", soon(), quiet)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    outcomes = run_cells(
        [done, stopped, left],
        tmp_path,
        launcher=LocalLauncher(2),
        display=PlainSweepDisplay(),
        until=time.time(),
    )
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before
    assert [(o.status, o.reason) for o in outcomes] == [
        ("done", ""),
        ("unfinished", "stopped at step 1 of 3"),
        ("unfinished", "not begun"),
    ]
    assert [o.measured for o in outcomes] == [True, True, False]
    assert [row["env_steps"] for row in summary_rows(outcomes)] == [3, 3, 0, 0]
    assert {row["env_step"] for row in curve_rows(outcomes[1:])} == {0}
    assert unfinished_text(outcomes) == ["Unfinished: 1 cell stopped, 1 not begun, of 3. Run the same command again."]
    assert unfinished_text(outcomes[:1]) == []


def test_workers_are_told_when_the_time_is_over(tiny, tmp_path):
    long = cell(tiny, **(MOMENTS | {"steps": 10**6, "eval_every": 10**6}))
    (outcome,) = run_cells(
        [long], tmp_path, launcher=LocalLauncher(1), display=PlainSweepDisplay(), until=time.time() + 15.0
    )
    assert outcome.status == "unfinished" and not is_finished(outcome.run_dir)


@pytest.fixture
def shrunk(oracle_vs_learned, monkeypatch):
    """The comparison's class with a budget of three steps."""
    kind = oracle_vs_learned.OracleVsLearned
    monkeypatch.setattr(kind, "BUDGETS", {"smoke": RUN | MOMENTS | {"seeds": (0, 1)}})
    for name in ("preset", "checkpoint_every"):
        kind.BUDGETS["smoke"].pop(name)
    monkeypatch.setattr(sys, "argv", ["oracle_vs_learned.py"])
    return kind


def launched(kind: type[Experiment], *flags: str) -> int:
    return main(lambda: tyro.cli(kind, args=["--size", "smoke", "--preset", "cpu", *flags]))


def test_the_limit_of_a_sweep_counts_from_the_start_of_its_command(shrunk, tmp_path, capsys):
    flags = ["--methods", "mage-td3", "--dynamics", "learned", "--out", str(tmp_path), "--stop-after", "10"]
    experiment = tyro.cli(shrunk, args=["--size", "smoke", "--preset", "cpu", *flags])
    assert main(lambda: experiment, time.monotonic() - 3600.0) == 0
    assert "Unfinished: 0 cells stopped, 1 not begun, of 1." in capsys.readouterr().out


def test_a_sweep_that_was_stopped_writes_marked_results_and_the_same_command_goes_on(shrunk, tmp_path, capsys):
    flags = ["--methods", "mage-td3", "--backends", "torch", "--dynamics", "learned", "oracle", "--out", str(tmp_path)]
    first, second = tyro.cli(shrunk, args=["--size", "smoke", "--preset", "cpu", *flags]).cells()
    assert launched(shrunk, *flags, "--stop-after", "1e-9") == 0
    assert "Unfinished: 0 cells stopped, 2 not begun, of 2. Run the same command again." in capsys.readouterr().out
    assert not (tmp_path / "summary.md").exists()

    train_cell(first.config, tmp_path / first.name, soon(), quiet)
    assert launched(shrunk, *flags, "--stop-after", "1e-9") == 0
    assert "Unfinished: 1 cell stopped, 1 not begun, of 2" in capsys.readouterr().out
    summary = (tmp_path / "summary.md").read_text()
    assert summary.startswith("# Oracle against learned dynamics (unfinished)\n\nUnfinished: 1 cell stopped, ")
    assert f"- {first.name}: stopped at step 1 of 3." in summary and f"- {second.name}: not begun." in summary
    for name in ("summary.csv", "curves.csv", "figure.png"):
        assert (tmp_path / name).stat().st_size > 0

    assert launched(shrunk, *flags, "--workers", "1") == 0
    assert is_finished(tmp_path / first.name) and is_finished(tmp_path / second.name)
    assert "nfinished" not in (tmp_path / "summary.md").read_text()
    assert json.loads((tmp_path / first.name / "config.json").read_text())["steps"] == 3


def test_what_takes_long_is_not_measured_after_the_end(shrunk, tmp_path):
    experiment = tyro.cli(shrunk, args=["--size", "smoke", "--preset", "cpu", "--backends", "torch"])
    first, second, *_ = experiment.cells()
    train_cell(first.config, tmp_path / first.name, None, quiet)
    outcomes = [
        Outcome(first, tmp_path / first.name, "done"),
        Outcome(second, tmp_path / second.name, "unfinished", "not begun"),
    ]
    experiment.report(outcomes, tmp_path)
    assert (tmp_path / "horizon.csv").read_text().count("\n") == 1 and (tmp_path / "horizon.png").is_file()
    experiment.report(outcomes[:1], tmp_path)
    assert (tmp_path / "horizon.csv").read_text().count("\n") > 1


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_of_the_paper_reports_a_cell_that_was_stopped_at_its_first_step(name, tmp_path, monkeypatch):
    monkeypatch.setattr(EXPERIMENTS[name], "longest_horizon", 2)
    experiment = EXPERIMENTS[name](size="smoke", seeds=(0, 1))
    first, *rest = experiment.cells()
    train_cell(first.config, tmp_path / first.name, soon(), quiet)
    outcomes = [Outcome(first, tmp_path / first.name, "unfinished", standing(tmp_path / first.name, 9))]
    outcomes += [Outcome(cell, tmp_path / cell.name, "unfinished", "not begun") for cell in rest]
    assert outcomes[0].reason == "stopped at step 1 of 9"
    found = experiment.report(outcomes, tmp_path)
    assert found.table.title in markdown(found, [], {})
    assert all((tmp_path / file).is_file() for file in experiment.FILES if name != "graph")


@pytest.mark.parametrize("minutes", ["0", "-3", "nan", "inf"])
def test_a_limit_that_is_none_is_one_sentence_and_writes_nothing(shrunk, minutes, tmp_path, capsys):
    assert launched(shrunk, "--out", str(tmp_path / "out"), "--stop-after", minutes) == 2
    printed = capsys.readouterr()
    sentence = f"oracle_vs_learned.py: stop_after is {float(minutes)!r}; accepted is a number of minutes above 0\n"
    assert printed == ("", sentence)
    assert list(tmp_path.iterdir()) == []


def test_the_mark_of_a_figure_is_written_behind_its_title(tmp_path, monkeypatch):
    from mage_diffsim.experiments import figures

    titles: list[str] = []
    monkeypatch.setattr("matplotlib.figure.Figure.suptitle", lambda self, text, **_: titles.append(text))
    panel = figures.Panel("", "", (), note="nothing")
    with figures.marked(" (unfinished)"):
        figures.draw(tmp_path / "a.png", "Returns", [[panel]])
    figures.draw(tmp_path / "b.png", "Returns", [[panel]])
    assert titles == ["Returns (unfinished)", "Returns"]


def test_an_unfinished_cell_without_a_checkpoint_is_not_measured(tmp_path):
    folder = Path(tmp_path / "a")
    folder.mkdir()
    assert not Outcome(cell({}, **MOMENTS), folder, "unfinished", "not begun").measured
