"""What a training shows: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from mage_diffsim.display import TrainingDisplay, is_interactive, summary
from mage_diffsim.session import Progress


@pytest.mark.parametrize(
    ("terminal", "ci", "expected"), [(True, "", True), (True, "true", False), (False, "", False), (True, "1", False)]
)
def test_a_bar_is_for_terminals_outside_ci(terminal, ci, expected, monkeypatch):
    monkeypatch.setenv("CI", ci)
    assert is_interactive(Console(force_terminal=terminal, file=io.StringIO())) == expected


def test_a_terminal_gets_a_bar_and_the_same_lines(monkeypatch):
    monkeypatch.setenv("CI", "")
    screen = io.StringIO()
    rows = [{"return_mean": -3.0, "gradient_error": 0.5}]
    with TrainingDisplay(Console(force_terminal=True, file=screen, width=120), Path("run"), steps=10) as display:
        display.evaluation(0, rows)
        display.progress(Progress(env_step=5, steps=10, wall_s=1.0, updates_per_s=7.0, latest={}))
    text = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert "step  0/10   return -3.0   gradient error 0.5" in text
    assert "5/10" in text and "7 updates/s" in text


def test_a_long_silence_gets_a_sign_of_life(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mage_diffsim.display.time.monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), record=True, force_terminal=False)
    display = TrainingDisplay(console, Path("run"), steps=1000)
    for step in range(101, 301):  # resumed at 100, one step a second
        now[0] += 1.0
        display.progress(Progress(step, 1000, 0.0, 2.0, {}))
    header, *lines = console.export_text().splitlines()
    assert header == "run folder run"
    assert [re.search(r"\d+/", line)[0] for line in lines] == ["161/", "221/", "281/"]  # type: ignore[index]
    assert lines[0] == "step  161/1000   2 updates/s   about 13 min 45 s left"


def test_summary_leaves_out_what_a_method_does_not_have():
    assert summary([{"return_mean": 1.0}]) == "return 1.0"
    assert summary([{"return_mean": 1.0}, {"return_mean": 3.0}]) == "return 2.0 (2 runs: 1.0 to 3.0)"
