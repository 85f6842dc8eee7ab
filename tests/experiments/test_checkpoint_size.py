"""The benchmark of checkpoints runs, and its numbers are those of the files."""

from __future__ import annotations

import re

import pytest

from mage_diffsim.errors import InputError
from tests.experiments.conftest import load_script


def test_it_measures_with_and_without_an_ensemble(tmp_path, capsys):
    script = load_script("checkpoint_size")
    options = script.Options(task="Pendulum", seeds=2, steps=300, every=100, updates=1, out=tmp_path)
    assert script.run(options) == 0
    rows = [line.split("|")[1:-1] for line in (tmp_path / "summary.md").read_text().splitlines() if "300" in line]
    named = {row[0].strip(): [cell.strip() for cell in row] for row in rows if len(row) == len(script.HEADER)}
    assert set(named) == {"oracle", "learned"}
    whole, of_rows = (float(named["learned"][i]) for i in (2, 3))
    assert whole > float(named["oracle"][2]) > of_rows >= 0.0  # the ensemble, and the networks beside the rows
    assert all(re.fullmatch(r"\d+\.\d\d s", cell) for row in named.values() for cell in row[6:])


def test_what_cannot_be_measured_is_refused(tmp_path):
    script = load_script("checkpoint_size")
    with pytest.raises(InputError, match=r"^every is 0; accepted is 1 or more$"):
        script.run(script.Options(every=0, out=tmp_path))
