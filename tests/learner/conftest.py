"""What every test of the learner has."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small only wait for each other
    yield
    torch.set_num_threads(threads)
