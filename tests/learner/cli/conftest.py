"""A task in a file and a finished training of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mage_diffsim.cli import main
from tests.learner.cli.commands import TASK_FILE, TINY


@pytest.fixture(scope="session")
def task(tmp_path_factory) -> str:
    """A pendulum with short episodes, in a file as a user would write it."""
    file = tmp_path_factory.mktemp("task") / "short.py"
    file.write_text(TASK_FILE)
    return f"{file}:Short"


@pytest.fixture(scope="session")
def trained(task, tmp_path_factory) -> Path:
    """The folder of a finished training of two runs. Read only: tests that change it take a copy."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "--task", task, *TINY, "--seeds", "0", "1", "--out", str(run_dir), "--quiet"]) == 0
    return run_dir


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))
