"""``mage-diffsim doctor``: the report is complete, plain, and cheap where it must be."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from mage_diffsim import doctor
from mage_diffsim.envs.physics import BACKENDS


@pytest.fixture(scope="module")
def report():
    return doctor.report()


def test_report_is_plain_data(report):
    assert json.loads(json.dumps(report)) == report


def test_report_covers_every_physics_backend(report):
    assert set(report["physics"]) == set(BACKENDS)
    assert report["physics"]["torch"] == {"available": True, "error": None}
    for entry in report["physics"].values():
        assert entry["available"] == (entry["error"] is None)


def test_rendering_shows_versions_backends_and_bridges(report):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(doctor.render(report))
    text = console.export_text()
    for word in (*doctor.PACKAGES, *BACKENDS, *report["bridges"], report["versions"]["torch"]):
        assert word in text


def test_a_missing_package_is_reported_with_its_extra(monkeypatch):
    original = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "mujoco-mjx" else original(name))
    entry = doctor._physics("mjx", "mage_diffsim.envs.physics:TorchPhysics")
    error = "mujoco-mjx is not installed: pip install -e '.[mjx]' in the project's folder"
    assert entry == {"available": False, "error": error}


def test_a_broken_backend_is_reported_not_raised():
    entry = doctor._physics("torch", "mage_diffsim.envs.physics:NoSuchClass")
    assert not entry["available"]
    assert "NoSuchClass" in entry["error"]


def test_versions_are_text_and_import_no_backend():
    code = (
        "import json, sys; from mage_diffsim import doctor; v = doctor.versions();"
        "assert not {'jax', 'warp', 'mujoco', 'gymnasium'} & set(sys.modules); print(json.dumps(v))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout)
    assert {"mage_diffsim", "python", "torch", "numpy", "gymnasium", "platform", "cpu"} <= set(found)
    assert all(isinstance(value, str) and value for value in found.values())


def test_the_extra_to_install_is_shown_whole(report):
    absent = {"available": False, "error": "mujoco is not installed: pip install -e '.[mjx]' in the project's folder"}
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(doctor.render(report | {"physics": {"mujoco": absent}}))
    assert "pip install -e '.[mjx]' in the project's folder" in console.export_text()
