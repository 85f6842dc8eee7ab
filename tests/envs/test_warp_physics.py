"""Physics as Warp kernels: when kernels are loaded, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

wp = pytest.importorskip("warp")

from mage_diffsim.bridges.warp import load_warp  # noqa: E402
from mage_diffsim.envs.registry import make_task  # noqa: E402
from mage_diffsim.envs.warp import WarpPhysics  # noqa: E402
from mage_diffsim.errors import InputError, MissingExtra  # noqa: E402

LOADING = """
import contextlib
import torch
import warp
import mage_diffsim.bridges.warp as bridge
from mage_diffsim.envs.physics import make_physics
from mage_diffsim.envs.registry import make_task
from mage_diffsim.envs.warp.pendulum import make_kernels

task = make_task("Pendulum")
physics = make_physics(task, "warp", dtype=torch.float64)
unloaded = make_kernels(task)(torch.float32)
warp.config.log_level = warp.LOG_INFO
bridge.quiet = contextlib.nullcontext  # so that what is loaded is told
state, action = torch.zeros(3, 2), torch.zeros(3, 1, requires_grad=True)
physics.step(state.double(), action.double()).sum().backward()
print("stepped")
unloaded(state, action)
"""


def test_a_step_loads_no_module():
    """The constructor has loaded them: a CUDA graph can be captured at once. Kernels used without it do load late."""
    done = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, timeout=300)
    during, after = done.stdout.split("stepped")
    assert "load on device" not in during
    assert "load on device" in after


def test_unknown_derivative_lists_the_valid_ones():
    with pytest.raises(InputError, match="unknown derivative source of backend warp 'vjp': choose one of adjoint, fd"):
        WarpPhysics(make_task("Pendulum"), derivative="vjp")


def test_cuda_without_a_gpu_in_warp_is_refused_at_once():
    if wp.is_cuda_available():
        pytest.skip("Warp sees a GPU here")
    with pytest.raises(InputError, match="device cuda was asked for, but Warp sees no CUDA device"):
        WarpPhysics(make_task("Pendulum"), device="cuda")


def test_missing_warp_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "warp", None)
    load_warp.cache_clear()
    with pytest.raises(MissingExtra, match=r"pip install -e '\.\[warp\]' in the project's folder"):
        WarpPhysics(make_task("Pendulum"))
