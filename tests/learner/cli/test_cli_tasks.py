"""``mage-diffsim list-tasks``, ``check-task`` and ``doctor``."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from tests.learner.cli.commands import TASK_FILE, run


def test_list_tasks_shows_sizes_backends_and_what_is_not_installed(monkeypatch, capsys):
    import importlib.metadata

    version = importlib.metadata.version

    def without_warp(name: str) -> str:
        if name == "warp-lang":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_warp)
    assert run("list-tasks") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(r"Pendulum │ 2/3/1 │ 200 │ 0\.05 │ torch, [^│]*warp \(not installed: extra warp\)", text), text


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_list_tasks_hides_nothing_however_narrow_the_terminal(width, monkeypatch):
    from mage_diffsim.commands import tasks
    from mage_diffsim.envs import backends_of, make_task, task_names

    screen = io.StringIO()
    monkeypatch.setattr(tasks, "make_console", lambda: Console(file=screen, width=width))
    assert run("list-tasks") == 0
    text = screen.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    for i, name in enumerate(task_names()):
        following = task_names()[i + 1 : i + 2]
        part = text[text.index(name) : text.rindex(following[0]) if following else None]  # this task's lines
        task = make_task(name)
        facts = [f"{task.state_dim}/{task.obs_dim}/{task.action_dim}", str(task.horizon), f"{task.dt:g}"]
        words = {word.strip("│,") for word in part.split()}
        assert {name, *facts, *backends_of(task), *task.source.replace(",", "").split()} <= words, part


def test_list_tasks_shows_the_others_when_one_is_broken(monkeypatch, capsys):
    from mage_diffsim.envs import registry

    monkeypatch.setitem(registry._TASKS, "Broken", "mage_diffsim.no_such_module:Broken")
    assert run("list-tasks") == 0
    out = capsys.readouterr().out
    assert "not available" in out and "Pendulum" in out


def test_check_task_passes_a_good_task_and_writes_the_report(task, tmp_path, capsys):
    assert run("check-task", task, "--backend", "torch", "--json", tmp_path / "a.json") == 0
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["task"] == "Short" and report["passed"]
    out = capsys.readouterr().out
    assert f"Short: {len(report['checks'])} passed, 0 failed, 0 skipped" in out
    assert "reward: gradient" in out


def test_check_task_fails_a_broken_task_with_exit_code_1(tmp_path, capsys):
    broken = (
        "    def reward(self, obs, action, next_obs):\n        return super().reward(obs, action, next_obs).detach()\n"
    )
    (tmp_path / "broken.py").write_text(TASK_FILE + "\n" + broken)
    assert run("check-task", f"{tmp_path / 'broken.py'}:Short", "--backend", "torch") == 1
    assert re.search(r"reward: gradient action\s+│ failed", capsys.readouterr().out)


def test_doctor_prints_and_writes_its_report(tmp_path, monkeypatch, capsys):
    from mage_diffsim import doctor

    report = {
        "versions": {"torch": "1.2.3"},
        "cpus": 1,
        "threads": 1,
        "cuda": {"available": False, "version": None, "devices": []},
        "physics": {"torch": {"available": True, "error": None}},
        "bridges": {},
    }
    monkeypatch.setattr(doctor, "report", lambda: report)  # the real one has its own tests, and takes seconds
    assert run("doctor", "--json", tmp_path / "a.json") == 0
    assert json.loads((tmp_path / "a.json").read_text()) == report
    assert "1.2.3" in capsys.readouterr().out
