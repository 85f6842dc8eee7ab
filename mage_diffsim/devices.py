"""Torch devices by name, what runs on them by default, and the precision of their matrix products."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from mage_diffsim.bridges.op import indexed
from mage_diffsim.config import Matmul, TrainConfig
from mage_diffsim.doctor import check_installed
from mage_diffsim.envs.physics import BACKENDS, backends_of, load
from mage_diffsim.envs.task import Task
from mage_diffsim.errors import InputError, MissingExtra


def torch_device(name: str) -> torch.device:
    """The named torch device.

    Raises:
        InputError: it is not a device name, or the device is not there.
    """
    device = indexed(name)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InputError(f"device {name!r} was asked for and torch sees {count} CUDA devices: choose another")
    return device


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_text(name: str) -> str:
    """A device's name, of a GPU with that of its card."""
    device = torch_device(name)
    return f"{name}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else name


def environment_of(config: TrainConfig, task: Task) -> str:
    """The physics backend of the real environment: the one that was asked for, or the default.

    The default is the task's first backend. On a CUDA device it is ``warp`` in the place of MuJoCo C, which runs on the
    CPU, where Warp is installed and covers the model and the solver.
    """
    if config.environment is not None:
        return config.environment
    known = backends_of(task)
    if known[0] != "mujoco" or "warp" not in known or torch.device(config.device).type != "cuda":
        return known[0]
    try:
        check_installed("warp")
        warp = load(BACKENDS["warp"])
        warp.check_covers(task)
    except (InputError, MissingExtra):
        return known[0]
    return "warp" if config.solver in warp.solvers else known[0]


def environment_text(config: TrainConfig, task: Task) -> str:
    """The backend of the real environment, for a MuJoCo model on Warp with its precision and what it was checked by."""
    backend = environment_of(config, task)
    if backend != "warp" or "mujoco" not in backends_of(task):
        return backend
    dtype = "float64" if config.float64 else "float32"
    return f"warp in {dtype} (in float64 checked against MuJoCo C to 1e-10)"


@contextlib.contextmanager
def matmul_precision(precision: Matmul) -> Iterator[None]:
    """Float32 matrix products at ``precision`` (:class:`.config.TrainConfig`) inside, the process's own outside."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # pyright: ignore[reportAttributeAccessIssue]
    before = [backend.fp32_precision for backend in backends]
    try:
        legacy = torch.get_float32_matmul_precision()
    except RuntimeError:  # set through these backends only, which torch then does not read by its older name
        legacy = "highest"
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(legacy)
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value
