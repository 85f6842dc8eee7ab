"""What every test of the learner has."""

from __future__ import annotations

import sys

import pytest
import torch

from tests.learner.recorded_tasks import SLIDE


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small only wait for each other
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def slide(tmp_path, monkeypatch) -> str:
    """The reference of a task in a file that imports a module beside it."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "slide.py").write_text(SLIDE)
    (folder / "rail.py").write_text("FRICTION = 0.5\n")
    monkeypatch.syspath_prepend(str(folder))
    yield f"{folder / 'slide.py'}:Slide"
    for name in ("slide", "rail"):
        sys.modules.pop(name, None)
