"""What a sweep shows on a terminal and in a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mage_diffsim.experiments import sweep_display
from mage_diffsim.experiments.sweep_display import LiveSweepDisplay, PlainSweepDisplay, duration


def test_lines_tell_how_much_is_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(sweep_display.time, "monotonic", lambda: now[0])
    with PlainSweepDisplay() as shown:
        shown.begin({"a": 50, "b": 0}, {"a": 100, "b": 100})
        shown.start("a")
        now[0] = 30.0
        shown.update("a", 52)
        now[0] = 60.0
        shown.update("a", 75, 40.0)  # 100 s for its 50 steps: b takes 200 s
        shown.update("a", 76, 39.0)
        shown.finish("a", "FAILED")
        assert shown.left == "too early to say how long"  # a failed cell says nothing of b
    assert capsys.readouterr().out.splitlines() == [
        "a: goes on from step 50",
        "26% of all cells done, too early to say how long (a 52%)",
        "38% of all cells done, about 4 min 0 s left (a 75%)",
        "a: FAILED",
    ]


def test_bars_show_each_running_cell_and_the_whole():
    out = io.StringIO()
    with LiveSweepDisplay(Console(file=out, force_terminal=True, width=100)) as shown:
        shown.begin({"a": 0}, {"a": 10})
        shown.start("a")
        shown.update("a", 5, 70.0)
        shown.progress.refresh()
        shown.finish("a", "done [in brackets]")
    text = out.getvalue()
    assert "50%" in text and "all cells" in text and "about 1 min" in text and "a: done [in brackets]" in text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (185.0, "3 min 5 s"), (7830.0, "2 h 10 min")])
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text
