"""Which backend is the real environment where none is named, and that a run keeps it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mage_diffsim.config import TrainConfig
from mage_diffsim.devices import environment_of, environment_text
from mage_diffsim.display import describe
from mage_diffsim.envs.registry import make_task
from mage_diffsim.errors import MissingExtra
from mage_diffsim.run_folder import read_config, read_versions
from mage_diffsim.run_identity import changes, identity_of
from mage_diffsim.session import resume, train
from mage_diffsim.settings import make_config
from tests.tiny import MOMENT


def on(device: str, **settings) -> TrainConfig:
    return TrainConfig(device=device, **settings)


@pytest.mark.parametrize(
    ("task", "device", "settings", "backend"),
    [
        ("HalfCheetah", "cpu", {}, "mujoco"),
        ("HalfCheetah", "cuda:1", {}, "warp"),
        ("HalfCheetah", "cuda", {"environment": "mujoco"}, "mujoco"),
        ("HalfCheetah", "cuda", {"solver": "model"}, "mujoco"),
        ("Pusher", "cuda", {}, "warp"),
        ("Pendulum", "cuda", {}, "torch"),
    ],
)
def test_a_mujoco_task_is_stepped_on_the_gpu_where_warp_covers_it(task, device, settings, backend):
    pytest.importorskip("warp")
    pytest.importorskip("mujoco")
    assert environment_of(on(device, **settings), make_task(task)) == backend


def test_without_warp_mujoco_steps_the_environment(monkeypatch):
    pytest.importorskip("mujoco")

    def check_installed(backend):
        raise MissingExtra(f"{backend} is not installed")

    monkeypatch.setattr("mage_diffsim.devices.check_installed", check_installed)
    assert environment_of(on("cuda"), make_task("HalfCheetah")) == "mujoco"


@pytest.mark.parametrize("float64", [False, True])
def test_the_header_and_the_summary_say_that_warp_is_the_real_environment_and_how_exact(float64):
    pytest.importorskip("warp")
    pytest.importorskip("mujoco")
    config, task = on("cuda", task="HalfCheetah", float64=float64), make_task("HalfCheetah")
    text = f"warp in float{64 if float64 else 32} (in float64 checked against MuJoCo C to 1e-10)"
    assert environment_text(config, task) == text
    assert f"environment {text}, solver converged" in describe(config, task)
    assert environment_text(on("cpu"), task) == "mujoco"
    assert environment_text(on("cuda"), make_task("Pendulum")) == "torch"


def test_naming_the_default_is_the_same_run_and_another_device_keeps_its_environment():
    pytest.importorskip("warp")
    pytest.importorskip("mujoco")
    task = make_task("HalfCheetah")
    cpu = make_config("HalfCheetah", environment=None)
    named = dataclasses.replace(cpu, environment="mujoco")
    assert identity_of(cpu, task) == identity_of(named, task)
    assert changes(identity_of(cpu, task), named, task) == []
    assert changes(identity_of(named, task), cpu, task) == []
    warp = dataclasses.replace(cpu, device="cuda")
    assert changes(identity_of(cpu, task), warp, task) == ["environment mujoco and not warp"]


def test_a_run_folder_names_the_environment_that_a_default_came_to(tmp_path):
    train(make_config("Pendulum", **MOMENT), tmp_path / "run")
    assert read_config(tmp_path / "run").environment == "torch"
    assert read_versions(tmp_path / "run")["environment"] == "torch"
    identity = json.loads((tmp_path / "run" / "identity.json").read_text())
    assert identity["config"]["environment"] == "torch"
    resume(tmp_path / "run", steps=3)
    assert read_config(tmp_path / "run").environment == "torch"
