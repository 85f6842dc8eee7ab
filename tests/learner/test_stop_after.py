"""A training that its time limit ends, and one that goes on elsewhere."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mage_diffsim.checkpoints import newest_checkpoint, step_of
from mage_diffsim.display import show_log
from mage_diffsim.errors import InputError
from mage_diffsim.run_folder import is_finished, read_config, read_versions
from mage_diffsim.session import resume, train
from mage_diffsim.settings import make_config
from mage_diffsim.validation import require_minutes
from tests.learner.cli.commands import TINY, assert_one_sentence, run
from tests.tiny import MOMENT, RUN

AT_ONCE = 1e-9
"""Minutes that have passed after the first step."""


def stands_at(run_dir: Path) -> int:
    checkpoint = newest_checkpoint(run_dir)
    assert checkpoint is not None
    return step_of(checkpoint)


def test_a_training_ends_at_a_step_with_a_checkpoint_and_goes_on_as_if_it_had_not(tmp_path):
    config = make_config("Pendulum", **(RUN | {"dynamics": "oracle", "gradient_episodes": 0}))
    told = []
    result = train(config, tmp_path / "run", progress=told.append, stop_after=AT_ONCE)
    assert (result.finished, stands_at(tmp_path / "run")) == (False, 1)
    assert [(p.env_step, p.saved) for p in told] == [(1, True)]
    assert not is_finished(tmp_path / "run") and not (tmp_path / "run" / "policy.safetensors").exists()
    again = resume(tmp_path / "run", stop_after=AT_ONCE)
    assert (again.finished, stands_at(tmp_path / "run")) == (False, 2)
    last = resume(tmp_path / "run", stop_after=600)
    whole = train(config, tmp_path / "whole")
    assert last.finished and whole.finished and last.runs == whole.runs
    for name in ("eval.csv", "config.json"):
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "whole" / name).read_text()
    policies = [(tmp_path / name / "policy.safetensors").read_bytes() for name in ("run", "whole")]
    assert policies[0] == policies[1]


def test_a_training_whose_time_is_over_at_its_last_step_is_finished(tmp_path):
    told = []
    result = train(
        make_config("Pendulum", **(MOMENT | {"steps": 1})), tmp_path / "run", progress=told.append, stop_after=AT_ONCE
    )
    assert result.finished and is_finished(tmp_path / "run") and not told[-1].saved


@pytest.mark.parametrize("minutes", ["5", True, (1, 2)])
def test_a_limit_of_another_kind_is_refused(minutes):
    with pytest.raises(InputError, match=r"accepted is a number of minutes above 0$"):
        require_minutes(minutes)


@pytest.mark.parametrize("minutes", [0, -1.5, math.nan, math.inf])
def test_a_limit_that_is_none_is_refused_before_anything_is_written(minutes, tmp_path):
    sentence = rf"^stop_after is {minutes!r}; accepted is a number of minutes above 0$"
    with pytest.raises(InputError, match=sentence):
        train(make_config("Pendulum", **MOMENT), tmp_path / "run", stop_after=minutes)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=sentence):
        resume(tmp_path / "run", stop_after=minutes)


def test_the_command_ends_with_0_and_says_what_is_saved_and_how_to_go_on(tmp_path, capsys):
    run_dir = tmp_path / "run"
    flags = [*TINY, "--dynamics", "oracle", "--out", run_dir]
    assert run("train", *flags, "--stop-after", AT_ONCE) == 0
    out, err = capsys.readouterr()
    assert err == f"mage-diffsim: saved at step 1: mage-diffsim train --resume {run_dir}\n"
    assert "trained to step" not in out
    assert run("train", "--resume", run_dir, "--stop-after", AT_ONCE, "--quiet") == 0
    assert capsys.readouterr() == ("", err.replace("step 1", "step 2"))
    assert run("train", "--resume", run_dir) == 0
    assert f"trained to step 60: {run_dir}\n" in capsys.readouterr().out
    assert run("train", *flags, "--stop-after", "-1") == 2
    assert_one_sentence(capsys, r"stop_after is -1\.0; accepted is a number of minutes above 0")


def test_the_limit_of_a_command_counts_from_its_start(tmp_path, monkeypatch):
    limits = []

    def train(*_, stop_after, **__):
        limits.append(stop_after)
        raise InputError("enough")

    hour_ago = SimpleNamespace(monotonic=lambda: time.monotonic() - 3600.0)
    monkeypatch.setattr("mage_diffsim.cli.time", hour_ago)
    monkeypatch.setattr("mage_diffsim.session.train", train)
    for minutes in ("90", "30"):
        assert run("train", *TINY, "--out", tmp_path / "run", "--stop-after", minutes) == 2
    assert 0.0 < limits[1] < 0.001 < 10.0 < limits[0] <= 30.0


# --- elsewhere -----------------------------------------------------------------------------------------------------


def trained_on(device: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of two steps that seems to have been trained on this device."""
    with monkeypatch.context() as patch:
        patch.setattr("mage_diffsim.training.device_text", lambda name: device)
        train(make_config("Pendulum", **MOMENT), run_dir)
    return run_dir


def resumed_on(device: str, run_dir: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged when the run goes on where the device has this name."""
    said: list[str] = []
    with monkeypatch.context() as patch, show_log(said.append):
        patch.setattr("mage_diffsim.training.device_text", lambda name: device)
        resume(run_dir, steps=steps)
    return said


@pytest.mark.parametrize(
    ("before", "after"),
    [("cuda, NVIDIA H200", "cpu"), ("cpu", "cuda, NVIDIA H200"), ("cuda, NVIDIA H200", "cuda, NVIDIA A100")],
)
def test_another_kind_of_device_or_card_is_told_once(before, after, tmp_path, monkeypatch):
    run_dir = trained_on(before, tmp_path / "run", monkeypatch)
    text = f"{run_dir} was trained on {before} until step 2 and goes on on {after}: numbers differ in rounding"
    assert resumed_on(after, run_dir, 3, monkeypatch) == [text]
    assert read_versions(run_dir)["device"] == f"{before}, then {after}"
    assert resumed_on(after, run_dir, 4, monkeypatch) == []


def test_another_card_of_the_same_model_is_the_same_device(tmp_path, monkeypatch):
    run_dir = trained_on("cuda, NVIDIA H200", tmp_path / "run", monkeypatch)
    assert resumed_on("cuda:1, NVIDIA H200", run_dir, 3, monkeypatch) == []


def test_a_run_goes_on_with_the_device_graphs_and_products_that_are_given(tmp_path, capsys):
    run_dir = tmp_path / "run"
    train(make_config("Pendulum", **MOMENT), run_dir)
    flags = ["--device", "cpu", "--graphs", "off", "--matmul", "highest", "--compile", "off", "--steps", 3]
    assert run("train", "--resume", run_dir, *flags, "--quiet") == 0
    assert read_config(run_dir).graphs == "off"
    capsys.readouterr()
    assert run("train", "--resume", run_dir, "--device", "cuda:77", "--quiet") == 2
    assert_one_sentence(capsys, r"device 'cuda:77' was asked for and torch sees \d+ CUDA devices: choose another")
    assert read_config(run_dir).device == "cpu"


def test_what_a_gpu_has_still_to_do_at_an_evaluation_or_checkpoint_counts_as_training(tmp_path, monkeypatch):
    now = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0], monotonic=lambda: now[0])
    monkeypatch.setattr("mage_diffsim.session.time", clock)
    monkeypatch.setattr("mage_diffsim.session.wait_for", lambda device: now.__setitem__(0, now[0] + 5.0))
    train(make_config("Pendulum", **(RUN | {"eval_every": 30, "gradient_episodes": 0})), tmp_path / "run")
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    columns = rows[0].split(",")
    speed = [float(row.split(",")[columns.index("updates_per_s")]) for row in rows[1:]]
    # checkpoints after 20, 40 and 60 steps, 20 of them a warm-up; evaluations at the start and after 30 and 60
    assert speed == [0.0, round(10 / 5.0, 2), round(40 / 15.0, 2)]
