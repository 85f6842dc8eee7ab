"""How many kernels a compiled update launches: section kernels of benchmarks/throughput.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "throughput.py"
MOST = {"critic": (34, 46), "actor": (12, 23), "restarts": (0, 10)}
"""Products and other kernels of each compiled part; a change that needs more has to be worth it."""


@pytest.mark.slow
def test_a_compiled_update_of_half_cheetah_launches_no_more_kernels_than_documented(tmp_path):
    """In a process of its own: the shape checks of the tests wrap functions in code that cannot be traced."""
    flags = ["--sections", "kernels", "--tasks", "HalfCheetah", "--methods", "mage-td3", "--repeats", "1", "--out"]
    command = [sys.executable, SCRIPT, *flags, tmp_path, "--json", tmp_path / "rows.json"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == list(MOST)
    for row in rows:
        products, others = (int(word) for word in row["check"].split() if word.isdigit())
        assert products <= MOST[row["variant"]][0] and others <= MOST[row["variant"]][1], row["check"]
        assert products + others > 0
