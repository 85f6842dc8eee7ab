"""The quick start and the pages about use without the learner: what they show works as shown."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.pages import ROOT, blocks, commands

QUICKSTART = ROOT / "docs/quickstart.md"
PAGES = [QUICKSTART, *sorted((ROOT / "docs/without_the_learner").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_commands_are_the_readmes_which_a_test_runs(page):
    tested = commands(ROOT / "README.md", "mage-diffsim")
    assert [command for command in commands(page, "mage-diffsim") if command not in tested] == []


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda page: page.stem)
def test_the_python_blocks_run(page, tmp_path):
    pytest.importorskip("warp")
    source = "\n".join(blocks(page, "python"))
    source = source.replace("steps=6000", "steps=60, gradient_episodes=0, hyper={'warmup_steps': 50}")
    # In a process of its own, because pages register tasks and environments.
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
