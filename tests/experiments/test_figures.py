"""Figures depend on nothing but the numbers, and a report does not depend on its figures."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
from paper_experiments.performance import Performance

from mage_diffsim.errors import InputError
from mage_diffsim.experiments import command, figures
from mage_diffsim.experiments.figures import Panel, draw, failures_kept, line, write_figure

CURVES = [{"env_step": step, "seed": seed, "y": 1.0 + step + seed} for step in (0, 10, 20) for seed in (0, 1)]
GRID = [[Panel("panel", "y", (line("curve", CURVES, "y", "#000000"),))]]

DRAW = """
import os, sys
from pathlib import Path
from mage_diffsim.experiments.figures import Panel, draw, line
rows = [{"env_step": step, "seed": seed, "y": 1.0 + step + seed} for step in (0, 10, 20) for seed in (0, 1)]
draw(Path(sys.argv[1]), "title", [[Panel("panel", "y", (line("curve", rows, "y", "#000000"),))]])
import matplotlib
backend = dict.__getitem__(matplotlib.rcParams, "backend")  # read otherwise, it is resolved
print("matplotlib.pyplot" in sys.modules, os.environ.get("MPLBACKEND"), backend)
"""


def drawn_in_a_process(path, **environment):
    found = subprocess.run([sys.executable, "-c", DRAW, str(path)], capture_output=True, text=True, timeout=120,
                           env=os.environ | environment)  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert path.read_bytes().startswith(b"\x89PNG")
    return found.stdout.split()


@pytest.mark.parametrize("backend", ["module://not_there", "module://matplotlib_inline.backend_inline", "no backend"])
def test_a_backend_that_cannot_be_had_does_not_matter(tmp_path, backend):
    pyplot, kept, *_ = drawn_in_a_process(tmp_path / "f.png", MPLBACKEND=backend)
    assert pyplot == "False" and kept == backend.split()[0]


def test_the_backend_that_the_user_chose_is_left_for_other_code(tmp_path):
    assert drawn_in_a_process(tmp_path / "f.png", MPLBACKEND="svg") == ["False", "svg", "svg"]


def test_the_users_settings_do_not_change_a_figure(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\naxes.facecolor: red\nsavefig.dpi: 7\n")
    drawn_in_a_process(tmp_path / "theirs.png", MATPLOTLIBRC=str(tmp_path))
    draw(tmp_path / "ours.png", "title", GRID)
    assert (tmp_path / "theirs.png").read_bytes() == (tmp_path / "ours.png").read_bytes()


def test_a_figure_that_cannot_be_drawn_is_an_error_unless_failures_are_kept(tmp_path, caplog):
    def fail(page):
        raise RuntimeError("no font.")

    path = tmp_path / "f.png"
    with pytest.raises(RuntimeError, match="no font"):
        write_figure(path, 2.0, 2.0, fail)
    path.write_bytes(b"an older report's")
    with caplog.at_level(logging.CRITICAL), failures_kept() as failed:
        write_figure(path, 2.0, 2.0, fail)
        write_figure(tmp_path / "other.png", 2.0, 2.0, lambda page: None)
    assert failed == [(path, "no font.")] and not path.exists() and (tmp_path / "other.png").exists()
    assert figures.not_drawn(failed) == ["f.png could not be drawn (no font); the numbers are complete."]


def test_a_figure_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "f.png").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*f\.png"):
        draw(tmp_path / "f.png", "title", GRID)
    assert [path.name for path in tmp_path.iterdir()] == ["f.png"]


def test_a_sweep_whose_figure_fails_still_writes_its_numbers(tiny, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setitem(
        Performance.BUDGETS, "smoke", {k: v for k, v in tiny.items() if k not in ("preset", "checkpoint_every")}
    )
    monkeypatch.setattr(Performance, "VARIANTS", {"TD3": dict(method="td3")})
    monkeypatch.setattr(figures, "_draw_panel", lambda *_: 1 / 0)
    with caplog.at_level(logging.CRITICAL):
        code = command.run(Performance(size="smoke", out=tmp_path, workers=1))
    said, table = capsys.readouterr().out, (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert code == 1 and "figure.png could not be drawn (division by zero); the numbers are complete." in table
    assert (tmp_path / "summary.csv").is_file() and (tmp_path / "curves.csv").is_file()
    assert "summary.md, summary.csv, curves.csv\n" in said and not (tmp_path / "figure.png").exists()
