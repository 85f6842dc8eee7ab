"""Test-wide set-up. Its order matters: environment variables first, then the import hook, then everything else."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"

# Compiling one MJX step takes tens of seconds: keep what was compiled, from one run and worker to the next.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("WARP_CACHE_PATH", str(CACHE / "warp"))
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
if not os.environ.get("DISPLAY"):
    os.environ.setdefault("MUJOCO_GL", "egl")  # read when mujoco is first imported
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores: one thread each, set before any library starts its pool.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"

import jaxtyping  # noqa: E402
import pytest  # noqa: E402

early = sorted(name for name in sys.modules if name.partition(".")[0] == "mage_diffsim")
if early:
    raise RuntimeError(f"imported before the shape-checking hook was installed, so unchecked: {', '.join(early)}")
# Every annotation in the three packages is checked on every call made by a test.
jaxtyping.install_import_hook("mage_diffsim", "beartype.beartype")

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

# The same examples on every run; no deadline, because a first call may compile.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """A test that draws from a global generator draws the same numbers alone, in any order and in any worker."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    """A copy of what the package is built from, so that the checkout keeps no build folder."""
    copy = tmp_path_factory.mktemp("source")
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("src", "mage_diffsim", "envs", "bridges"):
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=left_out)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    return copy


@pytest.fixture(scope="session")
def wheel(source: Path) -> zipfile.ZipFile:
    """The project's wheel, built from the checkout's files as ``pip install .`` builds it."""
    pip_wheel = [sys.executable, "-m", "pip", "wheel"]
    command = [*pip_wheel, "--no-build-isolation", "--no-deps", "--no-index", "-w", "dist", "."]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    return zipfile.ZipFile(next((source / "dist").glob("mage_diffsim-*.whl")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked ``gpu`` where there is no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
