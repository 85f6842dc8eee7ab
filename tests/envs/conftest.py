"""Fixtures of the tests of environments."""

from __future__ import annotations

import sys

import pytest

from mage_diffsim.envs import make_task, registry


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


@pytest.fixture(
    params=[("Pendulum", {}), ("Pendulum", {"clip_order": "v0"}), ("CartPole", {})],
    ids=lambda p: "-".join((p[0], *p[1].values())),
)
def analytic_task(request):
    """Each task whose equations are written in torch, JAX and Warp."""
    return make_task(request.param[0], **request.param[1])
