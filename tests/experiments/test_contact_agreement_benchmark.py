"""The script that counts how often contacts of two geoms are those of MuJoCo C."""

from __future__ import annotations

import csv

import contact_agreement as script
import pytest

from mage_diffsim.errors import InputError

pytest.importorskip("mujoco")
pytest.importorskip("warp")


def test_states_are_counted_by_what_becomes_of_them(tmp_path):
    assert script.run(script.Options(pairs=("sphere-box", "plane-cylinder"), states=200, out=tmp_path)) == 0
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [row["pair"] for row in rows] == ["sphere-box", "plane-cylinder"]
    for row in rows:
        assert sum(int(row[verdict]) for verdict in script.VERDICTS) == int(row["states"]) == 200
        assert int(row["equal"]) >= 170 and int(row["rest"]) == 0
    assert "400 states" in (tmp_path / "summary.md").read_text()
    assert set(script.MEANING) == set(script.VERDICTS)


@pytest.mark.parametrize("flags", [{"pairs": ("box-sphere",)}, {"states": 3}])
def test_flags_that_cannot_be_compared_are_refused(flags):
    with pytest.raises(InputError):
        script.Options(**flags).resolved()
