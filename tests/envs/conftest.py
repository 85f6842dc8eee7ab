"""Fixtures of the tests of environments."""

from __future__ import annotations

import sys

import pytest

from mage_diffsim.envs import registry


@pytest.fixture
def forgotten(monkeypatch):
    """What the test imports and registers is forgotten after it."""
    monkeypatch.setattr(registry, "_TASKS", dict(registry._TASKS))
    before, path = dict(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - set(before):
        module = sys.modules[name]
        if "pytest" in str(getattr(module, "__file__", None) or getattr(module, "__path__", "")):
            del sys.modules[name]
    assert sys.path == path
