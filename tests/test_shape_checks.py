"""The import hook of conftest.py: annotations of the three packages are enforced while testing."""

from __future__ import annotations

import importlib
import sys

import jaxtyping
import pytest
import torch

import mage_diffsim

PROBE = """
from __future__ import annotations

from mage_diffsim.shapes import Float, Tensor


def add(x: Float[Tensor, "B A"], y: Float[Tensor, "B A"]) -> Float[Tensor, " B"]:
    return (x + y).sum(-1)


def lie(x: Float[Tensor, "B A"]) -> Float[Tensor, " B"]:
    return x
"""


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """A module inside the package, written for this test."""
    (tmp_path / "_probe.py").write_text(PROBE)
    monkeypatch.setattr(mage_diffsim, "__path__", [*mage_diffsim.__path__, str(tmp_path)])
    yield importlib.import_module("mage_diffsim._probe")
    del sys.modules["mage_diffsim._probe"]


def test_right_shapes_pass(probe):
    assert probe.add(torch.ones(3, 2), torch.ones(3, 2)).shape == (3,)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.ones(3, 2), torch.ones(1, 2)),
        (torch.ones(3, 2), torch.ones(2)),
        (torch.ones(3, 2), torch.ones(3, 2, dtype=torch.int64)),
    ],
    ids=["broadcast", "rank", "dtype"],
)
def test_a_wrong_shape_or_dtype_raises_even_where_torch_would_broadcast(probe, x, y):
    with pytest.raises(jaxtyping.TypeCheckError):
        probe.add(x, y)


def test_a_wrong_result_raises(probe):
    with pytest.raises(jaxtyping.TypeCheckError):
        probe.lie(torch.ones(3, 2))


@pytest.mark.parametrize("module", ["mage_diffsim.doctor", "mage_diffsim.envs.task", "mage_diffsim.errors"])
def test_the_hook_covers_all_three_packages(module):
    loader = importlib.import_module(module).__spec__.loader
    assert type(loader).__module__.startswith("jaxtyping")
