"""The report that ``doctor`` prints, and the rule that importing the bridges imports no backend."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mage_diffsim.bridges import backend_report, report

FIELDS = {"version", "importable", "devices", "zero_copy", "error"}


def test_what_is_installed_is_zero_copy_on_the_cpu():
    found = backend_report()
    assert set(found) == {"jax", "warp"}
    for name, entry in found.items():
        assert set(entry) == FIELDS
        if entry["version"] is None:
            continue
        assert entry["importable"] and entry["devices"] and entry["error"] is None, f"{name}: {entry['error']}"
        assert entry["zero_copy"] is True


def test_a_copy_is_reported(monkeypatch):
    """The self-check compares addresses: it must be able to say no."""
    pytest.importorskip("jax")
    original = torch.from_dlpack
    monkeypatch.setattr(torch, "from_dlpack", lambda array: original(array).clone())
    assert backend_report()["jax"]["zero_copy"] is False


def test_absent_and_broken_packages_are_reported_not_raised(monkeypatch):
    assert report._report("no-such-package", lambda found: None) == {
        "version": None,
        "importable": False,
        "devices": [],
        "zero_copy": None,
        "error": "no-such-package is not installed",
    }

    def broken(found):
        raise OSError("libcudart.so not found")

    entry = report._report("torch", broken)
    assert entry["error"] == "OSError: libcudart.so not found" and not entry["importable"]


def test_importing_the_bridges_imports_no_backend():
    code = (
        "import sys, mage_diffsim.bridges, mage_diffsim.bridges.jax, mage_diffsim.bridges.warp;"
        "print(sorted({'jax', 'jaxlib', 'warp', 'mujoco', 'torch._dynamo'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
