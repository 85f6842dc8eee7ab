"""Figures depend on nothing but the numbers, and a report does not depend on its figures."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys

import pytest
from matplotlib.axes import Axes
from paper_experiments.performance import Performance

from mage_diffsim.errors import InputError
from mage_diffsim.experiments import command, figures
from mage_diffsim.experiments.figures import Panel, draw, failures_kept, line, styles, write_figure
from mage_diffsim.methods import METHODS

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
    said, table = " ".join(capsys.readouterr().out.split()), (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert code == 1 and "figure.png could not be drawn (division by zero); the numbers are complete." in table
    assert (tmp_path / "summary.csv").is_file() and (tmp_path / "curves.csv").is_file()
    assert said.endswith("summary.md, summary.csv, curves.csv") and not (tmp_path / "figure.png").exists()


def test_a_figure_is_drawn_of_one_seed_of_several_and_of_nothing(tmp_path):
    curves = [{"env_step": s, "seed": k, "y": 1.0 + s + k, "none": math.nan} for s in (0, 10, 20) for k in (0, 1)]
    shown, empty = line("both", curves, "y", "#000000"), line("none", curves, "none", "#000000")
    single = line("one", [r for r in curves if r["seed"] == 0], "y", "#0072B2", "--")
    assert (
        [v.n for _, v in shown.points] == [2, 2, 2]
        and len(shown.runs) == 2
        and single.runs == ()
        and empty.points == ()
        and not single.points[0][1].known
    )
    assert len(shown.runs) == 2 and single.runs == ()
    panels = [Panel("a", "y", (shown, single), log=True, level=(5.0, "level")), Panel("b", "y", (empty,), note="none")]
    draw(tmp_path / "f.png", "title", [panels])
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 1


def test_nothing_is_drawn_beyond_what_the_runs_reached(monkeypatch, tmp_path):
    """Returns that cannot exceed 0 are not drawn above it, however few the seeds."""
    values = {0: (-1400.0, -1300.0, -200.0), 10: (-1500.0, -100.0, -1.0)}
    rows = [{"env_step": step, "seed": k, "y": y} for step, of in values.items() for k, y in enumerate(of)]
    reached = []
    monkeypatch.setattr("matplotlib.axes.Axes.plot", seeing(Axes.plot, lambda x, y: reached.extend(y)))
    monkeypatch.setattr("matplotlib.axes.Axes.fill_between", seeing(Axes.fill_between, lambda x, *y: reached.extend(y)))
    draw(tmp_path / "f.png", "title", [[Panel("a", "y", (line("cell", rows, "y", "#000000"),))]])
    assert len(reached) == 4 * 2 and max(reached) == -1.0 and min(reached) == -1500.0


def seeing(method, see):
    def call(axes, *args, **more):
        see(*args)
        return method(axes, *args, **more)

    return call


METHODS_AND_DYNAMICS = [
    (name, dynamics, backend)
    for name, method in METHODS.items()
    for dynamics, backend in (
        [
            ("learned", ""),
            ("oracle", "torch"),
            ("hybrid-oracle-gradients", "torch"),
            ("hybrid-learned-gradients", "torch"),
        ]
        if method.imagines
        else [("", "")]
    )
]


def test_a_cell_has_the_same_colour_beside_whatever_others():
    cells = {str(i): cell for i, cell in enumerate(METHODS_AND_DYNAMICS)}
    alone = {name: styles({name: cell})[name] for name, cell in cells.items()}
    together = styles(dict(reversed(cells.items())))
    assert {name: colour for name, (colour, _) in alone.items()} == {n: colour for n, (colour, _) in together.items()}
    assert len(set(together.values())) == len(cells), "no two look alike"
    oracles = {backend: ("mage-td3", "oracle", backend) for backend in ("torch", "jax", "warp")}
    backends = styles(oracles)
    assert len(set(backends.values())) == 3 and len({colour for colour, _ in backends.values()}) == 1
    shared = {f"{backend} {lam}": cell for lam in range(2) for backend, cell in oracles.items()}
    shared |= {f"mjx {lam}": ("mage-td3", "oracle", "mjx") for lam in range(2)}
    assert len(set(styles(shared).values())) == 8
    assert backends == {backend: styles({backend: cell})[backend] for backend, cell in oracles.items()}
